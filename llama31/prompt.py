"""Which token ids is a dialog, exactly as the model was trained to read it?

Control tokens are put between pieces of content by id; content itself is only ever encoded as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from llama31.chat import BuiltinTool, Message, Role, Tool, ToolPromptFormat
from llama31.errors import Unsupported
from llama31.tokenizer import Tokenizer
from llama31.tools import call_text, function_text, functions, system_text

_SMOLLM_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class PromptFormat(Protocol):
    """How one family of models reads dialogs."""

    def encode_dialog(
        self,
        messages: Sequence[Message],
        date: str = "",
        tools: Sequence[Tool] = (),
        style: ToolPromptFormat = ToolPromptFormat.JSON,
    ) -> list[int]:
        """Ids of the dialog up to and with the open header of the assistant's answer.

        `tools` are those that the model is told of. Raises: InvalidRequest, Unsupported.
        """

    def encode_completion(self, text: str) -> list[int]:
        """Ids of a text to go on with."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn as the 3.1 format sees it.

    Each piece is encoded by itself: joining pieces first could merge tokens across the seam.
    `continues` ends it with <|eom_id|> (the assistant waits for a result) in place of <|eot_id|>;
    `is_code` begins it with <|python_tag|>.
    """

    role: Role
    pieces: tuple[str, ...]
    continues: bool = False
    is_code: bool = False


class Llama31Prompt:
    """The format of Llama 3.1. Source: the reference encoder of llama-models 0.3.0."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encode = tokenizer.encode
        self._begin = tokenizer.special_id("<|begin_of_text|>")
        self._end_of_turn = tokenizer.special_id("<|eot_id|>")
        self._end_of_message = tokenizer.special_id("<|eom_id|>")
        self._python = tokenizer.special_id("<|python_tag|>")
        start, end = tokenizer.special_id("<|start_header_id|>"), tokenizer.special_id("<|end_header_id|>")
        self._headers = {role: [start, *tokenizer.encode(role.value), end, *tokenizer.encode("\n\n")] for role in Role}

    def encode_dialog(
        self,
        messages: Sequence[Message],
        date: str = "",
        tools: Sequence[Tool] = (),
        style: ToolPromptFormat = ToolPromptFormat.JSON,
    ) -> list[int]:
        """Begin token, every message, open assistant header.

        Tools and `date` open the system message: a leading one is continued, else one is made. The
        caller's own tools are described in a user message of their own before the dialog.
        """
        if date or tools:
            messages = _introduced(messages, date, tools, style)
        return self.encode_turns(_turn(message, style) for message in messages)

    def encode_turns(self, turns: Iterable[Turn]) -> list[int]:
        """As `encode_dialog`, for turns made of several pieces."""
        ids = [self._begin]
        for turn in turns:
            ids += self._headers[turn.role]
            if turn.is_code:
                ids.append(self._python)
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

    def encode_dialog(
        self,
        messages: Sequence[Message],
        date: str = "",
        tools: Sequence[Tool] = (),
        style: ToolPromptFormat = ToolPromptFormat.JSON,
    ) -> list[int]:
        """Every message, open assistant header; a dialog without a leading system message gets SmolLM2's.

        This family has no trained form for tools: they are described in the system message in the words
        of Llama 3.1, calls are the text of the assistant and results a turn of the role "ipython".
        Raises: Unsupported for a date or a built-in tool, which this format does not know.
        """
        if date:
            raise Unsupported("date", "this model's prompt format has no date; say it in a message")
        if any(isinstance(tool, BuiltinTool) for tool in tools):
            raise Unsupported("tools", "this model knows no built-in tools; describe them as functions")
        if tools or (messages and messages[0].role is not Role.SYSTEM):
            system, messages = _split_system(messages)
            text = _SMOLLM_SYSTEM if system is None else system
            text += f"\n\n{function_text(functions(tools), style)}" if tools else ""
            messages = [Message(Role.SYSTEM, text), *messages]
        ids: list[int] = []
        for message in messages:
            ids += self._message(message, style)
        return [*ids, self._start, *self._encode("assistant\n")]

    def encode_completion(self, text: str) -> list[int]:
        """The text alone: this model has no begin token."""
        return self._encode(text)

    def _message(self, message: Message, style: ToolPromptFormat) -> list[int]:
        calls = "\n".join(call_text(call, style) for call in message.tool_calls)
        text = f"{message.content}\n{calls}" if message.content and calls else _content(message) + calls
        # One text, as the template renders it: its own newlines may merge with those of the content.
        return [self._start, *self._encode(f"{message.role.value}\n{text}"), self._end, *self._encode("\n")]


def dialog_chars(messages: Sequence[Message], tools: Sequence[Tool]) -> int:
    """How much text there is to encode; what the format adds of its own is not counted."""
    calls = (call for message in messages for call in message.tool_calls)
    return (
        sum(len(message.content) for message in messages)
        + sum(len(call.arguments_json) for call in calls)
        + sum(len(tool.description) + len(tool.parameters_json_schema) for tool in functions(tools))
    )


def _introduced(
    messages: Sequence[Message], date: str, tools: Sequence[Tool], style: ToolPromptFormat
) -> list[Message]:
    instruction, rest = _split_system(messages)
    introduction = [Message(Role.SYSTEM, system_text(tools, date, instruction))]
    if own := functions(tools):
        introduction.append(Message(Role.USER, function_text(own, style)))
    return [*introduction, *rest]


def _split_system(messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
    """The text of a leading system message, None without one, and the other messages."""
    if messages and messages[0].role is Role.SYSTEM:
        return messages[0].content, messages[1:]
    return None, messages


def _turn(message: Message, style: ToolPromptFormat) -> Turn:
    """Calls follow the content, each encoded by itself.

    After a call the model waits for its result, which it says with <|eom_id|>; with function tags it
    was shown <|eot_id|>. Source: prompt_format.md of Llama 3.1.
    """
    calls = message.tool_calls
    if not calls:
        return Turn(message.role, (_content(message),))
    texts = tuple(call_text(call, style) for call in calls)
    continues = style is not ToolPromptFormat.FUNCTION_TAG or not any(text.startswith("<function=") for text in texts)
    return Turn(message.role, (message.content, *texts), continues, is_code=calls[0].name == BuiltinTool.CODE.value)


def _content(message: Message) -> str:
    """No format marks a failed call, so the text says it."""
    return f"Error: {message.content}" if message.is_error else message.content
