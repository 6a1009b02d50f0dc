"""Why did the autoscaler do that? Every decision with its picture, one JSON object a line, replayable offline.

Each file begins with the rules that it was decided by. Two files at most: the older one is `NAME.1`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cluster.policy import FleetSnapshot, Scale, ScalerMemory
from deployments.policies.autoscaler import ScalingRules
from llama31.errors import ConfigInvalid

LOG_NAME = "autoscaler.jsonl"
FORMAT = 1
# About two days of decisions every 5 s.
LARGEST_FILE_BYTES = 32 << 20
_END_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Decision:
    """One line: what was looked at, what was remembered, what came out."""

    fleet: FleetSnapshot
    memory: ScalerMemory
    scale: Scale
    remembered: ScalerMemory


@dataclass(frozen=True, slots=True)
class _Head:
    format: int
    rules: ScalingRules


_HEAD, _DECISION = TypeAdapter(_Head), TypeAdapter(Decision)


class DecisionLog:
    """Appends; a full disk or a lost directory costs the log, never a decision."""

    def __init__(self, path: Path, rules: ScalingRules, largest_bytes: int = LARGEST_FILE_BYTES) -> None:
        self._path = path
        self._rules = rules
        self._largest_bytes = largest_bytes
        self._has_head = False

    def write(self, decision: Decision) -> None:
        """One line more. Raises: OSError."""
        path = self._path
        if path.exists() and path.stat().st_size > self._largest_bytes:
            path.replace(path.with_name(f"{path.name}.1"))
            self._has_head = False
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Written by a new autoscaler after a restart, its rules may differ: a head may stand in the middle, too.
        lines = [] if self._has_head else [json.dumps(asdict(_Head(FORMAT, self._rules)))]
        lines.append(json.dumps(asdict(decision)))
        with os.fdopen(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "a+b") as file:
            # What was cut before it was whole gets a line of its own.
            is_cut = file.seek(0, os.SEEK_END) > 0 and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
            file.write(("\n" * is_cut + "\n".join(lines) + "\n").encode())
        self._has_head = True


def read_decisions(path: Path) -> Iterator[tuple[ScalingRules, Decision]]:
    """Every decision with the rules it was made by. Raises: ConfigInvalid, with the line."""
    rules: ScalingRules | None = None
    cut: ConfigInvalid | None = None
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    tree = _object(line, path, number)
                except ConfigInvalid as error:
                    # Cut when a controller ended: the next one's head follows.
                    if cut is not None:
                        raise cut from None
                    cut = error
                    continue
                if "rules" in tree:
                    rules, cut = _head(tree, path, number), None
                    continue
                if cut is not None:
                    raise cut
                if rules is None:
                    raise ConfigInvalid(f"{path} is not a log of the autoscaler: its first line holds no rules")
                yield rules, _decision(tree, path, number)
    except OSError as error:
        raise ConfigInvalid(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigInvalid(f"{path} is not text in UTF-8") from None
    if cut is not None:
        raise cut
    if rules is None:
        raise ConfigInvalid(f"{path} is empty")


def last_decision(path: Path) -> Decision | None:
    """The newest one, None if there is no log or it ends in the middle of a line."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _END_BYTES))
            return _DECISION.validate_json(file.read().splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return None


def _object(line: str, path: Path, number: int) -> Mapping[str, Any]:
    try:
        tree = json.loads(line)
    except ValueError:
        raise ConfigInvalid(f"{path}: line {number} is not JSON; was the file cut off?") from None
    if not isinstance(tree, dict):
        raise ConfigInvalid(f"{path}: line {number} is not an object")
    return tree


def _head(tree: Mapping[str, Any], path: Path, number: int) -> ScalingRules:
    try:
        head = _HEAD.validate_python(tree)
    except ValidationError as error:
        raise ConfigInvalid(f"{path}: line {number}: {_fault(error)}") from None
    if head.format != FORMAT:
        raise ConfigInvalid(f"{path}: line {number} has format {head.format}, this version reads {FORMAT}")
    return head.rules


def _decision(tree: Mapping[str, Any], path: Path, number: int) -> Decision:
    try:
        return _DECISION.validate_python(tree)
    except ValidationError as error:
        raise ConfigInvalid(f"{path}: line {number}: {_fault(error)}") from None


def _fault(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
