"""Do prompts and texts equal the reference, token for token?

`LLAMA31_GOLDEN` names another file of the same form; kinds that are not built are skipped by name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama31.chat import BuiltinTool, FunctionTool, Message, Role, Tool, ToolCall, ToolPromptFormat
from llama31.codec import CallDecoder, Piece, StreamDecoder
from llama31.errors import InvalidRequest
from llama31.prompt import Llama31Prompt, Turn
from llama31.tokenizer import Llama31Tokenizer
from llama31.tool_parser import Control, ToolParser
from llama31.tools import call_text, function_text, functions, python_call_text, system_text

Row = dict[str, Any]

DEFAULT_PATH = Path(__file__).parents[1] / "data" / "golden" / "llama31_prompt_vectors.jsonl"
ROLES = {"system": Role.SYSTEM, "user": Role.USER, "assistant": Role.ASSISTANT, "tool": Role.TOOL}
ROLES["ipython"] = Role.TOOL
STYLES = {"json": ToolPromptFormat.JSON, "function_tag": ToolPromptFormat.FUNCTION_TAG}
BUILTINS = {tool.value for tool in BuiltinTool}


def golden_rows() -> list[Row]:
    path = Path(os.environ.get("LLAMA31_GOLDEN") or DEFAULT_PATH)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


@pytest.mark.parametrize("row", [pytest.param(row, id=str(row["id"])) for row in golden_rows()])
def test_golden(row: Row, llama31_tokenizer: Llama31Tokenizer) -> None:
    check = CHECKS.get(row["kind"])
    if check is None:
        pytest.skip(f"kind {row['kind']} is not built yet")
    check(row, llama31_tokenizer)


def _check_dialog(row: Row, tokenizer: Llama31Tokenizer) -> None:
    style = STYLES[row.get("tool_prompt_format") or "json"]
    ids = Llama31Prompt(tokenizer).encode_turns(_turn(message, style) for message in row["messages"])
    _assert_ids(row, ids, tokenizer)


def _check_dialog_tools(row: Row, tokenizer: Llama31Tokenizer) -> None:
    tools, style = tuple(map(_tool, row["tools"])), STYLES[row["tool_prompt_format"]]
    messages = [Message(ROLES[m["role"]], _text(m["content"])) for m in row["messages"]]
    if row["composition"] == "llama_stack":
        leading = messages and messages[0].role is Role.SYSTEM
        instruction = messages.pop(0).content if leading else None
        own = functions(tools)
        described = [Message(Role.USER, function_text(own, style))] if own else []
        system = Message(Role.SYSTEM, system_text(tools, row["today"], instruction, documented=False))
        ids = Llama31Prompt(tokenizer).encode_dialog([system, *described, *messages])
    else:
        ids = Llama31Prompt(tokenizer).encode_dialog(messages, row["today"], tools, style)
    _assert_ids(row, ids, tokenizer)


def _check_encode_tool_call(row: Row, tokenizer: Llama31Tokenizer) -> None:
    call = _call(row)
    if row["tool_prompt_format"] == "python_list" and call.name not in BUILTINS:
        assert python_call_text(call.name, row["arguments"]) == row["expected_text"]
        return
    style = STYLES.get(row["tool_prompt_format"], ToolPromptFormat.JSON)
    assert call_text(call, style) == row["expected_text"]


def _check_parse(row: Row, tokenizer: Llama31Tokenizer) -> None:
    """Calls and content equal the reference's, when the tools that it recognised are offered.

    The reference stops at the first call, drops the text around it and trims spaces; we do neither. Where it
    raises, or a note says that it is wrong, any result will do that loses nothing and is the same for
    every cut; which it is, the parser's own tests say.
    """
    output = _text(row["model_output"])
    ids = row.get("model_output_token_ids") or tokenizer.encode_with_specials(output, "all")
    expected = row.get("expected") or {"content": "", "tool_calls": []}
    is_wrong = "raises" in row or "note" in row
    names = {call["tool_name"] for call in expected["tool_calls"]}
    names |= set(re.findall(r'"name": "([\w-]+)"', output)) if is_wrong else {"never_called"}
    tools = [BuiltinTool(name) if name in BUILTINS else FunctionTool(name) for name in sorted(names)]
    whole = _parsed(tokenizer, tools, [ids])
    assert whole == _parsed(tokenizer, tools, [[token_id] for token_id in ids])
    assert all(isinstance(json.loads(call.arguments_json), dict) for call in whole.calls)
    if is_wrong:
        assert whole.calls or whole.text == tokenizer.decode_bytes(_content_ids(ids, tokenizer)).decode()
        return
    found = [(call.name, json.loads(call.arguments_json)) for call in whole.calls[:1]]
    assert found == [(call["tool_name"], call["arguments"]) for call in expected["tool_calls"]]
    if found:
        assert whole.text in output
    else:
        assert whole.text.strip(" ") == expected["content"]


def _parsed(tokenizer: Llama31Tokenizer, tools: list[Tool], cuts: list[list[int]]) -> Piece:
    controls = {tokenizer.special_id(control.value): control for control in Control}
    decoder = CallDecoder(StreamDecoder(tokenizer), ToolParser(tools, controls, "seed"))
    pieces = [*map(decoder.push, cuts), decoder.finish()]
    return Piece(
        "".join(piece.text for piece in pieces),
        sum(piece.released_ids for piece in pieces),
        calls=tuple(call for piece in pieces for call in piece.calls),
    )


def _content_ids(ids: list[int], tokenizer: Llama31Tokenizer) -> list[int]:
    return [token_id for token_id in ids if token_id not in tokenizer.special_ids]


def _check_doc_prompt(row: Row, tokenizer: Llama31Tokenizer) -> None:
    """The documents' own text; how requests become such prompts is tested beside the format."""
    _assert_ids(row, tokenizer.encode_with_specials(_text(row["text"]), "all"), tokenizer)


def _check_encode_text(row: Row, tokenizer: Llama31Tokenizer) -> None:
    allowed, disallowed = row.get("allowed_special") or (), row.get("disallowed_special") or ()
    text = _text(row["text"])

    def encode() -> list[int]:
        ids = tokenizer.encode_with_specials(text, allowed if allowed == "all" else frozenset(allowed), disallowed)
        begin = [tokenizer.special_id("<|begin_of_text|>")] if row.get("bos") else []
        end = [tokenizer.special_id("<|end_of_text|>")] if row.get("eos") else []
        return begin + ids + end

    if "raises" in row:
        with pytest.raises(InvalidRequest):
            encode()
        return
    ids = encode()
    _assert_ids(row, ids, tokenizer)
    if not allowed and not disallowed and not row.get("bos") and not row.get("eos"):
        assert tokenizer.encode(text) == ids


def _check_completion(row: Row, tokenizer: Llama31Tokenizer) -> None:
    _assert_ids(row, Llama31Prompt(tokenizer).encode_completion(_text(row["prompt"])), tokenizer)


def _check_decode(row: Row, tokenizer: Llama31Tokenizer) -> None:
    ids = row["token_ids"]
    assert _decoded(tokenizer, ids) == row["expected_text"]
    prefixes = [_decoded(tokenizer, ids[: i + 1]) for i in range(len(ids))]
    assert prefixes == row["expected_prefix_texts"]
    content = _content_ids(ids, tokenizer)
    decoder = StreamDecoder(tokenizer)
    streamed = "".join(decoder.push([token_id]).text for token_id in ids) + decoder.finish().text
    assert streamed == _decoded(tokenizer, content)


CHECKS: dict[str, Callable[[Row, Llama31Tokenizer], None]] = {
    "dialog": _check_dialog,
    "encode_text": _check_encode_text,
    "completion": _check_completion,
    "decode": _check_decode,
    "dialog_tools": _check_dialog_tools,
    "encode_tool_call": _check_encode_tool_call,
    "doc_prompt": _check_doc_prompt,
    "parse": _check_parse,
}


def _tool(described: Row) -> Tool:
    """The reference knows parameters with a type, a description and whether they are required."""
    name = described["tool_name"]
    if name in BUILTINS:
        return BuiltinTool(name)
    parameters = described.get("parameters") or {}
    properties = {
        key: {"type": value["param_type"], "description": value.get("description") or ""}
        for key, value in parameters.items()
    }
    required = [key for key, value in parameters.items() if value.get("required", True)]
    schema = json.dumps({"type": "object", "properties": properties, "required": required})
    return FunctionTool(name, described.get("description") or "", schema)


def _call(described: Row) -> ToolCall:
    return ToolCall(described.get("call_id", ""), described["tool_name"], json.dumps(described["arguments"]))


def _turn(message: Row, style: ToolPromptFormat) -> Turn:
    pieces = _pieces(message["content"])
    if message["role"] == "user" and message.get("context") is not None:
        pieces += ("\n\n", *_pieces(message["context"]))
    continues = message["role"] == "assistant" and message.get("stop_reason") == "end_of_message"
    calls = [_call(call) for call in message.get("tool_calls") or ()]
    is_code = bool(calls) and calls[0].name == BuiltinTool.CODE.value
    return Turn(ROLES[message["role"]], (*pieces, *(call_text(call, style) for call in calls)), continues, is_code)


def _pieces(content: Any) -> tuple[str, ...]:
    """A list is encoded part by part, everything else as one text."""
    if isinstance(content, list):
        return tuple(_text(part["text"] if isinstance(part, dict) and "text" in part else part) for part in content)
    return (_text(content),)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    unit, times = value["$repeat"]
    return str(value.get("prefix", "") + unit * times + value.get("suffix", ""))


def _decoded(tokenizer: Llama31Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode_bytes(ids).decode(errors="replace")


def _assert_ids(row: Row, ids: list[int], tokenizer: Llama31Tokenizer) -> None:
    assert "expected_token_ids" in row or "expected_sha256_u32le" in row, "the row expects nothing"
    if "expected_token_ids" in row:
        assert ids == row["expected_token_ids"]
    if "n_tokens" in row:
        assert len(ids) == row["n_tokens"]
    for key, expected in row.items():
        # Long rows give the ends of the ids beside the digest.
        if key.startswith("expected") and isinstance(expected, list) and "first" in key:
            assert ids[: len(expected)] == expected
        if key.startswith("expected") and isinstance(expected, list) and "last" in key:
            assert ids[-len(expected) :] == expected
    if "expected_sha256_u32le" in row:
        assert hashlib.sha256(np.array(ids, dtype="<u4").tobytes()).hexdigest() == row["expected_sha256_u32le"]
    if "expected_special" in row:
        specials = [[i, token_id] for i, token_id in enumerate(ids) if token_id in tokenizer.special_ids]
        assert specials == row["expected_special"]
    for key in ("expected_text", "expected_roundtrip"):
        if key in row:
            assert _decoded(tokenizer, ids) == _text(row[key])
