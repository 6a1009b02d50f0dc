"""Is the process alive, and can a given service or model answer now (grpc.health.v1)?"""

from __future__ import annotations

import asyncio
import contextlib

import grpc
from grpc_health.v1 import health_pb2

from deployments.call import Gateway
from deployments.ingress.interceptors import Rpc
from deployments.ingress.proto_codec import parse

SERVICE = "grpc.health.v1.Health"
MODEL_PREFIX = "model:"

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
ANSWERING_STATES = ("ready", "degraded")


class HealthService:
    """Answers Check and Watch.

    The servicer that comes with grpcio holds a lock while it writes: one slow watcher stops all others.
    """

    def __init__(
        self,
        gateway: Gateway,
        draining: asyncio.Event,
        process_services: tuple[str, ...],
        model_services: tuple[str, ...],
    ) -> None:
        self._gateway = gateway
        self._draining = draining
        self._process_services = ("", *process_services)
        self._model_services = model_services

    async def check(self, request: bytes, rpc: Rpc) -> bytes:
        """The status of one service now; NOT_FOUND for an unknown one."""
        service = parse(health_pb2.HealthCheckRequest, request).service
        status = self._statuses().get(service)
        if status is None:
            await rpc.context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        response: bytes = _response(status).SerializeToString()
        return response

    async def watch(self, request: bytes, rpc: Rpc) -> None:
        """The status now and whenever it changes; ends with the last word, NOT_SERVING, when draining."""
        service = parse(health_pb2.HealthCheckRequest, request).service
        told: int | None = None
        while True:
            version = self._gateway.models_version
            draining = self._draining.is_set()
            status = self._statuses().get(service, _SERVICE_UNKNOWN)
            if status != told:
                await rpc.write(_response(status).SerializeToString())
                told = status
            if draining:
                return
            await self._changed(version)

    async def _changed(self, seen_version: int) -> None:
        """Waits until the models changed or draining began."""
        causes = {
            asyncio.ensure_future(self._gateway.wait_models_changed(seen_version)),
            asyncio.ensure_future(self._draining.wait()),
        }
        try:
            await asyncio.wait(causes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for cause in causes:
                cause.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*causes)

    def _statuses(self) -> dict[str, int]:
        draining = self._draining.is_set()
        answering = {m.name: not draining and m.state in ANSWERING_STATES for m in self._gateway.models()}
        found = dict.fromkeys(self._process_services, not draining)
        found |= dict.fromkeys(self._model_services, any(answering.values()))
        found |= {MODEL_PREFIX + name: up for name, up in answering.items()}
        return {name: _SERVING if up else _NOT_SERVING for name, up in found.items()}


def _response(status: int) -> health_pb2.HealthCheckResponse:
    return health_pb2.HealthCheckResponse(status=status)
