"""How is a value put at a path such as `spec.messages[0].parts[0].text`, and where does a short form's field lie?"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


def put(tree: dict[str, Any], path: str, value: Any) -> None:
    """Sets the value, making what is not there on the way."""
    steps: list[str | int] = [name or int(index) for name, index in _STEP.findall(path)]
    here: Any = tree
    for step, following in pairwise(steps):
        here = _enter(here, step, [] if isinstance(following, int) else {})
    last = steps[-1]
    if isinstance(here, list):
        _grow(here, int(last))
    here[last] = value


def _enter(here: Any, step: str | int, default: Any) -> Any:
    if isinstance(here, list):
        _grow(here, int(step))
        return here[int(step)]
    return here.setdefault(step, default)


def _grow(items: list[Any], index: int) -> None:
    while len(items) <= index:
        items.append({})


_PROTO_PATHS = (
    (re.compile(r"(tools\[\d+\])\.schema_json"), r"\1.function.parameters_json_schema"),
    (re.compile(r"(tools\[\d+\])\.(name|description)\b"), r"\1.function.\2"),
)
# OpenAI's clients know these names; the catalogue's are those of the gRPC messages.
_OPENAI_PATHS = (
    (re.compile(r"^sampling\.max_tokens"), "max_tokens"),
    (re.compile(r"^sampling\."), ""),
    (re.compile(r"^prompt\.token_ids"), "prompt"),
    # OpenAI's response_format has no pattern; this is where vLLM's server takes one.
    (re.compile(r"^response_format\.(regex|grammar|one_of)"), r"structured_outputs.\1"),
    (re.compile(r"(tools\[\d+\])\.schema_json"), r"\1.function.parameters"),
    (re.compile(r"(tools\[\d+\])\.(name|description)\b"), r"\1.function.\2"),
)


def proto_paths(path: str) -> tuple[str, str]:
    """A field of the catalogue, and the same where it lies in the message that a short form stands for."""
    return path, _rewrite(path, _PROTO_PATHS)


def openai_path(path: str) -> str:
    """A `param` of the catalogue as OpenAI's clients know it."""
    return _rewrite(path, _OPENAI_PATHS)


def _rewrite(path: str, rules: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, replacement in rules:
        path = pattern.sub(replacement, path)
    return path


def is_at(found: str, expected: str) -> bool:
    """Whether the field is the expected one, or lies below it."""
    return found == expected or found.startswith((expected + ".", expected + "["))
