"""How long does one engine step of a model, plan and GPU take? From measured kernels; see docs/cost-model.md."""

from __future__ import annotations

from functools import partial
from math import log2

import numpy as np

from cluster.calibration import EngineFamily, get_family
from cluster.hardware import ISLAND_GPUS, Gpu
from cluster.kernels import Floats, Grid, Kernels, shipped_kernels
from cluster.policy import StepShape, StepSpeed
from cluster.rank_shapes import rank_gemms, rank_heads
from llama31.memory import kv_tokens_that_fit
from llama31.parallel import ParallelPlan, check_plan, layers_per_stage
from llama31.specs import ModelSpec

ACTIVATION_BYTES = 2
# Of the logits, per word and sequence: written in bfloat16, read, written and read in float32 by the sampler.
SAMPLER_BYTES = 12
TYPICAL_DECODES = 64
TYPICAL_CONTEXT_TOKENS = 2048
# Attention is tabulated at half powers of two, up to 8,192 sequences and 262,144 tokens.
_HALVES = 2
_ROWS, _COLUMNS = 13 * _HALVES + 1, 18 * _HALVES + 1


class CostModel:
    """Implements `cluster.policy.StepCost`: one replica of this spec, plan and GPU.

    A step's prefill tokens and decodes are those of the whole replica. With several stages they are cut into as
    many microbatches, and the step is one round through the pipeline: `pp * (slowest stage + hop)`. A single
    sequence cannot be cut: its round costs as much, and the other stages stand idle meanwhile.
    """

    def __init__(
        self,
        spec: ModelSpec,
        plan: ParallelPlan,
        gpu: Gpu,
        *,
        kv_dtype: str = "auto",
        family: str = "vllm",
        kernels: Kernels | None = None,
        memory_share: float = 0.9,
        max_step_tokens: int = 8192,
        max_running: int = 4096,
        island_gpus: int = ISLAND_GPUS,
    ) -> None:
        """Builds the tables that `step_s` looks up, in some milliseconds. Raises: PlanInvalid, ConfigInvalid."""
        check_plan(spec, plan)
        self.spec, self.plan, self.gpu = spec, plan, gpu
        self.max_step_tokens, self._island_gpus = max_step_tokens, island_gpus
        self._family: EngineFamily = get_family(family)
        self.kv_tokens = self._kv_tokens(memory_share, kv_dtype)
        self._kernels = kernels or shipped_kernels(gpu.name, family)
        self._kv_dtype = "fp8" if kv_dtype == "fp8" else "bfloat16"
        layers = max(layers_per_stage(spec, plan))
        heads = rank_heads(spec, plan.tp)
        largest = max(max_step_tokens, max_running)
        tokens = np.arange(largest + 1, dtype=np.float64)
        sizes = [size for size in self._family.graph_sizes if size < max_running] + [max_running]
        self._padded = [min(s for s in sizes if s >= n) for n in range(max_running + 1)] if len(sizes) > 1 else []
        self._tokens_s: list[float] = self._body_s(tokens).tolist()
        self._sampled_s: list[float] = self._head_s(tokens).tolist()
        self._decode = _LogTable(self._kernels.decode_attention(self._kv_dtype, *heads), layers)
        self._prefill = _LogTable(self._kernels.prefill_attention(self._kv_dtype, *heads), layers)
        kv_bytes = 2 * heads[1] * spec.head_dim * spec.kv_dtype_bytes(kv_dtype) * layers
        self._key_s = kv_bytes / gpu.hbm_bytes_s

    def step_s(self, shape: StepShape) -> float:
        """Seconds of one step; 0 of an empty one."""
        pp = self.plan.pp
        decodes = -(-shape.decodes // pp)
        tokens = -(-shape.prefill_tokens // pp)
        if decodes + tokens == 0:
            return 0.0
        # A prompt's last chunk samples too; a step with prefill only samples for one at least.
        sampling = shape.decodes + (1 if tokens else 0)
        computed = tokens + decodes
        if not tokens and decodes < len(self._padded):
            computed = self._padded[decodes]
        seconds = self._lookup(self._tokens_s, computed)
        if decodes:
            seconds += self._decode.at(decodes, max(1.0, shape.decode_context_tokens / shape.decodes))
        if tokens:
            seconds += self._prefill_s(tokens, shape.prefill_pairs / shape.prefill_tokens)
        head_s = self._lookup(self._sampled_s, decodes + (1 if tokens else 0)) * min(pp, sampling)
        return seconds * pp + head_s + self._family.step_gap_s + self._family.sequence_gap_s * shape.decodes

    def speed(self) -> StepSpeed:
        """The line through a step of 64 sequences with 2,048 tokens of context each, and its neighbours."""
        context = TYPICAL_DECODES * TYPICAL_CONTEXT_TOKENS
        base = StepShape(decodes=TYPICAL_DECODES, decode_context_tokens=context)
        base_s = self.step_s(base)
        longer = StepShape(decodes=TYPICAL_DECODES, decode_context_tokens=2 * context)
        wider = StepShape(decodes=2 * TYPICAL_DECODES, decode_context_tokens=context)
        chunk = max(1, self.max_step_tokens - TYPICAL_DECODES)
        mixed = StepShape(chunk, chunk * TYPICAL_CONTEXT_TOKENS / 2, TYPICAL_DECODES, context)
        context_token_s = max(0.0, (self.step_s(longer) - base_s) / context)
        sequence_s = max(0.0, (self.step_s(wider) - base_s) / TYPICAL_DECODES)
        fixed_s = base_s - context * context_token_s - TYPICAL_DECODES * sequence_s
        prefill_token_s = (self.step_s(mixed) - base_s) / chunk
        return StepSpeed(max(0.0, fixed_s), prefill_token_s, sequence_s, context_token_s, self.max_step_tokens)

    def _kv_tokens(self, share: float, kv_dtype: str) -> int:
        fit = partial(kv_tokens_that_fit, self.spec, self.plan, self.gpu.usable_bytes, kv_dtype=kv_dtype)
        return int(share * fit(utilisation=1.0)) if self._family.memory_of_free else fit(utilisation=share)

    def _prefill_s(self, tokens: int, keys: float) -> float:
        """`keys` are read per query on average: prompts of `2*keys` tokens without a past have as many."""
        alone = 2.0 * max(keys, 0.5)
        prompts = tokens / alone
        if prompts >= 1.0:
            return self._prefill.at(prompts, alone)
        # Chunks behind a past: their share of the whole prompt's time, but never less than reading the keys.
        return max(self._prefill.at(1.0, alone) * prompts, self._prefill.at(1.0, tokens) + keys * self._key_s)

    def _lookup(self, table: list[float], index: int) -> float:
        if index < len(table):
            return table[index]
        return table[-1] + (index - len(table) + 1) * (table[-1] - table[len(table) // 2]) / (len(table) // 2)

    def _body_s(self, tokens: Floats) -> Floats:
        """The slowest stage without attention, embedding to the last layer, for so many tokens."""
        first, slowest = 0, np.zeros(len(tokens))
        for layers in layers_per_stage(self.spec, self.plan):
            stage = range(first, first + layers)
            slowest = np.maximum(slowest, self._layers_s(tokens, stage))
            first += layers
        size = tokens * self.spec.hidden * ACTIVATION_BYTES
        reduce_s = self._kernels.all_reduce_s(self.plan.tp, size, self._island_gpus)
        layers = max(layers_per_stage(self.spec, self.plan))
        seconds = slowest + (2 * layers + 1) * reduce_s
        if self.plan.pp > 1:
            scope = "network" if self.plan.world_size > self._island_gpus else "nvlink"
            seconds += self._kernels.send_s(scope, size)
        return seconds

    def _layers_s(self, tokens: Floats, layers: range) -> Floats:
        gemms = rank_gemms(self.spec, self.plan.tp)
        seconds = np.zeros(len(tokens))
        for part, names in (("attention", ("qkv", "o")), ("ffn", ("gate_up", "down"))):
            fp8_layers = self.spec.fp8_attention_layers if part == "attention" else self.spec.fp8_ffn_layers
            fp8 = len(set(layers) & set(fp8_layers))
            for name in names:
                for dtype, count in (("fp8", fp8), ("bfloat16", len(layers) - fp8)):
                    if count:
                        seconds += count * self._kernels.gemm_s(dtype, tokens, *gemms[name])
                if fp8 and not self._family.fuses_quantisation:
                    seconds += fp8 * self._moved_s(tokens * gemms[name][1] * 3)
        return np.asarray(seconds + len(layers) * self._small_s(tokens))

    def _small_s(self, tokens: Floats) -> Floats:
        """Norms with residual, rope with the KV write, and the activation, of one layer."""
        spec, tp = self.spec, self.plan.tp
        heads, kv_heads = rank_heads(spec, tp)
        elements = 2 * 4 * spec.hidden + 2 * (heads + 2 * kv_heads) * spec.head_dim + 3 * spec.ffn_hidden // tp
        moved_s = tokens * elements * ACTIVATION_BYTES / (self._family.hbm_share * self.gpu.hbm_bytes_s)
        return np.asarray(self._family.kernels_per_layer * self._family.kernel_s + moved_s)

    def _moved_s(self, size_bytes: Floats) -> Floats:
        return np.asarray(self._family.kernel_s + size_bytes / (self._family.hbm_share * self.gpu.hbm_bytes_s))

    def _head_s(self, sampled: Floats) -> Floats:
        """lm_head and the sampler for so many sequences."""
        n, k = rank_gemms(self.spec, self.plan.tp)["lm_head"]
        gathered = self._kernels.all_reduce_s(self.plan.tp, sampled * n * ACTIVATION_BYTES, self._island_gpus)
        seconds = self._kernels.gemm_s("bfloat16", sampled, n, k) + gathered
        return np.asarray(seconds + self._moved_s(sampled * self.spec.vocab_size * SAMPLER_BYTES))


class _LogTable:
    """A grid at half powers of two, looked up without numpy: a step is asked for millions of times."""

    def __init__(self, grid: Grid, layers: int) -> None:
        batch = 2.0 ** (np.arange(_ROWS) / _HALVES)
        tokens = 2.0 ** (np.arange(_COLUMNS) / _HALVES)
        self._logs: list[list[float]] = np.log2(layers * grid.at(batch[:, None], tokens[None, :])).tolist()

    def at(self, batch: float, tokens: float) -> float:
        """Seconds of all layers."""
        row, column = log2(batch) * _HALVES, log2(tokens) * _HALVES
        i, j = min(int(row), _ROWS - 2), min(int(column), _COLUMNS - 2)
        low, high = self._logs[i], self._logs[i + 1]
        below = low[j] + (low[j + 1] - low[j]) * (column - j)
        above = high[j] + (high[j + 1] - high[j]) * (column - j)
        return float(2.0 ** (below + (above - below) * (row - i)))
