"""What do engines cost beyond their kernels? One row per engine family, each number with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from llama31.errors import ConfigInvalid


@dataclass(frozen=True, slots=True)
class EngineFamily:
    """One family of engines.

    `kernel_s` and `hbm_share` make the time of a kernel that only moves bytes: `kernel_s + bytes/(hbm_share*HBM)`.
    `step_gap_s + sequences*sequence_gap_s` is what the GPU waits for the scheduler and the sampler's bookkeeping.
    It pads a step without prefill to the next of `graph_sizes`, where there are any. `memory_of_free`: its share of
    the memory is of what weights and overhead leave, not of the whole GPU.
    `fuses_quantisation`: a norm or activation writes FP8 itself, so no kernel of its own reads and writes it again.
    """

    name: str
    kernel_s: float
    hbm_share: float
    kernels_per_layer: int
    fuses_quantisation: bool
    step_gap_s: float
    sequence_gap_s: float
    graph_sizes: tuple[int, ...]
    memory_of_free: bool
    source: str


_ROWS = (
    EngineFamily(
        name="vllm",
        kernel_s=2.5e-6,
        hbm_share=0.8,
        kernels_per_layer=5,
        fuses_quantisation=False,
        step_gap_s=0.2e-3,
        sequence_gap_s=2e-6,
        graph_sizes=(),
        memory_of_free=False,
        source="calibrated (docs/cost-model.md): vLLM 2026-04-22, 8B bf16 on one H100, 6.44 ms between tokens",
    ),
    EngineFamily(
        name="tensorrt",
        kernel_s=2.5e-6,
        hbm_share=0.8,
        kernels_per_layer=4,
        fuses_quantisation=True,
        step_gap_s=0.2e-3,
        sequence_gap_s=2e-6,
        graph_sizes=(1, 2, 4, 8, 16, 32, 64, 128, 256, 384, 512, 1024, 2048, 4096, 8192),
        memory_of_free=True,
        source="as vLLM's; its kernels are in its own tables (docs/cost-model.md)",
    ),
)

FAMILIES: Mapping[str, EngineFamily] = MappingProxyType({row.name: row for row in _ROWS})


def get_family(name: str) -> EngineFamily:
    """The row of that name. Raises: ConfigInvalid."""
    try:
        return FAMILIES[name]
    except KeyError:
        raise ConfigInvalid(f"engine family {name!r} is not known: there are {', '.join(FAMILIES)}") from None
