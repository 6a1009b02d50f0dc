"""Which deploy configuration, or which Helm values, is a plan?"""

from __future__ import annotations

from typing import Any

from cluster.planner import IDLE_SHARE, Plan
from deployments.config import yaml_text

POD_MEMORY_GIB_PER_GPU = 80
POD_SHARED_MEMORY_GIB_PER_GPU = 8
POD_CPUS_PER_GPU = 4
# Above this many GPUs a request passes through many tokens a second: a door of its own size.
LARGE_TP = 8
DRAIN_STEPS = 4096
_HEAD = (
    "# By `llama31 plan`: {fleet}.\n# `planned` is what was predicted; `llama31 verify` compares it with what runs.\n"
)


def config_tree(plan: Plan) -> dict[str, Any]:
    """What `llama31 serve --config` reads."""
    layout, fleet, gpu = plan.layout, plan.fleet, plan.layout.nodes.gpu
    return {
        "model": layout.spec.name,
        "plan": str(layout.plan),
        "replicas": fleet.replicas,
        "engine": {
            "kv_cache_dtype": layout.kv_dtype,
            "max_model_tokens": layout.longest_context_tokens,
            "max_running": fleet.replica.max_running,
            "max_batched_tokens": fleet.replica.max_step_tokens,
            "gpu_memory_share": layout.memory_share,
            "step_timeout_s": 60 if layout.plan.tp < LARGE_TP else 120,
        },
        "hardware": {
            "gpu": gpu.name,
            "gpus_per_node": layout.nodes.gpus_per_node,
            "gpu_usable_bytes": gpu.usable_bytes,
        },
        "energy": {"idle_watts": round(IDLE_SHARE * gpu.tdp_watts, 1), "peak_watts": gpu.tdp_watts},
        "planned": planned_tree(plan),
    }


def planned_tree(plan: Plan) -> dict[str, Any]:
    """What the plan promises, for `llama31 verify` and the alert on drift."""
    prediction = plan.prediction
    return {
        "kv_tokens": plan.layout.kv_tokens,
        "rate_per_s": round(plan.fleet.rate_per_s, 4),
        "ttft_p99_s": round(prediction.ttft_p99_s, 4),
        "itl_p99_s": round(prediction.itl_p99_s, 5),
        "output_tokens_per_s": round(prediction.output_tokens_s, 2),
    }


def values_tree(plan: Plan) -> dict[str, Any]:
    """What `helm install -f` reads: one pod for each stage of each replica."""
    tp = plan.layout.plan.tp
    large = tp >= LARGE_TP
    # As long as the longest usual answer takes.
    drain_s = max(60, 60 * round(DRAIN_STEPS * plan.prediction.itl_p50_s / 60 + 0.5))
    config = config_tree(plan) | {"ingress": {"serve_without_tls": True}}
    return {
        "config": config,
        "ingress": {"cpus": 4 if large else 2, "memory": "8Gi" if large else "4Gi"},
        "engine": {
            "cpus": max(8, POD_CPUS_PER_GPU * tp),
            "memory": f"{max(64, POD_MEMORY_GIB_PER_GPU * tp)}Gi",
            "sharedMemory": f"{max(16, POD_SHARED_MEMORY_GIB_PER_GPU * tp)}Gi",
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        },
        "weights": {"source": plan.layout.spec.hub_id},
        "upgrade": {"deletionDelaySeconds": drain_s, "drainSeconds": drain_s},
    }


def emitted(plan: Plan, form: str) -> str:
    """YAML of a `config` or of `values`."""
    tree = config_tree(plan) if form == "config" else values_tree(plan)
    return _HEAD.format(fleet=plan.fleet) + yaml_text(tree)
