"""The production engine: vLLM's AsyncLLM with TP x PP ranks as Ray actors; tokens in, tokens out.

Pinned to vLLM 0.32 (`ray` executor V2). Detokenisation is off: text belongs to the ingress.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama31.block_table import BlockTable
from llama31.chat import FinishReason, TokenColumns
from llama31.engine import EngineOutput, EngineRequest, EngineState, MeasuredStep, RankReport, RankVitals
from llama31.errors import DuplicateRequest, EngineFailed
from llama31.parallel import ParallelPlan
from llama31.prefill_work import PrefillWork
from llama31.prefix_blocks import ROUTING_BLOCK_TOKENS
from llama31.rank_link import RankLinkAddress, RankListener, RankPhase
from llama31.vllm_blocks import VllmBlocks, events_config
from llama31.vllm_requests import output_columns, prompt_columns, refusal_text, sampling_params

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup
    from vllm.config import VllmConfig
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

log = logging.getLogger("llama31.engine")

FINISH_REASONS = {
    "stop": FinishReason.END_OF_TURN,
    "length": FinishReason.MAX_OUTPUT_TOKENS,
    "abort": FinishReason.ABORTED,
}


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """How to run the engine on this hardware; the model itself is what `checkpoint` says.

    `kv_cache_bytes` per rank replaces `gpu_memory_share` where set (always on CPU).
    `load_format` "dummy" makes random weights: only config.json must exist.
    """

    checkpoint: Path
    plan: ParallelPlan
    dtype: str
    device: str
    max_model_tokens: int
    max_running: int
    max_batched_tokens: int
    gpu_memory_share: float = 0.9
    kv_cache_bytes: int | None = None
    kv_cache_dtype: str = "auto"
    eager: bool = False
    load_format: str = "safetensors"
    prefix_caching: bool = True
    # Under which name vLLM's own metrics count; empty: the checkpoint's path.
    name: str = ""
    # For vLLM's block events; None: there are none.
    socket_dir: Path | None = None

    @property
    def tells_blocks(self) -> bool:
        """Whether there will be block events."""
        return self.prefix_caching and self.socket_dir is not None


def engine_arguments(settings: VllmSettings) -> dict[str, Any]:
    """The keyword arguments of vLLM's AsyncEngineArgs for these settings."""
    ranks = {"cpu": "llama31.vllm_worker.CpuRank", "cuda": "llama31.vllm_worker.CudaRank"}
    return {
        "model": str(settings.checkpoint),
        "served_model_name": settings.name or None,
        # Only constrained output needs one there; checkpoints without tokenizer.json do without it.
        "skip_tokenizer_init": not (settings.checkpoint / "tokenizer.json").is_file(),
        # Compiles in milliseconds whatever the schema, and is the library that checks it at the door.
        # Free white space would let a small model fill its whole limit with it.
        "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
        "tensor_parallel_size": settings.plan.tp,
        "pipeline_parallel_size": settings.plan.pp,
        "distributed_executor_backend": "ray",
        "worker_cls": ranks[settings.device],
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_tokens,
        "max_num_seqs": settings.max_running,
        "max_num_batched_tokens": settings.max_batched_tokens,
        "gpu_memory_utilization": settings.gpu_memory_share,
        "kv_cache_memory_bytes": settings.kv_cache_bytes,
        "kv_cache_dtype": settings.kv_cache_dtype,
        "enforce_eager": settings.eager,
        "load_format": settings.load_format,
        "enable_prefix_caching": settings.prefix_caching,
        "enable_chunked_prefill": True,
        "scheduling_policy": "priority",
        # The ingress resolves the model's sampling defaults; vLLM must not add its own on top.
        "generation_config": "vllm",
        "max_logprobs": 20,
        # vLLM 0.32 calls fbgemm_fp8 deprecated; it is what Meta's own FP8 checkpoint of the 405B is in.
        "allow_deprecated_quantization": True,
        # What each step computed comes with its counters.
        "enable_logging_iteration_details": True,
    }


def build_config(
    settings: VllmSettings, group: PlacementGroup | None, link: RankLinkAddress | None = None
) -> VllmConfig:
    """vLLM's own configuration, placed into `group`. Needs no GPU and loads no weights."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    from llama31 import vllm_continuation

    arguments = engine_arguments(settings)
    if settings.tells_blocks:
        assert settings.socket_dir is not None
        arguments["kv_events_config"] = events_config(settings.socket_dir)
    config = AsyncEngineArgs(**arguments).create_engine_config(UsageContext.ENGINE_CONTEXT)
    config.parallel_config.placement_group = group
    config.scheduler_config.scheduler_cls = vllm_continuation.scheduler_for(config)
    if link is not None:
        config.additional_config["llama31_rank_link"] = asdict(link)
    return config


class VllmEngine:
    """One replica's engine: AsyncLLM here, EngineCore in a child process, ranks in Ray actors."""

    def __init__(
        self,
        settings: VllmSettings,
        group: PlacementGroup,
        node_ip: str,
        on_phase: Callable[[RankReport, RankPhase], None],
    ) -> None:
        self._settings = settings
        self._group = group
        self._node_ip = node_ip
        self._on_phase = on_phase
        self._listener = RankListener(secrets.token_hex(16), on_phase, self._lose_rank)
        self._llm: AsyncLLM | None = None
        self._pumps: dict[str, asyncio.Task[None]] = {}
        self._prompt_tokens: dict[str, int] = {}
        self._batch: list[EngineOutput] = []
        self._ready = asyncio.Event()
        self._failure: EngineFailed | None = None
        self._state = EngineState()
        self._busy_since_s = 0.0
        self._blocks: VllmBlocks | None = None
        self._work = PrefillWork()

    async def start(self) -> None:
        """Builds the engine; vLLM loads in a thread so that ranks can report meanwhile."""
        link = await self._listener.start(self._node_ip)
        try:
            config = await asyncio.to_thread(build_config, self._settings, self._group, link)
            self._llm = await self._build(config)
        except Exception as error:
            raise EngineFailed(f"vLLM did not start: {_first_line(error)}") from error
        if self._failure is not None:
            raise self._failure
        blocks, block_tokens = config.cache_config.num_gpu_blocks or 0, config.cache_config.block_size
        self._state = replace(self._state, kv_tokens_total=blocks * block_tokens)
        if self._settings.tells_blocks and ROUTING_BLOCK_TOKENS % block_tokens == 0:
            assert self._settings.socket_dir is not None
            self._blocks = VllmBlocks(self._settings.socket_dir, block_tokens)

    def submit(self, request: EngineRequest) -> None:
        """Hands one sequence to AsyncLLM."""
        if request.request_id in self._pumps:
            raise DuplicateRequest(request.request_id)
        if not self._pumps:
            self._busy_since_s = asyncio.get_running_loop().time()
            self._work.wake()
        prompt_tokens = len(request.prompt_token_ids)
        self._prompt_tokens[request.request_id] = prompt_tokens
        cached = self._blocks.table.cached_tokens(request.prompt_token_ids, request.cache_salt) if self._blocks else 0
        self._work.begin(request.request_id, prompt_tokens + len(request.output_token_ids) - cached)
        pump = self._pumps[request.request_id] = asyncio.create_task(self._pump(request))
        pump.add_done_callback(partial(self._end_unbegun, request.request_id))

    def cancel(self, request_id: str) -> None:
        """Cancelling the consumer makes AsyncLLM abort the request in the scheduler."""
        if (pump := self._pumps.get(request_id)) is not None:
            pump.cancel()

    async def next_step(self) -> list[EngineOutput]:
        """All outputs that vLLM's output handler released together, which is one engine step."""
        await self._ready.wait()
        self._ready.clear()
        if self._failure is not None:
            raise self._failure
        batch, self._batch = self._batch, []
        return batch

    def state(self) -> EngineState:
        """vLLM's counters of its last step; an engine without requests holds no KV."""
        if not self._pumps:
            return replace(self._state, running=0, waiting=0, waiting_prompt_tokens=0, kv_tokens_used=0)
        waiting_tokens = self._waiting_prompt_tokens()
        return replace(self._state, waiting_prompt_tokens=waiting_tokens, prefill_tokens=self._work.left_tokens)

    def blocks(self) -> BlockTable | None:
        """By vLLM's events."""
        return self._blocks.table if self._blocks else None

    def take_steps(self) -> tuple[MeasuredStep, ...]:
        """As vLLM's steps came out."""
        return self._work.take_steps()

    def ranks(self) -> tuple[RankReport, ...]:
        """What the connected ranks reported."""
        return self._listener.reports()

    def rank_vitals(self) -> tuple[RankVitals, ...]:
        """What the connected ranks last said of their steps and boards."""
        return self._listener.vitals(self._busy_since_s if self._pumps else None)

    async def close(self) -> None:
        """Ends every request, EngineCore and the rank actors."""
        await self._listener.close()
        if self._blocks is not None:
            self._blocks.close()
        for pump in tuple(self._pumps.values()):
            pump.cancel()
        await asyncio.gather(*self._pumps.values(), return_exceptions=True)
        if self._llm is not None:
            llm, self._llm = self._llm, None
            await asyncio.to_thread(llm.shutdown)

    async def _build(self, config: VllmConfig) -> AsyncLLM:
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.metrics.loggers import StatLoggerBase

        engine = self

        class StepCounters(StatLoggerBase):
            """vLLM calls `record` once per engine step that had outputs."""

            def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None:
                """Keeps nothing: the counters live in the engine's state."""

            def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
                engine._count_step(scheduler_stats, iteration_stats)

            def log_engine_initialized(self) -> None:
                """The replica logs its own start."""

        # The constructor blocks until the ranks have loaded; its output handler starts with the
        # first request, so that building it in a thread binds nothing to that thread.
        # vLLM's own log would have a line for every step; its metrics stay.
        make = partial(AsyncLLM.from_vllm_config, config, stat_loggers=[StepCounters], disable_log_stats=True)
        return await asyncio.to_thread(make)

    async def _pump(self, request: EngineRequest) -> None:
        """Moves one sequence's outputs into the batch; always ends with one last output."""
        assert self._llm is not None
        request_id = request.request_id
        last = EngineOutput(request_id, TokenColumns(), error="the engine ended the sequence without a reason")
        try:
            prompt: dict[str, Any] = {"prompt_token_ids": list(request.prompt_token_ids)}
            if request.cache_salt:
                prompt["cache_salt"] = request.cache_salt
            stream = self._llm.generate(
                prompt,
                sampling_params(request),
                request_id,
                priority=request.priority,
            )
            async for output in stream:
                converted = self._convert(request, output)
                if converted.is_last:
                    last = converted
                else:
                    self._emit(converted)
        except asyncio.CancelledError:
            last = EngineOutput(request_id, TokenColumns(), FinishReason.ABORTED)
        except Exception as error:
            last = EngineOutput(request_id, TokenColumns(), error=_first_line(error))
            if self._llm is not None and self._llm.errored:
                self._fail(EngineFailed(f"the engine died: {_first_line(error)}"))
            elif refusal := refusal_text(error):
                log.warning("request %s was refused: %s", request_id, _first_line(error))
                last = EngineOutput(request_id, TokenColumns(), refusal=refusal)
        finally:
            del self._pumps[request_id], self._prompt_tokens[request_id]
            self._work.end(request_id)
            self._emit(last)

    def _end_unbegun(self, request_id: str, pump: asyncio.Task[None]) -> None:
        """Of a task that is cancelled before its first turn nothing runs, not even its `finally`."""
        if self._pumps.get(request_id) is pump:
            del self._pumps[request_id], self._prompt_tokens[request_id]
            self._work.end(request_id)
            self._emit(EngineOutput(request_id, TokenColumns(), FinishReason.ABORTED))

    def _emit(self, output: EngineOutput) -> None:
        self._batch.append(output)
        self._ready.set()

    def _convert(self, request: EngineRequest, output: RequestOutput) -> EngineOutput:
        piece = output.outputs[0]
        finish = FINISH_REASONS.get(piece.finish_reason) if piece.finish_reason else None
        metrics = output.metrics
        if piece.token_ids:
            self._work.end(request.request_id)
        return EngineOutput(
            request_id=request.request_id,
            tokens=output_columns(request, piece),
            finish_reason=finish,
            cached_prompt_tokens=output.num_cached_tokens or 0,
            queued_s=_interval_s(metrics, "queued_ts", "scheduled_ts"),
            prefill_s=_interval_s(metrics, "scheduled_ts", "first_token_ts"),
            error="" if finish or not output.finished else f"the engine ended with {piece.finish_reason!r}",
            prompt=prompt_columns(request, output.prompt_logprobs),
        )

    def _waiting_prompt_tokens(self) -> int:
        """Prompt tokens of the youngest `waiting` requests: vLLM's stats give the count only."""
        lengths = list(self._prompt_tokens.values())
        return sum(lengths[len(lengths) - self._state.waiting :]) if self._state.waiting else 0

    def _count_step(self, scheduler: Any, iteration: Any) -> None:
        state = replace(self._state, steps_total=self._state.steps_total + 1)
        if scheduler is not None:
            state = replace(
                state,
                running=scheduler.num_running_reqs,
                waiting=scheduler.num_waiting_reqs + scheduler.num_skipped_waiting_reqs,
                kv_tokens_used=round(scheduler.kv_cache_usage * state.kv_tokens_total),
                cached_prompt_tokens_total=state.cached_prompt_tokens_total + scheduler.prefix_cache_stats.hits,
                prefix_query_tokens_total=state.prefix_query_tokens_total + scheduler.prefix_cache_stats.queries,
            )
            if (step := scheduler.iteration_details) is not None:
                now_s, decodes = asyncio.get_running_loop().time(), step.num_generation_requests
                self._work.count_step(now_s, step.num_ctx_tokens, decodes, state.kv_tokens_used)
        if iteration is not None:
            state = replace(
                state,
                prompt_tokens_total=state.prompt_tokens_total + iteration.num_prompt_tokens,
                computed_prompt_tokens_total=state.computed_prompt_tokens_total + iteration.prompt_token_stats.computed,
                output_tokens_total=state.output_tokens_total + iteration.num_generation_tokens,
            )
        self._state = state

    def _lose_rank(self, report: RankReport) -> None:
        where = f"rank {report.rank} (stage {report.stage}, pid {report.pid} on {report.node_ip})"
        self._on_phase(report, "lost")
        self._fail(EngineFailed(f"{where} was lost"))

    def _fail(self, failure: EngineFailed) -> None:
        self._failure = self._failure or failure
        self._ready.set()


def _interval_s(metrics: Any, start: str, end: str) -> float:
    if metrics is None:
        return 0.0
    started, ended = getattr(metrics, start, 0.0), getattr(metrics, end, 0.0)
    return float(max(0.0, ended - started)) if started and ended else 0.0


def _first_line(error: BaseException) -> str:
    # vLLM wraps what went wrong in an EngineGenerateError without words.
    cause = error.__cause__ or error
    text = str(cause).strip() or type(cause).__name__
    return text.splitlines()[0][:300]
