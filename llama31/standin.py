"""How does the packaged GGUF of the stand-in model become weights and a tokenizer that every library reads?

Reads the tensors directly (a tenth of the time that transformers takes, the same bits) and adds zero
heads, so that 2 and 4 tensor-parallel ranks divide a model of 9 heads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]

# GGUF name -> Hugging Face name; `blk.N.` becomes `model.layers.N.`.
_OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL_TOKEN = 3  # token_type in GGUF


@dataclass(frozen=True, slots=True)
class GgufModel:
    """What the file holds: weights by Hugging Face name, head counts and the tokenizer's tables."""

    weights: Weights
    heads: int
    kv_heads: int
    head_dim: int
    tokens: list[str]
    control_tokens: dict[int, str]
    merges: list[str]
    chat_template: str
    bos_token_id: int
    eos_token_id: int


def read_gguf(path: Path) -> GgufModel:
    """Reads and dequantises a Llama GGUF to float32."""
    import gguf  # type: ignore[import-untyped, unused-ignore]

    reader = gguf.GGUFReader(path)

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    heads, kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    weights: Weights = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        name = hf_name(tensor.name)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = rotary_halves(values, heads if "q_proj" in name else kv_heads)
        weights[name] = values
    tokens = field("tokenizer.ggml.tokens")
    kinds = field("tokenizer.ggml.token_type")
    return GgufModel(
        weights=weights,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=field("llama.rope.dimension_count"),
        tokens=tokens,
        control_tokens={i: tokens[i] for i, kind in enumerate(kinds) if kind == _CONTROL_TOKEN},
        merges=field("tokenizer.ggml.merges"),
        chat_template=field("tokenizer.chat_template"),
        bos_token_id=field("tokenizer.ggml.bos_token_id"),
        eos_token_id=field("tokenizer.ggml.eos_token_id"),
    )


def hf_name(gguf_name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    if layer := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", gguf_name):
        return f"model.layers.{layer[1]}.{_LAYER_NAMES[layer[2]]}.weight"
    return f"{_OUTER_NAMES[gguf_name.removesuffix('.weight')]}.weight"


def rotary_halves(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Puts the rows of q or k back from GGUF's rotary pairs to halves: (heads * head_dim, hidden)."""
    paired = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(paired.swapaxes(1, 2).reshape(rows.shape))


def pad_heads(weights: Weights, head_dim: int, heads: int, kv_heads: int) -> Weights:
    """Adds zero heads after the last one, up to `heads` query and `kv_heads` KV heads; exact.

    A zero key scores every position alike, a zero value makes that head's result zero, and zero columns
    of o ignore it. Query head i reads KV head i // (heads // kv_heads): the group size must not change,
    so that the old query heads keep their KV heads.
    """
    rows = {"q_proj": heads * head_dim, "k_proj": kv_heads * head_dim, "v_proj": kv_heads * head_dim}
    padded: Weights = {}
    for name, values in weights.items():
        projection = name.removesuffix(".weight").rpartition(".")[2]
        if projection in rows:
            values = np.pad(values, ((0, rows[projection] - values.shape[0]), (0, 0)))
        elif projection == "o_proj":
            values = np.pad(values, ((0, 0), (0, heads * head_dim - values.shape[1])))
        padded[name] = values
    return padded


def tokenizer_json(model: GgufModel) -> dict[str, Any]:
    """The byte-level BPE of the GGUF as `tokenizers` reads it.

    The GGUF's pre-tokenizer "smollm" takes every digit alone before GPT-2's pattern; transformers'
    converter leaves that out and then splits two spaces before a digit differently.
    """
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": text} | flags for i, text in model.control_tokens.items()],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(model.tokens)},
            "merges": [merge.split(" ") for merge in model.merges],
        },
    }


def write_model(directory: Path, config: Mapping[str, Any], weights: Weights) -> None:
    """Writes config.json, generation_config.json and model.safetensors."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config)
    write_json(
        directory / "generation_config.json",
        {key: config[key] for key in ("bos_token_id", "eos_token_id")},
    )
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def write_tokenizer(directory: Path, model: GgufModel) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    bos, eos = model.tokens[model.bos_token_id], model.tokens[model.eos_token_id]
    write_json(directory / "tokenizer.json", tokenizer_json(model), indent=None)
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos,
            "eos_token": eos,
            "pad_token": eos,
            "clean_up_tokenization_spaces": False,
            "chat_template": model.chat_template,
        },
    )


def random_weights(config: Mapping[str, Any], seed: int) -> Weights:
    """Seeded weights of any Llama `config`, scaled so that activations neither die nor grow."""
    rng = np.random.default_rng(seed)
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q_rows = config["num_attention_heads"] * config["head_dim"]
    kv_rows = config["num_key_value_heads"] * config["head_dim"]

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        return rng.standard_normal((rows, columns), dtype=np.float32) / np.float32(columns**0.5)

    weights: Weights = {"model.embed_tokens.weight": rng.standard_normal((vocab, hidden), dtype=np.float32)}
    for layer in range(config["num_hidden_layers"]):
        shapes = {
            "self_attn.q_proj": (q_rows, hidden),
            "self_attn.k_proj": (kv_rows, hidden),
            "self_attn.v_proj": (kv_rows, hidden),
            "self_attn.o_proj": (hidden, q_rows),
            "mlp.gate_proj": (ffn, hidden),
            "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
        }
        prefix = f"model.layers.{layer}"
        weights |= {f"{prefix}.{name}.weight": matrix(*shape) for name, shape in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}.{norm}.weight"] = np.ones(hidden, np.float32)
    weights["model.norm.weight"] = np.ones(hidden, np.float32)
    if not config.get("tie_word_embeddings", False):
        weights["lm_head.weight"] = matrix(vocab, hidden)
    return weights


def write_json(path: Path, value: Mapping[str, Any], indent: int | None = 2) -> None:
    """Writes UTF-8 JSON with a final newline."""
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
