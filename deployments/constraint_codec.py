"""How does a constraint on the output look on the wire? Clients, doors and replicas write it alike."""

from __future__ import annotations

from llama31 import chat
from llama31.v1 import common_pb2


def decode_constraint(message: common_pb2.OutputConstraint) -> chat.Constraint | None:
    """What output must look like; None if nothing was asked for."""
    match message.WhichOneof("kind"):
        case "json_schema":
            return chat.JsonSchema(message.json_schema)
        case "any_json_object":
            return chat.AnyJsonObject() if message.any_json_object else None
        case "regex":
            return chat.Regex(message.regex)
        case "grammar":
            return chat.Grammar(message.grammar)
        case "one_of":
            return chat.OneOf(tuple(message.one_of.values))
        case _:
            return None


def encode_constraint(constraint: chat.Constraint) -> common_pb2.OutputConstraint:
    """The message of a constraint."""
    match constraint:
        case chat.JsonSchema(schema):
            return common_pb2.OutputConstraint(json_schema=schema)
        case chat.AnyJsonObject():
            return common_pb2.OutputConstraint(any_json_object=True)
        case chat.Regex(pattern):
            return common_pb2.OutputConstraint(regex=pattern)
        case chat.Grammar(text):
            return common_pb2.OutputConstraint(grammar=text)
        case chat.OneOf(values):
            return common_pb2.OutputConstraint(one_of=common_pb2.ChoiceList(values=values))
