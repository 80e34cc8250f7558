"""The derived cloze set."""

from __future__ import annotations

import random

from bench.evaluate import cloze

WORDS = (
    *("the", "of", "and", "to", "in", "a", "is", "was", "it", "for", "on", "as", "with", "his", "he"),
    *("at", "by", "had", "not", "are", "but", "from", "or", "have", "an", "they", "which", "one"),
)


def _documents(count: int = 30) -> list[tuple[str, str]]:
    rng = random.Random(0)
    rare = ["Zebra", "I", "x9"]
    return [(f"doc{n}", " ".join(rng.choice([*WORDS, *rare]) for _ in range(100)) + ".") for n in range(count)]


def test_every_item_can_be_found_again_in_its_text():
    texts = dict(_documents())
    items = cloze.generate(texts.items(), seed=0, items=500)
    assert len(items) == 500
    for item in items:
        document, position = item.id.split(":")
        answer = item.choices[item.target]
        assert item.passage == document
        assert texts[document][int(position) :].startswith(answer)
        assert texts[document][: int(position)].rstrip().endswith(item.context)


def test_four_different_frequent_words_are_offered():
    items = cloze.generate(_documents(), seed=0, items=500)
    assert len(items) == 500
    for item in items:
        assert len(set(item.choices)) == cloze.CHOICES
        assert set(item.choices) <= set(WORDS)


def test_contexts_are_long_enough_and_stay_in_their_passage():
    lengths = [len(item.context.split()) for item in cloze.generate(_documents(), seed=0, items=2_000)]
    assert min(lengths) >= cloze.FIRST_WORD
    assert max(lengths) < cloze.PASSAGE_WORDS


def test_the_correct_choice_lies_anywhere():
    items = cloze.generate(_documents(), seed=0, items=1_000)
    counts = [sum(item.target == place for item in items) for place in range(cloze.CHOICES)]
    assert min(counts) > 0.2 * len(items)


def test_the_seed_decides():
    one, again, other = (cloze.generate(_documents(), seed=seed, items=100) for seed in (0, 0, 1))
    assert one == again
    assert one != other


def test_the_order_of_documents_does_not_matter():
    assert cloze.generate(_documents(), seed=0, items=100) == cloze.generate(reversed(_documents()), seed=0, items=100)


def test_items_of_different_runs_are_distinct():
    items = cloze.generate(_documents(), seed=0, items=10_000)
    assert len({item.id for item in items}) == len(items)


def test_too_little_text_gives_none():
    assert cloze.generate([], seed=0, items=10) == []
    assert cloze.generate([("a", "too short a text")], seed=0, items=10) == []


def test_distractors_are_about_as_frequent(monkeypatch):
    monkeypatch.setattr(cloze, "BAND", 4)
    rng = random.Random(0)
    weights = [2.0 ** -(n / 4) for n in range(len(WORDS))]
    text = " ".join(rng.choices(WORDS, weights, k=20_000)) + "."
    ranked = cloze._frequent([text])
    items = cloze.generate([("d", text)], seed=0, items=300)
    assert len(items) == 300
    for item in items:
        ranks = [ranked.index(choice) for choice in item.choices]
        assert max(abs(rank - ranks[item.target]) for rank in ranks) <= 4
