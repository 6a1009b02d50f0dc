"""What does a client of the Open Inference Protocol v2 (KServe, Triton) meet on the gRPC port?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from importlib import metadata

from deployments.call import Call, Gateway, ModelStatus
from deployments.ingress import oip_answers, oip_codec
from deployments.ingress.granted import granted_models
from deployments.ingress.health import ANSWERING_STATES
from deployments.ingress.interceptors import Rpc
from deployments.ingress.item_stream import Send, answer_items
from deployments.ingress.many_prompts import complete_all
from deployments.ingress.oip_answers import InferAnswer
from deployments.ingress.oip_codec import Infer
from llama31.errors import DeadlineExceeded, FieldError, Llama31Error, ModelNotFound
from llama31.oip.v2 import inference_pb2 as pb

SERVICE = "inference.GRPCInferenceService"

_DISTRIBUTION = "llama31-serve"


class InferenceService:
    """The methods of `inference.GRPCInferenceService`."""

    def __init__(self, gateway: Gateway, draining: asyncio.Event) -> None:
        self._gateway = gateway
        self._draining = draining
        self._version = metadata.version(_DISTRIBUTION)

    async def server_live(self, request: bytes, rpc: Rpc) -> bytes:
        """Always, for who can answer at all."""
        return oip_answers.encode_live(True)

    async def server_ready(self, request: bytes, rpc: Rpc) -> bytes:
        """Whether any model can answer and no shutdown has begun."""
        return oip_answers.encode_server_ready(any(self._can_answer(model) for model in self._gateway.models()))

    async def model_ready(self, request: bytes, rpc: Rpc) -> bytes:
        """Whether this model can answer."""
        name, version = oip_codec.decode_model(request, pb.ModelReadyRequest)
        found = [m for m in self._gateway.models() if m.name == name and version in ("", m.revision)]
        return oip_answers.encode_model_ready(any(self._can_answer(model) for model in found))

    async def server_metadata(self, request: bytes, rpc: Rpc) -> bytes:
        """Name and version of this software."""
        return oip_answers.encode_server_metadata(self._version)

    async def model_metadata(self, request: bytes, rpc: Rpc) -> bytes:
        """The model's tensors."""
        name, version = oip_codec.decode_model(request, pb.ModelMetadataRequest)
        return oip_answers.encode_model_metadata(find_version(self._gateway, rpc.call, name, version))

    async def infer(self, request: bytes, rpc: Rpc) -> bytes:
        """Every prompt of one request, answered when all are complete."""
        message = oip_codec.parse_infer(request)
        answer = await _run(self._gateway, message, rpc.call, is_streamed=False, send=_send_nothing)
        if answer.started is not None:
            await rpc.send_headers(answer.started)
        return answer.encode()

    async def stream_infer(self, requests: AsyncIterator[bytes], rpc: Rpc) -> None:
        """Many requests over one stream."""

        def begin(data: bytes, call: Call) -> _StreamedRequest:
            return _StreamedRequest(self._gateway, oip_codec.parse_infer(data), call)

        async with self._gateway.hold(rpc.call):
            await answer_items(requests, rpc, begin, self._draining)

    def _can_answer(self, model: ModelStatus) -> bool:
        return model.state in ANSWERING_STATES and not self._draining.is_set()


class _StreamedRequest:
    """One request of ModelStreamInfer."""

    def __init__(self, gateway: Gateway, message: pb.ModelInferRequest, call: Call) -> None:
        self._gateway = gateway
        self._message = message
        self._call = call

    async def answer(self, send: Send) -> None:
        answer = await _run(self._gateway, self._message, self._call, is_streamed=True, send=send)
        await send(answer.encode_last())

    def failure(self, error: Llama31Error) -> bytes:
        return oip_answers.encode_stream_failure(self._message, error, self._call.request_id)


async def _run(
    gateway: Gateway,
    message: pb.ModelInferRequest,
    call: Call,
    *,
    is_streamed: bool,
    send: Callable[[bytes], Awaitable[None]],
) -> InferAnswer:
    """Plays one request to its end, deltas sent on the way. Every way out frees the engine."""
    infer = oip_codec.decode_infer(message, is_streamed=is_streamed)
    if message.model_version:
        find_version(gateway, call, message.model_name, message.model_version)
    answer = InferAnswer(infer)
    call = _until_timeout(call, infer)
    try:
        async with asyncio.timeout_at(call.deadline_s if infer.timeout_s else None):
            async with aclosing(complete_all(gateway, gateway.complete, infer.requests, call)) as events:
                async for event in events:
                    if delta := answer.take(event):
                        await send(delta)
    except TimeoutError:
        raise DeadlineExceeded("the answer") from None
    except FieldError as error:
        raise infer.in_callers_words(error) from None
    return answer


def _until_timeout(call: Call, infer: Infer) -> Call:
    """The call with the earlier of the caller's deadline and the request's own timeout."""
    if infer.timeout_s is None:
        return call
    end_s = asyncio.get_running_loop().time() + infer.timeout_s
    return replace(call, deadline_s=end_s if call.deadline_s is None else min(end_s, call.deadline_s))


async def _send_nothing(message: bytes) -> None:
    """A unary answer has no deltas."""


def find_version(gateway: Gateway, call: Call, name: str, version: str) -> ModelStatus:
    """The model of this name and version. Raises: ModelNotFound, also for one that was not granted."""
    granted = granted_models(gateway, call.tenant)
    model = next((m for m in granted if m.name == name), None)
    if model is None or version not in ("", model.revision):
        asked = f"{name}:{version}" if version else name
        raise ModelNotFound(asked, tuple(m.name for m in granted))
    return model
