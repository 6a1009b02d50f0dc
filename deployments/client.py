"""How does a Python program talk to the server: `Client` for asyncio, `connect` for everybody else?"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc

from deployments.client_access import Tls, channel_credentials, key_metadata
from deployments.ingress.status import error_from_status
from llama31 import errors
from llama31.chat import FinishReason, GenerationOptions, Message, Priority, Role, Started, Usage
from llama31.v1 import chat_service_pb2 as chat_pb
from llama31.v1 import common_pb2 as common_pb
from llama31.v1 import model_service_pb2 as model_pb

_REPLICA_KEY = "x-llama31-replica"

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
_ROLES = {
    Role.SYSTEM: chat_pb.ROLE_SYSTEM,
    Role.USER: chat_pb.ROLE_USER,
    Role.ASSISTANT: chat_pb.ROLE_ASSISTANT,
    Role.TOOL: chat_pb.ROLE_TOOL,
}
_PRIORITIES = {
    Priority.INTERACTIVE: common_pb.PRIORITY_INTERACTIVE,
    Priority.STANDARD: common_pb.PRIORITY_STANDARD,
    Priority.BATCH: common_pb.PRIORITY_BATCH,
}


@dataclass(slots=True)
class ChatResult:
    """What a stream has told so far; complete once `usage` is there."""

    started: Started | None = None
    finish_reason: FinishReason | None = None
    matched_stop: str = ""
    usage: Usage | None = None
    token_ids: list[int] = field(default_factory=list)


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
                text = _take(self.result, response, headers)
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
        timeout_s: float | None = None,
    ) -> ChatStream:
        """Asks; a string is one user message, without `model` the first of the server's models answers."""
        return ChatStream(self, chat_spec(messages, model, options, date), timeout_s)

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
                text = _take(self.result, response, headers)
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
        timeout_s: float | None = None,
    ) -> BlockingChatStream:
        """As `Client.chat`."""
        spec = chat_spec(messages, model or _first_model(self.models()), options, date)
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


def chat_spec(
    messages: str | Sequence[Message], model: str | None, options: GenerationOptions | None, date: str
) -> chat_pb.ChatSpec:
    """The request on the wire; what the options leave open is left open there, too."""
    turns = (Message(Role.USER, messages),) if isinstance(messages, str) else messages
    spec = chat_pb.ChatSpec(model=model or "", date=date)
    for turn in turns:
        spec.messages.add(role=_ROLES[turn.role], parts=[chat_pb.Part(text=turn.content)])
    if options is not None:
        _fill(spec, options)
    return spec


def _fill(spec: chat_pb.ChatSpec, options: GenerationOptions) -> None:
    chosen, stop, returns = options.sampling, options.stop, options.returns
    spec.sampling.CopyFrom(
        common_pb.SamplingOptions(
            temperature=chosen.temperature,
            top_p=chosen.top_p,
            top_k=chosen.top_k,
            min_p=chosen.min_p,
            presence_penalty=chosen.presence_penalty,
            frequency_penalty=chosen.frequency_penalty,
            repetition_penalty=chosen.repetition_penalty,
            seed=chosen.seed,
            logit_bias=chosen.logit_bias,
        )
    )
    spec.stop.CopyFrom(
        common_pb.StopOptions(
            max_output_tokens=stop.max_output_tokens,
            min_output_tokens=stop.min_output_tokens,
            stop_sequences=stop.stop_sequences,
            stop_token_ids=stop.stop_token_ids,
            keep_stop_text=stop.keep_stop_text,
            ignore_eos=stop.ignore_eos,
        )
    )
    if stop.time_limit_s is not None:
        spec.stop.time_limit.FromNanoseconds(round(stop.time_limit_s * 1e9))
    spec.returns.CopyFrom(
        common_pb.ReturnOptions(
            text=returns.text,
            token_ids=returns.token_ids,
            logprobs=returns.logprobs,
            top_logprobs=returns.top_logprobs,
            prompt_token_ids=returns.prompt_token_ids,
        )
    )
    spec.service.priority = _PRIORITIES[options.priority]
    spec.service.affinity_key = options.affinity_key


def _own_error(error: Any) -> errors.Llama31Error:
    """Both of grpc's error classes tell code, text and trailers in the same way."""
    return error_from_status(error.code(), error.details(), error.trailing_metadata())


def _first_model(models: Sequence[model_pb.Model]) -> str:
    if not models:
        raise errors.ModelNotFound("", ())
    return models[0].name


def _take(result: ChatResult, response: chat_pb.StreamChatResponse, headers: Iterable[tuple[str, str | bytes]]) -> str:
    """Notes one event; returns its text."""
    event = response.event
    match event.WhichOneof("kind"):
        case "started":
            replica_id = next((str(value) for key, value in headers if key == _REPLICA_KEY), "")
            result.started = _started(event.started, replica_id)
        case "delta":
            result.token_ids.extend(event.delta.tokens.ids)
            return event.delta.text
        case "choice_done":
            result.finish_reason = FinishReason(event.choice_done.finish_reason)
            result.matched_stop = event.choice_done.matched_stop
        case "completed":
            result.usage = _usage(event.completed.usage)
    return ""


def _started(started: chat_pb.Started, replica_id: str) -> Started:
    return Started(
        response_id=started.response_id,
        model=started.model,
        model_revision=started.model_revision,
        replica_id=replica_id,
        prompt_tokens=started.prompt_tokens,
        seed=started.seed,
        prompt_token_ids=tuple(started.prompt.ids),
    )


def _usage(usage: common_pb.Usage) -> Usage:
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        cached_prompt_tokens=usage.cached_prompt_tokens,
        output_tokens=usage.output_tokens,
        queued_s=usage.timings.queued.ToNanoseconds() / 1e9,
        prefill_s=usage.timings.prefill.ToNanoseconds() / 1e9,
        first_token_s=usage.timings.first_token.ToNanoseconds() / 1e9,
        total_s=usage.timings.total.ToNanoseconds() / 1e9,
    )
