"""Which text do output tokens become, piece by piece, never splitting a character or a stop sequence?"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from llama31.errors import ConfigInvalid
from llama31.prompt import ChatmlPrompt, Llama31Prompt, PromptFormat
from llama31.tokenizer import HuggingFaceTokenizer, Llama31Tokenizer, Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is now certain, and how many of the ids not released so far it completes."""

    text: str = ""
    released_ids: int = 0
    matched_stop: str | None = None


class StreamDecoder:
    """Decodes one output stream.

    However the ids are cut into pushes, the joined text is the same: the UTF-8 text of all ids (invalid
    bytes as U+FFFD, control tokens and an unfinished last character left out) up to where the first stop
    sequence is complete; of stops that complete together the longest counts. The stop itself is given only
    with `keep_stop_text`.

    An id is released with the last of its text. The id that completes a stop is the last one released.
    """

    def __init__(self, tokenizer: Tokenizer, stop_sequences: Sequence[str] = (), keep_stop_text: bool = False) -> None:
        if "" in stop_sequences:
            raise ValueError("an empty stop sequence would match everywhere")
        self._tokenizer = tokenizer
        self._stops = tuple(stop_sequences)
        self._longest_stop_chars = max(map(len, self._stops), default=0)
        self._keep_stop_text = keep_stop_text
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held_text = ""
        self._decoded_chars = 0
        # For each unreleased id: how many characters must be out before it is complete.
        self._needed_chars: deque[int] = deque()
        self._done = False

    def push(self, ids: Sequence[int]) -> Piece:
        """Takes the next ids, in order. After a match or `finish` every piece is empty."""
        emitted: list[str] = []
        released = 0
        for token_id in ids:
            if self._done:
                break
            piece = self._push_one(token_id)
            emitted.append(piece.text)
            released += piece.released_ids
            if piece.matched_stop is not None:
                return Piece("".join(emitted), released, piece.matched_stop)
        return Piece("".join(emitted), released)

    def finish(self) -> Piece:
        """Gives out whatever was held back. A character that the end cut short is left out, its ids are not."""
        if self._done:
            return Piece()
        self._done = True
        return Piece(self._held_text, len(self._needed_chars))

    def _push_one(self, token_id: int) -> Piece:
        is_control = token_id in self._tokenizer.special_ids
        text = self._utf8.decode(b"" if is_control else self._tokenizer.token_bytes(token_id))
        # Bytes that wait for the rest of their character become exactly one character later.
        waiting_bytes = self._utf8.getstate()[0]
        waits = 1 if waiting_bytes and not is_control else 0
        self._needed_chars.append(self._decoded_chars + len(text) + waits)
        return self._take(text)

    def _take(self, text: str) -> Piece:
        self._decoded_chars += len(text)
        pending = self._held_text + text
        match = self._first_stop(pending)
        if match is not None:
            start, stop = match
            self._done = True
            return Piece(pending[: start + len(stop) * self._keep_stop_text], len(self._needed_chars), stop)
        ready_chars = self._ready_chars(pending)
        self._held_text = pending[ready_chars:]
        return Piece(pending[:ready_chars], self._release(self._decoded_chars - len(self._held_text)))

    def _first_stop(self, text: str) -> tuple[int, str] | None:
        """The stop that is complete first, and where it starts."""
        found = [(text.find(stop), stop) for stop in self._stops]
        return min(
            ((start, stop) for start, stop in found if start >= 0),
            key=lambda match: (match[0] + len(match[1]), match[0]),
            default=None,
        )

    def _ready_chars(self, text: str) -> int:
        """Where the earliest tail begins that could still become a stop."""
        for start in range(max(0, len(text) - self._longest_stop_chars + 1), len(text)):
            tail = text[start:]
            if any(stop.startswith(tail) for stop in self._stops):
                return start
        return len(text)

    def _release(self, emitted_chars: int) -> int:
        released = 0
        while self._needed_chars and self._needed_chars[0] <= emitted_chars:
            self._needed_chars.popleft()
            released += 1
        return released


@dataclass(frozen=True, slots=True)
class ModelCodec:
    """Text to ids and ids to text of one model."""

    tokenizer: Tokenizer
    prompt: PromptFormat

    def decoder(self, stop_sequences: Sequence[str] = (), keep_stop_text: bool = False) -> StreamDecoder:
        """A decoder for one output stream."""
        return StreamDecoder(self.tokenizer, stop_sequences, keep_stop_text)


def _llama31(checkpoint_dir: Path) -> ModelCodec:
    tokenizer = Llama31Tokenizer(checkpoint_dir)
    return ModelCodec(tokenizer, Llama31Prompt(tokenizer))


def _chatml(checkpoint_dir: Path) -> ModelCodec:
    tokenizer = HuggingFaceTokenizer(checkpoint_dir)
    return ModelCodec(tokenizer, ChatmlPrompt(tokenizer))


CODECS: Mapping[str, Callable[[Path], ModelCodec]] = MappingProxyType({"llama3.1": _llama31, "chatml": _chatml})


def load_codec(codec_name: str, checkpoint_dir: Path) -> ModelCodec:
    """The codec that a model's spec names. Raises: ConfigInvalid, CheckpointMissing, CheckpointCorrupt."""
    if codec_name not in CODECS:
        raise ConfigInvalid(f"codec {codec_name!r} is not known; known: {', '.join(CODECS)}")
    return CODECS[codec_name](checkpoint_dir)
