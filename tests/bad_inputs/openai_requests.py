"""Which HTTP request does a case send, also one that was written for gRPC?"""

from __future__ import annotations

import copy
import gzip
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tests.bad_inputs.cases import Case, UnknownKey, expand, substitute
from tests.bad_inputs.field_paths import put
from tests.bad_inputs.proto_messages import request_tree
from tests.bad_inputs.server import MODEL, Server

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ENDLESS_BODY = "endless 1 B chunks"


@dataclass(frozen=True)
class HttpRequest:
    """What goes over the wire. A body that says too little of itself is sent as it is."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    is_endless: bool = False

    def head(self) -> bytes:
        """Request line and headers."""
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in self.headers)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", errors="surrogatepass")


def with_schema(case: Case, number: int) -> Case:
    """The same case with a schema that no other number has."""
    schema = json.dumps({"type": "object", "properties": {f"field_{number}": {"type": "string"}}})
    changes = {**case.request.get("set", {}), "spec.constraint.json_schema": schema}
    return replace(case, request={**case.request, "set": changes})


def http_request(case: Case, server: Server) -> HttpRequest:
    """The case's request. Raises: UnknownKey."""
    if case.channel == "http":
        return _own_request(case, server)
    request = case.request
    is_completion = request.get("base") == "complete_ok"
    path = request.get("path", COMPLETIONS if is_completion else CHAT)
    if request.get("compression") is not None:
        body = gzip.compress(_encoded(openai_body(case)), 1)
        return _request(case, server, "POST", path, body, {"content-encoding": request["compression"]})
    body = b"{}" if "raw_message_hex" in request else _encoded(openai_body(case))
    headers: dict[str, Any] = dict(request.get("metadata", {}))
    if "timeout_s" in request:
        headers["x-request-timeout-ms"] = str(round(request["timeout_s"] * 1000))
    if request.get("h2", {}).get("half_open"):
        headers["content-length"], body = "100", b""
    return _request(case, server, "POST", path, body, headers)


def _own_request(case: Case, server: Server) -> HttpRequest:
    """A case of the HTTP channel."""
    request = case.request
    headers: dict[str, Any] = dict(request.get("headers", {}))
    path = request.get("path", CHAT)
    if request.get("body") == ENDLESS_BODY:
        return _request(case, server, request["method"], path, b"", headers, is_endless=True)
    if "raw_gzip_bomb_mib" in request:
        body = gzip.compress(bytes(request["raw_gzip_bomb_mib"] * 2**20), 1)
    elif "body_bytes" in request:
        body = b"x" * int(substitute(str(request["body_bytes"]), server.constants))
    elif "body" in request:
        body = str(expand(copy.deepcopy(request["body"]))).encode("utf-8", errors="surrogatepass")
    elif "json" in request:
        body = _encoded(expand(copy.deepcopy(request["json"])))
    elif "base" in request:
        tree = base_body(request["base"])
        for at, value in request.get("set", {}).items():
            put(tree, at, expand(copy.deepcopy(value)))
        body = _encoded(tree)
    else:
        body = b""
    return _request(case, server, request["method"], path, body, headers)


def base_body(base: str) -> dict[str, Any]:
    """A valid request. Raises: UnknownKey."""
    if base == "chat_ok":
        return {"model": MODEL, "messages": [{"role": "user", "content": "Say hello."}]}
    if base == "complete_ok":
        return {"model": MODEL, "prompt": "Once upon a time"}
    raise UnknownKey(f"the runner does not know the base {base!r}")


def _request(
    case: Case,
    server: Server,
    method: str,
    path: str,
    body: bytes,
    changes: Mapping[str, Any],
    is_endless: bool = False,
) -> HttpRequest:
    headers: dict[str, Any] = {"host": "127.0.0.1", **dict(server.credentials), "connection": "close"}
    if method == "POST":
        headers |= {"content-type": "application/json", "content-length": str(len(body))}
    if "transfer-encoding" in changes:
        headers.pop("content-length", None)
    headers |= {name.lower(): expand(value) for name, value in changes.items()}
    found: list[tuple[str, str]] = []
    for name, value in headers.items():
        if isinstance(value, list):
            found += [(name % item if "%d" in name else name, "v") for item in value]
        elif value is not None:
            found.append((name, substitute(str(value), server.constants)))
    if "metadata_list" in case.request:
        listed = case.request["metadata_list"]
        names = {name for name, _ in listed}
        found = [entry for entry in found if entry[0] not in names]
        found += [(name, substitute(value, server.constants)) for name, value in listed]
    return HttpRequest(method, path, tuple(found), body, is_endless)


def _encoded(tree: Any) -> bytes:
    return json.dumps(tree, ensure_ascii=False).encode("utf-8", errors="surrogatepass")


_SAMPLING_NAMES = {"num_choices": "n"}
_STOP_NAMES = {"max_output_tokens": "max_tokens", "min_output_tokens": "min_tokens", "stop_sequences": "stop"}
_RETURN_NAMES = {"prompt_top_logprobs": "prompt_logprobs"}


def openai_body(case: Case) -> dict[str, Any]:
    """The request of a gRPC case as OpenAI's clients would send it. Raises: UnknownKey."""
    spec = dict(request_tree(case, MODEL).get("spec", {}))
    body: dict[str, Any] = {}
    for name, value in spec.items():
        _take(case, body, name, value)
    if _is_streamed(case):
        body["stream"] = True
    return body


def _is_streamed(case: Case) -> bool:
    return bool({"cancel_after_chunks", "client", "during"} & set(case.request))


def _take(case: Case, body: dict[str, Any], name: str, value: Any) -> None:
    match name:
        case "model":
            body["model"] = value
        case "messages":
            body["messages"] = [_message(m) for m in value]
        case "sampling":
            body |= {_SAMPLING_NAMES.get(n, n): v for n, v in value.items()}
        case "stop":
            body |= {_STOP_NAMES.get(n, n): v for n, v in value.items()}
        case "returns":
            body |= {_RETURN_NAMES.get(n, n): v for n, v in value.items()}
        case "text":
            body |= {} if value == {} else {"prompt": value}
        case "tokens":
            body["prompt"] = value.get("ids")
        case "constraint":
            body |= _constraint(value)
        case "tools":
            body |= {"tools": [_tool(t) for t in value]} if value else {}
        case "tool_policy":
            body["tool_choice"] = value.lower() if isinstance(value, str) else value
        case _:
            raise UnknownKey(f"{case.id}: the runner does not know spec.{name} over HTTP")


def _message(message: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {"role": re.sub("^role_", "", str(message.get("role", "")).lower())}
    if "parts" in message:
        out["content"] = "".join(part.get("text", "") for part in message["parts"])
    elif "content" in message:
        out["content"] = message["content"]
    if "tool_calls" in message:
        out["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": call["arguments_json"]},
            }
            for call in message["tool_calls"]
        ]
    if "tool_call_id" in message:
        out["tool_call_id"] = message["tool_call_id"]
    return out


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = {name: value for name, value in tool.items() if name != "schema_json"}
    if "schema_json" in tool:
        function["parameters"] = _parsed(tool["schema_json"])
    return {"type": "function", "function": function}


def _constraint(constraint: dict[str, Any]) -> dict[str, Any]:
    if "json_schema" in constraint:
        schema = _parsed(constraint["json_schema"])
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}
    if "any_json_object" in constraint:
        return {"response_format": {"type": "json_object"}}
    names = {"one_of": "choice"}
    return {"structured_outputs": {names.get(name, name): value for name, value in constraint.items()}}


def _parsed(text: str) -> Any:
    """A schema is JSON within JSON here; one that is none stays the text that it is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
