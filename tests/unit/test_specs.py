"""Do the formulas of every spec give the published and counted numbers?"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from llama31.errors import ModelNotFound
from llama31.specs import SPECS, get_spec

GIB = 2**30

# name, parameters, weight bytes, KV bytes per token (own dtype), KV bytes per token (fp8)
COUNTS = [
    ("llama-3.1-8b", 8_030_261_248, 16_060_522_496, 131_072, 65_536),
    ("llama-3.1-8b-fp8-all-linear", 8_030_261_248, 9_081_200_640, 131_072, 65_536),
    ("llama-3.1-70b", 70_553_706_496, 141_107_412_992, 327_680, 163_840),
    ("llama-3.1-70b-fp8-all-linear", 70_553_706_496, 72_656_371_712, 327_680, 163_840),
    ("llama-3.1-405b", 405_853_388_800, 811_706_777_600, 516_096, 258_048),
    ("llama-3.1-405b-fp8", 405_853_388_800, 487_229_259_776, 516_096, 258_048),
    ("llama-3.1-405b-fp8-all-linear", 405_853_388_800, 410_060_226_560, 516_096, 258_048),
    ("smollm2-135m", 143_362_368, 573_449_472, 61_440, 15_360),
    ("tiny-llama31", 33_424_000, 133_696_000, 4_096, 1_024),
]


@pytest.mark.parametrize(("name", "params", "weight_bytes", "kv_bytes", "kv_fp8_bytes"), COUNTS)
def test_counts(name: str, params: int, weight_bytes: int, kv_bytes: int, kv_fp8_bytes: int) -> None:
    spec = get_spec(name)
    assert spec.param_count() == params
    assert spec.weight_bytes() == weight_bytes
    assert spec.kv_bytes_per_token() == kv_bytes
    assert spec.kv_bytes_per_token("fp8") == kv_fp8_bytes


def test_every_row_is_counted() -> None:
    assert {row[0] for row in COUNTS} == set(SPECS)


@pytest.mark.parametrize(
    ("name", "all_linear_bytes", "meta_recipe_bytes"),
    [
        ("llama-3.1-8b", 9_081_200_640, 10_779_631_616),
        ("llama-3.1-70b", 72_656_371_712, 86_165_700_608),
        ("llama-3.1-405b", 410_060_226_560, 487_229_259_776),
    ],
)
def test_both_fp8_recipes_on_every_size(name: str, all_linear_bytes: int, meta_recipe_bytes: int) -> None:
    assert replace(get_spec(name), quantization="fp8_all_linear").weight_bytes() == all_linear_bytes
    assert replace(get_spec(name), quantization="fbgemm_fp8").weight_bytes() == meta_recipe_bytes


@pytest.mark.parametrize(
    ("name", "at_0", "at_8k", "at_128k"),
    [
        ("llama-3.1-8b", 15_009_316_864, 19_304_284_160, 83_728_793_600),
        ("llama-3.1-70b", 139_003_428_864, 160_478_265_344, 482_600_812_544),
        ("llama-3.1-405b", 807_495_794_688, 875_141_529_600, 1_889_827_553_280),
    ],
)
def test_flops_per_token(name: str, at_0: int, at_8k: int, at_128k: int) -> None:
    spec = get_spec(name)
    assert [spec.flops_per_token(tokens) for tokens in (0, 8192, 131072)] == [at_0, at_8k, at_128k]


@pytest.mark.parametrize(
    ("name", "of_1k", "of_128k"),
    [
        ("llama-3.1-8b", 14_569_848_176_640, 6_333_222_386_401_280),
        ("llama-3.1-70b", 141_565_565_599_744, 40_462_201_802_194_944),
        ("llama-3.1-405b", 826_909_894_115_328, 176_221_472_975_486_976),
    ],
)
def test_prefill_flops(name: str, of_1k: int, of_128k: int) -> None:
    spec = get_spec(name)
    assert [spec.prefill_flops(tokens) for tokens in (0, 1024, 131072)] == [0, of_1k, of_128k]
    assert spec.prefill_flops(1) == spec.flops_per_token(1)


def test_kv_of_a_full_context_of_the_405b_is_63_gib() -> None:
    spec = get_spec("llama-3.1-405b")
    assert spec.kv_bytes_per_token() * spec.context_tokens == 63 * GIB


def test_hf_config_equals_the_published_one() -> None:
    assert get_spec("llama-3.1-405b").hf_config() == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "max_position_embeddings": 131072,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "torch_dtype": "bfloat16",
        "initializer_range": 0.02,
        "pretraining_tp": 1,
        "use_cache": True,
    }


def test_fbgemm_config_names_every_module_that_stays_bf16() -> None:
    quantization = get_spec("llama-3.1-405b-fp8").hf_config()["quantization_config"]
    kept = set(quantization["modules_to_not_convert"])
    assert quantization["quant_method"] == "fbgemm_fp8"
    assert quantization["activation_scale_ub"] == 1200.0
    assert len(kept) == 126 * 4 + 2 * 3 + 1
    assert {"model.layers.125.self_attn.o_proj", "model.layers.0.mlp.gate_proj", "lm_head"} <= kept
    assert "model.layers.125.mlp.down_proj" in kept
    assert "model.layers.1.mlp.down_proj" not in kept


def test_the_stand_in_is_the_published_model_with_one_more_head_group() -> None:
    served = get_spec("smollm2-135m")
    published = served.unpadded()
    assert (served.heads, served.kv_heads) == (12, 4)
    assert (published.heads, published.kv_heads, published.padded_from) == (9, 3, None)
    # A query head keeps its KV head only if the group size stays.
    assert served.heads // served.kv_heads == published.heads // published.kv_heads
    assert published.param_count() == 134_515_008
    assert published.hf_config()["num_attention_heads"] == 9
    assert served.hf_config()["rope_scaling"] is None


def test_unpadded_of_an_unpadded_model_is_itself() -> None:
    spec = get_spec("llama-3.1-8b")
    assert spec.unpadded() is spec


def test_the_tiny_model_has_the_vocabulary_and_rope_of_llama_31() -> None:
    tiny, real = get_spec("tiny-llama31"), get_spec("llama-3.1-8b")
    shared = ("vocab_size", "kv_heads", "rope_theta", "rope_scaling", "context_tokens", "stop_token_ids")
    assert all(getattr(tiny, name) == getattr(real, name) for name in shared)


def test_every_spec_is_consistent() -> None:
    for name, spec in SPECS.items():
        assert spec.name == name
        assert spec.heads % spec.kv_heads == 0
        assert spec.source
        assert all(0 <= token_id < spec.vocab_size for token_id in (*spec.stop_token_ids, spec.bos_token_id))
        assert math.isclose(spec.norm_eps, 1e-5)


def test_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(ModelNotFound, match=r"llama-3\.1-8b"):
        get_spec("llama-4")
