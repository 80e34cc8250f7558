"""What is learnt, what chooses and what is tested: apart, the same for every model, nothing shared."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from bench.evaluate import answers, practice, splits
from bench.evaluate.language_model import DecoderLM
from bench.evaluate.loading import NotAvailable
from bench.evaluate.sets import Item
from lmopt.arch.transformer import Transformer
from lmopt.step import run_to_end

WORDS = [f"{letter}{letter}{vowel}" for letter in "bcdfg" for vowel in "aeiou"]


def question(number: int, *, words: list[str] | None = None) -> Item:
    """Two questions on each passage; the words of each passage are in an order of its own."""
    passage = number // 2
    turned = words or [
        f"{WORDS[(passage * 7 + place * (passage % 5 + 1)) % len(WORDS)]}{passage}" for place in range(20)
    ]
    return Item(str(number), f"p{passage}", f"{' '.join(turned)}. Is it {number}?", ("yes", "no"), number % 2)


ITEMS = [question(number) for number in range(2000)]


@pytest.fixture
def sets(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Item]]:
    known = {"own": ITEMS, "other": [question(number) for number in range(10_000, 10_400)]}
    monkeypatch.setattr(practice, "items", lambda name, cache=None: list(known[name]))
    return known


def test_a_passage_is_never_on_two_sides(sets: dict[str, list[Item]], tmp_path: Path) -> None:
    found = practice.practice("own", (), 0.5, cache=tmp_path)
    sides = [{item.passage for item in side} for side in (found.learn, found.choose, splits.tested(ITEMS, 0.5))]
    assert all(sides)
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    assert len(found.learn) + len(found.choose) + len(splits.tested(ITEMS, 0.5)) == len(ITEMS)
    assert found.facts == {
        "learnt_from": len(found.learn), "chosen_by": len(found.choose), "contaminated": 0,
        "tested": len(splits.tested(ITEMS, 0.5)),
    }  # fmt: skip


def test_a_question_that_repeats_thirteen_words_of_a_tested_one_is_left_out(
    sets: dict[str, list[Item]], tmp_path: Path
) -> None:
    tested = splits.tested(ITEMS, 0.5)[0].context.split()
    sets["other"] += [
        question(20_000, words=["before", *tested[:13], "behind"]),
        question(20_002, words=["before", *tested[:12], "behind", *tested[12:14]]),
    ]
    for _ in range(2):  # found, then known from the cache
        found = practice.practice("own", ("other",), 0.5, cache=tmp_path)
        ids = {item.id for item in (*found.learn, *found.choose)}
        assert "20000" not in ids
        assert "20002" in ids
        assert found.facts["contaminated"] == 1
    assert list((tmp_path / "evaluation").glob("practice-*.json"))


def test_other_sets_are_learnt_from_in_full_and_all_is_tested(sets: dict[str, list[Item]], tmp_path: Path) -> None:
    found = practice.practice("own", ("other",), 1.0, cache=tmp_path)
    assert {item.id for item in (*found.learn, *found.choose)} == {item.id for item in sets["other"]}
    assert found.facts["tested"] == len(ITEMS)


def test_too_little_to_learn_from_is_said(sets: dict[str, list[Item]], tmp_path: Path) -> None:
    sets["own"] = ITEMS[:100]
    with pytest.raises(NotAvailable, match="at least 100"):
        practice.practice("own", (), 0.9, cache=tmp_path)


def test_few_passages_are_parted_by_item() -> None:
    one = [Item(str(n), "the only", f"number {n}", ("a", "b"), 0) for n in range(300)]
    learn, choose = splits.kept_back(one, 0.2)
    assert 30 < len(choose) < 90
    assert len(learn) + len(choose) == 300


def test_an_example_ends_in_the_answer_as_it_is_scored(tokenizer: Tokenizer, model: Transformer) -> None:
    lm = DecoderLM(model, tokenizer, forward=nullcontext)
    item = Item("1", None, "The fish were deep", ("and slow", "tired"), 0)
    (example,) = answers.examples(lm, [item])
    assert tokenizer.decode(list(example.tokens)) == "The fish were deep and slow"
    assert tokenizer.decode(list(example.tokens)[-example.answer :]) == " and slow"
    long = Item("2", None, "The old man went down to the sea in the morning. " * 9, ("slow", "small"), 1)
    (cut,) = answers.examples(lm, [long])
    assert len(cut.tokens) == model.model.context + 1
    assert tokenizer.decode(list(cut.tokens)).endswith("small")


def test_answers_are_scored_with_ties_shared(
    tokenizer: Tokenizer, model: Transformer, constant_model: Transformer
) -> None:
    questions = [Item(str(n), None, f"The boat was {n}", ("deep", "slow"), n % 2) for n in range(6)]
    tied = run_to_end(
        answers.answer_steps(
            DecoderLM(constant_model, tokenizer, forward=nullcontext), [replace_choices(q) for q in questions]
        )
    )
    assert tied.accuracy == pytest.approx(0.5)
    assert tied.nats == pytest.approx(0.6931, abs=1e-3)
    lm = DecoderLM(model, tokenizer, forward=nullcontext)
    found = run_to_end(answers.answer_steps(lm, questions))
    right = 0
    for item in questions:
        first, second = run_to_end(lm.score_steps(lm.requests([(item.context, " deep"), (item.context, " slow")])))
        right += (first.log_likelihood > second.log_likelihood) == (item.target == 0)
    assert found.accuracy == right / 6


def replace_choices(item: Item) -> Item:
    """Two choices of one token each, so that a constant model gives both the same probability."""
    return Item(item.id, None, item.context, ("a", "I"), item.target)
