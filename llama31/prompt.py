"""Which token ids is a dialog, exactly as the model was trained to read it?

Control tokens are put between pieces of content by id; content itself is only ever encoded as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from llama31.chat import Message, Role
from llama31.errors import Unsupported
from llama31.tokenizer import Tokenizer

_KNOWLEDGE_CUTOFF = "December 2023"
_SMOLLM_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class PromptFormat(Protocol):
    """How one family of models reads dialogs."""

    def encode_dialog(self, messages: Sequence[Message], date: str = "") -> list[int]:
        """Ids of the dialog up to and with the open header of the assistant's answer."""

    def encode_completion(self, text: str) -> list[int]:
        """Ids of a text to go on with."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn as the 3.1 format sees it.

    Each piece is encoded by itself: joining pieces first could merge tokens across the seam.
    `continues` ends it with <|eom_id|> (the assistant waits for a result) in place of <|eot_id|>.
    """

    role: Role
    pieces: tuple[str, ...]
    continues: bool = False


class Llama31Prompt:
    """The format of Llama 3.1. Source: the reference encoder of llama-models 0.3.0."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encode = tokenizer.encode
        self._begin = tokenizer.special_id("<|begin_of_text|>")
        self._end_of_turn = tokenizer.special_id("<|eot_id|>")
        self._end_of_message = tokenizer.special_id("<|eom_id|>")
        start, end = tokenizer.special_id("<|start_header_id|>"), tokenizer.special_id("<|end_header_id|>")
        self._headers = {role: [start, *tokenizer.encode(role.value), end, *tokenizer.encode("\n\n")] for role in Role}

    def encode_dialog(self, messages: Sequence[Message], date: str = "") -> list[int]:
        """Begin token, every message, open assistant header. `date` adds Meta's date block.

        The block opens the system message: a leading one is continued, else one is made.
        """
        if date:
            messages = _with_date(messages, date)
        return self.encode_turns(Turn(message.role, (message.content,)) for message in messages)

    def encode_turns(self, turns: Iterable[Turn]) -> list[int]:
        """As `encode_dialog`, for turns made of several pieces."""
        ids = [self._begin]
        for turn in turns:
            ids += self._headers[turn.role]
            for piece in turn.pieces:
                ids += self._encode(piece)
            ids.append(self._end_of_message if turn.continues else self._end_of_turn)
        return ids + self._headers[Role.ASSISTANT]

    def encode_completion(self, text: str) -> list[int]:
        """Begin token and the text."""
        return [self._begin, *self._encode(text)]


class ChatmlPrompt:
    """ChatML as SmolLM2 was trained on it. Source: the chat template in its GGUF metadata."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encode = tokenizer.encode
        self._start = tokenizer.special_id("<|im_start|>")
        self._end = tokenizer.special_id("<|im_end|>")

    def encode_dialog(self, messages: Sequence[Message], date: str = "") -> list[int]:
        """Every message, open assistant header; a dialog without a leading system message gets SmolLM2's.

        Raises: Unsupported for a date or a tool result, which this format does not know.
        """
        if date:
            raise Unsupported("date", "this model's prompt format has no date; say it in a message")
        ids: list[int] = []
        if messages and messages[0].role is not Role.SYSTEM:
            ids += self._message(Message(Role.SYSTEM, _SMOLLM_SYSTEM))
        for message in messages:
            ids += self._message(message)
        return [*ids, self._start, *self._encode("assistant\n")]

    def encode_completion(self, text: str) -> list[int]:
        """The text alone: this model has no begin token."""
        return self._encode(text)

    def _message(self, message: Message) -> list[int]:
        if message.role is Role.TOOL:
            raise Unsupported("messages.role", "this model's prompt format has no tool results")
        # One text, as the template renders it: its own newlines may merge with those of the content.
        content = self._encode(f"{message.role.value}\n{message.content}")
        return [self._start, *content, self._end, *self._encode("\n")]


def _with_date(messages: Sequence[Message], date: str) -> list[Message]:
    block = f"Cutting Knowledge Date: {_KNOWLEDGE_CUTOFF}\nToday Date: {date}\n"
    if messages and messages[0].role is Role.SYSTEM:
        block += f"\n{messages[0].content}\n"
        messages = messages[1:]
    return [Message(Role.SYSTEM, block), *messages]
