"""Which token ids does a text have, and which bytes does a token id stand for?

Content is data: text that looks like a control token is encoded as ordinary text. Control tokens
come from `special_id` alone.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Collection, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Literal, Protocol

import tiktoken
import tokenizers

from llama31.errors import CheckpointCorrupt, CheckpointMissing, InvalidRequest

# Source: llama-models 0.3.0, whose encoder is the reference. Hugging Face's list for 3.1 calls 128005
# <|reserved_special_token_2|> and 128011 <|reserved_special_token_3|> and numbers the reserved rest
# accordingly; the ids of all tokens that 3.1 uses are the same in both.
_LLAMA31_BASE_TOKENS = 128_000
_LLAMA31_NAMED_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
)
_LLAMA31_SPECIALS = (*_LLAMA31_NAMED_SPECIALS, *(f"<|reserved_special_token_{n}|>" for n in range(2, 246)))
_LLAMA31_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The reference cuts long texts here before it looks for words; equal token ids need equal cuts.
_MAX_TEXT_CHARS = 400_000
_MAX_RUN_CHARS = 25_000
_RUN = re.compile(r"\s+|\S+")


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def vocab_size(self) -> int:
        """Every id is below this."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of all control tokens."""

    def special_id(self, name: str) -> int:
        """The control token of that name. Raises: CheckpointCorrupt if the vocabulary lacks it."""

    def encode(self, text: str) -> list[int]:
        """Ids of content; never one of `special_ids`."""

    def token_bytes(self, token_id: int) -> bytes:
        """Raises: InvalidRequest for an id outside the vocabulary."""

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of all ids in a row, control tokens by name. Raises: InvalidRequest."""


class _ByteTable:
    """The bytes of every token id, whatever vocabulary they come from."""

    def __init__(self, ordinary: dict[int, bytes], specials: dict[str, int]) -> None:
        self._specials = specials
        self._bytes = ordinary | {token_id: name.encode() for name, token_id in specials.items()}
        self.vocab_size = max(self._bytes) + 1
        self.special_ids = frozenset(specials.values())

    def special_id(self, name: str) -> int:
        try:
            return self._specials[name]
        except KeyError:
            raise CheckpointCorrupt(f"the tokenizer has no control token {name}: it belongs to another model") from None

    def token_bytes(self, token_id: int) -> bytes:
        try:
            return self._bytes[token_id]
        except KeyError:
            raise InvalidRequest(
                "token_ids", f"{token_id} is not in the vocabulary of {self.vocab_size} tokens"
            ) from None

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(map(self.token_bytes, ids))


class Llama31Tokenizer:
    """The byte-pair encoding of Llama 3.1, from the checkpoint's `tokenizer.model`.

    Raises: CheckpointMissing, CheckpointCorrupt.
    """

    def __init__(self, checkpoint_dir: Path) -> None:
        path = _find(checkpoint_dir, "tokenizer.model", "original/tokenizer.model")
        ranks = _read_ranks(path)
        specials = {name: _LLAMA31_BASE_TOKENS + i for i, name in enumerate(_LLAMA31_SPECIALS)}
        self._table = _ByteTable({rank: token for token, rank in ranks.items()}, specials)
        self._bpe = tiktoken.Encoding(
            name="llama3.1", pat_str=_LLAMA31_WORDS, mergeable_ranks=ranks, special_tokens=specials
        )
        self.vocab_size = self._table.vocab_size
        self.special_ids = self._table.special_ids
        self.special_id = self._table.special_id
        self.token_bytes = self._table.token_bytes
        self.decode_bytes = self._table.decode_bytes

    def encode(self, text: str) -> list[int]:
        """Ids of content; never one of `special_ids`."""
        return self.encode_with_specials(text, allowed=frozenset())

    def encode_with_specials(
        self,
        text: str,
        allowed: AbstractSet[str] | Literal["all"],
        disallowed: Collection[str] | Literal["all"] = (),
    ) -> list[int]:
        """As `encode`, but the control tokens named in `allowed` are parsed out of the text.

        Only for text that this program wrote itself. Raises: InvalidRequest if one of `disallowed`
        ("all": every one that is not allowed) occurs in the text.
        """
        ids: list[int] = []
        for piece in _pieces(text):
            try:
                ids += self._bpe.encode(piece, allowed_special=allowed, disallowed_special=disallowed)
            except ValueError as error:
                raise InvalidRequest("text", "a control token that is not allowed here is in it") from error
        return ids


class HuggingFaceTokenizer:
    """A byte-level byte-pair encoding, from the checkpoint's `tokenizer.json`.

    Raises: CheckpointMissing, CheckpointCorrupt.
    """

    def __init__(self, checkpoint_dir: Path) -> None:
        path = _find(checkpoint_dir, "tokenizer.json")
        self._bpe = _read_bpe(path)
        specials = {token.content: i for i, token in self._bpe.get_added_tokens_decoder().items()}
        vocabulary = self._bpe.get_vocab(with_added_tokens=False)
        ordinary = {i: _unmap_bytes(token, path) for token, i in vocabulary.items() if token not in specials}
        self._table = _ByteTable(ordinary, specials)
        self.vocab_size = self._table.vocab_size
        self.special_ids = self._table.special_ids
        self.special_id = self._table.special_id
        self.token_bytes = self._table.token_bytes
        self.decode_bytes = self._table.decode_bytes

    def encode(self, text: str) -> list[int]:
        """Ids of content; never one of `special_ids`."""
        ids: list[int] = self._bpe.encode(_without_surrogates(text), add_special_tokens=False).ids
        return ids


def _find(checkpoint_dir: Path, *names: str) -> Path:
    for name in names:
        if (checkpoint_dir / name).is_file():
            return checkpoint_dir / name
    raise CheckpointMissing(f"no {names[0]} in {checkpoint_dir}: copy the tokenizer of the model's checkpoint there")


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Lines of base64(token), space, rank. Raises: CheckpointCorrupt."""
    try:
        lines = (line.split() for line in path.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except (ValueError, binascii.Error) as error:
        raise CheckpointCorrupt(f"{path} is not a tokenizer.model: {error}; fetch it again") from error
    if sorted(ranks.values()) != list(range(_LLAMA31_BASE_TOKENS)):
        raise CheckpointCorrupt(f"{path} has {len(ranks)} tokens, Llama 3.1 has {_LLAMA31_BASE_TOKENS}; fetch it again")
    return ranks


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), _MAX_TEXT_CHARS):
        yield from _cut_runs(text[start : start + _MAX_TEXT_CHARS])


def _cut_runs(text: str) -> Iterator[str]:
    """Cuts so that no piece has more than `_MAX_RUN_CHARS` characters in a row with or without space."""
    done = 0
    if len(text) > _MAX_RUN_CHARS:
        for run in _RUN.finditer(text):
            for cut in range(run.start() + _MAX_RUN_CHARS, run.end(), _MAX_RUN_CHARS):
                yield text[done:cut]
                done = cut
    yield text[done:]


def _read_bpe(path: Path) -> tokenizers.Tokenizer:
    """A `tokenizer.json` that takes every text whole and as content. Raises: CheckpointCorrupt."""
    try:
        description = json.loads(path.read_bytes())
        for token in description["added_tokens"]:
            # All count as control: the library keeps only such tokens from coming out of content.
            token["special"] = True
        bpe = tokenizers.Tokenizer.from_str(json.dumps(description))
    except Exception as error:  # the library raises bare Exception for every malformed file
        raise CheckpointCorrupt(f"{path} is not a tokenizer: {error}; fetch it again") from error
    bpe.encode_special_tokens = True
    bpe.no_truncation()
    bpe.no_padding()
    return bpe


def _without_surrogates(text: str) -> str:
    """Joins surrogate pairs and replaces lone ones: they have no UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of GPT-2: printable bytes stand for themselves, the others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_alphabet()


def _unmap_bytes(token: str, path: Path) -> bytes:
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)
    except KeyError as error:
        raise CheckpointCorrupt(f"{path} is not a byte-level vocabulary: token {token!r}") from error
