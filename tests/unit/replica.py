"""How do unit tests get real replicas? Scripted engines behind real worker servers, in the test's own loop."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY

from deployments.config import ServiceConfig, parse_config
from deployments.directory import Directory, ReplicaRecord
from deployments.fleet import Fleet
from deployments.gateway import ServiceGateway
from deployments.metered_engine import MeteredEngine
from deployments.metrics import Metrics
from deployments.policies.router import LeastTokens
from deployments.tenancy import Tenancy
from deployments.tracing import Tracing
from deployments.worker_server import WorkerServer
from llama31.codec import ModelCodec
from llama31.engine import EngineRequest, Limits, Sampling
from llama31.prompt import ChatmlPrompt
from llama31.scripted_engine import Script, ScriptedEngine
from llama31.tokenizer import Tokenizer
from tests.waiting import until

TOKEN = "cluster-token"
MODEL = "smollm2-135m"
# Slow enough to be interrupted, fast enough for a unit test.
STEP_S = 0.004


def says(*ids: int) -> Callable[[EngineRequest], Sequence[int]]:
    """A script's answer: always these ids."""
    return lambda _: ids


def counting(request: EngineRequest) -> Sequence[int]:
    """A script's answer in which every token is another one: a lost or repeated one shows."""
    return [40 + index for index in range(request.limits.max_output_tokens)]


def endless(request: EngineRequest) -> Sequence[int]:
    """A script's answer that only the request's limit, a cancel or a fault ends."""
    return [65] * (request.limits.max_output_tokens + 1)


def engine_request(
    request_id: str, prompt: Sequence[int] = (10, 11, 12), max_output_tokens: int = 8, **changes: Any
) -> EngineRequest:
    """A sequence with the defaults that tests do not care about."""
    return EngineRequest(request_id, tuple(prompt), Sampling(), Limits(max_output_tokens), **changes)


class Replica:
    """One scripted engine with its worker server; its record says where it listens."""

    def __init__(
        self, replica_id: str, script: Script, directory: Path, tracing: Tracing | None = None, digest: int = 0
    ) -> None:
        self.replica_id = replica_id
        self.failures: list[Exception] = []
        self.engine = ScriptedEngine(script)
        self._socket = directory / f"{replica_id}.sock"
        self.record = ReplicaRecord(replica_id, 1, MODEL, "tp1", "starting", digest=digest)
        self.metered = MeteredEngine(self.engine, 1, lambda step_s: None)
        self.worker = WorkerServer(self.metered, self.record, TOKEN, self.failures.append, self.metered.price, tracing)

    async def start(self) -> ReplicaRecord:
        """Listens; the record is then the one to announce."""
        address = await self.worker.start(self._socket, "127.0.0.1")
        self.record = replace(self.record, phase="ready", address=address)
        return self.record

    async def kill(self) -> None:
        """Breaks every connection without a word, as the end of the process would."""
        await self.worker._server.stop(None)
        await self.worker.drain(0.0)


@asynccontextmanager
async def running_replica(
    script: Script | None = None, replica_id: str = "replica-1", tracing: Tracing | None = None, digest: int = 0
) -> AsyncIterator[Replica]:
    """A replica on a socket of its own."""
    with tempfile.TemporaryDirectory(prefix="llama31-test-") as directory:
        replica = Replica(replica_id, script or Script(), Path(directory), tracing, digest)
        await replica.start()
        try:
            yield replica
        finally:
            await replica.kill()


@dataclass(frozen=True, slots=True)
class System:
    """A gateway over a fleet of real worker servers, and the directory that it follows."""

    gateway: ServiceGateway
    fleet: Fleet
    directory: Directory
    replicas: tuple[Replica, ...]

    @property
    def engine(self) -> ScriptedEngine:
        """The first replica's engine."""
        return self.replicas[0].engine


@asynccontextmanager
async def running_fleet(
    *scripts: Script, tracing: Tracing | None = None, digests: Sequence[int] | None = None
) -> AsyncIterator[tuple[Fleet, Directory, tuple[Replica, ...]]]:
    """A fleet with one ready replica per script, named replica-1, replica-2, ..."""
    async with AsyncExitStack() as stack:
        replicas = [
            await stack.enter_async_context(running_replica(script, f"replica-{index + 1}", tracing, digest))
            for index, (script, digest) in enumerate(zip(scripts, digests or [0] * len(scripts), strict=True))
        ]
        directory = Directory()
        for replica in replicas:
            await directory.announce(replica.record)
        fleet = Fleet(directory.watch, TOKEN, len(scripts))
        fleet.start()
        stack.push_async_callback(fleet.close)
        await until(lambda: fleet.ready_replicas() == len(replicas))
        yield fleet, directory, tuple(replicas)


@asynccontextmanager
async def running_gateway(
    tokenizer: Tokenizer,
    *scripts: Script,
    tenancy: Tenancy | None = None,
    tracing: tuple[Tracing | None, Tracing | None] = (None, None),
    digests: Sequence[int] | None = None,
    **overrides: Any,
) -> AsyncIterator[System]:
    """A gateway over `running_fleet`.

    `tracing` is that of the ingress and that of the replicas; `overrides` are keys of the configuration's engine
    section.
    """
    codec = ModelCodec(tokenizer, ChatmlPrompt(tokenizer))
    async with running_fleet(*scripts, tracing=tracing[1], digests=digests) as (fleet, directory, replicas):
        config = gateway_config(len(scripts), **overrides)
        gateway = ServiceGateway(config, codec, fleet, LeastTokens(), process_metrics(), tenancy, tracing[0])
        yield System(gateway, fleet, directory, replicas)


def gateway_config(
    replicas: int = 1,
    max_output_tokens: int = 64,
    max_requests: int = 100,
    hold_s: float = 30.0,
    continue_within_s: float = 0.0,
    **engine: Any,
) -> ServiceConfig:
    """A small context, so that tests can fill it."""
    section = {"kind": "scripted", "device": "cpu", "kv_cache_bytes": 1 << 20, "max_model_tokens": 512, **engine}
    ingress = {
        "max_output_tokens": max_output_tokens,
        "max_requests": max_requests,
        "hold_s": hold_s,
        "continue_within_s": continue_within_s,
    }
    return parse_config({"model": MODEL, "replicas": max(1, replicas), "engine": section, "ingress": ingress}, "test")


@cache
def process_metrics() -> Metrics:
    """The instruments can be registered once in a process."""
    return Metrics()


def sample(name: str, **labels: str) -> float:
    """The present value of a series, 0 if it has none."""
    return REGISTRY.get_sample_value(name, labels) or 0.0
