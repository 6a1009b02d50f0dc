"""How does a Python program talk to the server: `Client` for asyncio, `connect` for everybody else?"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from deployments.client_access import Tls, channel_credentials, key_metadata
from deployments.client_wire import ChatResult, ToolUse, chat_spec, take_event
from deployments.ingress.status import error_from_status
from llama31 import errors
from llama31.chat import FinishReason, GenerationOptions, Message, ToolCall, Usage
from llama31.v1 import chat_service_pb2 as chat_pb
from llama31.v1 import model_service_pb2 as model_pb

# gRPC repeats a call by itself only while no headers came, and waits as long as the server asks for.
_RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
}
_CHANNEL_OPTIONS = (
    ("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": _RETRY_POLICY}]})),
    ("grpc.max_receive_message_length", 64 * 2**20),
    # Notices a server that vanished while a long prompt is read and nothing is sent.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
)


class ChatStream(AsyncIterator[str]):
    """The pieces of text of one answer. Iterating raises the classes of `llama31.errors`."""

    def __init__(self, client: Client, spec: chat_pb.ChatSpec, timeout_s: float | None) -> None:
        self._client = client
        self._spec = spec
        self._timeout_s = timeout_s
        self._call: Any = None
        self.result = ChatResult()

    async def __anext__(self) -> str:
        try:
            if self._call is None:
                self._call = await self._client._open(self._spec, self._timeout_s)
            # The call gives the same iterator each time, so this goes on where the last piece ended.
            async for response in self._call:
                headers = await self._call.initial_metadata() if self.result.started is None else ()
                text = take_event(self.result, response, headers)
                if text:
                    return text
        except grpc.RpcError as error:
            raise _own_error(error) from None
        raise StopAsyncIteration

    async def text(self) -> str:
        """The rest of the answer in one string."""
        return "".join([piece async for piece in self])

    async def aclose(self) -> None:
        """Cancels the request if it still runs."""
        if self._call is not None:
            self._call.cancel()

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls that the model made so far."""
        return tuple(self.result.tool_calls)

    @property
    def usage(self) -> Usage | None:
        """What the request used; None before the end."""
        return self.result.usage

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended; None before the end."""
        return self.result.finish_reason


class Client:
    """An asyncio client: `async with Client(address) as llama: ...`."""

    def __init__(
        self, address: str, *, api_key: str = "", tls: Tls | None = None, send_key_in_plaintext: bool = False
    ) -> None:
        """Raises: ConfigInvalid, rather than send a key in plaintext to another machine unless told to."""
        self._metadata = key_metadata(address, api_key, tls, send_key_in_plaintext)
        if tls is None:
            self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(address, channel_credentials(tls), options=_CHANNEL_OPTIONS)
        self._stream_chat, self._list_models = _methods(self._channel)

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        model: str | None = None,
        options: GenerationOptions | None = None,
        date: str = "",
        tool_use: ToolUse | None = None,
        timeout_s: float | None = None,
    ) -> ChatStream:
        """Asks; a string is one user message, without `model` the first of the server's models answers."""
        return ChatStream(self, chat_spec(messages, model, options, date, tool_use), timeout_s)

    async def models(self) -> list[model_pb.Model]:
        """The models that the server knows, ready or not."""
        try:
            response: model_pb.ListModelsResponse = await self._list_models(
                model_pb.ListModelsRequest(), metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise _own_error(error) from None
        return list(response.models)

    async def close(self) -> None:
        """Closes the connection; running streams are cancelled."""
        await self._channel.close(None)

    async def _open(self, spec: chat_pb.ChatSpec, timeout_s: float | None) -> Any:
        if not spec.model:
            spec.model = _first_model(await self.models())
        return self._stream_chat(chat_pb.StreamChatRequest(spec=spec), timeout=timeout_s, metadata=self._metadata)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class BlockingChatStream(Iterator[str]):
    """The pieces of text of one answer, for programs without an event loop."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.result = ChatResult()

    def __next__(self) -> str:
        try:
            for response in self._call:
                headers = self._call.initial_metadata() if self.result.started is None else ()
                text = take_event(self.result, response, headers)
                if text:
                    return text
        except grpc.RpcError as error:
            raise _own_error(error) from None
        raise StopIteration

    def text(self) -> str:
        """The rest of the answer in one string."""
        return "".join(self)

    def close(self) -> None:
        """Cancels the request if it still runs."""
        self._call.cancel()

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls that the model made so far."""
        return tuple(self.result.tool_calls)

    @property
    def usage(self) -> Usage | None:
        """What the request used; None before the end."""
        return self.result.usage

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended; None before the end."""
        return self.result.finish_reason


class BlockingClient:
    """The same as `Client` without an event loop."""

    def __init__(
        self, address: str, *, api_key: str = "", tls: Tls | None = None, send_key_in_plaintext: bool = False
    ) -> None:
        """As `Client`."""
        self._metadata = key_metadata(address, api_key, tls, send_key_in_plaintext)
        if tls is None:
            self._channel = grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
        else:
            self._channel = grpc.secure_channel(address, channel_credentials(tls), options=_CHANNEL_OPTIONS)
        self._stream_chat, self._list_models = _methods(self._channel)

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        model: str | None = None,
        options: GenerationOptions | None = None,
        date: str = "",
        tool_use: ToolUse | None = None,
        timeout_s: float | None = None,
    ) -> BlockingChatStream:
        """As `Client.chat`."""
        spec = chat_spec(messages, model or _first_model(self.models()), options, date, tool_use)
        request = chat_pb.StreamChatRequest(spec=spec)
        return BlockingChatStream(self._stream_chat(request, timeout=timeout_s, metadata=self._metadata))

    def models(self) -> list[model_pb.Model]:
        """The models that the server knows, ready or not."""
        try:
            response: model_pb.ListModelsResponse = self._list_models(
                model_pb.ListModelsRequest(), metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise _own_error(error) from None
        return list(response.models)

    def close(self) -> None:
        """Closes the connection; running streams are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _methods(channel: Any) -> tuple[Any, Any]:
    """StreamChat and ListModels of a channel, blocking or not."""
    stream_chat = channel.unary_stream(
        "/llama31.v1.ChatService/StreamChat",
        request_serializer=chat_pb.StreamChatRequest.SerializeToString,
        response_deserializer=chat_pb.StreamChatResponse.FromString,
    )
    list_models = channel.unary_unary(
        "/llama31.v1.ModelService/ListModels",
        request_serializer=model_pb.ListModelsRequest.SerializeToString,
        response_deserializer=model_pb.ListModelsResponse.FromString,
    )
    return stream_chat, list_models


def connect(
    address: str, *, api_key: str = "", tls: Tls | None = None, send_key_in_plaintext: bool = False
) -> BlockingClient:
    """A client for `with connect("localhost:9000") as llama: ...`; nothing is sent before the first call.

    Raises: ConfigInvalid, as `Client`.
    """
    return BlockingClient(address, api_key=api_key, tls=tls, send_key_in_plaintext=send_key_in_plaintext)


def _own_error(error: Any) -> errors.Llama31Error:
    """Both of grpc's error classes tell code, text and trailers in the same way."""
    return error_from_status(error.code(), error.details(), error.trailing_metadata())


def _first_model(models: Sequence[model_pb.Model]) -> str:
    if not models:
        raise errors.ModelNotFound("", ())
    return models[0].name
