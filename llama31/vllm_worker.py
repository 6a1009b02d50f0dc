"""What does one rank do besides vLLM's own work? It reports for duty and says how far it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import ray
import torch
from vllm.config import VllmConfig
from vllm.distributed.parallel_state import get_pp_group
from vllm.platforms import current_platform
from vllm.utils.import_utils import import_pynvml
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu_worker import Worker as GpuWorker

from llama31.engine import RankReport
from llama31.rank_link import RankBeacon, RankLinkAddress
from llama31.vllm_continuation import teach_runner
from llama31.vllm_rdma import warn_of_locked_memory

CONFIG_KEY = "llama31_rank_link"


def _open_beacon(vllm_config: VllmConfig, rank: int, local_rank: int) -> RankBeacon:
    context = ray.get_runtime_context()
    tp = vllm_config.parallel_config.tensor_parallel_size
    report = RankReport(
        rank=rank,
        stage=rank // tp,
        tp_rank=rank % tp,
        node_id=context.get_node_id(),
        node_ip=ray.util.get_node_ip_address(),
        pid=os.getpid(),
        device=f"{current_platform.device_name}:{local_rank}",
        gpu=next((int(gpu) for gpu in context.get_accelerator_ids()["GPU"] if gpu.isdecimal()), None),
    )
    return RankBeacon(RankLinkAddress(**vllm_config.additional_config[CONFIG_KEY]), report)


def _board_counter(device: Any) -> Callable[[], float | None]:
    """Reads the energy that the device's board has drawn since its driver was loaded, in joules; None: it cannot tell.

    Source: nvmlDeviceGetTotalEnergyConsumption, millijoules, Volta and newer.
    """
    nvml = import_pynvml()
    try:
        nvml.nvmlInit()
        board = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(board)
    except nvml.NVMLError:
        return lambda: None

    def read_joules() -> float | None:
        try:
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(board)) / 1000
        except nvml.NVMLError:
            return None

    return read_joules


class CudaRank(GpuWorker):
    """One GPU's share of the model."""

    def init_device(self) -> None:
        """Reports before the first slow thing happens."""
        self._beacon = _open_beacon(self.vllm_config, self.rank, self.local_rank)
        warn_of_locked_memory()
        super().init_device()
        if not self.use_v2_model_runner:
            teach_runner(self.model_runner)
        self._beacon.start_pulse(_board_counter(self.device))

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Loads this rank's weights."""
        self._beacon.say("loading")
        super().load_model(*args, **kwargs)
        self._beacon.say("loaded")

    def compile_or_warm_up_model(self) -> Any:
        """Captures graphs and warms up."""
        self._beacon.say("warming up")
        return super().compile_or_warm_up_model()

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        """Takes part in a step, and counts it."""
        output = super().execute_model(*args, **kwargs)
        self._beacon.steps += 1
        return output


class CpuRank(CPUWorker):
    """One logical GPU's share of the model, computed on the CPU."""

    def init_device(self) -> None:
        """Reports before the first slow thing happens."""
        self._beacon = _open_beacon(self.vllm_config, self.rank, self.local_rank)
        super().init_device()
        teach_runner(self.model_runner)
        self._beacon.start_pulse(lambda: None)

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Loads this rank's weights."""
        self._beacon.say("loading")
        super().load_model(*args, **kwargs)
        self._allocate_stage_input()
        self._beacon.say("loaded")

    def compile_or_warm_up_model(self) -> Any:
        """Warms up."""
        self._beacon.say("warming up")
        return super().compile_or_warm_up_model()

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        """Takes part in a step, and counts it."""
        output = super().execute_model(*args, **kwargs)
        self._beacon.steps += 1
        return output

    def _allocate_stage_input(self) -> None:
        """Gives later pipeline stages the buffer for what the stage before them sends.

        vLLM 0.32 allocates it in the warm-up run, which eager mode with an explicit KV size skips;
        without it the first request ends in an AssertionError.
        """
        if get_pp_group().is_first_rank:
            return
        runner = self.model_runner
        runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
            batch_size=runner.max_num_tokens, dtype=self.model_config.dtype, device=self.device
        )
