"""Which tensors of the Open Inference Protocol go in and out, and how do their elements lie in a message?"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

from deployments.ingress.limits import check, refuse
from deployments.ingress.openai_codec import MAX_PROMPTS
from llama31.errors import InvalidRequest, UnknownField, UnsupportedContent
from llama31.oip.v2 import inference_pb2 as pb

# Name -> data type; each holds one element, but `text_input` one a prompt.
INPUTS = {
    "text_input": "BYTES",
    "sampling_parameters": "BYTES",
    "stream": "BOOL",
    "streaming": "BOOL",
    "exclude_input_in_output": "BOOL",
    "return_finish_reason": "BOOL",
    "return_num_input_tokens": "BOOL",
    "return_num_output_tokens": "BOOL",
    "return_logprobs": "BOOL",
    "return_cumulative_logprob": "BOOL",
}
# Text and reason have an element for each answer; the counts are those of the whole request.
OUTPUTS = {
    "text_output": "BYTES",
    "finish_reason": "BYTES",
    "num_input_tokens": "UINT32",
    "num_output_tokens": "UINT32",
}
_OF_EACH_ANSWER = ("text_output", "finish_reason")
_MAX_DIMENSIONS = 4

Values = Sequence[str] | Sequence[int]


def read_tensors(message: pb.ModelInferRequest) -> dict[str, list[Any]]:
    """The elements of every input, as text or bool. Raises: InvalidRequest, Unsupported."""
    raw: Sequence[bytes | None] = message.raw_input_contents or [None] * len(message.inputs)
    # Bounds all that follows, error texts included.
    check(len(message.inputs) <= len(INPUTS), "inputs", f"must hold at most {len(INPUTS)} tensors")
    check(len(raw) == len(message.inputs), "raw_input_contents", "must hold one entry for each of the inputs")
    found: dict[str, list[Any]] = {}
    for i, tensor in enumerate(message.inputs):
        at, name = f"inputs[{i}]", tensor.name
        if name == "image":
            raise UnsupportedContent(f"{at}.name", "the model reads no images")
        if name not in INPUTS:
            raise UnknownField(f"{at}.name", "is no input here; ModelMetadata lists them")
        check(name not in found, f"{at}.name", f"{name} is there already")
        check(tensor.datatype == INPUTS[name], f"{at}.datatype", f"must be {INPUTS[name]}")
        refuse(len(tensor.parameters), f"{at}.parameters", "are not offered, nor is shared memory; send the elements")
        elements = _elements(tensor, raw[i], at)
        found[name] = [_text(element, name) for element in elements] if INPUTS[name] == "BYTES" else elements
    return found


def add_tensor(response: pb.ModelInferResponse, name: str, values: Values, *, is_raw: bool) -> None:
    """Appends an output of one dimension."""
    tensor = response.outputs.add(name=name, datatype=OUTPUTS[name], shape=[len(values)])
    if OUTPUTS[name] == "BYTES":
        texts = [str(value).encode("utf-8") for value in values]
        if is_raw:
            response.raw_output_contents.append(b"".join(struct.pack("<I", len(text)) + text for text in texts))
        else:
            tensor.contents.bytes_contents.extend(texts)
    elif is_raw:
        response.raw_output_contents.append(struct.pack(f"<{len(values)}I", *values))
    else:
        tensor.contents.uint_contents.extend(int(value) for value in values)


def describe_tensors(metadata: pb.ModelMetadataResponse) -> None:
    """Adds every input and output to a model's description."""
    for name, datatype in INPUTS.items():
        metadata.inputs.add(name=name, datatype=datatype, shape=[-1 if name == "text_input" else 1])
    for name, datatype in OUTPUTS.items():
        metadata.outputs.add(name=name, datatype=datatype, shape=[-1 if name in _OF_EACH_ANSWER else 1])


def _count(shape: Sequence[int], at: str, most: int) -> int:
    """How many elements the shape has."""
    is_shape = 1 <= len(shape) <= _MAX_DIMENSIONS and all(1 <= size <= most for size in shape)
    count = math.prod(shape) if is_shape else 0
    words = f"must be [1] to [{most}]" if most > 1 else "must be [1]"
    check(1 <= count <= most, f"{at}.shape", words)
    return count


def _elements(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None, at: str) -> list[Any]:
    count = _count(tensor.shape, at, MAX_PROMPTS if tensor.name == "text_input" else 1)
    if raw is not None:
        check(not tensor.HasField("contents"), f"{at}.contents", "must be left out beside raw_input_contents")
        return _raw_elements(raw, tensor.datatype, count, at)
    contents = tensor.contents
    elements = contents.bytes_contents if tensor.datatype == "BYTES" else contents.bool_contents
    check(len(elements) == count, f"{at}.contents", f"must hold {count} elements, as the shape says")
    return list(elements)


def _raw_elements(data: bytes, datatype: str, count: int, at: str) -> list[Any]:
    if datatype == "BOOL":
        check(len(data) == count and set(data) <= {0, 1}, at, f"must hold {count} bytes of 0 or 1")
        return [bool(byte) for byte in data]
    found, place = [], 0
    for _ in range(count):
        size = int.from_bytes(data[place : place + 4], "little")
        check(len(data) >= place + 4 + size, at, "ends within an element; each is its length (4 bytes), then its bytes")
        found.append(data[place + 4 : place + 4 + size])
        place += 4 + size
    check(place == len(data), at, f"must hold {count} elements, as the shape says")
    return found


def _text(element: bytes, name: str) -> str:
    try:
        return element.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(name, "must be text in UTF-8") from None
