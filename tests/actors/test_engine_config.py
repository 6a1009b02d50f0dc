"""Does vLLM's own configuration accept every model and shipped plan? Built on a CPU, no weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployments.config import load_config
from deployments.engine_server import vllm_settings
from llama31.vllm_engine import build_config

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("name", ["8b", "70b", "405b-fp8", "405b-bf16"])
def test_vllm_accepts_the_shipped_configuration(name: str, tmp_path: Path) -> None:
    config = load_config(name, {"engine.checkpoint": str(tmp_path), "engine.weights": "dummy"})
    (tmp_path / "config.json").write_text(json.dumps(config.spec.hf_config()))
    built = build_config(vllm_settings(config), group=None)
    plan, model, spec = config.parallel_plan, built.model_config, config.spec
    assert (built.parallel_config.tensor_parallel_size, built.parallel_config.pipeline_parallel_size) == (
        plan.tp,
        plan.pp,
    )
    assert model.max_model_len == 131_072
    assert model.get_total_num_kv_heads() == spec.kv_heads == 8
    assert model.get_num_layers(built.parallel_config) == spec.layers // plan.pp
    assert model.get_vocab_size() == 128_256
    assert (built.quant_config is not None) == (spec.quantization == "fbgemm_fp8")
