"""How do the answers to several prompts of one request become one answer?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from deployments.call import Call, EventStream, Gateway
from deployments.merged import merged
from llama31.chat import ChoiceDone, Completed, CompletionRequest, Delta, Event, Started, Usage, sum_resources

# `Gateway.complete`, or what adds to it.
Complete = Callable[[CompletionRequest, Call], EventStream]


async def complete_all(
    gateway: Gateway, complete: Complete, requests: Sequence[CompletionRequest], call: Call
) -> AsyncGenerator[Event, None]:
    """The events of all prompts as one sequence: choice j of prompt i has number i * n + j.

    Begins when every prompt is admitted, so that a refusal of any of them is still a status. The first
    failure ends all; so does closing.
    """
    if len(requests) == 1:
        async with aclosing(complete(requests[0], call)) as events:
            async for event in events:
                yield event
        return
    async with (
        gateway.hold(call, len(requests)) as parts,
        aclosing(_side_by_side(complete, requests, parts, call.request_id)) as events,
    ):
        async for event in events:
            yield event


async def _side_by_side(
    complete: Complete, requests: Sequence[CompletionRequest], calls: Sequence[Call], response_id: str
) -> AsyncGenerator[Event, None]:
    all_started = asyncio.Event()
    streams = [_held(complete(*asked), all_started) for asked in zip(requests, calls, strict=True)]
    choices = requests[0].options.num_choices
    started: list[Started] = []
    usages: list[Usage] = []
    # A place for one: whoever is ahead waits for the client to read.
    async with aclosing(merged(streams, waiting=1)) as events:
        async for index, event in events:
            match event:
                case Started():
                    started.append(event)
                    if len(started) == len(requests):
                        total = sum(one.prompt_tokens for one in started)
                        all_started.set()
                        yield replace(started[0], response_id=response_id, prompt_tokens=total)
                case Delta() | ChoiceDone():
                    yield replace(event, choice=index * choices + event.choice)
                case Completed():
                    usages.append(event.usage)
    yield Completed(_sum(usages))


async def _held(events: EventStream, go: asyncio.Event) -> EventStream:
    """One prompt's events; after the first, once all may go on."""
    async with aclosing(events):
        async for event in events:
            yield event
            await go.wait()


def _sum(usages: Sequence[Usage]) -> Usage:
    """Tokens add up; times are those of the slowest."""
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        cached_prompt_tokens=sum(usage.cached_prompt_tokens for usage in usages),
        output_tokens=sum(usage.output_tokens for usage in usages),
        queued_s=max(usage.queued_s for usage in usages),
        prefill_s=max(usage.prefill_s for usage in usages),
        first_token_s=max(usage.first_token_s for usage in usages),
        total_s=max(usage.total_s for usage in usages),
        resources=sum_resources(usage.resources for usage in usages),
    )
