"""One replica: a Serve deployment that owns one engine and speaks the worker protocol.

Tokens in, tokens out: one stream per ingress, one message per engine step. Ray sees its life
(placement, health, restart), never its tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ray import serve

from cluster.placement import check_landed, order_bundles
from cluster.ray_cluster import bundle_nodes, node_metrics_urls, placing_s, snapshot
from deployments.config import ServiceConfig, checkpoint_dir, metrics_directory
from deployments.directory import ANNOUNCE_EVERY_S, Phase, ReplicaRecord, open_directory, told
from deployments.engine_digest import engine_digest
from deployments.metered_engine import MeteredEngine
from deployments.metrics import Metrics
from deployments.node_exporter import NodeExporter, forget_dead
from deployments.power import power_meter
from deployments.rank_exporters import export_nodes, other_machines
from deployments.replica_metrics import ReplicaMetrics
from deployments.tracing import open_tracing
from deployments.weights import prepare_weights
from deployments.worker_server import WorkerServer
from llama31.checkpoint import verify_checkpoint
from llama31.engine import Engine, RankReport
from llama31.errors import EngineFailed, Llama31Error
from llama31.rank_link import RankPhase
from llama31.scripted_engine import Script, ScriptedEngine

if TYPE_CHECKING:
    from llama31.vllm_engine import VllmSettings

log = logging.getLogger("llama31.replica")

# Long enough for the last refusals to reach the ingresses before the process ends.
FAREWELL_S = 0.5
EXPORT_EVERY_S = 1.0
SOCKET_DIR = "replica"


class EngineServer:
    """Life of one replica: load, check where the ranks landed, serve, drain or die in the open."""

    async def __init__(  # type: ignore[misc]
        self, config: ServiceConfig
    ) -> None:
        self._config = config
        # Inside the service's own directory, so that it goes with the service however this process ends.
        self._socket_dir = make_socket_dir(metrics_directory())
        self._directory = open_directory()
        self._failure: Exception | None = None
        forget_dead(metrics_directory())
        context = serve.get_replica_context()
        self._metrics = ReplicaMetrics(Metrics(), config.model, context.replica_id.unique_id)
        self._record = ReplicaRecord(
            replica_id=context.replica_id.unique_id,
            incarnation=int.from_bytes(os.urandom(4)),
            model=config.model,
            plan=config.plan,
            phase="starting",
            pid=os.getpid(),
        )
        self._ranks_in: dict[RankPhase, set[int]] = defaultdict(set)
        self._tasks: set[asyncio.Task[None]] = set()
        self._announcing = asyncio.create_task(self._keep_announcing())
        # From the first moment: also what a start costs, or why it failed, must be seen.
        self._exporting = asyncio.create_task(self._export_node())
        try:
            gpus = config.parallel_plan.world_size
            observe, most = self._metrics.step_seconds.observe, config.engine.max_batched_tokens
            self._engine = MeteredEngine(await self._start_engine(), gpus, observe, most)
            self._tracing = open_tracing(config.tracing, "llama31-replica")
            token = await self._directory.token.remote()
            engine = self._engine
            self._worker = WorkerServer(
                engine, self._record, token, self._fail, engine.price, self._tracing, engine.speed
            )
            address = await self._worker.start(self._socket_dir / "worker.sock", ray.util.get_node_ip_address())
        except Llama31Error as error:
            self._metrics.fail(error)
            await self._announce("failed", str(error))
            raise
        digest = await asyncio.to_thread(engine_digest, config)
        self._record = replace(self._record, address=address, digest=digest, ranks=self._engine.ranks())
        self._following = asyncio.create_task(self._follow_engine())
        await self._announce("ready", "")

    async def check_health(self) -> None:
        """Serve calls this every few seconds."""
        if self._failure is not None:
            raise self._failure

    async def __del__(self) -> None:  # Serve awaits it
        """Serve's shutdown hook: finish what runs, refuse what is new, free everything."""
        if not hasattr(self, "_worker"):
            return
        await self._announce("draining", "")
        await self._worker.drain(self._config.ingress.drain_s)
        for task in (self._announcing, self._following, self._exporting):
            task.cancel()
        await self._engine.close()
        await told(self._directory.withdraw.remote(self._record.replica_id))
        if self._tracing is not None:
            await self._tracing.close()
        shutil.rmtree(self._socket_dir, ignore_errors=True)

    async def _start_engine(self) -> Engine:
        config = self._config.engine
        engine: Engine
        if config.kind == "scripted":
            engine = ScriptedEngine(Script(**config.script.model_dump()))
            await self._announce("loading", "a scripted engine")
            await engine.start()
            return engine
        # This node may be another one than that of the command line.
        await asyncio.to_thread(prepare_weights, self._config, log.info)
        if config.weights == "checkpoint":
            await asyncio.to_thread(verify_checkpoint, checkpoint_dir(self._config), specs=(self._config.spec,))
        engine = self._make_vllm_engine()
        await engine.start()
        check_landed(engine.ranks(), self._config.parallel_plan, await asyncio.to_thread(snapshot))
        return engine

    def _make_vllm_engine(self) -> Engine:
        from llama31.vllm_engine import VllmEngine

        plan = self._config.parallel_plan
        group = ray.util.get_current_placement_group()
        if group is None:
            raise EngineFailed("this replica has no placement group; deploy it through deployments.app")
        self._metrics.placed(placing_s(group))
        self._export_ranks(bundle_nodes(group))
        order = order_bundles(bundle_nodes(group)[1:], plan, snapshot())
        # Bundle 0 is this process; vLLM takes rank r into bundle order[r].
        os.environ["VLLM_RAY_BUNDLE_INDICES"] = ",".join(str(index + 1) for index in order)
        os.environ["VLLM_RPC_BASE_PATH"] = str(self._socket_dir)
        os.environ["VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"] = str(self._config.engine.step_timeout_s)
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        settings = replace(vllm_settings(self._config), socket_dir=self._socket_dir)
        return VllmEngine(settings, group, ray.util.get_node_ip_address(), self._rank_phase)

    def _rank_phase(self, report: RankReport, phase: RankPhase) -> None:
        """Turns what ranks say into the replica's progress line."""
        if phase == "lost":
            # Nobody waits for it: this process ends soon.
            self._directory.lose_rank.remote(self._config.model, report)
            return
        world_size = self._config.parallel_plan.world_size
        self._ranks_in[phase].add(report.rank)
        reached = f"rank {len(self._ranks_in[phase])} of {world_size}"
        if phase == "starting":
            self._tell("starting", f"{reached} up on node {report.node_id[:8]}")
        elif phase == "loaded":
            self._tell("loading", f"{reached} has its weights")
        elif phase == "warming up":
            self._tell("warming up", reached)

    def _tell(self, phase: Phase, detail: str) -> None:
        """Announces without waiting; the task is kept, or it might be collected before it ran."""
        task = asyncio.create_task(self._announce(phase, detail))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _announce(self, phase: Phase, detail: str) -> None:
        self._metrics.reach(phase)
        self._record = replace(self._record, phase=phase, detail=detail)
        await told(self._directory.announce.remote(self._record))

    async def _keep_announcing(self) -> None:
        """Fills a restarted directory again and keeps the record from expiring."""
        while True:
            await self._announce(self._record.phase, self._record.detail)
            await asyncio.sleep(ANNOUNCE_EVERY_S)

    async def _export_node(self) -> None:
        """Holds the node's metrics port, or waits for it: every node with a replica has an exporter."""
        ingress = self._config.ingress
        urls = await asyncio.to_thread(node_metrics_urls)
        await NodeExporter(metrics_directory(), ingress.metrics_host, ingress.metrics_port, urls).run()

    def _export_ranks(self, node_ids: tuple[str, ...]) -> None:
        """As `_export_node`, where this replica has ranks and no process of its own."""
        ingress = self._config.ingress
        away = other_machines(node_ids, ray.util.get_node_ip_address(), snapshot())
        self._exporters = export_nodes(away, ingress.metrics_host, ingress.metrics_port, metrics_directory())

    async def _follow_engine(self) -> None:
        """Keeps this replica's series fresh."""
        engine, energy = self._engine, self._config.energy
        gpus = self._config.parallel_plan.world_size
        power = power_meter(energy.envelope, gpus, engine.rank_vitals) if energy else None
        if power is not None:
            engine.charge_by(power)
        loop = asyncio.get_running_loop()
        then_s, busy_s = loop.time(), engine.busy_s()
        while True:
            self._metrics.load(engine.state())
            self._metrics.ranks(engine.ranks(), engine.rank_vitals())
            await asyncio.sleep(EXPORT_EVERY_S)
            now_s, now_busy_s = loop.time(), engine.busy_s()
            if power is not None and energy is not None:
                worked_s = now_busy_s - busy_s
                self._metrics.energy(power, energy.footprint, worked_s, max(0.0, now_s - then_s - worked_s))
            then_s, busy_s = now_s, now_busy_s

    def _fail(self, error: Exception) -> None:
        """The engine died: end this process, so that Serve replaces the whole gang at once."""
        self._failure = error
        log.error("replica %s: %s", self._record.replica_id, error)
        self._tasks.add(asyncio.create_task(self._die(error)))

    async def _die(self, error: Exception) -> None:
        await self._announce("failed", str(error))
        self._announcing.cancel()
        await asyncio.sleep(FAREWELL_S)
        with contextlib.suppress(Exception, TimeoutError):
            async with asyncio.timeout(10):
                await self._engine.close()
        # The spans of what just failed are those that people will look for.
        if self._tracing is not None:
            await self._tracing.close()
        await told(self._directory.withdraw.remote(self._record.replica_id))
        os._exit(1)


def make_socket_dir(directory: Path) -> Path:
    """A directory for this process's sockets; those of processes that were killed are removed."""
    for left_over in directory.glob(f"{SOCKET_DIR}-*-*"):
        if not Path("/proc", left_over.name.split("-")[1]).exists():
            shutil.rmtree(left_over, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{SOCKET_DIR}-{os.getpid()}-", dir=directory))


def vllm_settings(config: ServiceConfig) -> VllmSettings:
    """What the configuration means for vLLM."""
    from llama31.vllm_engine import VllmSettings

    engine = config.engine
    return VllmSettings(
        checkpoint=checkpoint_dir(config),
        plan=config.parallel_plan,
        dtype=engine.dtype,
        device=engine.device,
        max_model_tokens=engine.max_model_tokens,
        max_running=engine.max_running,
        max_batched_tokens=engine.max_batched_tokens,
        gpu_memory_share=engine.gpu_memory_share,
        kv_cache_bytes=engine.kv_cache_bytes,
        kv_cache_dtype=engine.kv_cache_dtype,
        eager=engine.eager,
        load_format="dummy" if engine.weights == "dummy" else "safetensors",
        prefix_caching=engine.prefix_caching,
        name=config.model,
    )
