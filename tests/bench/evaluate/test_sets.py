"""Readers on the forms that occur in the real files (the files themselves: test_real_sets.py)."""

from __future__ import annotations

import json

import pytest

from bench.evaluate import sets
from bench.evaluate.sets import READERS, BadSet, Item, distinct, in_hash_order


def _dialogue(text: str, ideal: str) -> str:
    return json.dumps(
        {"input": [{"role": "system", "content": "s"}, {"role": "user", "content": text}], "ideal": ideal}
    )


def _only(found) -> Item:
    (item,) = found
    return item


@pytest.mark.parametrize(
    ("question", "context", "choices"),
    [
        ("The resistance\n\n A: increases\n B: decreases.", "The resistance", ("increases", "decreases")),
        ("Which one?\n\n A: more \n B: less?", "Question: Which one?\nAnswer:", ("more", "less")),
        ("The _____ rock is hot.\n\n A: first\n B: second", "The", ("first rock is hot.", "second rock is hot.")),
        ("It gets _____ _____.\n\n A: a lot\n B: a bit", "It gets", ("a lot.", "a bit.")),
        ("_____ runs.\n\n A: Tom\n B: Tim", "Question: _____ runs.\nAnswer:", ("Tom", "Tim")),
    ],
)
def test_quartz_is_continued_asked_or_filled_in(question, context, choices):
    item = _only(sets.quartz(_dialogue(question, "B")))
    assert (item.context, item.choices, item.target, item.passage) == (context, choices, 1, None)


def test_social_iqa_shares_the_scene():
    scene = "Bo ran home. It rained!"
    lines = [_dialogue(f"{scene} {q} A: be dry; B: run; C: stop it.", "C") for q in ("What next?", "How is Bo?")]
    first, second = sets.social_iqa("\n".join(lines))
    assert first.choices == ("be dry", "run", "stop it")
    assert first.target == 2
    assert first.context == "Bo ran home. It rained! What next?\nAnswer:"
    assert first.passage == second.passage


def test_social_iqa_allows_a_semicolon_in_the_scene():
    item = _only(sets.social_iqa(_dialogue("It wasn;t fun. Why? A: a; B: b; C: c.", "A")))
    assert item.choices == ("a", "b", "c")


def test_logiqa_drops_the_doubled_letters():
    text = "\nPassage: P. Q.Question: Which?\nA. A.one\nB. B.two\nC. C.three\nD. D.four\nAnswer:"
    item = _only(sets.logiqa(_dialogue(text, "D")))
    assert item.context == "Passage: P. Q.\nQuestion: Which?\nAnswer:"
    assert item.choices == ("one", "two", "three", "four")
    assert item.target == 3


def test_crepe_shares_the_goal():
    ask = (
        "At this point, how will 'x' change the likelihood of 'y'? "
        "Answer with 'more likely', 'less likely', or 'equally likely'."
    )
    lines = [
        _dialogue(f"{story} {ask}", "less likely")
        for story in ("I'm trying to cook.", "I'm trying to cook. First, I z.")
    ]
    first, second = sets.crepe("\n".join(lines))
    assert first.choices[first.target] == "less likely"
    assert first.passage == second.passage
    assert first.context != second.context


def test_corr2cause_shares_the_premise():
    lines = [_dialogue(f"Premise: A and B. Hypothesis: {h}", "Answer: neutral") for h in ("A.", "B.")]
    first, second = sets.corr2cause("\n".join(lines))
    assert first.choices[first.target] == "neutral"
    assert first.passage == second.passage
    assert first.context == "Premise: A and B.\nHypothesis: A.\nAnswer:"


def _examples(*examples: tuple[str, dict[str, float]]) -> str:
    return json.dumps({"examples": [{"input": text, "target_scores": scores} for text, scores in examples]})


def test_vitaminc_shares_the_page():
    text = _examples(
        ("Page: a quote\nClaim: c", {"True": 0, "False": 0, "Neither": 1}),
        ("Page: another\nClaim: d", {"False": 1, "Neither": 0, "True": 0}),
    )
    first, second = sets.vitaminc(text)
    assert (first.target, second.target) == (2, 1)
    assert first.passage == second.passage
    assert second.context == "Passage: Page: another\nClaim: d\nTrue, False, or Neither?"


def test_strategyqa_finds_the_answer_by_name():
    item = _only(sets.strategyqa(_examples(("Is it? ", {"No": 1, "Yes": 0}))))
    assert item.choices[item.target] == "No"


def test_hyperbaton_is_a_minimal_pair():
    text = 'Which sentence has the correct adjective order: a " red big dog " b " big red dog " ?'
    item = _only(sets.hyperbaton(_examples((text, {"a": 0, "b": 1}))))
    assert (item.context, item.choices, item.target) == ("", ("red big dog", "big red dog"), 1)


def _squad(*questions: tuple[str, list[str]]) -> str:
    asked = [
        {"id": f"q{n}", "question": question, "answers": [{"text": answer} for answer in answers]}
        for n, (question, answers) in enumerate(questions)
    ]
    return json.dumps({"data": [{"paragraphs": [{"context": " A passage. ", "qas": asked}]}]})


def test_squad_offers_the_answers_of_other_questions():
    text = _squad(
        ("Who?", ["the old man", "the man", "the man"]),
        ("When? ", ["at dawn"]),
        ("Where?", ["Old"]),
        ("What?", ["fish"]),
    )
    who, when, where, what = sets.squad(text)
    assert who.choices[who.target] == "the man", "the commonest answer"
    assert set(who.choices) == {"the man", "at dawn", "fish"}, "part of an accepted answer is no wrong answer"
    assert when.context == "Passage: A passage.\nQuestion: When?\nAnswer:"
    assert len({item.passage for item in (who, when, where, what)}) == 1
    assert set(where.choices) == {"Old", "the man", "at dawn", "fish"}


def test_squad_leaves_out_what_has_no_wrong_answer_and_offers_four_at_most():
    assert list(sets.squad(_squad(("Who?", ["a man"]), ("Who else?", ["man"])))) == []
    many = list(sets.squad(_squad(*((f"{n}?", [f"answer {n}."]) for n in range(10)))))
    assert {len(item.choices) for item in many} == {4}
    assert len({item.target for item in many}) > 1


def test_blimp_names_the_paradigm():
    row = {"sentence_good": "He is.", "sentence_bad": "He are.", "UID": "agreement", "pairID": "7"}
    item = _only(sets.blimp(json.dumps(row)))
    assert (item.id, item.choices, item.target) == ("agreement/7", ("He is.", "He are."), 0)


def _item(name: str, context: str, target: int, choices=("x", "y")) -> Item:
    return Item(name, None, context, choices, target)


def test_repetitions_are_kept_once_contradictions_and_equal_choices_not_at_all():
    found = distinct(
        [
            _item("1", "same", 0),
            _item("2", "same", 0),
            _item("3", "same", 1, ("y", "x")),  # the same question, its choices the other way round
            _item("4", "contradiction", 0),
            _item("5", "contradiction", 1),
            _item("6", "equal", 0, ("x", "x")),
            _item("7", "fine", 0),
        ]
    )
    assert [item.id for item in found] == ["1", "7"]


def test_the_order_is_that_of_the_content():
    items = [_item(str(n), f"question {n}", n % 2) for n in range(50)]
    ordered = in_hash_order(items)
    assert ordered == in_hash_order(reversed(items))
    assert ordered != items
    assert sorted(ordered, key=lambda item: int(item.id)) == items


@pytest.mark.parametrize("name", sorted(READERS))
def test_something_else_is_refused(name):
    other = [_dialogue("hello", "A"), json.dumps({"unrelated": 1})]
    with pytest.raises((BadSet, KeyError, ValueError)):
        list(READERS[name].parse(other[0] if name in ("quartz", "social_iqa") else other[1]))
