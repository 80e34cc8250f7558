"""Filters: the reason for each rule on tiny texts, the slow obvious versions, the limits, and datatrove where it is."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmopt.data import c4, classifier, corpus, repetition, shards, stage
from lmopt.data.contractions import parts
from lmopt.data.documents import Document, Dropped
from lmopt.data.language import shares
from lmopt.data.punctuation import TERMINAL
from lmopt.data.spec import Data
from lmopt.data.storage import DataError
from lmopt.data.words import cut
from lmopt.recipe import C4, Classifier, FineWeb, GopherQuality, GopherRepetition, Language, Technique, builder

from .texts import numbered, prose, write_jsonl

GOOD = """\
The people of this town have a river, and water runs with it to the old mill below the hill.
Is it far from here? No, you can walk there before noon if the road is dry.
My brother keeps bees behind his house, which gives us honey for bread in every winter.
When storms come down out of those mountains, we close all shutters and wait for morning.
Nobody remembers who built our church, but its bell was cast by two sisters that came from abroad.
They say she wrote songs; he only laughed at them, so one day both left without a word."""


def _reasons(config: Technique, *texts: str) -> list[str | None]:
    items = list(builder(config)(config, numbered(list(texts))))
    return [item.reason if isinstance(item, Dropped) else None for item in items]


def _left(config: Technique, text: str) -> str:
    (item,) = builder(config)(config, numbered([text]))
    assert isinstance(item, Document)
    return item.text


@pytest.mark.parametrize("config", [GopherQuality(), GopherRepetition(), C4(), FineWeb(), Language()])
def test_good_prose_stays_as_it_is(config: Technique) -> None:
    assert _left(config, GOOD) == GOOD


@pytest.mark.parametrize(
    ("text", "reason", "change"),
    [
        ("too short", "gopher_short_doc", {}),
        (GOOD, "gopher_long_doc", {"max_words": 60}),
        ("a b " + "of the " * 60, "gopher_below_avg_threshold", {}),
        ("incomprehensibilities " * 60, "gopher_above_avg_threshold", {}),
        ("word of # the " * 30, "gopher_too_many_hashes", {}),
        ("word of... the " * 30, "gopher_too_many_ellipsis", {}),
        ("\n".join(["- the people have water and bread"] * 20), "gopher_too_many_bullets", {}),
        ("\n".join(["the people of that town have much water and bread to sell there…"] * 20),
         "gopher_too_many_end_ellipsis", {}),
        ("the people 1234 5678 of " * 20, "gopher_below_alpha_threshold", {}),
        ("people towns rivers water bread mills " * 20, "gopher_enough_stop_words", {}),
    ],
)  # fmt: skip
def test_gopher_quality_says_which_rule(text: str, reason: str, change: dict[str, Any]) -> None:
    assert _reasons(GopherQuality(**change), text) == [reason]


def test_gopher_quality_without_thresholds_keeps_all() -> None:
    off = {name: None for name in GopherQuality.model_fields if name.startswith(("min_", "max_"))}
    assert _reasons(GopherQuality(**off), "", "#", "...", "- x") == [None] * 4


def test_empty_text_has_reasons_too() -> None:
    assert _reasons(GopherQuality(), "", " \n") == ["gopher_short_doc"] * 2
    assert _reasons(GopherRepetition(), "", " \n") == [None] * 2
    assert _reasons(C4(), "", " \n") == ["too_few_sentences"] * 2
    assert _reasons(FineWeb(), "", " \n") == ["empty"] * 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\n\n".join(["a paragraph"] * 3 + [prose(0)]), "dup_para_frac"),
        ("\n\n".join([prose(1)] * 2 + [prose(n, 20) for n in range(5)]), "dup_para_char_frac"),
        ("\n".join(["a line"] * 5 + [prose(n, 40) for n in range(5)]), "dup_line_frac"),
        ("\n".join([prose(1)] * 2 + [prose(n, 20) for n in range(6)]), "dup_line_char_frac"),
        ("again now " * 3 + prose(0, 8), "top_2_gram"),
        (" ".join([prose(1, 16), prose(3, 14), prose(1, 16), prose(4, 14)]), "duplicated_5_n_grams"),
    ],
)
def test_gopher_repetition_says_which_rule(text: str, reason: str) -> None:
    assert _reasons(GopherRepetition(), text) == [reason]


def _slow_ngram_reason(config: GopherRepetition, text: str) -> str | None:
    """Table A1 as datatrove counts it, one n-gram after the other."""
    words = [word for run in text.split() for word in cut(run)]
    for n, most in config.top_ngrams:
        counts = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
        if counts:
            ((ngram, count),) = counts.most_common(1)
            if len(ngram) * count / len(text) > most:
                return f"top_{n}_gram"
    for n, most in config.duplicate_ngrams:
        seen: set[str] = set()
        repeated = place = 0
        while place < len(words) - n + 1:
            ngram = "".join(words[place : place + n])
            if ngram in seen:
                repeated += len(ngram)
                place += n
            else:
                seen.add(ngram)
                place += 1
        if text and repeated / len(text) > most:
            return f"duplicated_{n}_n_grams"
    return None


phrases = st.lists(st.sampled_from(["the cat sat", "on a mat", "x", "yes, no.", "it", "a dog ran far away today"]))


@settings(max_examples=150, deadline=None)
@given(st.lists(phrases.map(" ".join), min_size=1, max_size=4))
def test_repetition_equals_counting_one_by_one(texts: list[str]) -> None:
    config = GopherRepetition(lines=None, paragraphs=None, line_characters=None, paragraph_characters=None)
    expected = [_slow_ngram_reason(config, text) for text in texts]
    assert [verdict and verdict[0] for verdict in repetition.judge(config, texts)] == expected


def test_repetition_judges_a_text_alike_in_any_company() -> None:
    """Numbers of texts once entered a hash as characters do: 'on the' was 'of the' of the text eight places on."""
    texts = [prose(seed, 12) for seed in range(9)]
    texts[0], texts[8] = "on the hill they met again every summer", "of the hill we know nothing at all today"
    assert repetition.judge(GopherRepetition(), texts) == [
        repetition.judge(GopherRepetition(), [text])[0] for text in texts
    ]


def test_repetition_without_rules_keeps_all() -> None:
    off = {"lines": None, "paragraphs": None, "line_characters": None, "paragraph_characters": None}
    assert _reasons(GopherRepetition(**off, top_ngrams=(), duplicate_ngrams=()), "a\n" * 50) == [None]


@pytest.mark.parametrize(
    ("line", "change"),
    [
        ("no full stop at the end of this line", {"terminal_punctuation": False}),
        ("Trailing off at the end...", {"terminal_punctuation": False}),
        ("Two words.", {"min_words_per_line": 2}),
        ("You need Javascript for that.", {"javascript": False}),
        ("Read our privacy policy, please do.", {"policy": False}),
        ("A word " + "x" * 1001 + " is no word.", {"max_word_length": None}),
    ],
)
def test_c4_cuts_lines_out(line: str, change: dict[str, Any]) -> None:
    assert _left(C4(), f"{line}\n{GOOD}") == GOOD
    assert _left(C4(**change), f"{line}\n{GOOD}") == f"{line}\n{GOOD}"


@pytest.mark.parametrize(
    ("text", "reason", "change"),
    [
        (GOOD + "\nNow lorem ipsum it is.", "lorem_ipsum", {"lorem_ipsum": False}),
        (GOOD + "\nIt is {this} one.", "curly_bracket", {"curly_bracket": False}),
        ("One two three. Four five six.", "too_few_sentences", {"min_sentences": 2}),
    ],
)
def test_c4_drops_pages(text: str, reason: str, change: dict[str, Any]) -> None:
    assert _reasons(C4(), text) == [reason]
    assert _reasons(C4(**change), text) == [None]


def test_c4_takes_citation_marks_out() -> None:
    marked = GOOD.replace("hill.", "hill.[12]").replace("dry.", "dry.[citation needed]")
    assert _left(C4(), marked) == GOOD
    assert _left(C4(citations=False, terminal_punctuation=False), marked) == marked


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a line of text without an end\n" * 3, "line_punct_ratio"),
        ("Short line.\nAnother one.\nAnd a third.", "short_line_ratio"),
        ("\n".join([GOOD, GOOD.splitlines()[0]]), "char_dup_ratio"),
        ("\n\n\n\n\n\n\n".join(f"One more line of some length, number {n}." for n in range(9)), "list_ratio"),
    ],
)
def test_fineweb_says_which_rule(text: str, reason: str) -> None:
    assert _reasons(FineWeb(), text) == [reason]


GERMAN = (
    "Die Leute in dem Dorf haben nicht viel Wasser, und das ist auch für die Mühle an dem Fluss ein Problem, "
    "so der Müller."
)


def test_language_keeps_its_own() -> None:
    assert _reasons(Language(), GOOD, GERMAN, prose(0), "zu kurz") == [None, "other_language", "other_language", None]
    assert _reasons(Language(language="de"), GOOD, GERMAN) == ["other_language", None]
    assert max(shares(GERMAN), key=shares(GERMAN).__getitem__) == "de"


def length(texts: list[str]) -> list[float]:
    """A score for the test of the hook."""
    return [float(len(text)) for text in texts]


def broken(texts: list[str]) -> list[float]:
    """Gives one score too few."""
    return [1.0] * (len(texts) - 1)


def worded(texts: list[str]) -> list[str]:
    return ["good" for _ in texts]


def test_a_classifier_of_your_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _reasons(Classifier(function=f"{__name__}:length", min_score=5), "abc", "abcdef") == ["low_score", None]
    with pytest.raises(DataError, match="got 2 texts, gave 1 scores"):
        _reasons(Classifier(function=f"{__name__}:broken", min_score=0), "a", "b")
    with pytest.raises(DataError, match=r"gave 'good' \(str\)(.|\n)*hint: .*must return one finite number"):
        _reasons(Classifier(function=f"{__name__}:worded", min_score=0), "a")
    with pytest.raises(DataError, match="cannot be imported"):
        _reasons(Classifier(function="not.there:at_all", min_score=0), "a")
    with pytest.raises(DataError, match="not offered by any installed package; offered: "):
        _reasons(Classifier(function="unknown", min_score=0), "a")

    class Entry:
        @staticmethod
        def load() -> Any:
            return length

    monkeypatch.setattr(classifier.importlib.metadata, "entry_points", lambda group, name: (Entry,))
    classifier.scorer.cache_clear()
    assert _reasons(Classifier(function="mine", min_score=5), "abc", "abcdef") == ["low_score", None]
    classifier.scorer.cache_clear()


ALL = (GopherQuality(), GopherRepetition(), C4(), FineWeb(), Language())


@pytest.mark.parametrize("config", ALL, ids=lambda config: config.kind)
def test_batches_do_not_change_decisions(config: Technique, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [GOOD, "", prose(0), "x\n" * 40, GOOD + "\n{", GERMAN, *[prose(n, 10 + 9 * n) for n in range(30)]]
    whole = list(builder(config)(config, numbered(texts)))
    monkeypatch.setattr(stage, "BATCH_DOCUMENTS", 4)
    monkeypatch.setattr(stage, "BATCH_CHARACTERS", 600)
    assert list(builder(config)(config, numbered(texts))) == whole


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=80) | st.text("ab .\n-#…{", max_size=80), max_size=8))
def test_any_text_gets_a_verdict(texts: list[str]) -> None:
    before = numbered(texts)
    for config in ALL:
        items = list(builder(config)(config, iter(before)))
        assert [(item.document if isinstance(item, Dropped) else item).id for item in items] == [d.id for d in before]
        assert all(item.reason for item in items if isinstance(item, Dropped))


def _english(seed: int) -> str:
    """Made-up nouns between real function words."""
    nouns = iter(prose(seed, 120).replace(".", "").split())
    return "\n".join(
        f"The {a} of the {b} have {c} with {d} and {e}, but {f} is to be."
        for a, b, c, d, e, f in zip(*[nouns] * 6, strict=True)
    )


def test_a_suite_line_of_filters(tmp_path: Path) -> None:
    texts = [_english(n) for n in range(40)] + ["x y z"] * 3 + ["{" * 400, GERMAN * 3]
    data = Data.model_validate(
        {"corpus": [write_jsonl(tmp_path / "a.jsonl", texts)], "validation": [{"kind": "holdout", "share": 0.05}],
         "tokenizer": {"vocab": 300}}
    )  # fmt: skip
    list(corpus.build(data, tmp_path / "c"))
    found = []
    for name in ("a", "b"):
        list(shards.build(tmp_path / "c", ALL, tmp_path / name))
        found.append((tmp_path / name / shards.TOKENS).read_bytes())
        facts = json.loads((tmp_path / name / "manifest.json").read_text())
        assert facts["documents_in"] == facts["documents_out"] + sum(facts["dropped"].values())
    assert found[0] == found[1]
    assert facts["dropped"]["gopher_short_doc"] >= 1


@pytest.mark.slow
def test_datatrove_decides_the_same() -> None:
    filters = pytest.importorskip("datatrove.pipeline.filters")
    data = pytest.importorskip("datatrove.data")
    texts = [GOOD, GERMAN * 5, prose(0), prose(1, 600), GOOD * 3, "x\n" * 40, GOOD + "\n{}", GOOD.replace(".", "...")]
    theirs = {
        GopherQuality(): filters.GopherQualityFilter(),
        GopherRepetition(): filters.GopherRepetitionFilter(),
        C4(): filters.C4QualityFilter(),
        FineWeb(): filters.FineWebQualityFilter(),
    }
    for config, peer in theirs.items():
        verdicts = [peer.filter(data.Document(text=text, id="0")) for text in texts]
        assert _reasons(config, *texts) == [None if verdict is True else verdict[1] for verdict in verdicts]


@settings(max_examples=400, deadline=None)
@given(st.text("aZé²٣don't.,;:!?)\"(-。", min_size=1, max_size=8) | st.sampled_from([*parts(), "etc.", "end.", 'x"']))
def test_the_shape_of_a_common_form_is_that_of_its_pieces(run: str) -> None:
    found = c4._plain_shape(run)
    assert found in (None, re.sub("w+", "w", c4.shape(run)))


def test_common_forms_are_told_without_cutting_and_no_letter_ends_a_sentence() -> None:
    assert [c4._plain_shape(run) for run in ("word", "cannot", "1990", "end.", "so,", "Mr.", "don't", "U.S.")] == [
        "w", "w", "w", "we", "wp", None, None, None,
    ]  # fmt: skip
    assert not any(mark.isalnum() for mark in TERMINAL)
