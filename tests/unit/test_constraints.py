"""Are constraints that could hurt an engine refused at the door, and useful ones let through?"""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.ingress.constraints import (
    MAX_ENUM_VALUES,
    MAX_GRAMMAR_BYTES,
    MAX_REGEX_BYTES,
    MAX_REPEATS,
    MAX_SCHEMA_BYTES,
    check_constraint,
)
from llama31.chat import AnyJsonObject, Constraint, Grammar, JsonSchema, OneOf, Regex
from llama31.errors import InvalidRequest

AT = "spec.constraint"


def schema(**keys: object) -> JsonSchema:
    return JsonSchema(json.dumps(keys))


def nested(levels: int) -> JsonSchema:
    return JsonSchema('{"properties": {"a": ' * levels + "{}" + "}}" * levels)


PERSON = schema(
    type="object",
    properties={
        "name": {"type": "string", "minLength": 1, "pattern": "^[A-Z][a-z]+( [A-Z][a-z]+)*$"},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 9},
        "parent": {"$ref": "#"},
    },
    required=["name", "age"],
    additionalProperties=False,
)


@pytest.mark.parametrize(
    "constraint",
    [
        PERSON,
        schema(),
        schema(enum=list(range(MAX_ENUM_VALUES))),
        nested(30),
        AnyJsonObject(),
        Regex(r"\d{3}-\d{4}"),
        Regex(r"(\w+\s)+end"),
        Regex("a" * MAX_REGEX_BYTES),
        Grammar('root ::= "a" | "b" root'),
        Grammar('start: "a" | "b" start'),
        OneOf(("yes", "no")),
    ],
    ids=lambda c: str(c)[:50],
)
def test_useful_constraints_pass(constraint: Constraint) -> None:
    check_constraint(constraint, AT)


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        (JsonSchema(""), "not JSON"),
        (JsonSchema("{"), "not JSON"),
        (JsonSchema("[]"), "must be a JSON object"),
        (JsonSchema("[" * 50_000), "not JSON"),
        (JsonSchema('{"a": "' + "x" * MAX_SCHEMA_BYTES + '"}'), "bytes"),
        (nested(300), "nest deeper"),
        (nested(400), "nest deeper"),
        (schema(enum=list(range(MAX_ENUM_VALUES + 1))), "enum values"),
        (schema(type="object", properties={"a": {"enum": list(range(20_000))}}), "bytes"),
        (schema(type="string", minLength=1_000_000, maxLength=2_000_000), "minLength must be at most"),
        (schema(type="array", items={}, maxItems=MAX_REPEATS + 1), "maxItems"),
        (JsonSchema('{"$ref": "#"}'), "leads to itself"),
        (schema(**{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}), "itself"),
        (schema(**{"$ref": "#/$defs/missing"}), "cannot be used"),
        (schema(type="colour"), "cannot be used"),
        (schema(type="string", pattern="foo**"), "repeats a repetition"),
        (schema(type="string", pattern="(?=a)b"), "cannot be used"),
        (Regex(""), "1 to"),
        (Regex("foo**"), "repeats a repetition"),
        (Regex("(a"), "cannot be used"),
        (Regex(r"(a)\1"), "backreferences"),
        (Regex("a\0b"), "NUL"),
        (Regex("a{1,100000}"), "repeat more than"),
        (Regex("a|" * 50_000), "bytes"),
        (Grammar(""), "bytes"),
        (Grammar("x" * (MAX_GRAMMAR_BYTES + 1)), "bytes"),
        (Grammar("no grammar at all"), "gramma"),
        (OneOf(()), "values"),
        (OneOf(("",)), "empty"),
        (OneOf(("a",) * (MAX_ENUM_VALUES + 1)), "values"),
        (OneOf(("x" * 40_000, "y" * 40_000)), "in all"),
    ],
    ids=lambda v: str(v)[:50],
)
def test_what_is_refused(constraint: Constraint, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_constraint(constraint, AT)
    assert caught.value.field == AT
    assert words in caught.value.message


@pytest.mark.parametrize("shift", range(4))
def test_a_panic_of_the_library_is_a_refusal(shift: int) -> None:
    """It cuts what it found at 100 bytes, in the middle of a character or not."""
    odd = {"minimum": {"x" * shift + "\U000f0000" * 40: 1}}
    assert verdict(JsonSchema(json.dumps(odd, ensure_ascii=False))) == AT


SCHEMA_KEYS = st.sampled_from(
    [
        "type",
        "$ref",
        "enum",
        "properties",
        "items",
        "pattern",
        "anyOf",
        "allOf",
        "maxItems",
        "minLength",
        "$defs",
        "not",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SCHEMA_KEYS | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def verdict(constraint: Constraint) -> str:
    """The field that was refused, "" if none was."""
    try:
        check_constraint(constraint, AT)
    except InvalidRequest as error:
        return error.field
    return ""


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(SCHEMA_KEYS, JSON, max_size=5))
def test_any_schema_is_taken_or_refused(tree: dict[str, object]) -> None:
    assert verdict(schema(**tree)) in ("", AT)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=30), st.sampled_from([Regex, Grammar]))
def test_any_text_is_taken_or_refused(text: str, kind: type[Regex] | type[Grammar]) -> None:
    assert verdict(kind(text)) in ("", AT)
