"""Composition root: which deployments make up the service, and with which resources?"""

from __future__ import annotations

from ray import serve
from ray.serve import Application

from cluster.placement import replica_bundles
from deployments.config import METRICS_VARIABLE, ServiceConfig
from deployments.engine_server import EngineServer
from deployments.ingress_server import SHUTDOWN_MARGIN_S, IngressServer

APP_NAME = "llama31"
HEALTH_PERIOD_S = 5.0
INGRESS_CPUS = 0.5


def build_app(config: ServiceConfig, cluster_token: str, metrics_dir: str, dashboard_url: str) -> Application:
    """The ingress with the engine replicas behind it; its status page points at the dashboard."""
    bundles = replica_bundles(config.parallel_plan, config.engine.replica_cpus, config.engine.rank_cpus)
    environment = {
        "env_vars": {
            METRICS_VARIABLE: metrics_dir,
            # One event loop per process: two grpc.aio loops wake each other (docs/architecture.md).
            "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
            **(STAND_IN_ENVIRONMENT if config.engine.device == "cpu" else GPU_ENVIRONMENT),
        }
    }
    shutdown_s = config.ingress.drain_s + SHUTDOWN_MARGIN_S
    if config.engine.kind == "vllm":
        resources = {
            "ray_actor_options": {"num_cpus": config.engine.replica_cpus, "runtime_env": environment},
            "placement_group_bundles": [dict(bundle) for bundle in bundles.bundles],
            "placement_group_strategy": bundles.strategy,
        }
    else:
        resources = {"ray_actor_options": {"num_cpus": config.engine.replica_cpus, "runtime_env": environment}}
    engine = serve.deployment(EngineServer, name="engine").options(
        num_replicas=config.replicas,
        health_check_period_s=HEALTH_PERIOD_S,
        graceful_shutdown_timeout_s=shutdown_s,
        graceful_shutdown_wait_loop_s=0.2,
        max_ongoing_requests=1000,
        **resources,
    )
    ingress = serve.deployment(IngressServer, name="ingress").options(
        num_replicas=1,
        health_check_period_s=HEALTH_PERIOD_S,
        graceful_shutdown_timeout_s=shutdown_s,
        graceful_shutdown_wait_loop_s=0.2,
        ray_actor_options={"num_cpus": INGRESS_CPUS, "runtime_env": environment},
    )
    return ingress.bind(config, cluster_token, dashboard_url, engine.bind(config, cluster_token))


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
