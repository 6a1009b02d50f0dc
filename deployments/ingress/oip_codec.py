"""How do tensors of the Open Inference Protocol become requests of `llama31.chat`?

The inputs are those of Triton's vLLM backend. They are validated here, once, with the limits of every door; an
input or parameter that this server does not offer is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from deployments.ingress import limits
from deployments.ingress.json_body import Fields, parse_object
from deployments.ingress.limits import check, refuse
from deployments.ingress.oip_tensors import INPUTS, OUTPUTS, read_tensors
from deployments.ingress.openai_codec import MAX_CHOICES_OF_ALL, Wanted
from deployments.ingress.openai_options import read_options
from deployments.ingress.proto_codec import parse
from llama31 import chat
from llama31.errors import FieldError, InvalidRequest, MalformedMessage, UnknownField
from llama31.oip.v2 import inference_pb2 as pb

PROMPTS = "text_input"
_OPTIONS = "sampling_parameters"
MAX_ID_BYTES = 256
# Holds the largest schema of a constraint.
MAX_OPTIONS_BYTES = 256 * 2**10
MAX_TIMEOUT_S = 86_400.0

# Triton's levels: 0 is the model's own, and a lower number goes first.
_PRIORITIES = {
    0: chat.Priority.STANDARD,
    1: chat.Priority.INTERACTIVE,
    2: chat.Priority.STANDARD,
    3: chat.Priority.BATCH,
}
# Inputs or parameters of true or false.
_FLAGS = tuple(name for name, datatype in INPUTS.items() if datatype == "BOOL")
# The final response always comes, and it is never empty.
_FINAL_RESPONSE = "triton_enable_empty_final_response"
_STATEFUL = ("sequence_id", "sequence_start", "sequence_end")
# Triton's own examples write these numbers as text, and older clients have no other way to send a fraction.
_NUMBERS = (*limits.RANGES, "top_k", "seed", "n", "max_tokens", "min_tokens")
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_REAL = re.compile(r"-?[0-9]{0,20}\.?[0-9]{1,20}([eE][-+]?[0-9]{1,3})?")
_NO_LOGPROBS = "log-probabilities are not given as tensors; ask llama31.v1.CompletionService for them"


@dataclass(frozen=True, slots=True)
class Infer:
    """One `ModelInferRequest`: a completion for each prompt, and how the answer is to be sent."""

    id: str
    requests: tuple[chat.CompletionRequest, ...]
    outputs: tuple[str, ...]
    is_raw: bool
    in_deltas: bool
    with_prompt: bool
    timeout_s: float | None
    constraint_field: str

    @property
    def model(self) -> str:
        """The model of every prompt."""
        return self.requests[0].model

    @property
    def choices(self) -> int:
        """How many answers the request asks for."""
        return len(self.requests) * self.requests[0].options.num_choices

    def prompt_of(self, answer: int) -> str:
        """The prompt that this answer goes on with."""
        return str(self.requests[answer // self.requests[0].options.num_choices].prompt)

    def in_callers_words(self, error: FieldError) -> FieldError:
        """A gateway's error with the name that the field has in this protocol."""
        names = Wanted(self.model, self.choices, self.in_deltas, False, PROMPTS, self.constraint_field)
        return type(error)(names.field(error.field), error.message)


def parse_infer(data: bytes) -> pb.ModelInferRequest:
    """Raises: MalformedMessage."""
    return parse(pb.ModelInferRequest, data)


def decode_infer(message: pb.ModelInferRequest, *, is_streamed: bool) -> Infer:
    """Raises: InvalidRequest, Unsupported."""
    check(bool(message.model_name), "model_name", "must name a model; llama31.v1.ModelService/ListModels tells which")
    id_fits = limits.utf8_bytes(message.id) <= MAX_ID_BYTES
    check(id_fits, "id", f"must have at most {MAX_ID_BYTES} bytes")
    tensors = read_tensors(message)
    check(bool(tensors.get(PROMPTS)), PROMPTS, "must be given, with at least one prompt")
    own, values = _split(message.parameters)
    flags = _flags(tensors, own)
    options, constraint_field = _options(tensors, values)
    if "priority" in own:
        options = replace(options, priority=_priority(own["priority"]))
    requests = tuple(chat.CompletionRequest(message.model_name, prompt, options) for prompt in tensors[PROMPTS])
    wants_deltas = flags.get("stream", flags.get("streaming"))
    check(is_streamed or not wants_deltas, "stream", "needs ModelStreamInfer")
    infer = Infer(
        id=message.id,
        requests=requests,
        outputs=_outputs(message, flags),
        is_raw=bool(message.raw_input_contents),
        in_deltas=is_streamed and wants_deltas is not False,
        with_prompt=flags.get("exclude_input_in_output") is False,
        timeout_s=_timeout_s(own),
        constraint_field=constraint_field,
    )
    most = MAX_CHOICES_OF_ALL
    check(infer.choices <= most, "n", f"asks for {infer.choices} answers, at most {most} a request")
    if infer.in_deltas:
        check(infer.choices == 1, PROMPTS, "must hold one prompt, with n = 1; or set stream to false")
        check(not infer.with_prompt, "exclude_input_in_output", "must be true where the answer is streamed")
    return infer


def decode_model(data: bytes, kind: type[pb.ModelReadyRequest] | type[pb.ModelMetadataRequest]) -> tuple[str, str]:
    """Name and version of the model that is asked for. Raises: MalformedMessage, InvalidRequest."""
    message = parse(kind, data)
    check(bool(message.name), "name", "must name a model; llama31.v1.ModelService/ListModels tells which")
    return message.name, message.version


def _split(parameters: Mapping[str, pb.InferParameter]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What this protocol says itself, and the generation options."""
    own: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidRequest(name, "must have a value")
        refuse(name in _STATEFUL, name, "sequences are not kept; send the whole text with each request")
        is_own = name in (*_FLAGS, "priority", "timeout", _FINAL_RESPONSE)
        (own if is_own else values)[name] = getattr(parameter, kind)
    return own, values


def _flags(tensors: Mapping[str, list[Any]], own: Mapping[str, Any]) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for name in (*_FLAGS, _FINAL_RESPONSE):
        check(not (name in tensors and name in own), name, "must not be given twice, as input and as parameter")
        value = tensors[name][0] if name in tensors else own.get(name)
        if value is not None:
            check(isinstance(value, bool), name, "must be true or false")
            found[name] = value
    for name in ("return_logprobs", "return_cumulative_logprob"):
        refuse(found.get(name), name, _NO_LOGPROBS)
    return found


def _options(tensors: Mapping[str, list[Any]], values: dict[str, Any]) -> tuple[chat.GenerationOptions, str]:
    """The options, and the field that a constraint came in."""
    text = values.pop(_OPTIONS, None)
    if _OPTIONS in tensors:
        check(text is None, _OPTIONS, "must not be given twice, as input and as parameter")
        text = tensors[_OPTIONS][0]
    given = {} if text is None else _parse_options(text)
    for name in given:
        check(name not in values, name, f"must not be given twice, in {_OPTIONS} and as parameter")
    fields = Fields({name: _as_number(name, value) for name, value in (given | values).items()})
    refuse(fields.take("logprobs") is not None, "logprobs", _NO_LOGPROBS)
    options, constraint_field = read_options(fields, chat.ReturnChoices(), "logprobs")
    fields.done()
    return options, constraint_field


def _parse_options(text: Any) -> dict[str, Any]:
    check(isinstance(text, str), _OPTIONS, "must be text: a JSON object")
    check(limits.utf8_bytes(text) <= MAX_OPTIONS_BYTES, _OPTIONS, f"must have at most {MAX_OPTIONS_BYTES} bytes")
    try:
        return parse_object(text.encode("utf-8")).raw()
    except MalformedMessage as error:
        raise InvalidRequest(_OPTIONS, error.message) from None


def _as_number(name: str, value: Any) -> Any:
    if not isinstance(value, str) or name not in _NUMBERS:
        return value
    if _INTEGER.fullmatch(value):
        return int(value)
    return float(value) if _REAL.fullmatch(value) else value


def _priority(level: Any) -> chat.Priority:
    known = isinstance(level, int) and not isinstance(level, bool) and level in _PRIORITIES
    check(known, "priority", "must be 1 (interactive), 2 (standard) or 3 (batch); 0 is standard, too")
    return _PRIORITIES[level]


def _timeout_s(own: Mapping[str, Any]) -> float | None:
    if "timeout" not in own:
        return None
    timeout = own["timeout"]
    is_integer = isinstance(timeout, int) and not isinstance(timeout, bool)
    check(is_integer and timeout >= 0, "timeout", "must be a number of microseconds; 0 sets none")
    return min(timeout / 1e6, MAX_TIMEOUT_S) if timeout else None


def _outputs(message: pb.ModelInferRequest, flags: Mapping[str, bool]) -> tuple[str, ...]:
    """The outputs to give, in their own order."""
    asked = [output.name for output in message.outputs[: len(OUTPUTS) + 1]]
    check(len(message.outputs) <= len(OUTPUTS), "outputs", f"must name at most {len(OUTPUTS)} outputs")
    for i, (name, output) in enumerate(zip(asked, message.outputs, strict=True)):
        if name not in OUTPUTS:
            raise UnknownField(f"outputs[{i}].name", f"is none of {', '.join(OUTPUTS)}")
        refuse(len(output.parameters), f"outputs[{i}].parameters", "are not offered; leave them out")
    return tuple(n for n in OUTPUTS if (not asked or n in asked) and flags.get(f"return_{n}") is not False)
