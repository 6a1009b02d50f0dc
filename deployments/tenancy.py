"""What does a tenant's request have to pass before it runs, and what is the tenant charged in the end?"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from deployments.language import SAMPLE_CHARS, UNKNOWN, LanguageDetector
from deployments.leases import Leases
from deployments.metrics import Metrics
from deployments.policies.language import LanguageMode, LanguagePolicy
from deployments.policies.quota import Admit, Charges, Limit, MinuteQuota, QuotaLimits, QuotaSnapshot, Refuse, is_live
from deployments.tenant import Tenant
from deployments.tenant_labels import TenantLabels
from llama31.chat import ChatRequest, CompletionRequest, ResourceUse, Role
from llama31.errors import ConcurrencyLimit, LanguageRefused, LimitReached, QuotaExceeded, RateLimited
from llama31.tokenizer import Tokenizer

# Idle accounts are forgotten when there are more than this, so that a long life does not fill memory.
_MAX_IDLE_ACCOUNTS = 1000

# Of a prompt in token ids so many at either end are looked at: in every language more than `SAMPLE_CHARS` need.
_SAMPLE_TOKENS = 2 * SAMPLE_CHARS

_ERRORS: dict[Limit, type[LimitReached]] = {
    "requests": RateLimited,
    "tokens": QuotaExceeded,
    "concurrency": ConcurrencyLimit,
}

_Decide: TypeAlias = Callable[[QuotaLimits, QuotaSnapshot], Admit | Refuse]


@dataclass(slots=True)
class _Account:
    """One tenant's counts at this ingress."""

    running: int = 0
    charges: deque[Charges] = field(default_factory=deque)

    def snapshot(self, now_s: float) -> QuotaSnapshot:
        while self.charges and not is_live(self.charges[0], now_s):
            self.charges.popleft()
        return QuotaSnapshot(now_s, self.running, tuple(self.charges))

    def charge(self, second: int, requests: int = 0, tokens: int = 0) -> None:
        """Adds to a second, or gives back; a second that no longer counts is left alone."""
        for i in range(len(self.charges) - 1, -1, -1):
            entry = self.charges[i]
            if entry.second == second:
                self.charges[i] = replace(
                    entry, requests=max(0, entry.requests + requests), tokens=max(0, entry.tokens + tokens)
                )
                return
        if not self.charges or second > self.charges[-1].second:
            self.charges.append(Charges(second, max(0, requests), max(0, tokens)))


class Tenancy:
    """Asks the quota and language policies, and keeps each tenant's account."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        salt_secret: str = "",
        language_mode: LanguageMode = "off",
        show_tenant_names: bool = False,
        detector: LanguageDetector | None = None,
        leases: Leases | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without `leases`, every limit is this process's own."""
        self._metrics = metrics
        self._salt_secret = salt_secret.encode()
        self._language_mode: LanguageMode = language_mode
        self._labels = TenantLabels(self._salt_secret, show_tenant_names)
        self._leases = leases
        self._now_s = now_s
        self._quota = MinuteQuota()
        self._language = LanguagePolicy()
        self._detector = detector or LanguageDetector()
        self._accounts: dict[str, _Account] = {}

    def cache_salt(self, tenant: Tenant) -> str:
        """Keeps tenants from finding each other's prompts in the prefix cache by its timing.

        The secret keeps them from computing another tenant's salt. Empty for the local tenant.
        """
        if not tenant.name:
            return ""
        return hmac.new(self._salt_secret, tenant.name.encode(), hashlib.sha256).hexdigest()

    async def prepare(self, tenant: Tenant, *, prompts: int = 0, tokens: int = 0) -> None:
        """Sees to it that this ingress may hand out so much, if the tenant still has it; before `enter`, `reserve`."""
        if self._leases is not None:
            account = self._account(tenant)
            await self._leases.prepare(tenant, lambda: account.snapshot(self._now_s()), prompts, tokens)

    def enter(self, tenant: Tenant) -> Visit:
        """Counts a request in; `Visit.leave` must follow. Raises: RateLimited, ConcurrencyLimit."""
        return self._enter(tenant, 1)[0]

    @contextmanager
    def entered(self, tenant: Tenant, prompts: int) -> Iterator[Sequence[Visit]]:
        """Counts all prompts of a request in, or none. Raises: RateLimited, ConcurrencyLimit."""
        visits = self._enter(tenant, prompts)
        try:
            yield visits
        finally:
            for visit in visits:
                visit.leave(0)

    def reserve(self, tenant: Tenant, account: _Account, tokens: int, held_tokens: int) -> int:
        """Charges tokens; returns the second that they are charged to. Raises: QuotaExceeded."""

        def decide(limits: QuotaLimits, snapshot: QuotaSnapshot) -> Admit | Refuse:
            return self._quota.admit_tokens(limits, snapshot, tokens, held_tokens)

        second = self._check(tenant, account, decide, tokens + held_tokens)
        self.charge(tenant, account, second, tokens=tokens)
        self._count(tenant, "admitted")
        return second

    def count_tokens(self, tenant: Tenant, tokens: int) -> None:
        """What a request used in the end."""
        if tenant.name:
            self._metrics.add("llama31_tenant_tokens_total", tokens, tenant=self._labels.label(tenant.name))

    def count_energy(self, tenant: Tenant, used: ResourceUse) -> None:
        """What the tenant's request is charged of the replica's energy."""
        if tenant.name:
            labels = {"tenant": self._labels.label(tenant.name), "source": used.source}
            self._metrics.add("llama31_tenant_energy_joules_total", used.joules, **labels)
            self._metrics.add("llama31_tenant_co2e_grams_total", used.co2e_grams, **labels)

    async def check_language(
        self,
        tenant: Tenant,
        request: ChatRequest | CompletionRequest,
        supported: tuple[str, ...],
        tokenizer: Tokenizer,
    ) -> tuple[str, ...]:
        """Warnings for the client; the ids of a prompt are in the vocabulary. Raises: LanguageRefused."""
        mode = tenant.language or self._language_mode
        if mode == "off":
            return ()
        text = _newest_words(request, tokenizer)
        if not text:
            return ()
        # In a thread: the first text loads the model.
        detection = await asyncio.to_thread(self._detector.detect, text)
        verdict = self._language.decide(mode, detection, supported)
        language = UNKNOWN if verdict == "unknown" else detection.language
        self._metrics.add("llama31_language_total", language=language, verdict=verdict)
        words = f"the text seems to be in {language!r}; the model was made for {', '.join(supported)}"
        if verdict == "refused":
            raise LanguageRefused(_field(request), words)
        return (words,) if verdict == "warned" else ()

    def charge(self, tenant: Tenant, account: _Account, second: int, requests: int = 0, tokens: int = 0) -> None:
        """Hands out in this second, or takes back."""
        account.charge(second, requests, tokens)
        if self._leases is not None:
            self._leases.spend(tenant, second, requests, tokens)

    def _enter(self, tenant: Tenant, prompts: int) -> list[Visit]:
        account = self._account(tenant)

        def decide(limits: QuotaLimits, snapshot: QuotaSnapshot) -> Admit | Refuse:
            return self._quota.admit_request(limits, snapshot, prompts)

        second = self._check(tenant, account, decide, prompts)
        self.charge(tenant, account, second, requests=prompts)
        account.running += prompts
        together: list[Visit] = []
        together.extend(Visit(self, tenant, account, second, together) for _ in range(prompts))
        return together

    def _account(self, tenant: Tenant) -> _Account:
        if len(self._accounts) > _MAX_IDLE_ACCOUNTS and tenant.name not in self._accounts:
            now_s = self._now_s()
            busy = {n: a for n, a in self._accounts.items() if a.running or a.snapshot(now_s).charges}
            self._accounts = busy
        return self._accounts.setdefault(tenant.name, _Account())

    def _check(self, tenant: Tenant, account: _Account, decide: _Decide, wanted: int) -> int:
        """By the tenant's whole limits first, then by what this ingress may hand out; returns the second to charge."""
        now_s = self._now_s()
        snapshot = account.snapshot(now_s)
        decision = decide(tenant.limits, snapshot)
        if self._leases is not None and isinstance(decision, Admit):
            decision = decide(self._leases.limits(tenant, snapshot), snapshot)
            if isinstance(decision, Refuse):
                decision = Refuse(decision.limit, self._leases.retry_s(tenant, decision.limit))
        if isinstance(decision, Admit):
            return math.floor(now_s)
        self._count(tenant, decision.limit)
        raise _ERRORS[decision.limit](_refusal(tenant, decision, wanted), decision.retry_after_s)

    def _count(self, tenant: Tenant, outcome: str) -> None:
        if tenant.name:
            self._metrics.add("llama31_tenant_requests_total", tenant=self._labels.label(tenant.name), outcome=outcome)


class Visit:
    """One prompt of a tenant, from `Tenancy.enter` to `leave`. `together` are all prompts of its request."""

    def __init__(
        self, tenancy: Tenancy, tenant: Tenant, account: _Account, second: int, together: Sequence[Visit]
    ) -> None:
        self._tenancy = tenancy
        self._tenant = tenant
        self._account = account
        self._entered_second = second
        self._together = together
        self._reserved_tokens = 0
        self._reserved_second = 0
        self._is_over = False

    def reserve(self, tokens: int) -> None:
        """Charges prompt and longest output of every choice. Raises: QuotaExceeded."""
        held_tokens = sum(visit._reserved_tokens for visit in self._together)
        self._reserved_second = self._tenancy.reserve(self._tenant, self._account, tokens, held_tokens)
        self._reserved_tokens = tokens

    def leave(self, used_tokens: int, *, needs_replica: bool = True) -> None:
        """Gives back what was reserved and not used, and makes room for another request; idempotent.

        With 0, no replica began it: it does not count as a request either, unless it needed none.
        """
        if self._is_over:
            return
        self._is_over = True
        self._account.running -= 1
        if needs_replica and not used_tokens:
            self._tenancy.charge(self._tenant, self._account, self._entered_second, requests=-1)
        if self._reserved_tokens:
            unused_tokens = self._reserved_tokens - used_tokens
            self._tenancy.charge(self._tenant, self._account, self._reserved_second, tokens=-unused_tokens)
            self._tenancy.count_tokens(self._tenant, used_tokens)


def _refusal(tenant: Tenant, decision: Refuse, wanted: int) -> str:
    limits = tenant.limits
    when = f"try again in {math.ceil(decision.retry_after_s)} s" if math.isfinite(decision.retry_after_s) else ""
    match decision.limit:
        case "requests":
            never = f"each of these {wanted} prompts counts" if limits.requests_per_minute else "none are granted"
            return f"rate limit: {limits.requests_per_minute} requests a minute; {when or never}"
        case "tokens":
            return (
                f"token quota: prompt and longest output are {wanted} tokens, of {limits.tokens_per_minute} a minute; "
                f"{when or 'ask for fewer'}"
            )
        case "concurrency":
            never = f"each of these {wanted} prompts counts" if limits.concurrent_requests else "none are granted"
            most = f"{limits.concurrent_requests} concurrent requests are the most"
            return f"{most}; {'wait for one to end' if when else never}"


def _field(request: ChatRequest | CompletionRequest) -> str:
    if isinstance(request, ChatRequest):
        return "spec.messages"
    return "spec.text" if isinstance(request.prompt, str) else "spec.tokens.ids"


def _newest_words(request: ChatRequest | CompletionRequest, tokenizer: Tokenizer) -> str:
    """What the user said last: the language that an answer is expected in."""
    if isinstance(request, ChatRequest):
        return next((m.content for m in reversed(request.messages) if m.role is Role.USER), "")
    prompt = request.prompt
    if isinstance(prompt, str):
        return prompt
    # Only the ends, as of a long text. The names of control tokens are English in every language.
    ends = prompt if len(prompt) <= 2 * _SAMPLE_TOKENS else (*prompt[:_SAMPLE_TOKENS], *prompt[-_SAMPLE_TOKENS:])
    words = [token_id for token_id in ends if token_id not in tokenizer.special_ids]
    return tokenizer.decode_bytes(words).decode("utf-8", "replace")
