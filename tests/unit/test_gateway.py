"""Does a request take the whole path through real worker servers: encoded, routed, streamed, stopped, accounted?"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import pytest
from replica import (
    MODEL,
    STEP_S,
    System,
    endless,
    gateway_config,
    process_metrics,
    running_fleet,
    running_gateway,
    sample,
    says,
)

from cluster.policy import ReplicaSnapshot, RequestFeatures, Route
from deployments.answer import Answer
from deployments.call import Call
from deployments.directory import ReplicaRecord
from deployments.gateway import ServiceGateway
from deployments.ingress.many_prompts import complete_all
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
    Priority,
    ReturnChoices,
    Role,
    SamplingChoices,
    Started,
    StopChoices,
    TokenColumns,
    Usage,
)
from llama31.codec import ModelCodec
from llama31.engine import EngineOutput, EngineRequest, Limits, Sampling
from llama31.errors import (
    ContextTooLong,
    DeadlineExceeded,
    DuplicateRequest,
    InvalidRequest,
    Llama31Error,
    ModelNotFound,
    NoReadyReplica,
    Overloaded,
    StreamInterrupted,
)
from llama31.prompt import ChatmlPrompt
from llama31.scripted_engine import Script, ScriptedEngine
from llama31.tokenizer import HuggingFaceTokenizer
from tests.waiting import soon, until

SLOW = Script(answer=endless, step_s=STEP_S)
# Takes sequences and never steps them.
STUCK = Script(answer=endless, step_s=STEP_S, max_running=0)
# One token at once, the next one long after the test.
ONE_TOKEN = Script(answer=endless, step_s=60.0)
END_OF_TURN_ID, END_OF_TEXT_ID = 2, 0

_request_ids = itertools.count()


@dataclass(slots=True)
class Heard:
    """Everything that a client got."""

    events: list[Event] = field(default_factory=list)

    @property
    def started(self) -> Started:
        assert isinstance(self.events[0], Started)
        return self.events[0]

    @property
    def deltas(self) -> list[Delta]:
        return [event for event in self.events if isinstance(event, Delta)]

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(token for delta in self.deltas if delta.tokens for token in delta.tokens.ids)

    @property
    def done(self) -> ChoiceDone:
        (done,) = [event for event in self.events if isinstance(event, ChoiceDone)]
        return done

    @property
    def usage(self) -> Usage:
        assert isinstance(self.events[-1], Completed)
        return self.events[-1].usage


def call(deadline_in_s: float | None = None) -> Call:
    deadline_s = None if deadline_in_s is None else asyncio.get_running_loop().time() + deadline_in_s
    return Call(f"request-{next(_request_ids)}", deadline_s)


def completion(prompt: str | tuple[int, ...] = "text", **options: object) -> CompletionRequest:
    return CompletionRequest(MODEL, prompt, GenerationOptions(**options))  # type: ignore[arg-type]


def stop(**choices: object) -> StopChoices:
    return StopChoices(**choices)  # type: ignore[arg-type]


async def hear(events: AsyncGenerator[Event, None]) -> Heard:
    heard = Heard()
    async with aclosing(events):
        while (event := await soon(anext(events, None))) is not None:
            heard.events.append(event)
    return heard


async def complete(system: System, request: CompletionRequest | None = None, **options: object) -> Heard:
    return await hear(system.gateway.complete(request or completion(**options), call()))


async def test_what_the_engine_refuses_is_the_requests_fault(
    chatml_tokenizer: HuggingFaceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_gateway(chatml_tokenizer, answers(chatml_tokenizer, "Hello")) as system:
        with monkeypatch.context() as refusing:
            refused = EngineOutput("", TokenColumns(), refusal="the engine does not take it: look at min_p")

            def refuse(self: ScriptedEngine, request: EngineRequest) -> None:
                self._ended.append(replace(refused, request_id=request.request_id))
                self._work.set()

            refusing.setattr(ScriptedEngine, "submit", refuse)
            with pytest.raises(InvalidRequest, match="request: the engine does not take it: look at min_p"):
                await complete(system)
        assert (await complete(system)).text == "Hello", "the replica goes on"


def answers(tokenizer: HuggingFaceTokenizer, text: str, then: Sequence[int] = (END_OF_TURN_ID,)) -> Script:
    return Script(answer=says(*tokenizer.encode(text), *then))


async def test_chat_events_come_in_order(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    messages = (Message(Role.USER, "the user"),)
    async with running_gateway(chatml_tokenizer, answers(chatml_tokenizer, "Hello there")) as system:
        heard = await hear(system.gateway.chat(ChatRequest(MODEL, messages), Call("chat-1")))
        prompt = ChatmlPrompt(chatml_tokenizer).encode_dialog(messages)
        kinds = [type(event) for event in heard.events]
        assert kinds == [Started, *[Delta] * (len(kinds) - 3), ChoiceDone, Completed]
        assert heard.text == "Hello there"
        assert heard.done == ChoiceDone(0, FinishReason.END_OF_TURN)
        assert (heard.started.replica_id, heard.started.model) == ("replica-1", MODEL)
        assert (heard.started.prompt_tokens, heard.started.prompt) == (len(prompt), None)
        assert heard.started.response_id.startswith("chat-1-")
        assert system.engine.state().prompt_tokens_total == len(prompt)
        usage = heard.usage
        assert usage.prompt_tokens == len(prompt)
        assert usage.output_tokens == len(chatml_tokenizer.encode("Hello there")) + 1
        assert 0 < usage.first_token_s <= usage.total_s < 5


@pytest.mark.parametrize("prompt", ["some text", (10, 11, 12)])
async def test_completion_takes_text_or_ids(
    chatml_tokenizer: HuggingFaceTokenizer, prompt: str | tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tuple(chatml_tokenizer.encode(prompt)) if isinstance(prompt, str) else prompt
    returns = ReturnChoices(token_ids=True, prompt_token_ids=True)
    for threshold_chars in (20_000, 1):
        monkeypatch.setattr("deployments.preparation.ENCODE_IN_THREAD_CHARS", threshold_chars)
        async with running_gateway(chatml_tokenizer, Script()) as system:
            heard = await complete(system, completion(prompt, returns=returns))
            assert (heard.started.prompt, heard.ids) == (TokenColumns(ids), ids)
            assert heard.text.encode() == chatml_tokenizer.decode_bytes(ids)


@pytest.mark.parametrize(("keep", "text"), [(False, "one "), (True, "one STOP")])
async def test_a_stop_string_cuts_and_cancels(chatml_tokenizer: HuggingFaceTokenizer, keep: bool, text: str) -> None:
    ids = (*chatml_tokenizer.encode("one STOP and"), *[65] * 100_000)
    async with running_gateway(chatml_tokenizer, Script(answer=says(*ids), step_s=STEP_S)) as system:
        heard = await complete(system, stop=stop(stop_sequences=("never", "STOP"), keep_stop_text=keep))
        assert (heard.text, heard.done) == (text, ChoiceDone(0, FinishReason.STOP_SEQUENCE, "STOP"))
        assert heard.usage.output_tokens == len(chatml_tokenizer.encode("one STOP"))
        await until(lambda: system.engine.state().running == 0)
        assert system.engine.state().output_tokens_total < 64


async def test_a_beginning_of_a_stop_string_is_let_go_at_the_end(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, answers(chatml_tokenizer, "one STO")) as system:
        heard = await complete(system, stop=stop(stop_sequences=("STOP",)))
        assert (heard.text, heard.done.finish_reason) == ("one STO", FinishReason.END_OF_TURN)


ORDINARY_ID = 77


@pytest.mark.parametrize(
    ("last_id", "stop_ids", "reason"),
    [
        (ORDINARY_ID, (ORDINARY_ID,), FinishReason.STOP_SEQUENCE),
        (END_OF_TURN_ID, (ORDINARY_ID,), FinishReason.END_OF_TURN),
        (END_OF_TEXT_ID, (), FinishReason.END_OF_TURN),
        # What ends the model's turn anyway stays the end of the turn.
        (END_OF_TURN_ID, (END_OF_TURN_ID,), FinishReason.END_OF_TURN),
    ],
)
async def test_whose_stop_token_it_was(
    chatml_tokenizer: HuggingFaceTokenizer, last_id: int, stop_ids: tuple[int, ...], reason: FinishReason
) -> None:
    async with running_gateway(chatml_tokenizer, Script(answer=says(70, 71, last_id))) as system:
        heard = await complete(system, stop=stop(stop_token_ids=stop_ids))
        assert (heard.done.finish_reason, heard.usage.output_tokens) == (reason, 3)


@pytest.mark.parametrize(
    ("prompt_tokens", "wanted", "output_tokens", "reason"),
    [
        (10, 5, 5, FinishReason.MAX_OUTPUT_TOKENS),
        # The configured default, 64.
        (10, None, 64, FinishReason.MAX_OUTPUT_TOKENS),
        (90, None, 10, FinishReason.CONTEXT_FULL),
        (99, None, 1, FinishReason.CONTEXT_FULL),
        (90, 10, 10, FinishReason.MAX_OUTPUT_TOKENS),
    ],
)
async def test_length_limits(
    chatml_tokenizer: HuggingFaceTokenizer,
    prompt_tokens: int,
    wanted: int | None,
    output_tokens: int,
    reason: FinishReason,
) -> None:
    async with running_gateway(chatml_tokenizer, Script(answer=endless), max_model_tokens=100) as system:
        heard = await complete(system, completion((10,) * prompt_tokens, stop=stop(max_output_tokens=wanted)))
        assert (heard.usage.output_tokens, heard.done.finish_reason) == (output_tokens, reason)


REFUSALS: dict[str, tuple[CompletionRequest, Llama31Error]] = {
    "no room": (completion((10,) * 100), ContextTooLong(100, 1, 100)),
    "too long a prompt": (completion((10,) * 500), ContextTooLong(500, 1, 100)),
    "too much wanted": (completion((10,) * 90, stop=stop(max_output_tokens=11)), ContextTooLong(90, 11, 100)),
    "unknown model": (replace(completion(), model="other"), ModelNotFound("other", (MODEL,))),
    "prompt id": (completion((1, 49_152)), InvalidRequest("spec.tokens.ids", "")),
    "negative id": (completion((-1,)), InvalidRequest("spec.tokens.ids", "")),
    "stop id": (completion(stop=stop(stop_token_ids=(49_152,))), InvalidRequest("spec.stop.stop_token_ids", "")),
    "bias id": (
        completion(sampling=SamplingChoices(logit_bias={99_999: 1.0})),
        InvalidRequest("spec.sampling.logit_bias", ""),
    ),
    "top_k": (completion(sampling=SamplingChoices(top_k=49_153)), InvalidRequest("spec.sampling.top_k", "")),
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_refused_before_any_replica_hears_of_it(chatml_tokenizer: HuggingFaceTokenizer, name: str) -> None:
    request, expected = REFUSALS[name]
    async with running_gateway(chatml_tokenizer, Script(), max_model_tokens=100) as system:
        with pytest.raises(type(expected)) as caught:
            await complete(system, request)
        if isinstance(expected, InvalidRequest):
            assert isinstance(caught.value, InvalidRequest)
            assert caught.value.field == expected.field
            assert "49152" in caught.value.message
        else:
            assert caught.value.args == expected.args
        assert system.engine.state().steps_total == 0


async def test_a_duplicate_request_id_is_refused_while_in_flight(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, SLOW) as system:
        first = system.gateway.complete(completion(), Call("same"))
        await soon(anext(first))
        with pytest.raises(DuplicateRequest, match="same"):
            await hear(system.gateway.complete(completion(), Call("same")))
        await first.aclose()
        heard = await hear(system.gateway.complete(completion(stop=stop(max_output_tokens=2)), Call("same")))
        assert heard.usage.output_tokens == 2


@pytest.mark.parametrize(("script", "stage"), [(SLOW, "decode"), (STUCK, "prefill")])
async def test_the_deadline_cancels(chatml_tokenizer: HuggingFaceTokenizer, script: Script, stage: str) -> None:
    async with running_gateway(chatml_tokenizer, script) as system:
        with pytest.raises(DeadlineExceeded) as caught:
            await hear(system.gateway.complete(completion(), call(deadline_in_s=0.05)))
        assert caught.value.stage == stage
        await until(lambda: system.engine.state().running == system.engine.state().waiting == 0)


async def test_a_deadline_that_no_wire_can_carry_is_no_deadline(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, answers(chatml_tokenizer, "Hello")) as system:
        assert (await hear(system.gateway.complete(completion(), call(deadline_in_s=3.6e11)))).text == "Hello"


async def test_more_requests_than_fit_are_refused_at_once(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, SLOW, max_requests=1) as system:
        first = system.gateway.complete(completion(), call())
        await soon(anext(first))
        refused = {"model": MODEL, "method": "complete", "outcome": "OVERLOADED"}
        before = sample("llama31_requests_total", **refused)
        with pytest.raises(Overloaded, match="overloaded") as caught:
            await complete(system)
        assert caught.value.retry_after_s > 0
        assert sample("llama31_requests_total", **refused) == before + 1
        await first.aclose()
        await complete(system, stop=stop(max_output_tokens=1))


async def test_the_soft_time_limit_ends_with_what_there_is(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, SLOW) as system:
        heard = await complete(system, stop=stop(time_limit_s=0.05))
        assert heard.done.finish_reason is FinishReason.TIME_LIMIT
        assert 0 < heard.usage.output_tokens < 64
        assert len(heard.text) == heard.usage.output_tokens
        await until(lambda: system.engine.state().running == 0)


@pytest.mark.parametrize("after", [Started, Delta])
async def test_closing_early_cancels_in_the_engine(chatml_tokenizer: HuggingFaceTokenizer, after: type[Event]) -> None:
    async with running_gateway(chatml_tokenizer, SLOW) as system:
        events = system.gateway.complete(completion(stop=stop(max_output_tokens=400)), call())
        while not isinstance(await soon(anext(events)), after):
            pass
        await until(lambda: system.engine.state().running == 1)
        await events.aclose()
        await until(lambda: system.engine.state().running == 0)
        assert system.engine.state().kv_tokens_used == 0
        assert system.fleet.snapshots()[0].outstanding_tokens == 0


async def test_no_replica(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, hold_s=0.0) as system:
        with pytest.raises(NoReadyReplica) as caught:
            await complete(system)
        assert caught.value.args == (MODEL, "unavailable")
        await system.directory.announce(ReplicaRecord("replica-1", 1, MODEL, "tp1", "warming up"))
        await until(lambda: system.fleet.records())
        with pytest.raises(NoReadyReplica) as caught:
            await complete(system)
        assert caught.value.args == (MODEL, "loading")
        assert system.gateway.models()[0].state == "loading"


async def test_model_status_follows_the_fleet(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, SLOW, SLOW) as system:
        (status,) = system.gateway.models()
        assert (status.name, status.state, status.ready_replicas) == (MODEL, "ready", 2)
        system.fleet.want(3)
        assert system.gateway.models()[0].state == "degraded", "Serve wants more than there are"
        system.fleet.want(2)
        assert system.gateway.models()[0].state == "ready"
        assert (status.context_tokens, status.tensor_parallel, status.pipeline_parallel) == (512, 1, 1)
        version = system.gateway.models_version
        await system.replicas[0].kill()
        assert await soon(system.gateway.wait_models_changed(version)) > version
        await until(lambda: system.gateway.models()[0].state == "degraded")
        await system.replicas[1].kill()
        await until(lambda: system.gateway.models()[0].state == "loading")
        for replica in system.replicas:
            await system.directory.withdraw(replica.replica_id)
        await until(lambda: system.gateway.models()[0].state == "unavailable")


@pytest.mark.parametrize("text", ["the user said", "é ü 漢字 🦙", "a\nb STO c STOP"])
async def test_columns_belong_to_the_released_text(chatml_tokenizer: HuggingFaceTokenizer, text: str) -> None:
    ids = (*chatml_tokenizer.encode(text), END_OF_TURN_ID)
    script = Script(answer=says(*ids), step_s=0.001)
    async with running_gateway(chatml_tokenizer, script) as system:
        heard = await complete(
            system,
            returns=ReturnChoices(token_ids=True, logprobs=True, top_logprobs=0),
            stop=stop(max_output_tokens=200),
        )
        assert (heard.text, heard.ids) == (text, ids)
        shown_text, shown_ids = "", []
        for delta in heard.deltas:
            shown_text += delta.text
            if delta.tokens is not None:
                shown_ids.extend(delta.tokens.ids)
                assert delta.tokens.logprobs == (0.0,) * len(delta.tokens.ids)
            ordinary = [token for token in shown_ids if token not in chatml_tokenizer.special_ids]
            assert chatml_tokenizer.decode_bytes(ordinary).decode() == shown_text
        assert heard.usage.output_tokens == len(ids)


async def test_the_fleet_with_and_without_load(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, Script()) as system:
        await system.directory.announce(ReplicaRecord("replica-2", 1, "m", "tp1", "loading", "half way"))
        await until(lambda: len(system.gateway.fleet()) == 2)
        linked, loading = sorted(system.gateway.fleet(), key=lambda replica: replica.replica_id)
        assert linked.load is not None
        known = replace(system.fleet.snapshots()[0], age_s=linked.load.age_s)
        assert (linked.replica_id, linked.load) == ("replica-1", known)
        assert (loading.phase, loading.detail, loading.load) == ("loading", "half way", None)


@pytest.mark.parametrize(
    ("returns", "has_text", "has_ids"),
    [
        (ReturnChoices(), True, False),
        (ReturnChoices(token_ids=True), True, True),
        (ReturnChoices(text=False, token_ids=True), False, True),
        (ReturnChoices(text=False), False, False),
    ],
)
async def test_only_what_was_asked_for_is_returned(
    chatml_tokenizer: HuggingFaceTokenizer, returns: ReturnChoices, has_text: bool, has_ids: bool
) -> None:
    async with running_gateway(chatml_tokenizer, answers(chatml_tokenizer, "Hello")) as system:
        heard = await complete(system, returns=returns)
        assert (heard.text, bool(heard.ids)) == ("Hello" * has_text, has_ids)
        assert bool(heard.deltas) == (has_text or has_ids)
        assert heard.usage.output_tokens == len(chatml_tokenizer.encode("Hello")) + 1


DEFAULT_SAMPLING = Sampling(temperature=0.2, top_p=0.9)
DEFAULT_LIMITS = Limits(64, 0, (2, 0))
CHOSEN = SamplingChoices(0.0, 0.0, 0, 0.0, 0.0, 0.0, 0.0, 0, {7: -1.0})
ALL_ZERO = Sampling(0.0, 0.0, 0, 0.0, 0.0, 0.0, 0.0, 0, {7: -1.0})

RESOLVED: dict[str, tuple[CompletionRequest, dict[str, object]]] = {
    "defaults": (completion(), {"sampling": DEFAULT_SAMPLING, "limits": DEFAULT_LIMITS, "top_logprobs": None}),
    "zero is a choice": (completion(sampling=CHOSEN), {"sampling": ALL_ZERO}),
    "limits": (
        completion(stop=stop(max_output_tokens=9, min_output_tokens=4, stop_token_ids=(77,))),
        {"limits": Limits(9, 4, (2, 0, 77))},
    ),
    "a minimum above the limit": (completion(stop=stop(min_output_tokens=400)), {"limits": Limits(64, 64, (2, 0))}),
    "ignore_eos": (completion(stop=stop(ignore_eos=True)), {"limits": Limits(64, 0, (), ignore_eos=True)}),
    "logprobs": (completion(returns=ReturnChoices(logprobs=True)), {"top_logprobs": 0}),
    "top logprobs": (completion(returns=ReturnChoices(logprobs=True, top_logprobs=5)), {"top_logprobs": 5}),
    "priority": (completion(priority=Priority.BATCH), {"priority": 2}),
}


@pytest.mark.parametrize("name", RESOLVED)
async def test_defaults_are_resolved_before_the_engine(chatml_tokenizer: HuggingFaceTokenizer, name: str) -> None:
    request, expected = RESOLVED[name]
    seen: list[EngineRequest] = []

    def answer(engine_request: EngineRequest) -> Sequence[int]:
        seen.append(engine_request)
        return (END_OF_TURN_ID,)

    async with running_gateway(chatml_tokenizer, Script(answer=answer)) as system:
        heard = await complete(system, request)
    (arrived,) = seen
    assert heard.started.seed == arrived.sampling.seed
    if "sampling" not in expected or expected["sampling"] is DEFAULT_SAMPLING:
        arrived = replace(arrived, sampling=replace(arrived.sampling, seed=0))
    # Floats cross the wire in single precision.
    rounded = replace(
        arrived.sampling,
        temperature=round(arrived.sampling.temperature, 6),
        top_p=round(arrived.sampling.top_p, 6),
    )
    arrived = replace(arrived, sampling=rounded)
    assert {key: getattr(arrived, key) for key in expected} == expected


async def test_the_seed_is_told(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, Script()) as system:
        chosen = await complete(system, sampling=SamplingChoices(seed=2**63 - 1))
        drawn = {(await complete(system)).started.seed for _ in range(4)}
    assert chosen.started.seed == 2**63 - 1
    assert len(drawn) == 4
    assert all(0 <= seed < 2**63 for seed in drawn)


async def test_text_and_ids_both_ways(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer) as system:
        ids = system.gateway.tokenize(MODEL, "the <|im_end|>", add_special_tokens=True)
        assert ids == chatml_tokenizer.encode("the <|im_end|>")
        assert system.gateway.detokenize(MODEL, [*ids, 2]) == b"the <|im_end|><|im_end|>"
        for refused in (
            lambda: system.gateway.tokenize("other", "x", False),
            lambda: system.gateway.detokenize("other", []),
        ):
            with pytest.raises(ModelNotFound):
                refused()
        for token in (-1, 49_152, 2**31):
            with pytest.raises(InvalidRequest):
                system.gateway.detokenize(MODEL, [token])


async def close_after_start(system: System) -> None:
    events = system.gateway.complete(completion(), call())
    await anext(events)
    await events.aclose()


async def miss_deadline(system: System) -> None:
    await hear(system.gateway.complete(completion(), call(deadline_in_s=0.02)))


async def answer_fully(system: System) -> None:
    await complete(system, stop=stop(max_output_tokens=3))


async def ask_too_much(system: System) -> None:
    await complete(system, completion((10,) * 600))


OUTCOMES: list[tuple[Script, Callable[[System], object], str, int]] = [
    (Script(answer=says(70, 71, 2)), answer_fully, "END_OF_TURN", 3),
    (Script(answer=endless), answer_fully, "MAX_OUTPUT_TOKENS", 3),
    (SLOW, close_after_start, "CANCELLED", 0),
    (STUCK, miss_deadline, DeadlineExceeded.reason, 0),
    (SLOW, ask_too_much, ContextTooLong.reason, 0),
    (Script(fail_at_step=0), answer_fully, StreamInterrupted.reason, 0),
]


@pytest.mark.parametrize(("script", "act", "outcome", "tokens"), OUTCOMES, ids=[row[2] for row in OUTCOMES])
async def test_every_end_is_counted_once(
    chatml_tokenizer: HuggingFaceTokenizer, script: Script, act: Callable[[System], object], outcome: str, tokens: int
) -> None:
    def counted() -> dict[str, float]:
        return {
            name: sample("llama31_requests_total", model=MODEL, method="complete", outcome=name)
            for name in {row[2] for row in OUTCOMES}
        }

    async with running_gateway(chatml_tokenizer, script) as system:
        before, tokens_before = counted(), sample("llama31_output_tokens_total", model=MODEL)
        try:
            await act(system)  # type: ignore[misc]
        except Llama31Error as error:
            assert error.reason == outcome  # noqa: PT017  (raised only in some rows)
        after = counted()
        assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {outcome: 1}
        assert sample("llama31_output_tokens_total", model=MODEL) - tokens_before == tokens
        assert sample("llama31_streams_open", model=MODEL) == 0


async def test_times_are_observed(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    names = ("llama31_ttft_seconds_count", "llama31_prompt_tokens_total")
    async with running_gateway(chatml_tokenizer, SLOW) as system:
        before = [sample(name, model=MODEL) for name in names]
        gaps_before = sample("llama31_inter_token_seconds_count", model=MODEL)
        await complete(system, completion((10, 11, 12), stop=stop(max_output_tokens=4)))
        assert [sample(name, model=MODEL) - old for name, old in zip(names, before, strict=True)] == [1, 3]
        assert 1 <= sample("llama31_inter_token_seconds_count", model=MODEL) - gaps_before <= 3


class BrokenRouter:
    """A bug in a policy."""

    def route(self, request: RequestFeatures, replicas: Sequence[ReplicaSnapshot], *_: object) -> Route:
        raise ZeroDivisionError


async def test_a_bug_is_counted_as_one(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    codec = ModelCodec(chatml_tokenizer, ChatmlPrompt(chatml_tokenizer))
    async with running_fleet(Script()) as (fleet, _, _):
        gateway = ServiceGateway(gateway_config(), codec, fleet, BrokenRouter(), process_metrics())
        labels = {"model": MODEL, "method": "complete", "outcome": "INTERNAL"}
        before = sample("llama31_requests_total", **labels)
        with pytest.raises(ZeroDivisionError):
            await hear(gateway.complete(completion(), call()))
        assert sample("llama31_requests_total", **labels) == before + 1


async def test_prompts_of_one_request_need_no_room_at_the_same_time(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    """The answer begins when all are admitted: those that are done must not keep the room from the others."""
    async with running_gateway(chatml_tokenizer, Script(step_s=0.001), max_running=2, hold_s=5.0) as system:
        requests = [completion(tuple(range(100 + i, 110 + i))) for i in range(8)]
        heard = await hear(complete_all(system.gateway, system.gateway.complete, requests, call()))
        assert heard.usage.prompt_tokens == 80
        assert len([event for event in heard.events if isinstance(event, ChoiceDone)]) == 8


async def test_many_streams_at_once(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, Script(step_s=0.001), Script(step_s=0.001)) as system:
        prompts = [tuple(range(100 + i, 120 + i)) for i in range(64)]
        returns = ReturnChoices(token_ids=True)
        all_heard = await asyncio.gather(*(complete(system, completion(p, returns=returns)) for p in prompts))
        assert [heard.ids for heard in all_heard] == prompts
        assert {heard.started.replica_id for heard in all_heard} == {"replica-1", "replica-2"}


def test_top_logprobs_are_split_with_their_tokens(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    """`top_k` entries a token stay with it while it waits for the rest of its character."""
    first, second = chatml_tokenizer.encode("é")
    codec = ModelCodec(chatml_tokenizer, ChatmlPrompt(chatml_tokenizer))
    options = GenerationOptions(returns=ReturnChoices(logprobs=True, top_logprobs=2))
    answer = Answer(codec, options, (2, 0), is_limited_by_context=False)
    columns = TokenColumns((70, first), (-0.1, -0.2), 2, (1, 2, 3, 4), (-1.0, -2.0, -3.0, -4.0))
    (delta,) = answer.add(EngineOutput("a", columns))
    assert isinstance(delta, Delta)
    assert delta.tokens == TokenColumns((70,), (-0.1,), 2, (1, 2), (-1.0, -2.0))
    rest = TokenColumns((second,), (-0.3,), 2, (5, 6), (-5.0, -6.0))
    (delta,) = answer.add(EngineOutput("a", rest))
    assert isinstance(delta, Delta)
    assert delta.text == "é"
    assert delta.tokens == TokenColumns((first, second), (-0.2, -0.3), 2, (3, 4, 5, 6), (-3.0, -4.0, -5.0, -6.0))
    assert list(answer.end(FinishReason.TIME_LIMIT)) == [ChoiceDone(0, FinishReason.TIME_LIMIT)]
    assert (answer.is_done, answer.output_tokens) == (True, 3)


def test_accounting_comes_from_the_first_and_the_last_output(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    codec = ModelCodec(chatml_tokenizer, ChatmlPrompt(chatml_tokenizer))
    answer = Answer(codec, GenerationOptions(), (2, 0), is_limited_by_context=False)
    assert answer.usage(5, 1.0, 2.0) == Usage(5, 0, 0, 0.0, 0.0, 0.0, 1.0)
    outputs = (
        EngineOutput("a", TokenColumns((70,)), None, 3, 0.25, 0.5),
        EngineOutput("a", TokenColumns((71,))),
        EngineOutput("a", TokenColumns((2,)), FinishReason.END_OF_TURN, 4, 0.25, 0.75),
    )
    for output in outputs[:2]:
        list(answer.add(output))
    assert answer.usage(5, 1.0, 2.0) == Usage(5, 3, 2, 0.25, 0.5, 0.0, 1.0)
    list(answer.add(outputs[2]))
    answer.first_token_s = 1.5
    assert answer.usage(5, 1.0, 2.0) == Usage(5, 4, 3, 0.25, 0.75, 0.5, 1.0)
