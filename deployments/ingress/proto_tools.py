"""How do tools, tool calls and their results come out of protobuf messages, and which are refused?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deployments.ingress.limits import MAX_TOOLS, check_call, check_tools
from llama31 import chat
from llama31.errors import InvalidRequest
from llama31.tools import tool_name
from llama31.v1 import chat_service_pb2 as chat_pb

_ROLES = {
    chat_pb.ROLE_SYSTEM: chat.Role.SYSTEM,
    chat_pb.ROLE_USER: chat.Role.USER,
    chat_pb.ROLE_ASSISTANT: chat.Role.ASSISTANT,
    chat_pb.ROLE_TOOL: chat.Role.TOOL,
}
# Which parts besides text a role may have.
_PARTS = {chat.Role.ASSISTANT: "tool_call", chat.Role.TOOL: "tool_result"}
_BUILTIN_TOOLS = {
    chat_pb.BUILTIN_TOOL_SEARCH: chat.BuiltinTool.SEARCH,
    chat_pb.BUILTIN_TOOL_MATH: chat.BuiltinTool.MATH,
    chat_pb.BUILTIN_TOOL_CODE: chat.BuiltinTool.CODE,
}
_MODES = {
    chat_pb.ToolPolicy.MODE_UNSPECIFIED: chat.ToolMode.AUTO,
    chat_pb.ToolPolicy.MODE_AUTO: chat.ToolMode.AUTO,
    chat_pb.ToolPolicy.MODE_NONE: chat.ToolMode.NONE,
    chat_pb.ToolPolicy.MODE_REQUIRED: chat.ToolMode.REQUIRED,
}
_FORMATS = {
    chat_pb.TOOL_PROMPT_FORMAT_UNSPECIFIED: chat.ToolPromptFormat.JSON,
    chat_pb.TOOL_PROMPT_FORMAT_JSON: chat.ToolPromptFormat.JSON,
    chat_pb.TOOL_PROMPT_FORMAT_FUNCTION_TAG: chat.ToolPromptFormat.FUNCTION_TAG,
}


def decode_tool_use(
    spec: chat_pb.ChatSpec,
) -> tuple[tuple[chat.Tool, ...], chat.ToolPolicy, chat.ToolPromptFormat]:
    """Which tools there are, whether they must be called, and how they are described. Raises: InvalidRequest."""
    _require(len(spec.tools) <= MAX_TOOLS, "spec.tools", f"must hold at most {MAX_TOOLS} tools")
    tools = [_tool(tool, f"spec.tools[{i}]") for i, tool in enumerate(spec.tools)]
    check_tools(tools, "spec.tools", "function.name", "function.description", "function.parameters_json_schema")
    style = _FORMATS.get(spec.tool_prompt_format)
    if style is None:
        raise InvalidRequest("spec.tool_prompt_format", "is none of the known formats")
    return tuple(tools), _policy(spec.tool_policy, tools), style


def decode_messages(messages: Iterable[chat_pb.Message]) -> tuple[chat.Message, ...]:
    """Every result answers an earlier call. Raises: InvalidRequest."""
    issued: set[str] = set()
    decoded: list[chat.Message] = []
    for i, given in enumerate(messages):
        at = f"spec.messages[{i}]"
        message = _message(given, at)
        for call in message.tool_calls:
            _require(call.id not in issued, at, "repeats the id of an earlier tool call")
            issued.add(call.id)
        answers = message.tool_call_id in issued if message.role is chat.Role.TOOL else not message.tool_call_id
        _require(answers, f"{at}.tool_call_id", "must be the id of an earlier tool call, in a tool result only")
        decoded.append(message)
    return tuple(decoded)


def _tool(tool: chat_pb.Tool, at: str) -> chat.Tool:
    if tool.WhichOneof("kind") == "builtin":
        builtin = _BUILTIN_TOOLS.get(tool.builtin)
        if builtin is None:
            raise InvalidRequest(f"{at}.builtin", "is none of the known built-in tools")
        return builtin
    _require(tool.HasField("function"), at, "must have a kind, such as function")
    own = tool.function
    return chat.FunctionTool(own.name, own.description, own.parameters_json_schema, own.strict)


def _policy(policy: chat_pb.ToolPolicy, tools: Sequence[chat.Tool]) -> chat.ToolPolicy:
    mode = _MODES.get(policy.mode)
    if mode is None:
        raise InvalidRequest("spec.tool_policy.mode", "is none of the known modes")
    is_required = mode is chat.ToolMode.REQUIRED
    _require(bool(tools) or not is_required, "spec.tool_policy", "requires a call, but no tools are given")
    is_named = not policy.function_name or (is_required and policy.function_name in map(tool_name, tools))
    _require(is_named, "spec.tool_policy.function_name", "must name one of the tools, with MODE_REQUIRED")
    return chat.ToolPolicy(mode, policy.function_name, policy.parallel if policy.HasField("parallel") else None)


def _message(message: chat_pb.Message, at: str) -> chat.Message:
    role = _ROLES.get(message.role)
    if role is None:
        raise InvalidRequest(f"{at}.role", "must be ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT or ROLE_TOOL")
    _require(bool(message.parts), f"{at}.parts", "must hold at least one part; its text may be empty")
    for i, part in enumerate(message.parts):
        kind = part.WhichOneof("kind")
        if kind is None:
            raise InvalidRequest(f"{at}.parts[{i}]", "must have a kind, such as text")
        _require(kind in ("text", _PARTS.get(role)), f"{at}.parts[{i}].{kind}", "does not belong to this role")
    return chat.Message(
        role,
        "".join(part.text + part.tool_result.content for part in message.parts),
        tool_calls=tuple(
            _call(part.tool_call, f"{at}.parts[{i}].tool_call")
            for i, part in enumerate(message.parts)
            if part.HasField("tool_call")
        ),
        tool_call_id=message.tool_call_id,
        is_error=any(part.tool_result.is_error for part in message.parts),
    )


def _call(call: chat_pb.ToolCall, at: str) -> chat.ToolCall:
    _require(bool(call.id), f"{at}.id", "must be given, so that its result can name it")
    found = chat.ToolCall(call.id, call.name, call.arguments_json)
    return check_call(found, f"{at}.name", f"{at}.arguments_json")


def _require(holds: bool, field: str, message: str) -> None:
    if not holds:
        raise InvalidRequest(field, message)
