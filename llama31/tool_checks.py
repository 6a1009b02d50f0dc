"""May these tools, this policy and these tool turns be used? Every door asks here, each with its own paths."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from llama31.chat import FunctionTool, Message, Role, Tool, ToolMode, ToolPolicy
from llama31.errors import InvalidRequest
from llama31.tools import tool_name

MAX_TOOLS = 128
MAX_DESCRIPTION_CHARS = 16 * 1024
# What a grammar compiler can take: 300 nested objects cost 9.5 s, 20,000 enum values more than 15 s.
MAX_SCHEMA_BYTES = 64 * 1024
MAX_SCHEMA_DEPTH = 16
MAX_ENUM_VALUES = 500

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# A nested object is two JSON values deep: itself in its parent's "properties".
_MAX_JSON_DEPTH = 2 * MAX_SCHEMA_DEPTH + 1


def check_tools(tools: Sequence[Tool], policy: ToolPolicy, at: str) -> None:
    """`at` comes before "tools" and "tool_policy" in paths. Raises: InvalidRequest."""
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"{at}tools", f"must be at most {MAX_TOOLS}")
    seen: set[str] = set()
    for i, tool in enumerate(tools):
        if tool_name(tool) in seen:
            raise InvalidRequest(f"{at}tools[{i}].name", "is the name of an earlier tool")
        seen.add(tool_name(tool))
        if isinstance(tool, FunctionTool):
            _check_function(tool, f"{at}tools[{i}]")
    if policy.mode is ToolMode.REQUIRED and not tools:
        raise InvalidRequest(f"{at}tool_policy", "requires a call but no tools are given")
    if policy.function_name and (policy.mode is not ToolMode.REQUIRED or policy.function_name not in seen):
        raise InvalidRequest(f"{at}tool_policy.function_name", "must name one of the tools, with a required call")


def check_tool_results(messages: Sequence[Message], at: str) -> None:
    """Every result answers an earlier call. `at` comes before "messages" in paths. Raises: InvalidRequest."""
    issued: set[str] = set()
    for i, message in enumerate(messages):
        for call in message.tool_calls:
            if not call.id or call.id in issued:
                raise InvalidRequest(f"{at}messages[{i}]", "has a tool call without an id of its own")
            issued.add(call.id)
        if message.role is Role.TOOL and message.tool_call_id not in issued:
            raise InvalidRequest(f"{at}messages[{i}].tool_call_id", "is not the id of an earlier tool call")
        if message.role is not Role.TOOL and message.tool_call_id:
            raise InvalidRequest(f"{at}messages[{i}].tool_call_id", "belongs to tool results only")


def is_tool_name(name: str) -> bool:
    """Whether a tool may be called this."""
    return _NAME.fullmatch(name) is not None


def arguments_problem(arguments_json: str) -> str:
    """What is wrong with the arguments of a call; empty if nothing is. No text stands for no arguments."""
    try:
        value = json.loads(arguments_json or "{}", parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return "must be JSON"
    return "" if isinstance(value, dict) else "must be a JSON object"


def schema_problem(schema_json: str) -> str:
    """What is wrong with a JSON schema; empty if nothing is. It is bounded, so that no schema can burn a core."""
    if len(schema_json.encode()) > MAX_SCHEMA_BYTES:
        return f"must have at most {MAX_SCHEMA_BYTES} bytes"
    try:
        schema = json.loads(schema_json, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return "must be a JSON schema, as JSON text"
    if not isinstance(schema, dict):
        return "must be a JSON object"
    enum_values = 0
    for value, depth in _walk(schema):
        if depth > _MAX_JSON_DEPTH:
            return f"must nest at most {MAX_SCHEMA_DEPTH} schemas"
        if isinstance(value, dict):
            enum_values += len(value["enum"]) if isinstance(value.get("enum"), list) else 0
            if isinstance(value.get("$ref"), str) and not _has_end(schema, value["$ref"]):
                return "must refer to its own parts only, and not in a circle"
    return f"must have at most {MAX_ENUM_VALUES} enum values" if enum_values > MAX_ENUM_VALUES else ""


def _check_function(tool: FunctionTool, at: str) -> None:
    if not is_tool_name(tool.name):
        raise InvalidRequest(f"{at}.name", "must be 1 to 64 letters, digits, underscores or hyphens")
    if len(tool.description) > MAX_DESCRIPTION_CHARS:
        raise InvalidRequest(f"{at}.description", f"must have at most {MAX_DESCRIPTION_CHARS} characters")
    problem = schema_problem(tool.parameters_json_schema) if tool.parameters_json_schema else ""
    if not problem and json.loads(tool.parameters_json_schema or "{}").get("type", "object") != "object":
        problem = 'must be of type "object"'
    if problem:
        raise InvalidRequest(f"{at}.schema_json", f"the parameters' JSON schema {problem}")


def _walk(schema: dict[str, Any]) -> Iterator[tuple[Any, int]]:
    """Every value in it with its depth, without recursion; deeper than allowed it goes one step."""
    waiting: list[tuple[Any, int]] = [(schema, 1)]
    while waiting:
        value, depth = waiting.pop()
        yield value, depth
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting += [(part, depth + 1) for part in parts if isinstance(part, dict | list)]


def _has_end(schema: dict[str, Any], reference: str) -> bool:
    """Whether following a reference leads to something that is no reference."""
    followed: set[str] = set()
    while reference not in followed:
        followed.add(reference)
        target: Any = schema
        if reference[:1] != "#" or reference[1:2] not in ("", "/"):
            return False
        for step in reference[2:].split("/") if len(reference) > 1 else ():
            key = step.replace("~1", "/").replace("~0", "~")
            is_index = isinstance(target, list) and key.isdecimal() and int(key) < len(target)
            if not is_index and not (isinstance(target, dict) and key in target):
                return False
            target = target[int(key)] if is_index else target[key]
        if not isinstance(target, dict) or not isinstance(target.get("$ref"), str):
            return True
        reference = target["$ref"]
    return False


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
