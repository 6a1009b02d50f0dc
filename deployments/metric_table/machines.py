"""What do we export of the cluster and of its energy?"""

from __future__ import annotations

from deployments.metric_table.row import Metric

ROWS = (
    Metric(
        "llama31_gpus",
        "gauge",
        ("state",),
        "GPUs",
        "GPUs of the whole cluster, used or free; every ingress says the same, so take the maximum.",
        "free 0 while placement is pending: add nodes.",
        across="max",
    ),
    Metric(
        "llama31_energy_joules_total",
        "counter",
        ("model", "source"),
        "joules",
        "Energy of the accelerator boards of all replicas, busy and idle, from the moment that each is ready; measured "
        "or modelled, without PUE.",
        "For reports; divide by output tokens for joules per token.",
    ),
    Metric(
        "llama31_co2e_grams_total",
        "counter",
        ("model", "source"),
        "grams",
        "CO2 equivalent of that energy: kWh x energy.pue x energy.grams_co2e_per_kwh.",
        "For reports; docs/energy.md says what it holds.",
    ),
)
