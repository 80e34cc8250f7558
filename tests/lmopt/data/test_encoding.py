"""Tokenizer: trained the same way twice, and applied the fast way with the same result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from lmopt.data import encoding, tokenizer
from lmopt.data.encoding import ALIKE, PIECE, Encoder
from lmopt.data.spec import Bpe

from .texts import prose

UGLY = [
    "", " ", "\n\n\n", "\0\0", "a\x1cb \x1d c", "I'll don't WE'VE 'tis", "x" * 5000, "¹²³ ½ Ⅷ 一二三",
    "\u200f עברית العربية", "👩\u200d👧 flags 🇵🇹", "<|endoftext|>", "tab\t\tand  two   spaces \n next",
    "e\u0301 combining", "a_b__c 1_000", "\ufeffbom",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return tokenizer.train([prose(seed) for seed in range(50)] + UGLY, Bpe(vocab=600))


def test_training_twice_gives_the_same_bits(trained: Tokenizer) -> None:
    again = tokenizer.train([prose(seed) for seed in range(50)] + UGLY, Bpe(vocab=600))
    assert again.to_str() == trained.to_str()


def test_other_text_gives_other_merges(trained: Tokenizer) -> None:
    assert tokenizer.train(["zzzz zzzz qqqq"], Bpe(vocab=600)).to_str() != trained.to_str()


def test_the_vocabulary_has_every_byte_and_the_end(trained: Tokenizer) -> None:
    assert trained.get_vocab_size() == 600
    assert tokenizer.end_of_text(trained) == 0
    everything = "".join(map(chr, range(0x250)))
    assert trained.decode(trained.encode(everything).ids) == everything


def test_an_endless_run_does_not_stall_training() -> None:
    """Uncut, half a million characters would take minutes."""
    assert tokenizer.train(["a" * 500_000, "\n" * 500_000], Bpe(vocab=270)).get_vocab_size() == 270


def test_little_text_gives_a_smaller_vocabulary() -> None:
    assert tokenizer.train(["ab"], Bpe(vocab=5000)).get_vocab_size() < 300


def test_the_type_of_tokens_holds_ids_beyond_the_vocabulary_s_size() -> None:
    with_gaps = Tokenizer(models.WordLevel(vocab={"a": 0, "b": 70_000}, unk_token="a"))
    assert [ids.tolist() for ids in Encoder(with_gaps).encode(["b"])] == [[70_000]]


def test_the_type_of_tokens_holds_every_id() -> None:
    assert tokenizer.token_type(tokenizer.train(["ab"], Bpe(vocab=300))) == np.uint16
    words = Tokenizer.from_str(tokenizer.train(["ab"], Bpe(vocab=300)).to_str())
    words.add_tokens([f"word{n}" for n in range(70_000)])
    assert tokenizer.token_type(words) == np.uint32


@pytest.mark.parametrize("text", UGLY)
def test_ugly_texts_are_encoded_as_by_the_tokenizer(trained: Tokenizer, text: str) -> None:
    (ids,) = Encoder(trained).encode([text])
    assert ids.tolist() == trained.encode(text).ids
    assert trained.decode(ids.tolist()) == text, "nothing is lost, and a spelt-out special token is plain text"


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.text("aZ é'9_ \n\t.,ß²ʼΩя—’€", max_size=200))
def test_any_text_is_encoded_as_by_the_tokenizer(trained: Tokenizer, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    assert Encoder(trained).encode([text])[0].tolist() == trained.encode(text).ids


def test_both_rules_cut_alike_at_every_character_that_is_trusted(trained: Tokenizer) -> None:
    trusted = [chr(c) for c in range(0xD800) if ALIKE.fullmatch(chr(c))]
    assert len(trusted) > 1000
    for char in trusted:
        text = f"a{char}b 1{char}2 ,{char}. {char} {char}{char}x  {char}\n{char}_{char}'s"
        pieces = [text[first:last] for _, (first, last) in trained.pre_tokenizer.pre_tokenize_str(text)]
        assert PIECE.findall(text) == pieces, hex(ord(char))


def test_the_table_of_pieces_stays_bounded(trained: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MAX_PIECES", 5)
    encoder = Encoder(trained)
    text = prose(0, 50) + " " + "x" * 1000
    assert encoder.encode([text])[0].tolist() == trained.encode(text).ids
    assert len(encoder._pieces) <= 5
    assert all(len(piece) <= encoding.LONGEST_PIECE for piece in encoder._pieces)


def test_a_saved_tokenizer_reads_special_tokens_as_text(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(str(tmp_path / "t.json"))
    loaded = tokenizer.load(tmp_path / "t.json")
    assert tokenizer.end_of_text(loaded) not in loaded.encode("a<|endoftext|>b").ids


def test_a_saved_tokenizer_reads_texts_whole(tmp_path: Path) -> None:
    saved = Tokenizer(models.WordLevel(vocab={"a": 0, "b": 1}, unk_token="a"))
    saved.pre_tokenizer = pre_tokenizers.Whitespace()
    saved.enable_truncation(2)
    saved.enable_padding(length=4, pad_id=1)
    saved.save(str(tmp_path / "tokenizer.json"))
    found = tokenizer.load(tmp_path / "tokenizer.json")
    texts = ["b a b a b", "b"]
    assert [ids.tolist() for ids in Encoder(found).encode(texts)] == [[1, 0, 1, 0, 1], [1]]
    assert tokenizer.opening(found) == []


def test_a_tokenizer_that_cuts_by_another_rule_encodes_whole_texts() -> None:
    pieces = Tokenizer(models.BPE(unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "</s>", "<unk>"]
    pieces.train_from_iterator([prose(0)], trainers.BpeTrainer(special_tokens=special, show_progress=False))
    pieces.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert not tokenizer.is_ours(pieces)
    for text in (prose(1), "two  words"):
        whole = pieces.encode(text, add_special_tokens=False).ids
        assert Encoder(pieces).encode([text])[0].tolist() == whole
        assert pieces.encode(text).ids == [0, *whole, 1]
    assert tokenizer.opening(pieces) == [0]


def test_ours_sets_nothing_before_a_text(trained: Tokenizer) -> None:
    assert tokenizer.is_ours(trained)
    assert tokenizer.opening(trained) == []
