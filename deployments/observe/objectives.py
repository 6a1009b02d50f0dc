"""How good must the service be, and how fast does it spend the part that may go wrong?

Two objectives over 30 days, and alerts on how fast their error budget burns: each needs a long window, so that it
means something, and a short one, so that it ends soon after the cause.
Source: Site Reliability Workbook, chapter 5, "Multiwindow, Multi-Burn-Rate Alerts".
"""

from __future__ import annotations

import grpc

from deployments.ingress.status import STATUS_TABLE
from deployments.observe.rule import Alert, Group, Recording
from llama31.chat import FinishReason
from llama31.errors import Draining, Overloaded, SetupError

AVAILABILITY = 0.995
FIRST_TOKEN_SHARE = 0.95
# A bound of the histogram's buckets, or the share could not be read from it.
FIRST_TOKEN_LIMIT_S = 3.0
FAULT_BUDGET = round(1 - AVAILABILITY, 6)
SLOW_START_BUDGET = round(1 - FIRST_TOKEN_SHARE, 6)

WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
# (times the budget, long window, short window); at 14.4 a day's tenth of the month's budget is gone in five hours.
FAST_BURN = ((14.4, "1h", "5m"), (6.0, "6h", "30m"))
SLOW_BURN = ((3.0, "1d", "2h"), (1.0, "3d", "6h"))

# In a quiet hour a single late answer is a large share: as many bad ones or fewer wake nobody.
FORGIVEN = 10

_SERVER_CODES = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)
# Outcomes that are the service's fault and not the caller's. Time limits are the caller's choice; a door that drains
# refuses before anything is counted, and the next attempt reaches another one.
FAULTS = tuple(
    sorted(
        kind.reason
        for kind, row in STATUS_TABLE.items()
        if (row.grpc_code in _SERVER_CODES or kind is Overloaded) and not issubclass(kind, SetupError | Draining)
    )
)
ANSWERS = tuple(reason.name for reason in FinishReason if reason is not FinishReason.ABORTED)
FAULTY = f'outcome=~"{"|".join(FAULTS)}"'
# What callers got wrong, gave up or may not have says nothing about the service, in neither direction.
COUNTED = f'outcome=~"{"|".join(ANSWERS + FAULTS)}"'


def fault_ratio(window: str, by: str = "release, model") -> str:
    """The share of requests that failed through the service, of those and the answered ones; 0 where none did."""
    every = f"sum by ({by}) (rate(llama31_requests_total{{{COUNTED}}}[{window}]))"
    faults = f"sum by ({by}) (rate(llama31_requests_total{{{FAULTY}}}[{window}]))"
    return f"({faults} or 0 * {every}) / {every}"


def slow_start_ratio(window: str) -> str:
    """The share of answers whose first token came later than the limit."""
    every = f"sum by (release, model) (rate(llama31_ttft_seconds_count[{window}]))"
    in_time = f'sum by (release, model) (rate(llama31_ttft_seconds_bucket{{le="{FIRST_TOKEN_LIMIT_S}"}}[{window}]))'
    return f"1 - {in_time} / {every}"


def _burning(series: str, counted: str, budget: float, burns: tuple[tuple[float, str, str], ...]) -> str:
    """`series` are shares of what `counted` counts."""
    conditions = (
        f"({series}{long} > {times:g} * {budget:g} and {series}{short} > {times:g} * {budget:g}\n"
        f"and {series}{long} * on (release, model) sum by (release, model) (increase({counted}[{long}])) > {FORGIVEN})"
        for times, long, short in burns
    )
    return "\nor\n".join(conditions)


_FAULTS_SERIES, _SLOW_SERIES = "release_model:llama31_faults:ratio_rate", "release_model:llama31_slow_starts:ratio_rate"
_REQUESTS, _FIRST_TOKENS = f"llama31_requests_total{{{COUNTED}}}", "llama31_ttft_seconds_count"

_LOOK_AT_FAULTS = (
    "Fleet overview, *Errors by reason*: which reason, since when; its meaning is in docs/errors.md.",
    "Fleet overview, *Replicas ready* and *Interrupted streams*: did the fleet shrink at that time?",
    "The ingress log for `INTERNAL`: the request id leads to the traceback.",
)
_LOOK_AT_STARTS = (
    "One model, *Queue wait* beside *Time to first token*: if both rise, requests wait for a replica.",
    "One model, *Prompt tokens*: long prompts need long prefills; compare *Step time*.",
    "One replica for each: a single slow one has a slow rank or a node with other work.",
)

OBJECTIVES = Group(
    "llama31-objectives",
    tuple(
        Recording(f"{series}{window}", ratio(window))
        for series, ratio in ((_FAULTS_SERIES, fault_ratio), (_SLOW_SERIES, slow_start_ratio))
        for window in WINDOWS
    ),
    (
        Alert(
            "Llama31FaultBudgetBurnsFast",
            "page",
            "2m",
            _burning(_FAULTS_SERIES, _REQUESTS, FAULT_BUDGET, FAST_BURN),
            "{{ $labels.model }}: {{ $value | humanizePercentage }} of requests fail",
            f"So many requests fail through the service that the month's error budget ({AVAILABILITY:.1%} must "
            "succeed) would be gone within days. Refusals that are the caller's own doing do not "
            f"count, and {FORGIVEN} failures or fewer wake nobody.",
            _LOOK_AT_FAULTS,
            (
                "`NO_READY_REPLICA`: see [Llama31NoReplicaReady](#llama31noreplicaready).",
                "`STREAM_INTERRUPTED`: see [Llama31StreamsInterrupted](#llama31streamsinterrupted).",
                "`OVERLOADED`: add replicas, or lower the limits of the tenant that grew (board Tenants).",
                "`INTERNAL`: a bug. Keep the log, undo the last change (`helm rollback RELEASE -n NAMESPACE`).",
            ),
        ),
        Alert(
            "Llama31FaultBudgetBurnsSlowly",
            "ticket",
            "15m",
            _burning(_FAULTS_SERIES, _REQUESTS, FAULT_BUDGET, SLOW_BURN),
            "{{ $labels.model }}: {{ $value | humanizePercentage }} of requests fail, for a day or more",
            "A small but steady share of requests fails. Nobody has to get up, but at this rate the objective of "
            "the month will be missed.",
            _LOOK_AT_FAULTS,
            ("Find the reason with the largest share and treat it as for the fast alert, in working hours.",),
        ),
        Alert(
            "Llama31FirstTokenBudgetBurnsFast",
            "page",
            "2m",
            _burning(_SLOW_SERIES, _FIRST_TOKENS, SLOW_START_BUDGET, FAST_BURN),
            f"{{{{ $labels.model }}}}: {{{{ $value | humanizePercentage }}}} of first tokens take over "
            f"{FIRST_TOKEN_LIMIT_S:g} s",
            f"{FIRST_TOKEN_SHARE:.0%} of answers should begin within {FIRST_TOKEN_LIMIT_S:g} s. Far fewer do.",
            _LOOK_AT_STARTS,
            (
                "Waiting is long and KV is full: add replicas, or lower tenants' token limits.",
                "Waiting is long on one replica only: [end it](#by-hand); Serve makes a new one.",
                "Prompts grew: agree with the tenant, or lower `max_batched_tokens` so that decoding is not held up.",
            ),
        ),
        Alert(
            "Llama31FirstTokenBudgetBurnsSlowly",
            "ticket",
            "15m",
            _burning(_SLOW_SERIES, _FIRST_TOKENS, SLOW_START_BUDGET, SLOW_BURN),
            f"{{{{ $labels.model }}}}: {{{{ $value | humanizePercentage }}}} of first tokens take over "
            f"{FIRST_TOKEN_LIMIT_S:g} s, for a day or more",
            "Answers begin late more often than agreed, for long. The fleet is too small for its load, or the load "
            "has changed.",
            _LOOK_AT_STARTS,
            ("Plan capacity: compare *Output tokens* with docs/architecture.md's figures, then add replicas.",),
        ),
    ),
)
