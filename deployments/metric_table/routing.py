"""What do we count of routing?"""

from __future__ import annotations

from deployments.metric_table.row import Metric

_RATIO_BUCKETS = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)

ROWS = (
    Metric(
        "llama31_routes_total",
        "counter",
        ("model", "reason"),
        "sequences",
        "Sequences given to a replica, by why it was chosen: prefix (it has most of the prompt), spread (another has "
        "more of it, but is too busy), least_loaded (nobody has any), short_prompt (less than a block), least_tokens "
        "(configured); degraded: no_index, no_speed, stale.",
        "no_index or stale that stays: the links to replicas tell nothing; look at the ingress's log for them. "
        "no_speed ends after the first few hundred steps of a replica.",
    ),
    Metric(
        "llama31_route_cached_tokens_total",
        "counter",
        ("model",),
        "tokens",
        "Prompt tokens that the router thought to be in the prefix cache of the replica that it chose.",
        "Much more than llama31_replica_prefix_hit_tokens_total grows by: caches lose blocks sooner than replicas "
        "tell; add KV room or replicas.",
    ),
    Metric(
        "llama31_ttft_real_to_predicted",
        "histogram",
        ("model",),
        "ratio",
        "Time from the choice of a replica to the first token, divided by the router's prediction.",
        "Far from 1 for long: the router decides by wrong times; compare llama31_replica_step_seconds, and restart "
        "replicas whose pace changed.",
        _RATIO_BUCKETS,
    ),
    Metric(
        "llama31_index_blocks",
        "gauge",
        ("ingress",),
        "blocks",
        "Prefix blocks that this ingress knows, of all replicas; one is 128 tokens.",
        "At router.index_blocks: it forgets the oldest; raise the limit, one block takes at most 350 bytes.",
    ),
    Metric(
        "llama31_indexed_replicas",
        "gauge",
        ("ingress",),
        "replicas",
        "Linked replicas that tell this ingress what their prefix caches hold.",
        "Fewer than are ready: those run without prefix caching, or another version of this program.",
    ),
)
