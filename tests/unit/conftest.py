"""Which tokenizers do the unit tests read? Meta's own vocabulary, and a small ChatML one made here."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import tokenizers

from llama31.tokenizer import HuggingFaceTokenizer, Llama31Tokenizer

CHATML_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>")


@pytest.fixture(scope="session")
def llama31_dir() -> Path:
    """The directory of tokenizer.model in the llama_models distribution, which is not imported."""
    package = find_spec("llama_models")
    assert package is not None, "the tests need the distribution llama-models (extra: test)"
    assert package.submodule_search_locations is not None
    return Path(package.submodule_search_locations[0]) / "llama3"


@pytest.fixture(scope="session")
def llama31_tokenizer(llama31_dir: Path) -> Llama31Tokenizer:
    return Llama31Tokenizer(llama31_dir)


@pytest.fixture(scope="session")
def chatml_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level vocabulary of a few hundred tokens with ChatML's control tokens."""
    directory = tmp_path_factory.mktemp("chatml")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(CHATML_SPECIALS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["the user said that the assistant\n\nis a system; im_start im_end text"] * 9, trainer)
    bpe.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="session")
def chatml_tokenizer(chatml_dir: Path) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(chatml_dir)
