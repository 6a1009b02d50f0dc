"""Which GPUs and nodes are there, and what do their data sheets say?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from llama31.errors import ConfigInvalid

GIB = 2**30
ISLAND_GPUS = 8
_GROUP = re.compile(r"(?:([1-9][0-9]{0,4})x)?([1-9][0-9]{0,4})x([A-Za-z][A-Za-z0-9-]*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU. Rates are the data sheet's, dense, in one direction.

    `usable_bytes` is what CUDA reports, not the label on the box. `fp8_flops` is 0 where there is no FP8 unit.
    `nvlink_bytes_s` and `network_bytes_s` are per GPU, within and between nodes.
    """

    name: str
    usable_bytes: int
    hbm_bytes_s: float
    bf16_flops: float
    fp8_flops: float
    tdp_watts: float
    nvlink_bytes_s: float
    network_bytes_s: float
    source: str

    def flops(self, dtype: str) -> float:
        """Peak of matrices of that dtype; those of FP8 are computed in BF16 where there is no FP8 unit."""
        return self.fp8_flops if dtype == "fp8" and self.fp8_flops else self.bf16_flops


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """So many equal nodes. The GPUs of one node are one NVLink island."""

    gpu: Gpu
    nodes: int
    gpus_per_node: int

    @property
    def gpus(self) -> int:
        """Of all its nodes."""
        return self.nodes * self.gpus_per_node

    def __str__(self) -> str:
        return f"{self.nodes}x{self.gpus_per_node}x{self.gpu.name}"


_ROWS = (
    Gpu(
        name="H100-80GB",
        usable_bytes=int(79.1 * GIB),
        hbm_bytes_s=3.35e12,
        bf16_flops=989.4e12,
        fp8_flops=1978.9e12,
        tdp_watts=700.0,
        nvlink_bytes_s=450e9,
        network_bytes_s=50e9,
        source="NVIDIA H100 SXM5 data sheet; one 400 Gb/s port per GPU (DGX H100); usable: torch on SXM5-80GB",
    ),
    Gpu(
        name="H200-141GB",
        usable_bytes=int(139.8 * GIB),
        hbm_bytes_s=4.8e12,
        bf16_flops=989.4e12,
        fp8_flops=1978.9e12,
        tdp_watts=700.0,
        nvlink_bytes_s=450e9,
        network_bytes_s=50e9,
        source="NVIDIA H200 SXM data sheet; one 400 Gb/s port per GPU (DGX H200); usable: torch on H200-141GB",
    ),
    Gpu(
        name="A100-80GB",
        usable_bytes=int(79.15 * GIB),
        hbm_bytes_s=2.039e12,
        bf16_flops=312e12,
        fp8_flops=0.0,
        tdp_watts=400.0,
        nvlink_bytes_s=300e9,
        network_bytes_s=25e9,
        source="NVIDIA A100 SXM4-80GB data sheet; one 200 Gb/s port per GPU (DGX A100); usable: torch on SXM4-80GB",
    ),
)

GPUS: Mapping[str, Gpu] = MappingProxyType({gpu.name: gpu for gpu in _ROWS})
DEFAULT_GPU = GPUS["H100-80GB"]


def get_gpu(name: str) -> Gpu:
    """The row of that name; "H100" is "H100-80GB", case does not matter. Raises: ConfigInvalid."""
    wanted = name.strip().upper()
    for gpu in _ROWS:
        if wanted in (gpu.name.upper(), gpu.name.partition("-")[0].upper()):
            return gpu
    raise ConfigInvalid(f"GPU {name!r} is not known: there are {', '.join(GPUS)}")


def parse_hardware(text: str) -> tuple[NodeGroup, ...]:
    """Reads "2x8xH100-80GB" (nodes x GPUs x kind), "16xA100-80GB" (GPUs in nodes of 8), or such parts with commas.

    A number of GPUs that nodes of 8 do not divide leaves one smaller node. Raises: ConfigInvalid.
    """
    groups: list[NodeGroup] = []
    for part in text.split(","):
        match = _GROUP.fullmatch("".join(part.split()))
        if match is None:
            raise ConfigInvalid(
                f"hardware {part.strip() or text!r} is not understood: write 2x8xH100-80GB (nodes x GPUs x kind), "
                "16xA100-80GB (GPUs, 8 in a node), or several of them with commas"
            )
        nodes, gpus, gpu = match[1], int(match[2]), get_gpu(match[3])
        if nodes is not None:
            if gpus > ISLAND_GPUS:
                better = f"write {int(nodes) * gpus}x{gpu.name}"
                raise ConfigInvalid(f"hardware {part.strip()!r}: a node has at most {ISLAND_GPUS} GPUs; {better}")
            groups.append(NodeGroup(gpu, int(nodes), gpus))
            continue
        whole, rest = divmod(gpus, ISLAND_GPUS)
        groups += [NodeGroup(gpu, whole, ISLAND_GPUS)] if whole else []
        groups += [NodeGroup(gpu, 1, rest)] if rest else []
    return tuple(groups)
