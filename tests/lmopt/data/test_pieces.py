"""Texts looked at in pieces: nothing is lost, and every step says the same as of the whole text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmopt.data import c4, documents, pieces, repetition, shingles, tokenizer, wordtable
from lmopt.data.contamination import Protected
from lmopt.data.encoding import Encoder
from lmopt.data.spec import Bpe, Decontaminate
from lmopt.recipe import (
    C4,
    ExactDedup,
    FineWeb,
    GopherQuality,
    GopherRepetition,
    Language,
    NearDedup,
    NgramOverlap,
    SubstringDedup,
    builder,
)

from .texts import numbered, prose

PARTS = (
    "a", "Ab", "ß", "İ", "e\u0301", " ", "  ", "\n", "\n\n", "\t", "\x1c", "\u2028", "\xa0", "´", "﷽", "...", "•", ". ",
    "? ", "the ", "of ", "{", "javascript ", "1", "_", "don't ", "👩\u200d👧", " \u0308", "[1]", "\0", "<|endoftext|>",
)  # fmt: skip
uneven = st.lists(st.sampled_from(PARTS), max_size=60).map("".join)
STEPS = (
    ExactDedup(), NearDedup(ngram=2, verify=0.5), SubstringDedup(words=3), NgramOverlap(ngram=2, max_repeated=0.5),
    GopherQuality(min_words=2, min_stop_words=None), GopherRepetition(), C4(min_sentences=1),
    C4(min_sentences=0, terminal_punctuation=False), FineWeb(), Language(),
)  # fmt: skip


def apply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces, lists of words and blocks of a few."""
    monkeypatch.setattr(pieces, "PIECE_CHARACTERS", 7)
    monkeypatch.setattr(wordtable, "RUNS_AT_ONCE", 5)
    monkeypatch.setattr(shingles, "WORDS_AT_ONCE", 3)
    monkeypatch.setattr(shingles, "BLOCK", 11)
    monkeypatch.setattr(repetition, "BLOCK", 11)


@settings(max_examples=200, deadline=None)
@given(uneven)
def test_pieces_are_the_text_and_cut_no_word(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        apply(patch)
        found = list(pieces.pieces(text))
    assert "".join(found) == text
    assert [word for piece in found for word in piece.split()] == text.split()


@settings(max_examples=60, deadline=None)
@given(st.lists(uneven, min_size=1, max_size=6))
def test_every_step_decides_as_of_whole_texts(texts: list[str]) -> None:
    texts = [*texts, prose(0, 40), texts[0] + prose(0, 40)]
    words = tokenizer.train(iter([prose(seed) for seed in range(9)]), Bpe(vocab=300))

    def everything() -> list[object]:
        found: list[object] = [list(builder(config)(config, iter(numbered(texts)))) for config in STEPS]
        protected = Protected(Decontaminate(ngram=2, shortest=1, side=3, shortest_piece=2), {"x": texts[:2]})
        tokens = np.concatenate(Encoder(words).encode(texts)).tolist()
        sentences = [c4.count_sentences(line) for text in texts for line in text.splitlines() if line]
        prints = [documents.fingerprint(text) for text in texts]
        return [*found, list(protected.clean(numbered(texts))), tokens, sentences, prints]

    whole = everything()
    with pytest.MonkeyPatch.context() as patch:
        apply(patch)
        assert everything() == whole
