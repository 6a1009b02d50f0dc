"""What does a client hear when the replicas of its stream are lost in turn? Scripted engines, real links."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from replica import MODEL, STEP_S, counting, running_gateway, running_replica, sample, says

from deployments.call import Call
from deployments.continuation import AVOID_S
from llama31.chat import (
    ChoiceDone,
    Completed,
    CompletionRequest,
    Delta,
    Event,
    FinishReason,
    GenerationOptions,
    ReturnChoices,
    Started,
    StopChoices,
    Usage,
)
from llama31.errors import DeadlineExceeded, StreamInterrupted
from llama31.prefix_blocks import ROUTING_BLOCK_TOKENS
from llama31.scripted_engine import Script
from llama31.tokenizer import HuggingFaceTokenizer
from tests.waiting import soon, until

TOKENS = 60
ALL = tuple(range(40, 40 + TOKENS))
PACED = Script(answer=counting, step_s=STEP_S)
DIES_AT_ONCE = Script(answer=counting, fail_at_step=0)
# Takes sequences and never steps them.
STUCK = Script(answer=counting, max_running=0)


def request(**options: object) -> CompletionRequest:
    options = {"stop": StopChoices(max_output_tokens=TOKENS), "returns": ReturnChoices(token_ids=True), **options}
    return CompletionRequest(MODEL, "text", GenerationOptions(**options))  # type: ignore[arg-type]


async def ids_of(events: AsyncGenerator[Event, None], heard: list[int] | None = None) -> tuple[tuple[int, ...], Usage]:
    """Every token id that came, in order, and the usage."""
    ids, usage = heard if heard is not None else [], None
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Delta) and event.tokens:
                ids.extend(event.tokens.ids)
            usage = event.usage if isinstance(event, Completed) else usage
    assert usage is not None
    return tuple(ids), usage


@given(st.lists(st.integers(0, TOKENS - 5), min_size=1, max_size=3))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_token_is_lost_or_repeated_whenever_replicas_die(
    chatml_tokenizer: HuggingFaceTokenizer, seams: list[int]
) -> None:
    async def look() -> None:
        scripts = [PACED] * (len(seams) + 1)
        async with running_gateway(chatml_tokenizer, *scripts, continue_within_s=5.0) as system:
            heard: list[int] = []
            answer = asyncio.ensure_future(ids_of(system.gateway.complete(request(), Call("one")), heard))
            for tokens in sorted(seams):
                await until(lambda tokens=tokens: len(heard) >= tokens)  # type: ignore[misc]
                busy = [replica for replica in system.replicas if replica.engine.state().running]
                for replica in busy[:1]:
                    await replica.kill()
                await until(lambda: answer.done() or any(r.engine.state().running for r in system.replicas))
            ids, usage = await soon(answer)
            assert ids == ALL
            assert usage.output_tokens == TOKENS

    asyncio.run(look())


async def test_an_engine_that_fails_is_replaced_at_any_step(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    for step in (0, 1, 20, TOKENS - 1):
        scripts = replace(PACED, fail_at_step=step), PACED
        before = sample("llama31_interrupted_total", model=MODEL, cause="engine_failed")
        async with running_gateway(chatml_tokenizer, *scripts, continue_within_s=5.0) as system:
            ids, usage = await soon(ids_of(system.gateway.complete(request(), Call("one"))))
            assert (ids, usage.output_tokens) == (ALL, TOKENS)
        assert sample("llama31_interrupted_total", model=MODEL, cause="engine_failed") == before + 1


async def test_every_choice_goes_on(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, replace(PACED, fail_at_step=20), PACED) as system:
        ended, ids = set(), {index: [] for index in range(3)}
        async with aclosing(system.gateway.complete(request(num_choices=3), Call("one"))) as events:
            async for event in events:
                if isinstance(event, Delta) and event.tokens:
                    ids[event.choice].extend(event.tokens.ids)
                if isinstance(event, ChoiceDone):
                    ended.add(event.choice)
        assert ended == set(ids)
        assert all(tuple(found) == ALL for found in ids.values())


async def test_half_a_character_is_completed_by_another_replica(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    halves = chatml_tokenizer.encode("é")
    assert len(halves) == 2
    scripts = Script(answer=says(*halves), step_s=60.0), Script(answer=says(*halves))
    async with running_gateway(chatml_tokenizer, *scripts, continue_within_s=5.0) as system:
        events = system.gateway.complete(request(), Call("one"))
        await soon(anext(events))
        following = asyncio.ensure_future(anext(events))
        await until(lambda: system.engine.state().output_tokens_total == 1)
        await system.replicas[0].kill()
        delta = await soon(following)
        assert isinstance(delta, Delta)
        assert delta.text == "é"
        await events.aclose()


async def test_a_replica_lost_while_its_sequences_wait(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, STUCK, PACED) as system:
        events = system.gateway.complete(request(), Call("one"))
        started = await soon(anext(events))
        assert isinstance(started, Started)
        await until(lambda: system.engine.state().waiting == 1)
        await system.replicas[0].kill()
        assert (await soon(ids_of(events)))[0] == ALL


async def test_sequences_of_a_draining_replica_move_at_once(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, PACED, PACED) as system:
        heard: list[int] = []
        answer = asyncio.ensure_future(ids_of(system.gateway.complete(request(), Call("one")), heard))
        await until(lambda: len(heard) >= 5)
        await soon(system.replicas[0].worker.drain(60.0))
        assert not answer.done(), "it was not waited for"
        assert (await soon(answer))[0] == ALL
        assert 0 < system.replicas[1].engine.state().output_tokens_total < TOKENS


async def test_the_last_replica_finishes_what_it_has_when_it_drains(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, PACED) as system:
        heard: list[int] = []
        answer = asyncio.ensure_future(ids_of(system.gateway.complete(request(), Call("one")), heard))
        await until(lambda: len(heard) >= 5)
        await soon(system.replicas[0].worker.drain(60.0))
        assert (await soon(answer))[0] == ALL


async def test_a_sequence_does_not_go_on_with_other_weights(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, PACED, PACED, digests=(6, 7)) as system:
        heard: list[int] = []
        answer = asyncio.ensure_future(ids_of(system.gateway.complete(request(), Call("one")), heard))
        await until(lambda: len(heard) >= 5)
        busy = next(replica for replica in system.replicas if replica.engine.state().running)
        await busy.kill()
        with pytest.raises(StreamInterrupted) as lost:
            await soon(answer)
        assert lost.value.replica_id == busy.replica_id
        assert 5 <= lost.value.tokens_sent < TOKENS


async def test_it_waits_for_a_replica_and_for_its_deadline(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, PACED, continue_within_s=60.0) as system:
        heard: list[int] = []
        call = Call("one", deadline_s=asyncio.get_running_loop().time() + 1.0)
        answer = asyncio.ensure_future(ids_of(system.gateway.complete(request(), call), heard))
        await until(lambda: len(heard) >= 5)
        await system.replicas[0].kill()
        with pytest.raises(DeadlineExceeded):
            await soon(answer)


async def test_what_kills_one_replica_after_the_other_is_given_up(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    scripts = DIES_AT_ONCE, DIES_AT_ONCE, DIES_AT_ONCE, PACED
    async with running_gateway(chatml_tokenizer, *scripts, continue_within_s=60.0) as system:
        with pytest.raises(StreamInterrupted, match="after 0 tokens"):
            await soon(ids_of(system.gateway.complete(request(), Call("one"))))
        assert system.replicas[3].engine.state().steps_total == 0


async def test_a_failed_replica_that_still_listens_is_not_asked_again(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    """Its process may need seconds to end: the stream waits for its successor, and is not given up."""
    async with running_gateway(chatml_tokenizer, replace(PACED, fail_at_step=20), continue_within_s=60.0) as system:
        heard: list[int] = []
        answer = asyncio.ensure_future(ids_of(system.gateway.complete(request(), Call("one")), heard))
        await until(lambda: system.fleet.ready_replicas() == 0)
        async with running_replica(PACED, "replica-2") as successor:
            await asyncio.wait([answer], timeout=2 * AVOID_S + 0.5)
            assert not answer.done()
            await system.directory.announce(successor.record)
            assert (await soon(answer))[0] == ALL


async def test_a_broken_link_refuses_nobody_who_waits(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, PACED, continue_within_s=5.0, max_running=1) as system:
        calls = [Call(f"{number}") for number in range(4)]
        answers = [asyncio.ensure_future(ids_of(system.gateway.complete(request(), call))) for call in calls]
        await until(lambda: len(system.gateway.admission) == 3 and system.engine.state().running == 1)
        await system.fleet.link("replica-1")._channel.close()
        assert {ids for ids, _ in await soon(asyncio.gather(*answers))} == {ALL}


async def test_cached_tokens_are_those_of_the_prompt(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    """Also where the second replica found what was emitted in its cache."""
    cache = {"prefix_cache_tokens": 100 * ROUTING_BLOCK_TOKENS}
    script = Script(answer=counting, step_s=STEP_S, **cache)
    prompt = tuple(40 + number % 60 for number in range(2 * ROUTING_BLOCK_TOKENS))
    asked = CompletionRequest(MODEL, prompt, GenerationOptions(stop=StopChoices(max_output_tokens=TOKENS)))
    async with running_gateway(chatml_tokenizer, replace(script, fail_at_step=20), script) as system:
        _, usage = await soon(ids_of(system.gateway.complete(asked, Call("one"))))
    assert usage.cached_prompt_tokens <= usage.prompt_tokens


async def test_nobody_to_go_on_with(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, replace(PACED, fail_at_step=20)) as system:
        with pytest.raises(StreamInterrupted, match="engine_failed") as lost:
            await soon(ids_of(system.gateway.complete(request(), Call("one"))))
        assert 0 < lost.value.tokens_sent <= 20


async def test_a_stop_text_over_the_seam_is_found(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    script = Script(answer=says(*chatml_tokenizer.encode("one two three four five")), step_s=STEP_S)
    options = {"stop": StopChoices(max_output_tokens=TOKENS, stop_sequences=("two three",))}
    for step in range(1, 5):
        async with running_gateway(chatml_tokenizer, replace(script, fail_at_step=step), script) as system:
            text, reason = "", None
            async with aclosing(system.gateway.complete(request(**options), Call("one"))) as events:
                async for event in events:
                    text += event.text if isinstance(event, Delta) else ""
                    reason = event.finish_reason if isinstance(event, ChoiceDone) else reason
            assert (text, reason) == ("one ", FinishReason.STOP_SEQUENCE)
