"""Does streamed text equal the whole text, however the ids arrive?"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama31.codec import Piece, StreamDecoder, load_codec
from llama31.errors import CheckpointMissing, ConfigInvalid, InvalidRequest
from llama31.prompt import ChatmlPrompt, Llama31Prompt
from llama31.tokenizer import Llama31Tokenizer

EOT = 128009

# Ids below 256 are single bytes in this vocabulary, so any byte string can be made.
ANY_IDS = st.lists(
    st.one_of(st.integers(0, 255), st.integers(256, 127_999), st.sampled_from([EOT, 128001])), max_size=25
)
CUTS = st.lists(st.integers(0, 25), max_size=6)
STOPS = st.lists(st.text(alphabet="abé\ufffd", min_size=1, max_size=4), max_size=3)


def _byte_ids(tokenizer: Llama31Tokenizer, data: bytes) -> list[int]:
    by_byte = {tokenizer.token_bytes(token_id): token_id for token_id in range(256)}
    return [by_byte[bytes([byte])] for byte in data]


def _pushed(decoder: StreamDecoder, ids: Sequence[int], cuts: Sequence[int]) -> list[Piece]:
    bounds = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    pieces = [decoder.push(ids[start:end]) for start, end in pairwise(bounds)]
    return [*pieces, decoder.finish()]


def _content(tokenizer: Llama31Tokenizer, ids: Sequence[int]) -> bytes:
    return tokenizer.decode_bytes([token_id for token_id in ids if token_id not in tokenizer.special_ids])


def _first_match(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """By the definition: the shortest start of the text that ends with a stop, and its longest such stop."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return end - len(stop), stop
    return None


def _certain(data: bytes) -> str:
    return codecs.getincrementaldecoder("utf-8")(errors="replace").decode(data)


@settings(max_examples=200, deadline=None)
@given(ids=ANY_IDS, cuts=CUTS)
def test_any_ids_in_any_pushes_give_the_decoded_bytes(
    llama31_tokenizer: Llama31Tokenizer, ids: list[int], cuts: list[int]
) -> None:
    pieces = _pushed(StreamDecoder(llama31_tokenizer), ids, cuts)
    expected = _certain(_content(llama31_tokenizer, ids))
    assert "".join(piece.text for piece in pieces) == expected
    assert sum(piece.released_ids for piece in pieces) == len(ids)


@settings(max_examples=300, deadline=None)
@given(
    data=st.lists(st.sampled_from([b"a", b"ab", b"abba", b"\xc3\xa9", b"\xc3", b"\xf0\x9f", b"\xa9"]), max_size=12),
    stops=STOPS,
    keep=st.booleans(),
    cuts=CUTS,
)
def test_stops_cut_at_the_first_match_in_any_pushes(
    llama31_tokenizer: Llama31Tokenizer, data: list[bytes], stops: list[str], keep: bool, cuts: list[int]
) -> None:
    # Whole tokens where there are any: they have several characters.
    ids = [
        token_id
        for part in data
        for token_id in (
            llama31_tokenizer.encode(part.decode()) if part.isascii() else _byte_ids(llama31_tokenizer, part)
        )
    ]
    text = _certain(b"".join(data))
    match = _first_match(text, stops)
    pieces = _pushed(StreamDecoder(llama31_tokenizer, stops, keep), ids, cuts)
    joined = "".join(piece.text for piece in pieces)
    matched = [piece.matched_stop for piece in pieces if piece.matched_stop is not None]
    if match is None:
        assert (joined, matched) == (text, [])
        assert sum(piece.released_ids for piece in pieces) == len(ids)
        return
    start, stop = match
    assert joined == text[: start + len(stop) * keep]
    assert matched == [stop]
    heads = (_certain(llama31_tokenizer.decode_bytes(ids[:n])) for n in range(len(ids)))
    completing = (n for n, head in enumerate(heads) if _first_match(head, stops))
    assert sum(piece.released_ids for piece in pieces) == next(completing, len(ids))


@settings(max_examples=200, deadline=None)
@given(data=st.text(alphabet="abé", max_size=10), stops=STOPS)
def test_text_is_held_back_only_while_a_stop_could_still_complete(
    llama31_tokenizer: Llama31Tokenizer, data: str, stops: list[str]
) -> None:
    decoder = StreamDecoder(llama31_tokenizer, stops)
    given_bytes, emitted, released = b"", "", 0
    for token_id in _byte_ids(llama31_tokenizer, data.encode()):
        piece = decoder.push([token_id])
        if piece.matched_stop is not None:
            return
        given_bytes += llama31_tokenizer.token_bytes(token_id)
        emitted += piece.text
        released += piece.released_ids
        certain = _certain(given_bytes)
        held = certain[len(emitted) :]
        assert certain.startswith(emitted)
        assert not held or any(stop.startswith(held) for stop in stops)
        assert released == len(emitted.encode())


def test_a_character_is_given_out_whole_with_all_its_ids(llama31_tokenizer: Llama31Tokenizer) -> None:
    decoder = StreamDecoder(llama31_tokenizer)
    pieces = [decoder.push([token_id]) for token_id in _byte_ids(llama31_tokenizer, "a🙂b".encode())]
    nothing = Piece("", 0)
    assert pieces == [Piece("a", 1), nothing, nothing, nothing, Piece("🙂", 4), Piece("b", 1)]
    assert decoder.finish() == Piece("", 0)


def test_a_character_that_the_end_cuts_is_left_out(llama31_tokenizer: Llama31Tokenizer) -> None:
    decoder = StreamDecoder(llama31_tokenizer)
    assert decoder.push(_byte_ids(llama31_tokenizer, "🙂".encode()[:3])) == Piece("", 0)
    assert decoder.finish() == Piece("", 3)
    assert decoder.finish() == Piece("", 0)


def test_control_tokens_add_no_text_and_do_not_break_characters(llama31_tokenizer: Llama31Tokenizer) -> None:
    first, second = _byte_ids(llama31_tokenizer, "é".encode())
    decoder = StreamDecoder(llama31_tokenizer)
    assert decoder.push([EOT]) == Piece("", 1)
    assert decoder.push([first, EOT]) == Piece("", 0)
    assert decoder.push([second]) == Piece("é", 3)


def test_a_stop_over_a_seam_is_found_and_left_out(llama31_tokenizer: Llama31Tokenizer) -> None:
    decoder = StreamDecoder(llama31_tokenizer, ["\nUser:"])
    ids = llama31_tokenizer.encode("fine\n") + llama31_tokenizer.encode("User") + llama31_tokenizer.encode(": no")
    pieces = [decoder.push([token_id]) for token_id in ids]
    assert pieces[0] == Piece("fine", 1)
    assert pieces[-2] == Piece("", 3, "\nUser:")
    assert pieces[-1] == Piece("", 0)
    assert decoder.finish() == Piece("", 0)


def test_keeping_the_stop_keeps_nothing_after_it(llama31_tokenizer: Llama31Tokenizer) -> None:
    decoder = StreamDecoder(llama31_tokenizer, ["lo w"], keep_stop_text=True)
    assert decoder.push(llama31_tokenizer.encode("hello world")) == Piece("hello w", 2, "lo w")


def test_a_stop_that_only_looked_like_one_comes_out(llama31_tokenizer: Llama31Tokenizer) -> None:
    decoder = StreamDecoder(llama31_tokenizer, ["END!"])
    assert decoder.push(_byte_ids(llama31_tokenizer, b"xEN")) == Piece("x", 1)
    assert decoder.push(_byte_ids(llama31_tokenizer, b"E")) == Piece("EN", 2)
    assert decoder.finish() == Piece("E", 1)


def test_of_two_stops_the_first_complete_one_counts(llama31_tokenizer: Llama31Tokenizer) -> None:
    ids = _byte_ids(llama31_tokenizer, b"xxabyy")
    assert StreamDecoder(llama31_tokenizer, ["xabyy", "ab"]).push(ids) == Piece("xx", 4, "ab")
    assert StreamDecoder(llama31_tokenizer, ["ab", "xab"]).push(ids) == Piece("x", 4, "xab")
    one_token = llama31_tokenizer.encode("hello")
    assert StreamDecoder(llama31_tokenizer, ["hello", "el"]).push(one_token) == Piece("h", 1, "el")


def test_an_empty_stop_is_a_mistake_of_the_caller(llama31_tokenizer: Llama31Tokenizer) -> None:
    with pytest.raises(ValueError, match="empty"):
        StreamDecoder(llama31_tokenizer, [""])


def test_an_id_outside_the_vocabulary_is_refused(llama31_tokenizer: Llama31Tokenizer) -> None:
    with pytest.raises(InvalidRequest):
        StreamDecoder(llama31_tokenizer).push([128_256])


def test_load_codec(llama31_dir: Path, chatml_dir: Path, tmp_path: Path) -> None:
    llama31, chatml = load_codec("llama3.1", llama31_dir), load_codec("chatml", chatml_dir)
    assert isinstance(llama31.prompt, Llama31Prompt)
    assert isinstance(chatml.prompt, ChatmlPrompt)
    decoder = chatml.decoder(stop_sequences=("e",))
    assert decoder.push(chatml.tokenizer.encode("the user")).text == "th"
    with pytest.raises(ConfigInvalid, match=r"llama3\.1, chatml"):
        load_codec("llama2", tmp_path)
    with pytest.raises(CheckpointMissing):
        load_codec("chatml", tmp_path)
