"""Our token path without Ray: one replica process and one ingress process, built from the production classes.

`python -m bench.our_server replica LOAD` prints the replica's address; `... ingress LOAD ADDRESS TENANTS_FILE`
prints the gRPC address, `... http LOAD ADDRESS TENANTS_FILE` that of the OpenAI door.
Ray is not on the token path; `bench.serve_paths` measures the same inside Serve.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict

import uvloop

from bench.workload import MODEL, Load, answer_ids, codec, service_config
from cluster.energy import PowerEnvelope
from deployments.call import Call
from deployments.config import metrics_directory
from deployments.directory import Directory, ReplicaRecord, WorkerAddress
from deployments.fleet import Fleet
from deployments.gateway import ServiceGateway
from deployments.ingress.auth import KeyDesk
from deployments.ingress.grpc import GrpcIngress, IngressSettings
from deployments.ingress.http import HttpIngress, HttpSettings
from deployments.ingress.status_page import StatusPage
from deployments.metered_engine import MeteredEngine
from deployments.metrics import Metrics
from deployments.policies.router import PredictedTtft
from deployments.power import ModelledPower
from deployments.tenancy import Tenancy
from deployments.worker_server import WorkerServer
from llama31.chat import ChatRequest, Delta, Event, TokenColumns
from llama31.scripted_engine import Script, ScriptedEngine

TOKEN = "bench"


class OneTokenMessages(ServiceGateway):
    """Splits what the gateway packed, so that as many messages go out as there are tokens."""

    def chat(self, request: ChatRequest, call: Call) -> AsyncGenerator[Event, None]:
        """As the gateway's, one delta a token."""
        return self._split(super().chat(request, call))

    async def _split(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
        async with aclosing(events):
            async for event in events:
                if not isinstance(event, Delta) or event.tokens is None or len(event.tokens.ids) < 2:
                    yield event
                    continue
                ids, chars = event.tokens.ids, len(event.text)
                for n, token in enumerate(ids):
                    text = event.text[n * chars // len(ids) : (n + 1) * chars // len(ids)]
                    yield Delta(event.choice, text, TokenColumns((token,)))


class PunctualEngine(ScriptedEngine):
    """Makes up for a late step at once, so that as many tokens become ready as at the bare server."""

    async def _pace(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if self._steps_total == 0 or self._next_step_at_s < now_s - 1.0:
            self._next_step_at_s = now_s
        await asyncio.sleep(max(0.0, self._next_step_at_s - now_s))
        self._next_step_at_s += self._script.step_s


async def replica(load: Load) -> None:
    """Serves the worker protocol until it is ended."""
    ids = answer_ids(load.tokens)
    script = PunctualEngine(Script(answer=lambda request: ids, step_s=load.step_s, max_running=4096))
    # As in the service: every step is timed and charged.
    engine = MeteredEngine(script, 1, Metrics().child("llama31_replica_step_seconds", model=MODEL).observe)
    engine.charge_by(ModelledPower(PowerEnvelope(140, 700), 1))
    record = ReplicaRecord("replica-1", 1, MODEL, "tp1", "starting")
    worker = WorkerServer(engine, record, TOKEN, lambda error: sys.exit(1), engine.price)
    # In a directory of whoever started this process, who removes it.
    address = await worker.start(metrics_directory() / "worker.sock", "127.0.0.1")
    print(json.dumps(asdict(address)), flush=True)
    await asyncio.Event().wait()


async def ingress(role: str, load: Load, address: WorkerAddress, tenants_file: str) -> None:
    """Serves clients until it is ended: keys, metrics, limits, everything on."""
    config = service_config(load.step_s, tenants_file)
    metrics = Metrics()
    directory = Directory()
    await directory.announce(ReplicaRecord("replica-1", 1, MODEL, "tp1", "ready", address=address))
    fleet = Fleet(directory.watch, TOKEN)
    fleet.start()
    while not fleet.ready_replicas():
        await asyncio.sleep(0.01)
    tenancy = Tenancy(metrics, salt_secret=TOKEN, language_mode="off")
    kind = OneTokenMessages if load.one_token_messages else ServiceGateway
    gateway = kind(config, codec(), fleet, PredictedTtft(), metrics, tenancy)
    authenticate = KeyDesk(tenants_file, metrics).authenticate
    if role == "http":
        door: HttpIngress | GrpcIngress = HttpIngress(
            gateway, HttpSettings(port=0), StatusPage(gateway, (), {}), authenticate
        )
    else:
        door = GrpcIngress(gateway, IngressSettings(port=0), authenticate)
    print(f"127.0.0.1:{await door.start()}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    role, chosen = sys.argv[1], Load(**json.loads(sys.argv[2]))
    if role == "replica":
        uvloop.run(replica(chosen))
    else:
        uvloop.run(ingress(role, chosen, WorkerAddress(**json.loads(sys.argv[3])), sys.argv[4]))
