"""Composition root: which deployments make up the service, and with which resources?

`build` is what a RayService or a Serve config file names as `import_path: deployments.app:build`;
`llama31 serve` comes in through `build_app`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application

from cluster.placement import replica_bundles
from deployments.autoscaler import engine_count
from deployments.check import memory_faults
from deployments.config import METRICS_VARIABLE, ServiceConfig, node_dir, parse_config
from deployments.directory import SERVE_APPLICATION, SERVE_ENGINE
from deployments.engine_server import EngineServer
from deployments.ingress_server import SHUTDOWN_MARGIN_S, IngressServer
from llama31.errors import ConfigInvalid

APP_NAME = SERVE_APPLICATION
INGRESS, ENGINE = DEPLOYMENT_NAMES = ("ingress", SERVE_ENGINE)
HEALTH_PERIOD_S = 5.0
INGRESS_CPUS = 0.5


def build(args: dict[str, Any]) -> Application:
    """The application for a configuration tree, the one that `llama31 serve --config` reads.

    Raises: ConfigInvalid, PlanInvalid; Serve shows their words as the application's message.
    """
    config = parse_config(args, "args")
    if config.engine.kind == "vllm" and (faults := list(memory_faults(config))):
        raise ConfigInvalid("; ".join(faults))
    return build_app(config, node_dir())


def build_app(config: ServiceConfig, metrics_dir: Path, dashboard_url: str = "") -> Application:
    """The ingresses with the engine replicas behind them; their status page points at the dashboard.

    `metrics_dir` is a path of every node. Equal arguments give equal deployments: nothing here is drawn by lot.
    """
    environment = {
        "env_vars": {
            METRICS_VARIABLE: str(metrics_dir),
            # One event loop per process: two grpc.aio loops wake each other (docs/architecture.md).
            "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
            **(STAND_IN_ENVIRONMENT if config.engine.device == "cpu" else GPU_ENVIRONMENT),
        }
    }
    life = {
        "health_check_period_s": HEALTH_PERIOD_S,
        "graceful_shutdown_timeout_s": config.ingress.drain_s + SHUTDOWN_MARGIN_S,
        "graceful_shutdown_wait_loop_s": 0.2,
    }
    engine = serve.deployment(EngineServer, name=ENGINE).options(
        max_ongoing_requests=1000,
        **engine_count(config, metrics_dir),
        **life,
        **_engine_resources(config, environment),
    )
    ingress = serve.deployment(IngressServer, name=INGRESS).options(
        num_replicas=config.ingress.replicas,
        max_replicas_per_node=config.ingress.max_per_node,
        ray_actor_options=_actor_options(INGRESS_CPUS, environment, config.ingress.node_labels),
        **life,
    )
    return ingress.bind(config, dashboard_url, engine.bind(config))


def _engine_resources(config: ServiceConfig, environment: dict[str, Any]) -> dict[str, Any]:
    """A vLLM replica holds a placement group, all of it on nodes with the labels; a scripted one is a process."""
    engine = config.engine
    if engine.kind == "scripted":
        return {"ray_actor_options": _actor_options(engine.replica_cpus, environment, engine.node_labels)}
    bundles = replica_bundles(config.parallel_plan, engine.replica_cpus, engine.rank_cpus)
    resources: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": engine.replica_cpus, "runtime_env": environment},
        "placement_group_bundles": [dict(bundle) for bundle in bundles.bundles],
        "placement_group_strategy": bundles.strategy,
    }
    if engine.node_labels:
        resources["placement_group_bundle_label_selector"] = [dict(engine.node_labels) for _ in bundles.bundles]
    return resources


def _actor_options(num_cpus: float, environment: dict[str, Any], node_labels: dict[str, str]) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": num_cpus, "runtime_env": environment}
    return options | ({"label_selector": dict(node_labels)} if node_labels else {})


# vLLM on CPU with logical GPUs; what each line is for: docs/architecture.md, "The stand-in".
STAND_IN_ENVIRONMENT = {
    "VLLM_USE_RAY_V2_EXECUTOR_BACKEND": "1",
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
GPU_ENVIRONMENT = {
    "VLLM_USE_RAY_V2_EXECUTOR_BACKEND": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
