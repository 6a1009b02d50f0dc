"""How do protobuf bytes become requests of `llama31.chat`?

They are validated here, once. Every refusal names the field's path; a field that this server does
not offer is refused as well, never ignored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message

from deployments.ingress.constraints import check_constraint
from deployments.ingress.proto_tools import decode_messages, decode_tool_use
from deployments.worker_codec import decode_constraint
from llama31 import chat
from llama31.errors import InvalidRequest, MalformedMessage, Unsupported
from llama31.v1 import chat_service_pb2 as chat_pb
from llama31.v1 import common_pb2 as common_pb
from llama31.v1 import completion_service_pb2 as completion_pb
from llama31.v1 import model_service_pb2 as model_pb

MAX_MESSAGES = 10_000
MAX_LOGIT_BIAS_ENTRIES = 300
MAX_STOP_SEQUENCES = 16
MAX_STOP_SEQUENCE_BYTES = 256
MAX_STOP_TOKEN_IDS = 64
MAX_TOP_LOGPROBS = 20
MAX_DATE_BYTES = 64
MAX_CHOICES = 16
MAX_ITEM_ID_BYTES = 128
MAX_AFFINITY_KEY_BYTES = 256
MAX_TOKEN_ID = 2**31 - 1

_PRIORITIES = {
    common_pb.PRIORITY_UNSPECIFIED: chat.Priority.STANDARD,
    common_pb.PRIORITY_INTERACTIVE: chat.Priority.INTERACTIVE,
    common_pb.PRIORITY_STANDARD: chat.Priority.STANDARD,
    common_pb.PRIORITY_BATCH: chat.Priority.BATCH,
}
_NAME_A_MODEL = "must name a model; ListModels tells which are served"
_NO_CONTINUATION = "an interrupted answer cannot be continued; send the request again without it"
_NO_RESUME = "streams cannot be resumed; leave it out and send the request again if one breaks"

_M = TypeVar("_M", bound=Message)


def parse(kind: type[_M], data: bytes) -> _M:
    """Raises: MalformedMessage for bytes that are no such message, text that is not UTF-8 included."""
    message = kind()
    try:
        message.ParseFromString(data)
    except (DecodeError, UnicodeDecodeError):
        raise MalformedMessage(
            "request", "malformed request message: broken protobuf or text that is not UTF-8"
        ) from None
    return message


def decode_chat(data: bytes) -> chat.ChatRequest:
    """A `ChatRequest` message. Raises: InvalidRequest, Unsupported."""
    spec = parse(chat_pb.ChatRequest, data).spec
    _refuse(spec.returns.prompt_token_ids, "spec.returns.prompt_token_ids", "ask StreamChat or Complete for them")
    return _chat_request(spec)


def decode_stream_chat(data: bytes) -> chat.ChatRequest:
    """A `StreamChatRequest` message. Raises: InvalidRequest, Unsupported."""
    request = parse(chat_pb.StreamChatRequest, data)
    _refuse(request.resumable, "resumable", _NO_RESUME)
    return _chat_request(request.spec)


def decode_complete(data: bytes) -> chat.CompletionRequest:
    """A `CompleteRequest` message. Raises: InvalidRequest, Unsupported."""
    return _completion_request(parse(completion_pb.CompleteRequest, data).spec)


def decode_stream_complete(data: bytes) -> chat.CompletionRequest:
    """A `StreamCompleteRequest` message. Raises: InvalidRequest, Unsupported."""
    request = parse(completion_pb.StreamCompleteRequest, data)
    _refuse(request.resumable, "resumable", _NO_RESUME)
    _refuse(request.spec.returns.prompt_token_ids, "spec.returns.prompt_token_ids", "ask Complete for them")
    return _completion_request(request.spec)


@dataclass(frozen=True, slots=True)
class Item:
    """One item of CompleteMany; its request is checked when it is asked for, so that errors stay with it."""

    item_id: str
    spec: completion_pb.CompletionSpec

    def request(self) -> chat.CompletionRequest:
        """Raises: InvalidRequest, Unsupported."""
        _check(bool(self.item_id), "item_id", "must be given, so that the answer can be told apart")
        size_fits = _utf8_bytes(self.item_id) <= MAX_ITEM_ID_BYTES
        _check(size_fits, "item_id", f"must have at most {MAX_ITEM_ID_BYTES} bytes")
        return _completion_request(self.spec)


def decode_complete_many(data: bytes) -> Item:
    """A `CompleteManyRequest` message. Raises: MalformedMessage."""
    message = parse(completion_pb.CompleteManyRequest, data)
    return Item(message.item_id, message.spec)


def decode_list_models(data: bytes) -> tuple[int, str]:
    """Page size (0 = the server's choice) and page token of a `ListModelsRequest`."""
    request = parse(model_pb.ListModelsRequest, data)
    return request.page_size, request.page_token


def decode_get_model(data: bytes) -> str:
    """The name in a `GetModelRequest`."""
    name = parse(model_pb.GetModelRequest, data).name
    _check(bool(name), "name", _NAME_A_MODEL)
    return name


def decode_tokenize(data: bytes) -> tuple[str, str, bool]:
    """Model, text and whether to add the special tokens of a plain prompt (absent = yes)."""
    request = parse(model_pb.TokenizeRequest, data)
    _check(bool(request.model), "model", _NAME_A_MODEL)
    add_special_tokens = request.add_special_tokens if request.HasField("add_special_tokens") else True
    return request.model, request.text, add_special_tokens


def decode_detokenize(data: bytes) -> tuple[str, tuple[int, ...]]:
    """Model and token ids of a `DetokenizeRequest`."""
    request = parse(model_pb.DetokenizeRequest, data)
    _check(bool(request.model), "model", _NAME_A_MODEL)
    return request.model, _token_ids(request.ids, "ids")


def _chat_request(spec: chat_pb.ChatSpec) -> chat.ChatRequest:
    _check(bool(spec.model), "spec.model", _NAME_A_MODEL)
    _check(bool(spec.messages), "spec.messages", "must hold at least one message")
    _check(len(spec.messages) <= MAX_MESSAGES, "spec.messages", f"must hold at most {MAX_MESSAGES} messages")
    tools, tool_policy, tool_prompt_format = decode_tool_use(spec)
    _refuse(spec.HasField("continuation"), "spec.continuation", _NO_CONTINUATION)
    _check(_utf8_bytes(spec.date) <= MAX_DATE_BYTES, "spec.date", f"must have at most {MAX_DATE_BYTES} bytes")
    return chat.ChatRequest(
        model=spec.model,
        messages=decode_messages(spec.messages),
        options=_options(spec),
        date=spec.date,
        tools=tools,
        tool_policy=tool_policy,
        tool_prompt_format=tool_prompt_format,
    )


def _completion_request(spec: completion_pb.CompletionSpec) -> chat.CompletionRequest:
    _check(bool(spec.model), "spec.model", _NAME_A_MODEL)
    _refuse(spec.HasField("continuation"), "spec.continuation", _NO_CONTINUATION)
    return chat.CompletionRequest(model=spec.model, prompt=_prompt(spec), options=_options(spec))


def _prompt(spec: completion_pb.CompletionSpec) -> str | tuple[int, ...]:
    kind = spec.WhichOneof("prompt")
    if kind is None:
        raise InvalidRequest("spec.prompt", "must be given, as text or as tokens")
    if kind == "text":
        return spec.text
    _check(bool(spec.tokens.ids), "spec.tokens.ids", "must hold at least one token id")
    return _token_ids(spec.tokens.ids, "spec.tokens.ids")


def _options(spec: chat_pb.ChatSpec | completion_pb.CompletionSpec) -> chat.GenerationOptions:
    service = spec.service
    priority = _PRIORITIES.get(service.priority)
    if priority is None:
        raise InvalidRequest("spec.service.priority", "is none of the known priorities")
    _refuse(len(service.labels), "spec.service.labels", "labels are not recorded; leave them out")
    key_bytes = _utf8_bytes(service.affinity_key)
    _check(
        key_bytes <= MAX_AFFINITY_KEY_BYTES,
        "spec.service.affinity_key",
        f"must have at most {MAX_AFFINITY_KEY_BYTES} bytes",
    )
    return chat.GenerationOptions(
        sampling=_sampling(spec.sampling),
        stop=_stop(spec.stop),
        returns=_returns(spec.returns),
        constraint=_constraint(spec),
        num_choices=_num_choices(spec.sampling),
        priority=priority,
        affinity_key=service.affinity_key,
    )


def _sampling(options: common_pb.SamplingOptions) -> chat.SamplingChoices:
    at = "spec.sampling"
    if options.HasField("top_k"):
        _check(options.top_k <= MAX_TOKEN_ID, f"{at}.top_k", f"must be at most {MAX_TOKEN_ID}; 0 turns it off")
    return chat.SamplingChoices(
        temperature=_real(options, "temperature", 0, 2),
        top_p=_real(options, "top_p", 0, 1, above_low=True),
        top_k=options.top_k if options.HasField("top_k") else None,
        min_p=_real(options, "min_p", 0, 1),
        presence_penalty=_real(options, "presence_penalty", -2, 2),
        frequency_penalty=_real(options, "frequency_penalty", -2, 2),
        repetition_penalty=_real(options, "repetition_penalty", 0, 2, above_low=True),
        seed=options.seed if options.HasField("seed") else None,
        logit_bias=_logit_bias(options),
    )


def _num_choices(options: common_pb.SamplingOptions) -> int:
    if not options.HasField("num_choices"):
        return 1
    _check(1 <= options.num_choices <= MAX_CHOICES, "spec.sampling.num_choices", f"must be 1 to {MAX_CHOICES}")
    return options.num_choices


def _constraint(spec: chat_pb.ChatSpec | completion_pb.CompletionSpec) -> chat.Constraint | None:
    if not spec.HasField("constraint"):
        return None
    constraint = decode_constraint(spec.constraint)
    if constraint is None:
        raise InvalidRequest("spec.constraint", "must have a kind, such as json_schema")
    check_constraint(constraint, f"spec.constraint.{spec.constraint.WhichOneof('kind')}")
    return constraint


def _real(
    options: common_pb.SamplingOptions, name: str, low: int, high: int, *, above_low: bool = False
) -> float | None:
    """A number in [low, high], or in (low, high]; NaN fails every comparison and so is refused, too."""
    if not options.HasField(name):
        return None
    value: float = getattr(options, name)
    words = f"must be above {low} and at most {high}" if above_low else f"must be between {low} and {high}"
    inside = low < value <= high if above_low else low <= value <= high
    _check(inside, f"spec.sampling.{name}", f"{words}, got {value:g}")
    return value


def _logit_bias(options: common_pb.SamplingOptions) -> MappingProxyType[int, float]:
    at = "spec.sampling.logit_bias"
    bias = dict(options.logit_bias)
    _check(len(bias) <= MAX_LOGIT_BIAS_ENTRIES, at, f"must hold at most {MAX_LOGIT_BIAS_ENTRIES} entries")
    for token_id, value in bias.items():
        _check(token_id <= MAX_TOKEN_ID, f"{at}[{token_id}]", "is no token id")
        _check(-100 <= value <= 100, f"{at}[{token_id}]", f"must be between -100 and 100, got {value:g}")
    return MappingProxyType(bias)


def _stop(options: common_pb.StopOptions) -> chat.StopChoices:
    at = "spec.stop"
    max_tokens = options.max_output_tokens if options.HasField("max_output_tokens") else None
    if max_tokens is not None:
        _check(max_tokens >= 1, f"{at}.max_output_tokens", "must be at least 1; leave it out for as many as fit")
        in_order = options.min_output_tokens <= max_tokens
        _check(in_order, f"{at}.min_output_tokens", f"must be at most max_output_tokens, which is {max_tokens}")
    sequences = tuple(options.stop_sequences)
    _check(len(sequences) <= MAX_STOP_SEQUENCES, f"{at}.stop_sequences", f"must be at most {MAX_STOP_SEQUENCES}")
    for i, sequence in enumerate(sequences):
        size_fits = 1 <= _utf8_bytes(sequence) <= MAX_STOP_SEQUENCE_BYTES
        _check(size_fits, f"{at}.stop_sequences[{i}]", f"must have 1 to {MAX_STOP_SEQUENCE_BYTES} bytes")
    ids = options.stop_token_ids
    _check(len(ids) <= MAX_STOP_TOKEN_IDS, f"{at}.stop_token_ids", f"must be at most {MAX_STOP_TOKEN_IDS}")
    return chat.StopChoices(
        max_output_tokens=max_tokens,
        min_output_tokens=options.min_output_tokens,
        stop_sequences=sequences,
        stop_token_ids=_token_ids(ids, f"{at}.stop_token_ids"),
        keep_stop_text=options.keep_stop_text,
        ignore_eos=options.ignore_eos,
        time_limit_s=_time_limit_s(options),
    )


def _time_limit_s(options: common_pb.StopOptions) -> float | None:
    if not options.HasField("time_limit"):
        return None
    limit_s = _seconds(options.time_limit)
    _check(limit_s > 0, "spec.stop.time_limit", "must be above 0 seconds")
    return limit_s


def _returns(options: common_pb.ReturnOptions) -> chat.ReturnChoices:
    at = "spec.returns"
    _refuse(options.prompt_top_logprobs, f"{at}.prompt_top_logprobs", "prompt tokens are not scored; leave it out")
    hold_s = _seconds(options.max_coalesce)
    _check(hold_s >= 0, f"{at}.max_coalesce", "must not be negative")
    _refuse(hold_s > 0, f"{at}.max_coalesce", "tokens are sent as they come; leave it out")
    top = options.top_logprobs
    _check(top <= MAX_TOP_LOGPROBS, f"{at}.top_logprobs", f"must be at most {MAX_TOP_LOGPROBS}, got {top}")
    _check(options.logprobs or top == 0, f"{at}.top_logprobs", "needs logprobs = true")
    return chat.ReturnChoices(
        text=options.text if options.HasField("text") else True,
        token_ids=options.token_ids,
        logprobs=options.logprobs,
        top_logprobs=top,
        prompt_token_ids=options.prompt_token_ids,
    )


def _check(holds: bool, field: str, message: str) -> None:
    if not holds:
        raise InvalidRequest(field, message)


def _refuse(asked: object, field: str, message: str) -> None:
    if asked:
        raise Unsupported(field, message)


def _token_ids(ids: Iterable[int], at: str) -> tuple[int, ...]:
    found = tuple(ids)
    for i, token_id in enumerate(found):
        _check(token_id <= MAX_TOKEN_ID, f"{at}[{i}]", f"{token_id} is no token id")
    return found


def _utf8_bytes(text: str) -> int:
    return len(text.encode("utf-8"))


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
