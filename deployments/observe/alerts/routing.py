"""When do requests go to replicas by less than is known of them?"""

from __future__ import annotations

from deployments.observe.alerts.terms import END_REPLICA
from deployments.observe.rule import Alert, Group

_ROUTES = "sum by (release, model) (rate(llama31_routes_total{}[10m]))"
_BLIND = _ROUTES.format('{reason=~"no_index|stale"}')

ROUTING = Group(
    "llama31-routing",
    alerts=(
        Alert(
            "Llama31RouterWithoutIndex",
            "ticket",
            "15m",
            # Engines that run without prefix caching look nothing up: there is nothing to know of them.
            f"{_BLIND} / {_ROUTES.format('')} > 0.5\n"
            "and on (release, model) sum by (release, model) "
            "(rate(llama31_replica_prefix_query_tokens_total[10m])) > 0",
            "{{ $labels.model }}: most requests are routed without knowing what is cached",
            "Replicas cache the beginnings of prompts, but the ingresses do not hear of it, or too late. Requests are "
            "still answered; prompts are computed again that another replica had.",
            (
                "Fleet overview, *Routing*: `no_index` (nobody tells) or `stale` (reports are late)?",
                "The ingress's log: *news of its blocks are missing*, *no heartbeat*. The replica's: *block events*.",
            ),
            (
                "`no_index` after an upgrade: replicas and ingresses of two versions; finish it.",
                f"One replica is meant: {END_REPLICA[0].lower()}{END_REPLICA[1:]}",
                "`stale`: the replica's process has too little CPU; see its node.",
            ),
        ),
    ),
)
