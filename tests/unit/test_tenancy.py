"""Does the gateway keep a tenant to its models, rights and limits, and charge what was used?"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

import pytest
from replica import MODEL, STEP_S, endless, process_metrics, running_gateway

from deployments.call import Call
from deployments.policies.quota import QuotaLimits
from deployments.tenancy import Tenancy
from deployments.tenant import LOCAL, Tenant
from llama31.chat import CompletionRequest, GenerationOptions, Priority, Started, StopChoices
from llama31.engine import EngineRequest
from llama31.errors import (
    ConcurrencyLimit,
    ContextTooLong,
    DeadlineExceeded,
    DuplicateRequest,
    Llama31Error,
    ModelNotFound,
    PermissionDenied,
    QuotaExceeded,
    RateLimited,
    StreamInterrupted,
)
from llama31.scripted_engine import Script
from llama31.tokenizer import HuggingFaceTokenizer
from tests.waiting import soon

ACME = Tenant("acme")
PROMPT = tuple(range(10, 20))
_ids = itertools.count()


class Seen:
    """A script's answer of three tokens, which notes what the engine was asked."""

    def __init__(self) -> None:
        self.requests: list[EngineRequest] = []

    def __call__(self, request: EngineRequest) -> Sequence[int]:
        self.requests.append(request)
        return (65, 66, 2)


def ask(priority: Priority = Priority.STANDARD, model: str = MODEL, **stop: object) -> CompletionRequest:
    options = GenerationOptions(stop=StopChoices(**stop), priority=priority)  # type: ignore[arg-type]
    return CompletionRequest(model, PROMPT, options)


def call(tenant: Tenant, request_id: str = "") -> Call:
    return Call(request_id or f"request-{next(_ids)}", None, tenant)


@pytest.mark.parametrize(
    ("tenant", "request_", "error", "words"),
    [
        (replace(ACME, models=frozenset({"other"})), ask(), ModelNotFound, "not served here; known: none"),
        (ACME, ask(model="other"), ModelNotFound, f"known: {MODEL}"),
        (ACME, ask(ignore_eos=True), PermissionDenied, "ignore_eos needs the permission 'benchmark'"),
        # The missing right comes before whatever else is wrong.
        (ACME, ask(ignore_eos=True, max_output_tokens=131_072), PermissionDenied, "ignore_eos"),
        (replace(ACME, priority=Priority.STANDARD), ask(Priority.INTERACTIVE), PermissionDenied, "spec.service.pri"),
        (replace(ACME, priority=Priority.BATCH), ask(Priority.INTERACTIVE), PermissionDenied, "batch"),
        (ACME, ask(max_output_tokens=131_072), ContextTooLong, "context"),
        (replace(ACME, limits=QuotaLimits(requests_per_minute=0)), ask(), RateLimited, "rate limit"),
        (replace(ACME, limits=QuotaLimits(concurrent_requests=0)), ask(), ConcurrencyLimit, "concurrent"),
        (replace(ACME, limits=QuotaLimits(tokens_per_minute=73)), ask(), QuotaExceeded, "74 tokens, of 73 a minute"),
    ],
)
async def test_refusals(
    chatml_tokenizer: HuggingFaceTokenizer,
    tenant: Tenant,
    request_: CompletionRequest,
    error: type[Llama31Error],
    words: str,
) -> None:
    seen = Seen()
    async with running_gateway(chatml_tokenizer, Script(answer=seen)) as system:
        with pytest.raises(error, match=words):
            await soon(anext(system.gateway.complete(request_, call(tenant))))
    assert seen.requests == []


@pytest.mark.parametrize(
    ("tenant", "asked", "expected"),
    [
        (LOCAL, Priority.INTERACTIVE, 0),
        (ACME, Priority.INTERACTIVE, 0),
        (replace(ACME, priority=Priority.STANDARD), Priority.BATCH, 2),
        # No priority named means STANDARD, which a batch tenant cannot have and need not ask for.
        (replace(ACME, priority=Priority.BATCH), Priority.STANDARD, 2),
    ],
)
async def test_priority_at_the_engine(
    chatml_tokenizer: HuggingFaceTokenizer, tenant: Tenant, asked: Priority, expected: int
) -> None:
    seen = Seen()
    async with running_gateway(chatml_tokenizer, Script(answer=seen)) as system:
        [event async for event in system.gateway.complete(ask(asked), call(tenant))]
    assert [request.priority for request in seen.requests] == [expected]


async def test_the_cache_salt_is_the_tenants(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    seen = Seen()
    tenancy = Tenancy(process_metrics(), salt_secret="secret")
    async with running_gateway(chatml_tokenizer, Script(answer=seen), tenancy=tenancy) as system:
        for tenant in (LOCAL, ACME, ACME, Tenant("other")):
            [event async for event in system.gateway.complete(ask(), call(tenant))]
    local, first, again, other = (request.cache_salt for request in seen.requests)
    assert local == ""
    assert first == again != other
    assert len(first) == 64
    assert first != Tenancy(process_metrics(), salt_secret="other secret").cache_salt(ACME)


async def test_the_benchmark_right(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    benchmark = replace(ACME, permissions=frozenset({"benchmark"}))
    async with running_gateway(chatml_tokenizer, Script()) as system:
        for tenant in (LOCAL, benchmark):
            request = ask(ignore_eos=True, max_output_tokens=2)
            assert [event async for event in system.gateway.complete(request, call(tenant))]


async def test_request_ids_are_the_tenants_own(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer, Script(answer=endless, step_s=STEP_S)) as system:
        complete = system.gateway.complete
        async with (
            aclosing(complete(ask(), call(ACME, "same"))) as first,
            aclosing(complete(ask(), call(Tenant("other"), "same"))) as second,
        ):
            assert isinstance(await soon(anext(first)), Started)
            assert isinstance(await soon(anext(second)), Started)
            with pytest.raises(DuplicateRequest):
                await soon(anext(complete(ask(), call(ACME, "same"))))


async def test_only_used_tokens_are_charged(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    """The prompt has 10 tokens, its answer 3 with the end of turn; 74 is prompt and default limit."""
    limited = replace(ACME, limits=QuotaLimits(tokens_per_minute=74 + 3 * 13))
    tenancy = Tenancy(process_metrics(), now_s=lambda: 5.0)
    async with running_gateway(chatml_tokenizer, Script(answer=Seen()), tenancy=tenancy) as system:
        for _ in range(4):
            [event async for event in system.gateway.complete(ask(), call(limited))]
        with pytest.raises(QuotaExceeded):
            await anext(system.gateway.complete(ask(), call(limited)))


async def test_a_cancelled_request_makes_room(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    limited = replace(ACME, limits=QuotaLimits(concurrent_requests=1))
    async with running_gateway(chatml_tokenizer, Script(answer=endless, step_s=STEP_S)) as system:
        for _ in range(3):
            async with aclosing(system.gateway.complete(ask(), call(limited))) as events:
                await soon(anext(events))
                with pytest.raises(ConcurrencyLimit):
                    await soon(anext(system.gateway.complete(ask(), call(limited))))


@pytest.mark.parametrize("waits_s", [0.0, 0.05])
async def test_who_leaves_before_the_first_token_pays_for_the_prefill(
    chatml_tokenizer: HuggingFaceTokenizer, waits_s: float
) -> None:
    """Closes its stream, or lets a deadline pass."""
    limited = replace(ACME, limits=QuotaLimits(tokens_per_minute=74 + 9))
    tenancy = Tenancy(process_metrics(), now_s=lambda: 5.0)
    async with running_gateway(chatml_tokenizer, Script(max_running=0), tenancy=tenancy) as system:
        deadline_s = asyncio.get_running_loop().time() + waits_s if waits_s else None
        async with aclosing(system.gateway.complete(ask(), replace(call(limited), deadline_s=deadline_s))) as events:
            assert isinstance(await soon(anext(events)), Started)
            if waits_s:
                with pytest.raises(DeadlineExceeded):
                    await soon(anext(events))
        with pytest.raises(QuotaExceeded):
            await soon(anext(system.gateway.complete(ask(), call(limited))))
        tenancy.enter(limited).reserve(73)


async def test_a_replica_lost_before_the_first_token_costs_nothing(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    limited = replace(ACME, limits=QuotaLimits(tokens_per_minute=74))
    tenancy = Tenancy(process_metrics(), now_s=lambda: 5.0)
    async with running_gateway(chatml_tokenizer, Script(max_running=0), tenancy=tenancy) as system:
        async with aclosing(system.gateway.complete(ask(), call(limited))) as events:
            await soon(anext(events))
            await system.replicas[0].kill()
            with pytest.raises(StreamInterrupted):
                await soon(anext(events))
        tenancy.enter(limited).reserve(74)


async def test_what_no_replica_took_costs_nothing(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    limited = replace(ACME, limits=QuotaLimits(tokens_per_minute=74))
    async with running_gateway(chatml_tokenizer) as system:
        for _ in range(3):
            with pytest.raises(Llama31Error, match="no replica"):
                await soon(anext(system.gateway.complete(ask(), call(limited))))


async def test_a_visit_without_replica_counts_as_a_request(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    async with running_gateway(chatml_tokenizer) as system:
        one_at_once = Tenant("acme", limits=QuotaLimits(requests_per_minute=2, concurrent_requests=1))
        async with system.gateway.visit(one_at_once):
            with pytest.raises(ConcurrencyLimit):
                await system.gateway.visit(one_at_once).__aenter__()
        async with system.gateway.visit(one_at_once):
            pass
        with pytest.raises(RateLimited):
            await system.gateway.visit(one_at_once).__aenter__()
