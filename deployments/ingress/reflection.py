"""Which services does the server name to tools like grpcurl? With keys configured, reflection asks for one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from deployments.ingress.interceptors import Context, RpcGuard


def service(
    names: tuple[str, ...], guard: RpcGuard
) -> dict[str, dict[str, grpc.RpcMethodHandler[reflection_pb2.ServerReflectionRequest, object]]]:
    """The reflection service as a table of handlers; `names` are the other services."""
    servicer = reflection.aio.ReflectionServicer((*names, reflection.SERVICE_NAME))

    async def info(
        requests: AsyncIterator[reflection_pb2.ServerReflectionRequest], context: Context
    ) -> AsyncIterator[reflection_pb2.ServerReflectionResponse]:
        await guard.check_key(context)
        async for response in servicer.ServerReflectionInfo(requests, context):
            yield response

    handler = grpc.stream_stream_rpc_method_handler(
        info,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return {reflection.SERVICE_NAME: {"ServerReflectionInfo": handler}}
