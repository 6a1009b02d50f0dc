"""Does the admission policy share work fairly, starve nobody, and refuse early what has no use?"""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.policy import AdmissionSnapshot, Admitted, QueuedRequest, Refused, StepSpeed, TenantQueue
from deployments.policies.admission import FairAdmission, charge, predicted_ttft_s, predicted_waits_s
from deployments.policies.fair_shares import AnswerLengths, FairShares

POLICY = FairAdmission()
SPEED = StepSpeed(0.01, 1e-5, 1e-5, 0.0, 8192)


def request(name: str = "r", priority: int = 0, prompt: int = 100, output: int = 50, **more: object) -> QueuedRequest:
    return QueuedRequest(name, priority, prompt, 1000, output, **more)  # type: ignore[arg-type]


def queue(*heads: QueuedRequest, tenant: str = "acme", served: float = 0.0, **more: object) -> TenantQueue:
    more = {"weight": 1.0, "waiting": len(heads), **more}
    return TenantQueue(tenant=tenant, served_tokens=served, heads=heads, **more)  # type: ignore[arg-type]


def picture(*tenants: TenantQueue, **more: object) -> AdmissionSnapshot:
    values = {
        "ready_replicas": 1,
        "kv_tokens_free": 10_000,
        "kv_tokens_total": 12_000,
        "prefill_tokens": 0,
        "speed": None,
        "starting_in_s": 0.0,
        **more,
    }
    return AdmissionSnapshot(tenants=tenants, **values)  # type: ignore[arg-type]


def admitted(decision: Admitted | Refused | None) -> str | None:
    assert decision is None or isinstance(decision, Admitted), decision
    return decision and decision.request_id


LATER = {"prefill_tokens_later": 0}
FULL = {"kv_tokens_free": 0, "sequences_free": 0, "prefill_tokens_free": 0}


@pytest.mark.parametrize(
    ("tenants", "more", "enters"),
    [
        ([], {}, None),
        ([queue(request("a"))], {}, "a"),
        ([queue(request("a"))], {"kv_tokens_free": 149}, None),
        ([queue(request("a"))], {"kv_tokens_free": 150}, "a"),
        ([queue(request("a", sequences=3))], {"kv_tokens_free": 449}, None),
        ([queue(request("a", sequences=3))], {"sequences_free": 2}, None),
        ([queue(request("a"))], {"prefill_tokens_free": 0}, None),
        # Less room for those that were given as much as the others; not for those that were given less.
        ([queue(request("a"), served=5.0)], LATER | {"level_tokens": 5.0}, None),
        ([queue(request("a"), served=5.0)], LATER | {"level_tokens": 5.1}, "a"),
        ([queue(request("a"), served=5.0)], {"level_tokens": 5.0, "sequences_later": 0}, None),
        ([queue(request("a"), served=5.0)], {"level_tokens": 5.0, "kv_tokens_later": 149}, None),
        # Alone: whatever room there is.
        ([queue(request("a"))], FULL | {"kv_tokens_total": 0}, "a"),
        # The lowest counter, not the first to come.
        ([queue(request("a", waited_s=9), served=5.0), queue(request("b"), tenant="b", served=4.0)], {}, "b"),
        ([queue(request("a", waited_s=1)), queue(request("b", waited_s=2), tenant="b")], {}, "b"),
        # A higher priority first, whatever was served.
        ([queue(request("a", 1)), queue(request("b", 0), tenant="b", served=9e9)], {}, "b"),
        # Until the lower one was passed by nine times its own work.
        ([queue(request("a", 1)), queue(request("b"), tenant="b")], {"passed_tokens": (0, 1799.0, 0)}, "b"),
        ([queue(request("a", 1)), queue(request("b"), tenant="b")], {"passed_tokens": (0, 1800.0, 0)}, "a"),
        ([queue(request("a", 1), request("b", 2), request("c"))], {"passed_tokens": (0, 1800.0, 1900.0)}, "b"),
        # Nobody overtakes the one that does not fit.
        ([queue(request("a", prompt=20_000)), queue(request("b"), tenant="b", served=1.0)], {}, None),
    ],
)
def test_who_enters(tenants: list[TenantQueue], more: dict[str, object], enters: str | None) -> None:
    assert admitted(POLICY.decide(picture(*tenants, **more))) == enters


SLOW = {"speed": SPEED, "replica_running": 10.0}
BACKLOG = {"waiting": 9, "waiting_tokens": 4000, "tail": request("tail")}


@pytest.mark.parametrize(
    ("tenants", "more", "refused", "reason", "retry_s"),
    [
        ([queue(request("a", prompt=500))], {"kv_tokens_replica": 500}, "a", "too_large", math.inf),
        ([queue(request("a"))], {"ready_replicas": 0, "starting_in_s": math.inf}, "a", "no_replica", 1),
        ([queue(request("a", waited_s=30))], {"ready_replicas": 0}, "a", "no_replica", 1),
        (
            [queue(request("a", deadline_in_s=5))],
            {"ready_replicas": 0, "starting_in_s": 8.0},
            "a",
            "deadline_unmeetable",
            8,
        ),
        # 50 tokens of 10 ms each cannot come in 0.4 s, whatever else runs.
        ([queue(request("a", deadline_in_s=0.4))], SLOW, "a", "deadline_unmeetable", math.inf),
        # They could in 1 s, but for 200,000 tokens of prompts before it.
        (
            [queue(request("a", deadline_in_s=1.0))],
            {**SLOW, "prefill_tokens": 200_000},
            "a",
            "deadline_unmeetable",
            2,
        ),
        # 4,000 tokens wait and 100 come free each second: forty seconds are too long, for its newest.
        (
            [queue(request("a"), **BACKLOG)],
            {"entered_tokens_per_s": 100.0, "kv_tokens_free": 0},
            "tail",
            "queue_full",
            20,
        ),
        (
            [queue(request("a"), **{**BACKLOG, "tail": request("tail", deadline_in_s=39)})],
            {"entered_tokens_per_s": 100.0, "kv_tokens_free": 0, "speed": SPEED},
            "tail",
            "deadline_unmeetable",
            40,
        ),
    ],
)
def test_early_refusals(
    tenants: list[TenantQueue], more: dict[str, object], refused: str, reason: str, retry_s: float
) -> None:
    decision = POLICY.decide(picture(*tenants, **more))
    assert isinstance(decision, Refused)
    assert (decision.request_id, decision.reason) == (refused, reason)
    assert decision.retry_after_s == pytest.approx(retry_s)


def test_held_while_the_first_replica_starts() -> None:
    assert POLICY.decide(picture(queue(request("a", waited_s=29)), ready_replicas=0)) is None


def test_a_deadline_that_can_be_met_is_no_reason() -> None:
    assert admitted(POLICY.decide(picture(queue(request("a", deadline_in_s=1.0)), **SLOW))) == "a"
    # Two steps of prompts, each with ten sequences that decode.
    seen = picture(**SLOW, prefill_tokens=8192)
    assert predicted_ttft_s(seen, SPEED, 100) == pytest.approx(8292 * 1e-5 + 2 * (0.01 + 10 * 1e-5))


def test_a_flood_makes_its_own_tail_late_and_no_other() -> None:
    flood = queue(request("f"), tenant="flood", waiting=900, waiting_tokens=90_000, tail=request("f900"))
    light = queue(request("l"), tenant="light", waiting=2, waiting_tokens=200, tail=request("l2"))
    seen = picture(flood, light, entered_tokens_per_s=100.0, kv_tokens_free=0)
    assert predicted_waits_s(seen) == {"light": 4.0, "flood": 902.0}
    decision = POLICY.decide(seen)
    assert isinstance(decision, Refused)
    assert decision.request_id == "f900"


@st.composite
def pictures(draw: st.DrawFn) -> AdmissionSnapshot:
    """Any picture of up to six tenants."""
    number = st.integers(0, 20_000)
    tenants = []
    for index in range(draw(st.integers(0, 6))):
        levels = draw(st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True))
        heads = [
            request(
                f"{index}-{level}",
                level,
                draw(number),
                draw(st.integers(1, 900)),
                waited_s=draw(st.floats(0, 100)),
                deadline_in_s=draw(st.sampled_from([math.inf, 0.5, 20.0])),
                sequences=draw(st.integers(1, 3)),
            )
            for level in levels
        ]
        tail = replace(draw(st.sampled_from(heads)), request_id=f"{index}-tail")
        more = {"waiting": draw(st.integers(1, 50)), "waiting_tokens": draw(number), "tail": tail}
        weight = draw(st.sampled_from([0.5, 1.0, 4.0]))
        tenants.append(queue(*heads, tenant=f"t{index}", served=draw(st.floats(0, 1e6)), **more, weight=weight))
    return picture(
        *tenants,
        ready_replicas=draw(st.integers(0, 2)),
        kv_tokens_free=draw(st.integers(-5000, 30_000)),
        kv_tokens_total=draw(st.sampled_from([0, 8738, 30_000])),
        sequences_free=draw(st.integers(-1, 4)),
        prefill_tokens_free=draw(st.integers(-100, 100)),
        speed=draw(st.sampled_from([None, SPEED])),
        kv_tokens_replica=draw(st.sampled_from([0, 8738])),
        entered_tokens_per_s=draw(st.sampled_from([0.0, 50.0])),
        level_tokens=draw(st.floats(0, 1e6)),
        kv_tokens_later=draw(st.integers(-5000, 30_000)),
        passed_tokens=draw(st.tuples(st.just(0.0), st.floats(0, 1e5), st.floats(0, 1e5))),
    )


@given(seen=pictures(), shuffle=st.randoms())
@settings(max_examples=50, deadline=None)
def test_never_beyond_the_room_and_in_no_order_of_tenants(seen: AdmissionSnapshot, shuffle: random.Random) -> None:
    decision = POLICY.decide(seen)
    tenants = list(seen.tenants)
    shuffle.shuffle(tenants)
    assert POLICY.decide(replace(seen, tenants=tuple(tenants))) == decision
    heads = {head.request_id: (tenant, head) for tenant in seen.tenants for head in tenant.heads}
    if isinstance(decision, Admitted):
        tenant, head = heads[decision.request_id]
        assert seen.ready_replicas
        assert tenant.tenant == decision.tenant
        assert decision.charge_tokens == charge(head)
        if seen.kv_tokens_free < seen.kv_tokens_total:
            assert head.kv_tokens <= seen.kv_tokens_free
            assert head.sequences <= seen.sequences_free
            assert seen.prefill_tokens_free > 0
    if isinstance(decision, Refused):
        assert decision.retry_after_s > 0
    if decision is None and seen.ready_replicas and seen.kv_tokens_free >= seen.kv_tokens_total:
        assert not heads, "with nobody inside, somebody enters or is refused"


class Ingress:
    """The queue of one ingress around the policy, with a room of KV tokens: one request leaves at a time."""

    def __init__(self, kv_tokens: int) -> None:
        self.shares = FairShares()
        self.kv_tokens = kv_tokens
        self.waiting: dict[str, list[QueuedRequest]] = {}
        self.inside: list[QueuedRequest] = []
        self.passed: tuple[float, ...] = (0.0, 0.0, 0.0)
        self.served: Counter[str] = Counter()

    def arrive(self, tenant: str, asked: QueuedRequest) -> None:
        if tenant not in self.waiting:
            self.shares.arrive(tenant, self.waiting)
        self.waiting.setdefault(tenant, []).append(asked)

    def step(self) -> str | None:
        """Lets one in; if none fits, the oldest inside leaves."""
        tenants = []
        for tenant, asked in self.waiting.items():
            levels = {level: next((r for r in asked if r.priority == level), None) for level in range(3)}
            heads = [head for head in levels.values() if head]
            tenants.append(queue(*heads, tenant=tenant, served=self.shares.counter(tenant)))
        free = self.kv_tokens - sum(r.kv_tokens for r in self.inside)
        seen = picture(*tenants, kv_tokens_free=free, kv_tokens_total=self.kv_tokens, passed_tokens=self.passed)
        decision = POLICY.decide(seen)
        if decision is None:
            if self.inside:
                self.inside.pop(0)
            return None
        assert isinstance(decision, Admitted)
        asked = self.waiting[decision.tenant]
        chosen = next(r for r in asked if r.request_id == decision.request_id)
        asked.remove(chosen)
        if not asked:
            del self.waiting[decision.tenant]
        self.shares.enter(decision.tenant, decision.charge_tokens, 1.0)
        still = {r.priority for rest in self.waiting.values() for r in rest}
        self.passed = POLICY.passed_after(self.passed, chosen.priority, decision.charge_tokens, still)
        self.inside.append(chosen)
        self.served[decision.tenant] += int(decision.charge_tokens)
        return chosen.request_id


# tenant, priority, prompt tokens, output tokens
ARRIVALS = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 2), st.integers(1, 3000), st.integers(1, 400)))


@given(before=ARRIVALS, meanwhile=ARRIVALS.filter(bool), victim=st.integers(0, 2), size=st.integers(1, 9000))
@settings(max_examples=25, deadline=None)
def test_no_starvation(
    before: list[tuple[str, int, int, int]], meanwhile: list[tuple[str, int, int, int]], victim: int, size: int
) -> None:
    """Whatever comes in endless repetition, of whatever priority: a request that waits enters."""
    ingress = Ingress(kv_tokens=4000)
    for index, (tenant, level, prompt, output) in enumerate(before):
        ingress.arrive(tenant, request(f"b{index}", level, prompt, output))
    ingress.arrive("victim", request("victim", victim, size))
    # The work that may pass: its own nine times from higher priorities, what its rivals of its own priority got less
    # than it, and one of the largest of each; counted with room to spare, in decisions that let in or out.
    for step in range(5000):
        tenant, level, prompt, output = meanwhile[step % len(meanwhile)]
        ingress.arrive(tenant, request(f"m{step}", level, prompt, output))
        for _ in range(4):
            if ingress.step() == "victim":
                return
    raise AssertionError("starved")


def test_shares_follow_the_weights_whatever_the_sizes() -> None:
    ingress = Ingress(kv_tokens=20_000)
    for index in range(4000):
        ingress.arrive("heavy", request(f"h{index}", 0, 1000, 200))
        ingress.arrive("light", request(f"l{index}", 0, 50, 10))
    for _ in range(4000):
        ingress.step()
    assert ingress.served["light"] == pytest.approx(ingress.served["heavy"], rel=0.05)


def test_a_lower_priority_gets_a_tenth_while_it_waits() -> None:
    ingress = Ingress(kv_tokens=20_000)
    for index in range(6000):
        ingress.arrive("urgent", request(f"u{index}", 0))
        ingress.arrive("batch", request(f"b{index}", 2))
    for _ in range(6000):
        ingress.step()
    share = ingress.served["batch"] / sum(ingress.served.values())
    assert share == pytest.approx(0.1, abs=0.01)


def test_counters() -> None:
    shares = FairShares()
    shares.arrive("old", [])
    shares.enter("old", 1000.0, 2.0)
    assert shares.counter("old") == 500.0
    shares.arrive("new", ["old"])
    assert shares.counter("new") == 0.0, "nobody entered later than the start"
    shares.enter("old", 100.0, 1.0)
    shares.arrive("third", ["old"])
    assert shares.counter("third") == 500.0, "idle time is no credit"
    shares.arrive("fourth", ["new", "old"])
    assert shares.counter("fourth") == 0.0, "no worse than those that wait"
    shares.correct("old", -100.0, 1.0)
    shares.add_others({"third": 7.0, "unknown": 9.0})
    assert [shares.counter(name) for name in ("old", "third", "unknown")] == [500.0, 507.0, 0.0]
    shares.forget_idle(["new"])
    assert [shares.counter(name) for name in ("third", "new")] == [507.0, 0.0]


def test_forecast_is_the_tenants_mean_within_the_limit() -> None:
    lengths = AnswerLengths()
    assert [lengths.forecast(limit) for limit in (4096, 16)] == [256, 16]
    for _ in range(200):
        lengths = lengths.with_answer(40)
    assert lengths.forecast(4096) == 41
    assert AnswerLengths(0.0).forecast(10) == 1
