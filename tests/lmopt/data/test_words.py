"""Words, sentences and the word table, against what spaCy's English gives and against the slow obvious version."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmopt.data import wordtable
from lmopt.data.c4 import count_sentences
from lmopt.data.hashing import powers
from lmopt.data.words import LONGEST_RUN, cut
from lmopt.data.wordtable import WordTable

from .texts import prose

SPACY = {
    "(don't),": "( do n't ) ,",
    "Don’t": "Do n’t",
    "I'd've": "I 'd 've",
    "its": "its",
    "cannot": "can not",
    "U.S.": "U.S.",
    "end.Next": "end . Next",
    "e.g.,": "e.g. ,",
    "Mr.": "Mr.",
    "so...": "so ...",
    "well-known": "well - known",
    "3-4": "3 - 4",
    "10km": "10 km",
    "$5.50!": "$ 5.50 !",
    "dogs'": "dogs '",
    "Tom's": "Tom 's",
    "http://a.example.com/x?y=1,": "http://a.example.com/x?y=1 ,",
    "hi:)": "hi :)",
    "and/or": "and/or",
    "him/her": "him / her",
    "7pm.": "7 pm .",
    '"“quoted”"': '" “ quoted ” "',
    "--": "--",
    "*bold*": "* bold *",
    "x=1": "x=1",
    "a,b": "a , b",
    "1,000": "1,000",
    "☺ok": "☺ ok",
}
"""Run -> its words, joined by spaces, from spaCy 3.8.18 (`spacy.blank("en")`)."""


@pytest.mark.parametrize("run", SPACY)
def test_runs_are_cut_as_spacy_does(run: str) -> None:
    assert " ".join(cut(run)) == SPACY[run]


@settings(max_examples=200, deadline=None)
@given(st.text("aZé9.,'’-/:()$☺…\"@\u0660中", max_size=30) | st.text(max_size=30))
def test_nothing_is_lost_in_cutting(text: str) -> None:
    for run in text.split():
        assert "".join(cut(run)) == run


def test_long_runs_take_time_in_proportion() -> None:
    for part in ("a.(", "(", ")", "...", ":)", "@:", "a.b"):
        run = part * LONGEST_RUN
        assert "".join(cut(run)) == run


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("One.", 1),
        ("One. Two.", 2),
        ("Is it? Yes! Good.", 3),
        ('He said "no." Then he left.', 2),
        ("Mr. Smith came.", 1),
        ("What?! Never...", 2),
        ("", 1),
        ("one.  ) two", 2),
    ],
)
def test_sentences(line: str, expected: int) -> None:
    assert count_sentences(line) == expected


def test_the_table_knows_the_words_of_each_text() -> None:
    texts = [prose(0), "", "I can't.", " \n ", prose(1, 300), "I can't."]
    table = WordTable()
    names: dict[int, str] = {}
    for _ in range(2):
        ids_W, offsets = table.words(texts)
        names = {number: word for word, number in table.vocabulary.items()}
        for number, text in enumerate(texts):
            expected = [word for run in text.split() for word in cut(run)]
            assert [names[i] for i in ids_W[offsets[number] : offsets[number + 1]]] == expected
    assert [int(n) for n in table.length_V] == [len(names[i]) for i in range(len(names))]
    assert bool(table.symbol_V[table.vocabulary["."]])
    assert not table.symbol_V[table.vocabulary["n't"]]
    assert bool(table.letter_V[table.vocabulary["n't"]])


def test_hashes_are_those_of_the_characters() -> None:
    table = WordTable()
    table.words(["ab abc xy"])
    hashes = dict(zip(table.vocabulary, table.hash_V.tolist(), strict=True))
    power = powers(3).tolist()
    assert hashes["abc"] == (hashes["ab"] + 100 * power[2]) % 2**64
    assert hashes["ab"] == (98 + 99 * power[1]) % 2**64


def test_a_full_table_starts_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    table = WordTable()
    ids = table.words([prose(0)]).ids_W
    before = table.hash_V[ids].copy()
    monkeypatch.setattr(wordtable, "MAX_RUNS", 3)
    for seed in range(3):
        table.words([prose(seed + 5)])
    ids = table.words([prose(0)]).ids_W
    np.testing.assert_array_equal(table.hash_V[ids], before)
    assert len(table.vocabulary) < 200
