"""May this constraint on the output go to an engine? Checked at the door, in milliseconds, by the engine's own library.

llguidance turns a constraint into an automaton lazily, so that none can burn a core; the bounds here keep
what it holds small. Source of the attacks: CVE-2025-48944, CVE-2025-58446, vLLM issues 17313 and 19270.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

from llguidance import LLMatcher, grammar_from

from llama31.chat import AnyJsonObject, Constraint, Grammar, JsonSchema, OneOf, Regex
from llama31.errors import InvalidRequest

MAX_SCHEMA_BYTES = 64 * 1024
# vLLM refuses more than this; two levels of JSON are one level of objects.
MAX_SCHEMA_NESTING = 64
MAX_ENUM_VALUES = 500
MAX_REPEATS = 16_384
MAX_REGEX_BYTES = 4 * 1024
MAX_GRAMMAR_BYTES = 64 * 1024
MAX_CHOICE_BYTES = 64 * 1024

_REPEAT_KEYS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_BRACES = re.compile(r"\{(\d*),?(\d*)\}")


def check_constraint(constraint: Constraint, field: str) -> None:
    """Raises: InvalidRequest that names `field`."""
    with _no_panic(field):
        _check_kind(constraint, field)


@contextlib.contextmanager
def _no_panic(field: str) -> Iterator[None]:
    """llguidance 1.x cuts its own words in the middle of a character and panics, which is no `Exception`."""
    try:
        yield
    except BaseException as panic:
        if type(panic).__module__ != "pyo3_runtime":
            raise
        raise InvalidRequest(field, "cannot be used") from None


def _check_kind(constraint: Constraint, field: str) -> None:
    match constraint:
        case JsonSchema(schema):
            check_schema(schema, field)
        case Regex(pattern):
            _check_regex(pattern, field)
        case Grammar(text):
            _require(0 < _bytes(text) <= MAX_GRAMMAR_BYTES, field, f"must have 1 to {MAX_GRAMMAR_BYTES} bytes")
            _check_compiles(_grammar(text, field), field)
        case OneOf(values):
            _require(0 < len(values) <= MAX_ENUM_VALUES, field, f"must hold 1 to {MAX_ENUM_VALUES} values")
            _require(all(values), field, "must not hold an empty value")
            size_bytes = sum(map(_bytes, values))
            _require(size_bytes <= MAX_CHOICE_BYTES, field, f"must have at most {MAX_CHOICE_BYTES} bytes in all")
        case AnyJsonObject():
            pass


def check_schema(schema: str, field: str) -> None:
    """A JSON schema as text. Raises: InvalidRequest that names `field`."""
    _require(_bytes(schema) <= MAX_SCHEMA_BYTES, field, f"must have at most {MAX_SCHEMA_BYTES} bytes")
    try:
        tree = json.loads(schema)
    except (ValueError, RecursionError):
        raise InvalidRequest(field, "is not JSON") from None
    _require(isinstance(tree, dict), field, "must be a JSON object")
    for node, depth in _walk(tree):
        _require(depth <= MAX_SCHEMA_NESTING, field, f"must not nest deeper than {MAX_SCHEMA_NESTING} levels")
        if isinstance(node, dict):
            _check_node(node, tree, field)
    with _no_panic(field):
        _check_compiles(LLMatcher.grammar_from_json_schema(schema), field)


def _walk(tree: Any) -> Iterator[tuple[Any, int]]:
    """Every node with its depth, without recursion: the text may nest deeper than Python's stack."""
    level, depth = [tree], 1
    while level:
        for node in level:
            yield node, depth
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
        depth += 1


def _check_node(node: dict[str, Any], root: dict[str, Any], field: str) -> None:
    enum = node.get("enum")
    if isinstance(enum, list):
        _require(len(enum) <= MAX_ENUM_VALUES, field, f"must not hold more than {MAX_ENUM_VALUES} enum values")
    for key in _REPEAT_KEYS:
        bound = node.get(key)
        if isinstance(bound, (int, float)):
            _require(bound <= MAX_REPEATS, field, f"{key} must be at most {MAX_REPEATS}")
    pattern = node.get("pattern")
    if isinstance(pattern, str):
        _check_regex(pattern, field)
    _require(not _leads_to_itself(node, root), field, "must not hold a $ref that leads to itself")


def _leads_to_itself(node: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether following nothing but references comes back: such a schema has no smallest value."""
    seen: list[int] = []
    while isinstance(node.get("$ref"), str):
        if id(node) in seen:
            return True
        seen.append(id(node))
        target: Any = root
        for part in node["$ref"].removeprefix("#").strip("/").split("/"):
            if part:
                target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            return False
        node = target
    return False


def _check_regex(pattern: str, field: str) -> None:
    _require(0 < _bytes(pattern) <= MAX_REGEX_BYTES, field, f"must have 1 to {MAX_REGEX_BYTES} bytes")
    _require("\0" not in pattern, field, "must not hold a NUL character")
    counts = [int(count) for bounds in _BRACES.findall(pattern) for count in bounds if count]
    _require(max(counts, default=0) <= MAX_REPEATS, field, f"must not repeat more than {MAX_REPEATS} times")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        # The engine's dialect differs in details; a repeated repetition is a mistake in every other one.
        _require(not str(error).startswith("multiple repeat"), field, "repeats a repetition")
    _check_compiles(LLMatcher.grammar_from_regex(pattern), field)


def _grammar(text: str, field: str) -> str:
    try:
        return str(grammar_from("grammar", text))
    except ValueError:
        raise InvalidRequest(field, "is neither an EBNF nor a Lark grammar") from None


def _check_compiles(grammar: str, field: str) -> None:
    fault = LLMatcher.validate_grammar(grammar, None)
    if fault:
        raise InvalidRequest(field, f"cannot be used: {' '.join(str(fault).split())[:300]}")


def _bytes(text: str) -> int:
    return len(text.encode("utf-8"))


def _require(holds: bool, field: str, message: str) -> None:
    if not holds:
        raise InvalidRequest(field, message)
