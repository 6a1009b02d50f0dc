"""Does a request come through the gateway right: events, limits, stops, losses, refusals, counts?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from replica import LIMIT_S, MODEL, STEP_S, System, endless, running_gateway, sample, says, soon, until

from deployments.call import Call
from llama31.chat import (
    ChatRequest,
    ChoiceDone,
    Completed,
    CompletionRequest,
    Delta,
    Event,
    FinishReason,
    GenerationOptions,
    Message,
    ReturnChoices,
    Role,
    SamplingChoices,
    Started,
    StopChoices,
)
from llama31.engine import EngineRequest
from llama31.errors import (
    ContextTooLong,
    DeadlineExceeded,
    DuplicateRequest,
    InvalidRequest,
    Llama31Error,
    ModelNotFound,
    NoReadyReplica,
    StreamInterrupted,
)
from llama31.scripted_engine import Script
from llama31.tokenizer import HuggingFaceTokenizer

SLOW = Script(answer=endless, step_s=STEP_S)
PROMPT = (10, 11, 12)
CALLER_STOP = 77
CONTEXT_TOKENS = 512


def completion(prompt: str | tuple[int, ...] = PROMPT, model: str = MODEL, **parts: Any) -> CompletionRequest:
    """A request; `parts` are fields of GenerationOptions."""
    return CompletionRequest(model, prompt, GenerationOptions(**parts))


async def answer(system: System, request: CompletionRequest, call: Call | None = None) -> list[Event]:
    """Every event of a completion."""
    return await rest_of(system.gateway.complete(request, call or Call("request-1")))


async def rest_of(events: AsyncIterator[Event]) -> list[Event]:
    """What an iterator still has."""

    async def read() -> list[Event]:
        return [event async for event in events]

    return await soon(read(), 4 * LIMIT_S)


def text_of(events: Sequence[Event]) -> str:
    """What a reader would see."""
    return "".join(event.text for event in events if isinstance(event, Delta))


def done_of(events: Sequence[Event]) -> ChoiceDone:
    """The end of the only choice."""
    (done,) = (event for event in events if isinstance(event, ChoiceDone))
    return done


async def until_idle(system: System) -> None:
    """Waits until no engine holds a sequence."""
    await until(lambda: all(r.engine.state().running + r.engine.state().waiting == 0 for r in system.replicas))


async def test_a_chat_is_started_told_ended_and_accounted(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    ids = chatml_tokenizer.encode("the user said")
    request = ChatRequest(MODEL, (Message(Role.SYSTEM, "is a system"), Message(Role.USER, "text")))
    counted = sample("llama31_requests_total", model=MODEL, method="chat", outcome="END_OF_TURN")
    async with running_gateway(chatml_tokenizer, Script(answer=says(*ids))) as system:
        events = [event async for event in system.gateway.chat(request, Call("chat-1"))]
        started, *deltas, done, completed = events
        assert isinstance(started, Started)
        assert (started.model, started.replica_id, started.prompt_token_ids) == (MODEL, "replica-1", ())
        assert started.response_id.startswith("chat-1-")
        assert started.prompt_tokens == system.engine.state().prompt_tokens_total
        assert all(isinstance(delta, Delta) for delta in deltas)
        assert text_of(events) == "the user said"
        assert done == ChoiceDone(0, FinishReason.END_OF_TURN)
        assert isinstance(completed, Completed)
        usage = completed.usage
        assert (usage.prompt_tokens, usage.output_tokens) == (started.prompt_tokens, len(ids))
        assert 0 < usage.first_token_s <= usage.total_s
    assert sample("llama31_requests_total", model=MODEL, method="chat", outcome="END_OF_TURN") == counted + 1
    assert sample("llama31_streams_open", model=MODEL) == 0


@pytest.mark.parametrize(
    ("stop", "script", "reason", "output_tokens"),
    [
        pytest.param(StopChoices(), says(20, 21), FinishReason.END_OF_TURN, 2, id="the model's end"),
        pytest.param(StopChoices(3), endless, FinishReason.MAX_OUTPUT_TOKENS, 3, id="the caller's limit"),
        pytest.param(StopChoices(), endless, FinishReason.MAX_OUTPUT_TOKENS, 64, id="the service's limit"),
        pytest.param(
            StopChoices(stop_token_ids=(CALLER_STOP,)), says(20, CALLER_STOP), FinishReason.STOP_SEQUENCE, 2, id="stop"
        ),
        # 2 ends a turn of this model whoever else names it.
        pytest.param(StopChoices(stop_token_ids=(2,)), says(20, 2), FinishReason.END_OF_TURN, 2, id="the model's stop"),
    ],
)
async def test_each_end_has_its_reason(
    chatml_tokenizer: HuggingFaceTokenizer, stop: StopChoices, script: Any, reason: FinishReason, output_tokens: int
) -> None:
    async with running_gateway(chatml_tokenizer, Script(answer=script)) as system:
        events = await answer(system, completion(stop=stop))
        assert done_of(events).finish_reason is reason
        completed = events[-1]
        assert isinstance(completed, Completed)
        assert completed.usage.output_tokens == output_tokens


async def test_an_answer_that_meets_the_context_says_so(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, Script(answer=endless)) as system:
        events = await answer(system, completion((10,) * (CONTEXT_TOKENS - 5)))
        assert done_of(events).finish_reason is FinishReason.CONTEXT_FULL
        completed = events[-1]
        assert isinstance(completed, Completed)
        assert completed.usage.output_tokens == 5


@pytest.mark.parametrize(("keep", "text"), [(False, "the user "), (True, "the user said")])
async def test_a_stop_string_cuts_the_text_and_ends_the_sequence(
    chatml_tokenizer: HuggingFaceTokenizer, keep: bool, text: str
) -> None:
    ids = chatml_tokenizer.encode("the user said" + " that" * 2000)
    async with running_gateway(chatml_tokenizer, Script(answer=says(*ids), step_s=STEP_S)) as system:
        stop = StopChoices(400, stop_sequences=("said",), keep_stop_text=keep)
        events = await answer(system, completion(stop=stop))
        assert text_of(events) == text
        assert done_of(events) == ChoiceDone(0, FinishReason.STOP_SEQUENCE, "said")
        await until_idle(system)
        assert system.engine.state().output_tokens_total < 400


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        pytest.param(completion(model="other"), ModelNotFound, id="unknown model"),
        pytest.param(completion((10, 49152)), InvalidRequest, id="prompt id too large"),
        pytest.param(completion((-1,)), InvalidRequest, id="negative prompt id"),
        pytest.param(completion(stop=StopChoices(stop_token_ids=(49152,))), InvalidRequest, id="stop id"),
        pytest.param(completion(sampling=SamplingChoices(logit_bias={49152: 1.0})), InvalidRequest, id="bias id"),
        pytest.param(completion((10,) * CONTEXT_TOKENS), ContextTooLong, id="prompt fills the context"),
        pytest.param(completion(stop=StopChoices(CONTEXT_TOKENS - 2)), ContextTooLong, id="output does not fit"),
    ],
)
async def test_what_cannot_be_served_is_refused_before_the_engine(
    chatml_tokenizer: HuggingFaceTokenizer, request_: CompletionRequest, error: type[Llama31Error]
) -> None:
    async with running_gateway(chatml_tokenizer, Script()) as system:
        with pytest.raises(error):
            await answer(system, request_)
        assert system.engine.state().steps_total == 0
        assert sample("llama31_streams_open", model=MODEL) == 0


async def test_the_largest_output_that_fits_is_admitted(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, Script()) as system:
        events = await answer(system, completion(stop=StopChoices(CONTEXT_TOKENS - len(PROMPT))))
        assert done_of(events).finish_reason is FinishReason.END_OF_TURN


async def test_a_request_id_is_taken_while_in_flight_only(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, SLOW) as system:
        first = system.gateway.complete(completion(), Call("same"))
        assert isinstance(await soon(anext(first)), Started)
        with pytest.raises(DuplicateRequest):
            await answer(system, completion(), Call("same"))
        await first.aclose()
        events = await answer(system, completion(stop=StopChoices(2)), Call("same"))
        assert isinstance(events[-1], Completed)


async def test_a_deadline_ends_the_sequence(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    counted = sample("llama31_requests_total", model=MODEL, method="complete", outcome="DEADLINE_EXCEEDED")
    async with running_gateway(chatml_tokenizer, SLOW) as system:
        deadline_s = asyncio.get_running_loop().time() + 0.2
        with pytest.raises(DeadlineExceeded):
            await answer(system, completion(stop=StopChoices(500)), Call("late", deadline_s))
        await until_idle(system)
    assert sample("llama31_requests_total", model=MODEL, method="complete", outcome="DEADLINE_EXCEEDED") == counted + 1


async def test_a_time_limit_ends_softly(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, SLOW) as system:
        events = await answer(system, completion(stop=StopChoices(500, time_limit_s=0.2)))
        assert done_of(events).finish_reason is FinishReason.TIME_LIMIT
        assert isinstance(events[-1], Completed)
        await until_idle(system)


async def test_closing_the_iterator_ends_the_sequence(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    counted = sample("llama31_requests_total", model=MODEL, method="complete", outcome="CANCELLED")
    async with running_gateway(chatml_tokenizer, SLOW) as system:
        events = system.gateway.complete(completion(stop=StopChoices(500)), Call("gone"))
        assert isinstance(await soon(anext(events)), Started)
        assert isinstance(await soon(anext(events)), Delta)
        await events.aclose()
        await until_idle(system)
    assert sample("llama31_requests_total", model=MODEL, method="complete", outcome="CANCELLED") == counted + 1


async def test_a_replica_lost_before_the_first_token_is_replaced(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    silent = Script(answer=endless, fail_at_step=0)
    async with running_gateway(chatml_tokenizer, silent, Script()) as system:
        events = await answer(system, completion())
        started = events[0]
        assert isinstance(started, Started)
        assert started.replica_id == "replica-1"
        assert sum(isinstance(event, Started) for event in events) == 1
        assert done_of(events).finish_reason is FinishReason.END_OF_TURN
        assert system.replicas[1].engine.state().output_tokens_total == len(PROMPT)


async def test_a_second_loss_is_told(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    silent = Script(answer=endless, fail_at_step=0)
    async with running_gateway(chatml_tokenizer, silent, silent) as system:
        with pytest.raises(StreamInterrupted) as caught:
            await answer(system, completion())
        assert (caught.value.replica_id, caught.value.tokens_sent) == ("replica-2", 0)


async def test_a_replica_lost_after_tokens_is_told_with_their_count(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    # Late enough that the first token has long been read: one that was not is replaced.
    dying = Script(answer=endless, step_s=STEP_S, fail_at_step=300)
    async with running_gateway(chatml_tokenizer, dying, Script()) as system:
        with pytest.raises(StreamInterrupted) as caught:
            await answer(system, completion())
        assert caught.value.replica_id == "replica-1"
        assert 0 < caught.value.tokens_sent <= 300
        assert system.replicas[1].engine.state().steps_total == 0


async def test_a_connection_lost_after_tokens_is_told(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, SLOW) as system:
        events = system.gateway.complete(completion(stop=StopChoices(500)), Call("cut"))
        assert isinstance(await soon(anext(events)), Started)
        assert isinstance(await soon(anext(events)), Delta)
        await system.replicas[0].kill()
        with pytest.raises(StreamInterrupted) as caught:
            await rest_of(events)
        assert caught.value.tokens_sent > 0


async def test_without_a_replica_the_model_is_unavailable(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer) as system:
        with pytest.raises(NoReadyReplica) as caught:
            await answer(system, completion())
        assert caught.value.phase == "unavailable"
        (status,) = system.gateway.models()
        assert (status.state, status.ready_replicas) == ("unavailable", 0)


async def test_columns_belong_to_the_text_they_come_with(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    ids = chatml_tokenizer.encode("that é said")
    returns = ReturnChoices(token_ids=True, logprobs=True, prompt_token_ids=True)
    async with running_gateway(chatml_tokenizer, Script(answer=says(*ids), step_s=STEP_S)) as system:
        events = await answer(system, completion(returns=returns))
        assert isinstance(events[0], Started)
        assert events[0].prompt_token_ids == PROMPT
        told: list[int] = []
        for event in events:
            if isinstance(event, Delta):
                assert event.tokens is not None
                assert chatml_tokenizer.decode_bytes(event.tokens.ids).decode() == event.text
                assert len(event.tokens.logprobs) == len(event.tokens.ids)
                told.extend(event.tokens.ids)
        assert told == ids
        assert text_of(events) == "that é said"


@pytest.mark.parametrize(
    ("chosen", "temperature", "top_p"),
    [
        pytest.param(SamplingChoices(), 0.2, 0.9, id="the model's defaults"),
        pytest.param(SamplingChoices(temperature=0.0, top_p=0.5, seed=7), 0.0, 0.5, id="zero is a choice"),
    ],
)
async def test_the_engine_gets_explicit_values_and_the_seed_is_told(
    chatml_tokenizer: HuggingFaceTokenizer, chosen: SamplingChoices, temperature: float, top_p: float
) -> None:
    seen: list[EngineRequest] = []

    def note(request: EngineRequest) -> Sequence[int]:
        seen.append(request)
        return (20,)

    async with running_gateway(chatml_tokenizer, Script(answer=note)) as system:
        events = await answer(system, completion(sampling=chosen))
        sampling = seen[0].sampling
        # Floats cross the wire in single precision.
        assert sampling.temperature == pytest.approx(temperature, abs=1e-6)
        assert sampling.top_p == pytest.approx(top_p, abs=1e-6)
        assert isinstance(events[0], Started)
        assert events[0].seed == sampling.seed
        assert chosen.seed in (None, sampling.seed)


async def test_text_and_ids_are_translated_for_the_served_model_only(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, Script()) as system:
        ids = system.gateway.tokenize(MODEL, "the user", add_special_tokens=False)
        assert system.gateway.detokenize(MODEL, ids) == b"the user"
        with pytest.raises(ModelNotFound):
            system.gateway.tokenize("other", "the user", add_special_tokens=False)
        with pytest.raises(InvalidRequest):
            system.gateway.detokenize(MODEL, [49152])
        (status,) = system.gateway.models()
        assert (status.state, status.ready_replicas, status.context_tokens) == ("ready", 1, CONTEXT_TOKENS)
