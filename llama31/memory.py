"""What does each rank have to hold, and how many tokens of KV cache fit beside it?"""

from __future__ import annotations

from llama31.parallel import ParallelPlan, kv_heads_per_rank, layers_per_stage
from llama31.specs import DTYPE_BYTES, FP8_SCALE_BYTES, ModelSpec

GIB = 2**30

# Activations, graphs, collectives and allocator slack on one GPU. Two published logs of vLLM with 70B bf16 TP4 on
# H100-80GB (79.1 GiB) at a share of 0.9 imply 2.57 GiB (468,752 tokens: anyscale/ray-serve-llm-perf-examples, replica
# start) and 3.13 GiB (461,376 tokens: llm-d-kv-cache-manager, benchmarking/37-capacity); this is their mean.
OVERHEAD_BYTES = int(2.85 * GIB)


def rank_weight_bytes(spec: ModelSpec, plan: ParallelPlan, stage: int) -> int:
    """Weight bytes of one rank of that stage.

    Matrices are cut by tp, norms are held whole by every rank, KV heads are repeated when tp exceeds
    their number. The embedding is on the first stage, lm_head and the final norm on the last; a tied
    embedding is held by both (once if they are the same stage).
    """
    first_layer = sum(layers_per_stage(spec, plan)[:stage])
    layers = range(first_layer, first_layer + layers_per_stage(spec, plan)[stage])
    total_bytes = sum(_layer_bytes(spec, plan, layer) for layer in layers)
    dtype_bytes = DTYPE_BYTES[spec.default_dtype]
    is_first, is_last = stage == 0, stage == plan.pp - 1
    copies = int(is_first) + int(is_last)
    if spec.tied_embeddings:
        copies = min(copies, 1)
    vocabulary_rows = -(-spec.vocab_size // plan.tp)
    total_bytes += copies * vocabulary_rows * spec.hidden * dtype_bytes
    return total_bytes + (spec.hidden * dtype_bytes if is_last else 0)


def kv_bytes_per_token_per_rank(spec: ModelSpec, plan: ParallelPlan, stage: int, kv_dtype: str = "auto") -> int:
    """`2*layers_of_stage*kv_heads_per_rank*head_dim*kv_dtype_bytes`."""
    layers = layers_per_stage(spec, plan)[stage]
    return 2 * layers * kv_heads_per_rank(spec, plan) * spec.head_dim * spec.kv_dtype_bytes(kv_dtype)


def kv_tokens_that_fit(
    spec: ModelSpec,
    plan: ParallelPlan,
    gpu_bytes: int,
    utilisation: float = 0.9,
    overhead_bytes: int = OVERHEAD_BYTES,
    kv_dtype: str = "auto",
) -> int:
    """Tokens of KV cache that the fullest rank has room for; 0 if its weights do not even fit.

    Per rank: `(gpu_bytes*utilisation - overhead_bytes - weights) / kv_bytes_per_token`.
    """
    budget_bytes = int(gpu_bytes * utilisation) - overhead_bytes
    return min(
        max(0, budget_bytes - rank_weight_bytes(spec, plan, stage))
        // kv_bytes_per_token_per_rank(spec, plan, stage, kv_dtype)
        for stage in range(plan.pp)
    )


def longest_context(spec: ModelSpec, kv_tokens: int) -> int:
    """Tokens of the longest single sequence: the model's context, or what the KV cache holds."""
    return min(spec.context_tokens, kv_tokens)


def _layer_bytes(spec: ModelSpec, plan: ParallelPlan, layer: int) -> int:
    dtype_bytes = DTYPE_BYTES[spec.default_dtype]
    attention_bytes = 1 if layer in spec.fp8_attention_layers else dtype_bytes
    ffn_bytes = 1 if layer in spec.fp8_ffn_layers else dtype_bytes
    heads = spec.heads // plan.tp + kv_heads_per_rank(spec, plan)
    total_bytes = 2 * spec.hidden * heads * spec.head_dim * attention_bytes
    total_bytes += spec.ffn_params_per_layer // plan.tp * ffn_bytes
    total_bytes += spec.norm_params_per_layer * dtype_bytes
    if spec.quantization == "fbgemm_fp8" and layer in spec.fp8_ffn_layers:
        # Row scales of gate and up are cut with their rows; down is cut by column and keeps all of its own.
        total_bytes += (2 * spec.ffn_hidden // plan.tp + spec.hidden) * FP8_SCALE_BYTES
    return total_bytes
