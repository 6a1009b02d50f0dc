"""The ingress process: a Serve deployment with its own gRPC server; Serve's proxies stay out of the way."""

from __future__ import annotations

import asyncio
from typing import Any

from deployments.config import ServiceConfig, checkpoint_dir, metrics_directory
from deployments.directory import open_directory
from deployments.fleet import Fleet
from deployments.gateway import ServiceGateway
from deployments.ingress.auth import KeyDesk
from deployments.ingress.grpc import GrpcIngress, IngressSettings
from deployments.ingress.tls import ServerTls
from deployments.metrics import Metrics, NodeExporter
from deployments.policies.router import LeastTokens
from deployments.tenancy import Tenancy
from deployments.tenant import everybody_is_local
from llama31.codec import load_codec

# How long a drain may take beyond the grace for streams: closing sockets, telling the directory.
SHUTDOWN_MARGIN_S = 5.0


class IngressServer:
    """Builds the request path of one process and opens its port."""

    async def __init__(  # type: ignore[misc]
        self, config: ServiceConfig, cluster_token: str, engine: Any
    ) -> None:
        # `engine` ties the replicas' deployment to this application; tokens do not go through it.
        directory = metrics_directory()
        actor = open_directory()
        self._fleet = Fleet(lambda seen: actor.watch.remote(seen), cluster_token)
        codec = await asyncio.to_thread(load_codec, config.spec.codec, checkpoint_dir(config))
        ingress, metrics = config.ingress, Metrics()
        tenancy = Tenancy(metrics, salt_secret=cluster_token, language_mode=ingress.language.mode)
        gateway = ServiceGateway(config, codec, self._fleet, LeastTokens(), metrics, tenancy)
        desk = KeyDesk(ingress.auth.tenants_file, metrics) if ingress.auth else None
        tls = ServerTls(ingress.tls, metrics) if ingress.tls else None
        self._door = GrpcIngress(
            gateway,
            IngressSettings(
                host=config.ingress.host,
                port=config.ingress.port,
                # Elsewhere it asks for a key, so it needs some.
                reflection=ingress.reflection and (ingress.is_loopback or desk is not None),
                drain_s=config.ingress.drain_s,
            ),
            desk.authenticate if desk else everybody_is_local,
            tls.grpc_credentials() if tls else None,
        )
        self._fleet.start()
        self._port = await self._door.start()
        exporter = NodeExporter(directory, config.ingress.metrics_host, config.ingress.metrics_port)
        self._background = [asyncio.create_task(exporter.run())]
        if desk is not None:
            self._background.append(asyncio.create_task(desk.watch()))

    async def port(self) -> int:
        """The port that was opened, for a configured port of 0."""
        return self._port

    async def drain(self) -> None:
        """Refuses new requests, lets open streams finish within the grace, closes the port."""
        await self._door.drain()
        await self._door.stop()

    async def __del__(self) -> None:
        """Serve's shutdown hook."""
        if not hasattr(self, "_background"):
            return
        await self.drain()
        await self._fleet.close()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
