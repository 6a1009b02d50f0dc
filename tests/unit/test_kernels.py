"""Do kernel tables give their own points back, sane times between and beyond, and errors in words?"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from cluster.hardware import GPUS
from cluster.kernels import Kernels, bracket, load_kernels, read_kernels, shipped_kernels, write_kernels
from cluster.rank_shapes import MODELS, TPS, all_gemms, all_heads, rank_gemms, rank_heads
from llama31.errors import ConfigInvalid
from llama31.specs import get_spec

FAMILIES = ("vllm", "tensorrt")


@pytest.fixture(scope="module")
def h100() -> Kernels:
    return shipped_kernels("H100-80GB", "vllm")


@pytest.mark.parametrize("gpu", list(GPUS))
@pytest.mark.parametrize("family", FAMILIES)
def test_every_shape_of_every_model_has_a_time(gpu: str, family: str) -> None:
    kernels = shipped_kernels(gpu, family)
    tokens = np.asarray([1, 100, 5000, 60_000])
    for dtype in ("bfloat16", "fp8"):
        for n, k in all_gemms():
            seconds = kernels.gemm_s(dtype, tokens, n, k)
            roofline = kernels.roofline_s(dtype, tokens, n, k)
            assert np.all(seconds > 0.6 * roofline), (n, k)
            # Small matrices are bound by the launch, narrow ones by idle multiprocessors.
            assert np.all(seconds < 12 * roofline + 2e-5), (n, k)
    for kv_dtype in ("bfloat16", "fp8"):
        for heads in all_heads():
            for grid in (kernels.decode_attention(kv_dtype, *heads), kernels.prefill_attention(kv_dtype, *heads)):
                assert np.all(np.isfinite(grid.seconds))
                assert np.all(grid.seconds > 1e-6)


def test_measured_points_come_back(h100: Kernels) -> None:
    table = h100.tables["gemm"]["bfloat16"]
    name, us = next(iter(table["shapes"].items()))
    n, k = map(int, name.split("x"))
    assert h100.gemm_s("bfloat16", table["tokens"], n, k) == pytest.approx(np.asarray(us) * 1e-6)
    grid = h100.decode_attention("bfloat16", 8, 1)
    assert grid.at(grid.batch[:, None], grid.tokens[None, :]) == pytest.approx(grid.seconds)


def test_beyond_the_tables(h100: Kernels) -> None:
    """Twice the tokens of a large matrix, twice the batch, and twice a long context take twice as long."""
    one, two = h100.gemm_s("fp8", [32768, 65536], 8192, 8192)
    assert two / one == pytest.approx(2, rel=0.02)
    grid = h100.decode_attention("bfloat16", 8, 1)
    assert float(grid.at(4096, 1024) / grid.at(2048, 1024)) == pytest.approx(2)
    assert float(grid.at(64, 262_144) / grid.at(64, 131_072)) == pytest.approx(2, rel=0.1)
    assert float(h100.all_reduce_s(8, 2 << 30) / h100.all_reduce_s(8, 1 << 30)) == pytest.approx(2)


def test_all_reduce_between_nodes_costs_more_than_within(h100: Kernels) -> None:
    size = 8 << 20
    assert h100.all_reduce_s(1, size) == 0
    assert h100.all_reduce_s(16, size) > h100.all_reduce_s(8, size) > h100.all_reduce_s(2, size) > 0
    assert h100.all_reduce_s(8, size, island_gpus=4) > h100.all_reduce_s(8, size)


@pytest.mark.parametrize(
    ("wanted", "corners"),
    [
        ((4, 4), [(4, 4)]),
        ((3, 3), [(2, 2), (2, 4), (4, 2), (4, 4)]),
        ((4, 3), [(4, 2), (4, 4)]),
        ((100, 3), [(4, 2), (4, 4)]),
        ((1, 1), [(2, 2)]),
    ],
)
def test_bracket(wanted: tuple[int, int], corners: list[tuple[int, int]]) -> None:
    assert bracket([(2, 2), (2, 4), (4, 2), (4, 4)], *wanted) == corners


def test_bracket_without_corners_takes_the_nearest() -> None:
    assert bracket([(2, 2), (8, 8)], 7, 3) == [(8, 8)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tp", TPS)
def test_the_ranks_matrices_are_the_models(name: str, tp: int) -> None:
    spec = get_spec(name)
    gemms = rank_gemms(spec, tp)
    heads, kv_heads = rank_heads(spec, tp)
    whole = tp * sum(n * k for part, (n, k) in gemms.items() if part != "lm_head")
    repeated = 2 * spec.hidden * spec.head_dim * (tp * kv_heads - spec.kv_heads)
    assert whole == spec.attention_params_per_layer + spec.ffn_params_per_layer + repeated
    assert heads * tp == spec.heads


def tables_of(kernels: Kernels) -> dict[str, object]:
    return dict(kernels.tables)


def test_a_file_is_read_as_it_was_written(tmp_path: Path, h100: Kernels) -> None:
    path = tmp_path / "kernels.json.gz"
    write_kernels(path, "H100-80GB", "here", tables_of(h100))
    first = path.read_bytes()
    write_kernels(path, "H100-80GB", "here", tables_of(h100))
    assert path.read_bytes() == first
    assert read_kernels(path).tables == h100.tables


def test_what_a_file_lacks_is_shipped(tmp_path: Path, h100: Kernels) -> None:
    path = tmp_path / "kernels.json.gz"
    slow = {"tokens": [1, 64], "shapes": {"4096x4096": [1000.0, 1000.0]}}
    write_kernels(path, "H100-80GB", "here", {"gemm": {"bfloat16": slow}})
    mixed = load_kernels("H100-80GB", "vllm", path)
    assert float(mixed.gemm_s("bfloat16", 8, 4096, 4096)) == pytest.approx(1e-3, rel=0.05)
    assert mixed.gemm_s("fp8", 8, 4096, 4096) == h100.gemm_s("fp8", 8, 4096, 4096)
    assert mixed.all_reduce_s(8, 4096) == h100.all_reduce_s(8, 4096)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read"),
        (b"no gzip", "cannot be read"),
        (gzip.compress(b"[]"), "not of form"),
        (gzip.compress(b'{"form": 2}'), "not of form"),
        (gzip.compress(b'{"form": 1}'), "lacks gpu, source, gemm"),
        (gzip.compress(json.dumps({"form": 1, "gpu": "H200", "source": "x"}).encode()), "is of H200, not of H100"),
    ],
)
def test_bad_files(tmp_path: Path, h100: Kernels, content: bytes, words: str) -> None:
    path = tmp_path / "kernels.json.gz"
    path.write_bytes(content)
    base = h100 if "H200" in words else None
    with pytest.raises(ConfigInvalid, match=words):
        read_kernels(path, base)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        read_kernels(tmp_path / "nowhere")
