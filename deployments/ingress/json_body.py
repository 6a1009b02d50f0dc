"""Is this body one strict JSON object, and which typed values does it hold?

Python's own reader takes NaN, duplicate keys, lone surrogates and any depth: everything that two
readers could understand differently is refused here, once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn, TypeVar

from deployments.ingress.limits import check
from llama31.errors import InvalidRequest, MalformedMessage, UnknownField

# Python refuses to read integers above 4,300 digits; no field takes one of more than 20.
_MAX_DIGITS = 400
_TOO_LARGE: int = 10**_MAX_DIGITS
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_WHOLE = "body"

_T = TypeVar("_T")


def parse_object(body: bytes) -> Fields:
    """Raises: MalformedMessage for anything but one JSON object in UTF-8."""
    try:
        value = json.loads(
            body.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_int=_integer,
            object_pairs_hook=_unique,
        )
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise MalformedMessage(_WHOLE, "is nested too deeply") from None
    except UnicodeError:
        raise MalformedMessage(_WHOLE, "holds text that is not Unicode") from None
    except json.JSONDecodeError as error:
        raise MalformedMessage(_WHOLE, f"is no JSON: {error.msg} at character {error.pos}") from None
    if not isinstance(value, dict):
        raise MalformedMessage(_WHOLE, "must be a JSON object")
    return Fields(value)


def dump(value: object, field: str) -> str:
    """JSON text again, in the order it came. Raises: InvalidRequest for numbers that are none."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        raise InvalidRequest(field, "holds a number that is too large, or is nested too deeply") from None


class Fields:
    """The fields of one JSON object. null counts as absent; `done` refuses what nobody asked for."""

    def __init__(self, values: dict[str, Any], at: str = "") -> None:
        self._values = values
        self._known: set[str] = set()
        self.at = at

    def path(self, name: str) -> str:
        """The field's name for an error."""
        return f"{self.at}.{name}" if self.at else name

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.take(name) is not None

    def take(self, name: str) -> Any:
        """The value as it is, None if absent."""
        self._known.add(name)
        return self._values.get(name)

    def need(self, name: str) -> Any:
        """The value. Raises: InvalidRequest if absent."""
        value = self.take(name)
        check(value is not None, self.path(name), "must be given")
        return value

    def text(self, name: str) -> str | None:
        """A string."""
        return self._typed(name, str, "a string")

    def flag(self, name: str) -> bool | None:
        """true or false."""
        return self._typed(name, bool, "true or false")

    def integer(self, name: str) -> int | None:
        """A number without fraction; 1.0 is none, nor is "1" or true."""
        value = self.take(name)
        is_integer = isinstance(value, int) and not isinstance(value, bool) and abs(value) < _TOO_LARGE
        check(value is None or is_integer, self.path(name), "must be an integer")
        found: int | None = value
        return found

    def number(self, name: str) -> float | None:
        """Any number; infinity, from 1e999, is left to the range check that knows the limits."""
        value = self.take(name)
        if value is None:
            return None
        return as_number(value, self.path(name))

    def items(self, name: str) -> list[Any] | None:
        """An array."""
        return self._typed(name, list, "an array")

    def object(self, name: str) -> Fields | None:
        """An object within."""
        value = self._typed(name, dict, "an object")
        return None if value is None else Fields(value, self.path(name))

    def objects(self, name: str) -> Iterator[Fields]:
        """The objects of an array."""
        for i, value in enumerate(self.items(name) or ()):
            yield as_object(value, f"{self.path(name)}[{i}]")

    def strings(self, name: str) -> tuple[str, ...]:
        """The strings of an array."""
        found = self.items(name) or []
        for i, value in enumerate(found):
            check(isinstance(value, str), f"{self.path(name)}[{i}]", "must be a string")
        return tuple(found)

    def integers(self, name: str) -> tuple[int, ...]:
        """The integers of an array."""
        found = self.items(name) or []
        for i, value in enumerate(found):
            is_integer = isinstance(value, int) and not isinstance(value, bool)
            check(is_integer, f"{self.path(name)}[{i}]", "must be an integer")
        return tuple(found)

    def raw(self) -> dict[str, Any]:
        """The object itself, for one whose keys are the caller's."""
        return self._values

    def done(self) -> None:
        """Raises: UnknownField for the first field that was not asked for."""
        for name in self._values:
            if name not in self._known:
                raise UnknownField(self.path(name), "is no field of this API")

    def _typed(self, name: str, kind: type[_T], words: str) -> _T | None:
        value = self.take(name)
        if value is None or isinstance(value, kind):
            return value
        raise InvalidRequest(self.path(name), f"must be {words}")


def as_object(value: object, at: str) -> Fields:
    """Raises: InvalidRequest unless it is an object."""
    if not isinstance(value, dict):
        raise InvalidRequest(at, "must be an object")
    return Fields(value, at)


def as_number(value: object, at: str) -> float:
    """Raises: InvalidRequest unless it is a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(at, "must be a number")
    return float(value) if abs(value) < 1e300 else float("inf") * (1 if value > 0 else -1)


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedMessage(_WHOLE, f"is no JSON: {name} is no number")


def _integer(digits: str) -> int:
    if len(digits) <= _MAX_DIGITS:
        return int(digits)
    return -_TOO_LARGE if digits.startswith("-") else _TOO_LARGE


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedMessage(_WHOLE, "is no JSON that two readers understand alike: a key comes twice in an object")
    return found
