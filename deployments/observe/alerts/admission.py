"""When do ingresses decide without the ledger of what the others have handed out?"""

from __future__ import annotations

from deployments.observe.rule import Alert, Group

ADMISSION = Group(
    "llama31-admission",
    alerts=(
        Alert(
            "Llama31LedgerAway",
            "ticket",
            "10m",
            "min by (release, model) (llama31_ledger_answers) == 0",
            "{{ $labels.model }}: an ingress has not reached the ledger of leases for ten minutes",
            "Requests are answered. But each ingress fills a fixed share of the room and hands out a fixed share of "
            "every tenant's limits: a tenant whose connections all end at one ingress gets only that share.",
            (
                "Ray dashboard, *Actors*: `admission-ledger`. Is the head there ([Llama31HeadDown](#llama31headdown))?",
                "The ingress's log: *the ledger does not answer*.",
            ),
            (
                "With the head it comes back by itself.",
                "Only one ingress is cut off: end its process or pod; another one takes its connections.",
            ),
        ),
    ),
)
