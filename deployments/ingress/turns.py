"""Which dialogs are there to answer, whatever the door they came through?"""

from __future__ import annotations

from collections.abc import Sequence

from llama31.chat import Message, Role
from llama31.errors import InvalidRequest


def check_turns(messages: Sequence[Message], at: str, text_field: str) -> None:
    """Refuses a dialog without anything to answer, or with a system message that comes too late.

    Args:
        messages: At least one.
        at: The path of the list in the request, such as "spec.messages".
        text_field: The path of a text inside a message, such as "parts[0].text".

    Raises: InvalidRequest.
    """
    for i, message in enumerate(messages):
        if message.role is Role.SYSTEM and i > 0:
            raise InvalidRequest(f"{at}[{i}].role", "a system message may only be the first one")
        if message.role is Role.USER and not message.content:
            raise InvalidRequest(f"{at}[{i}].{text_field}", "a user's message must not be empty")
    if messages[-1].role is Role.ASSISTANT:
        raise InvalidRequest(at, "must not end with the assistant's own message; add what the user says next")
