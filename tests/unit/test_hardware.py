"""Is the text of a cluster's hardware understood, and what is not, refused in words?"""

from __future__ import annotations

import pytest

from cluster.hardware import GPUS, get_gpu, parse_hardware
from llama31.errors import ConfigInvalid


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("2x8xH100-80GB", ["2x8xH100-80GB"]),
        ("16xA100-80GB", ["2x8xA100-80GB"]),
        ("4xh200", ["1x4xH200-141GB"]),
        ("12xH100", ["1x8xH100-80GB", "1x4xH100-80GB"]),
        ("8xH100-80GB, 8xH200", ["1x8xH100-80GB", "1x8xH200-141GB"]),
        ("4 x 4 x H100", ["4x4xH100-80GB"]),
    ],
)
def test_understood(text: str, groups: list[str]) -> None:
    assert [str(group) for group in parse_hardware(text)] == groups


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not understood: write 2x8xH100-80GB"),
        ("H100", "is not understood"),
        ("0xH100", "is not understood"),
        ("8xH100,", "is not understood"),
        ("-8xH100", "is not understood"),
        ("8xB300", "'B300' is not known: there are H100-80GB"),
        ("2x16xH100", "a node has at most 8 GPUs; write 32xH100-80GB"),
        ("8xH100;8xH200", "is not understood"),
    ],
)
def test_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigInvalid, match=words):
        parse_hardware(text)


def test_gpus_of_a_group() -> None:
    assert [group.gpus for group in parse_hardware("2x8xH100,3xH200")] == [16, 3]


def test_fp8_is_computed_in_bf16_where_there_is_no_unit() -> None:
    assert get_gpu("A100").flops("fp8") == get_gpu("A100").bf16_flops
    assert get_gpu("H100").flops("fp8") == get_gpu("H100").fp8_flops


@pytest.mark.parametrize("name", list(GPUS))
def test_every_row_is_plausible_and_has_a_source(name: str) -> None:
    gpu = GPUS[name]
    assert gpu.source
    # Usable is a little less than the label in GB says.
    assert 0.98 < gpu.usable_bytes / (int(name.partition("-")[2][:-2]) * 1e9) < 1.07
    assert gpu.network_bytes_s < gpu.nvlink_bytes_s < gpu.hbm_bytes_s < gpu.bf16_flops
