"""What does a configuration ask for, what fits, and what does the present cluster lack?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cluster.placement import place_replicas
from cluster.policy import NodeSnapshot, Topology
from deployments.config import ServiceConfig
from llama31.errors import PlacementRefused
from llama31.memory import (
    GIB,
    kv_bytes_per_token_per_rank,
    kv_tokens_that_fit,
    longest_context,
    rank_weight_bytes,
)
from llama31.parallel import layers_per_stage


def kv_tokens(config: ServiceConfig) -> int:
    """KV tokens of one replica: what fits beside the weights, or what the configuration sets."""
    spec, plan, engine = config.spec, config.parallel_plan, config.engine
    if engine.kv_cache_bytes is None:
        usable, share = config.hardware.gpu_usable_bytes, engine.gpu_memory_share
        return kv_tokens_that_fit(spec, plan, usable, share, kv_dtype=engine.kv_cache_dtype)
    per_token = (kv_bytes_per_token_per_rank(spec, plan, s, engine.kv_cache_dtype) for s in range(plan.pp))
    return engine.kv_cache_bytes // max(per_token)


def describe(config: ServiceConfig) -> Iterator[str]:
    """The plan in lines: ranks per node, weights and KV per rank, longest context."""
    spec, plan, engine, hardware = config.spec, config.parallel_plan, config.engine, config.hardware
    nodes = nodes_needed(config)
    yield f"model      {spec.name}: {spec.param_count():,} parameters, {spec.weight_bytes() / GIB:.1f} GiB of weights"
    yield f"plan       {plan}: tensor parallel {plan.tp} x pipeline parallel {plan.pp} = {plan.world_size} ranks"
    node = f"node{'s' * (nodes > 1)} of {hardware.gpus_per_node} x {hardware.gpu}"
    scaling = config.autoscaling
    then = f" at first, then {scaling.min_replicas} to {scaling.max_replicas} by demand" if scaling else ""
    yield f"replicas   {config.first_replicas}{then}, each on {nodes} {node}"
    for stage, layers in enumerate(layers_per_stage(spec, plan)):
        weights = rank_weight_bytes(spec, plan, stage)
        per_token = kv_bytes_per_token_per_rank(spec, plan, stage, config.engine.kv_cache_dtype)
        ranks = f"ranks {plan.rank(stage, 0)}-{plan.rank(stage, plan.tp - 1)}"
        yield (
            f"stage {stage}    {ranks}: {layers} layers, {weights / GIB:.2f} GiB of weights "
            f"and {per_token:,} B of KV per token on each rank"
        )
    tokens = kv_tokens(config)
    context = min(config.engine.max_model_tokens, longest_context(spec, tokens))
    dtype = engine.dtype if engine.kv_cache_dtype == "auto" else engine.kv_cache_dtype
    yield f"KV         {tokens:,} tokens per replica in {dtype}"
    yield f"context    {context:,} tokens at most (configured: {config.engine.max_model_tokens:,})"
    for lack in memory_faults(config):
        yield f"refused    {lack}"


def memory_faults(config: ServiceConfig) -> Iterator[str]:
    """Why the plan cannot work on the configured GPUs, whatever the cluster."""
    spec, plan, hardware = config.spec, config.parallel_plan, config.hardware
    weights = max(rank_weight_bytes(spec, plan, stage) for stage in range(plan.pp))
    budget = hardware.gpu_usable_bytes * config.engine.gpu_memory_share
    tokens = kv_tokens(config)
    if weights > budget:
        yield (
            f"a rank needs {weights / GIB:.1f} GiB for weights, a {hardware.gpu} gives {budget / GIB:.1f} GiB: "
            "use more ranks (a larger tp or pp) or a quantised model"
        )
    elif tokens < config.engine.max_model_tokens:
        yield (
            f"{tokens:,} KV tokens cannot hold one sequence of engine.max_model_tokens "
            f"({config.engine.max_model_tokens:,}): lower it, use fp8 KV, or use more ranks"
        )


def nodes_needed(config: ServiceConfig) -> int:
    """Nodes of one replica when stages fill nodes of the configured size."""
    plan = config.parallel_plan
    stages_per_node = max(1, config.hardware.gpus_per_node // plan.tp)
    return -(-plan.pp // stages_per_node)


def check_room(config: ServiceConfig, topology: Topology, replicas: int | None = None) -> None:
    """Checks that the cluster holds every replica now, or so many more. Raises: PlacementRefused."""
    engine, ingress = config.engine, config.ingress
    doors = _labelled(topology, ingress.node_labels, "ingress.node_labels")
    room = len(doors.nodes) * (ingress.max_per_node or ingress.replicas)
    if doors.nodes and room < ingress.replicas:
        raise PlacementRefused(
            f"{ingress.replicas} ingress processes, at most {ingress.max_per_node} a node, need "
            f"{-(-ingress.replicas // (ingress.max_per_node or 1))} nodes; {len(doors.nodes)} may hold them. "
            "What would help: add nodes, lower ingress.replicas, or raise ingress.max_per_node"
        )
    nodes = _labelled(topology, engine.node_labels, "engine.node_labels")
    if engine.kind == "vllm":
        wanted = config.first_replicas if replicas is None else replicas
        place_replicas(nodes, config.parallel_plan, wanted, engine.replica_cpus, engine.rank_cpus)


def _labelled(topology: Topology, labels: Mapping[str, str], key: str) -> Topology:
    """The nodes that carry the labels. Raises: PlacementRefused if labels are asked for and no node has them."""
    found = Topology(tuple(node for node in topology.nodes if node.has(labels)))
    if labels and not found.nodes:
        asked = ", ".join(f"{name}={value}" for name, value in labels.items())
        has = "; ".join(f"{node.address} ({node.node_id[:8]}): {_own_labels(node)}" for node in topology.nodes)
        raise PlacementRefused(
            f"{key} asks for {asked}, which no node has. The nodes have: {has or 'no node is alive'}. "
            f"What would help: start nodes with ray start --labels, or change {key}"
        )
    return found


def _own_labels(node: NodeSnapshot) -> str:
    own = [f"{name}={value}" for name, value in node.labels.items() if not name.startswith("ray.io/")]
    return ", ".join(own) or "no labels of their own"


def what_is_missing(config: ServiceConfig, topology: Topology, replicas: int | None = None) -> str:
    """Empty if the cluster holds every replica now, or so many more; else the refusal in words."""
    try:
        check_room(config, topology, replicas)
    except PlacementRefused as refusal:
        return str(refusal)
    return ""
