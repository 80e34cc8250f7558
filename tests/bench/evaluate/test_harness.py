"""Evaluation through lm-evaluation-harness, on sets of a few made-up items that lie in the cache."""

from __future__ import annotations

import json
import logging
import random
from contextlib import nullcontext

import pytest
import torch

from bench.evaluate import loading
from bench.evaluate.harness import Choices, _chance, evaluate, evaluate_steps
from bench.evaluate.index import TASKS, UnknownTask
from bench.evaluate.language_model import DecoderLM
from tests.bench.evaluate.conftest import TEXT
from tests.bench.evaluate.tiny import slow_score

SHARED = ("larger", "smaller")


def _fill(cache, name: str, rows: list[dict]) -> None:
    """Put a set into the cache, as if it had been fetched and read."""
    source = TASKS[name].source.replace(":", "-").replace("==", "-")
    path = cache / "evaluation" / f"{name}-v{loading.READ_VERSION}-{source}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _rows(count: int, *, fixed: bool = False, seed: int = 0) -> list[dict]:
    """Questions with two to four choices out of a text's words, or with the same two choices each."""
    rng = random.Random(seed)
    words = sorted(set(TEXT.split()))
    rows = []
    for number in range(count):
        context = "" if number == 0 else " ".join(rng.choices(words, k=rng.randrange(1, 60)))
        choices = list(SHARED) if fixed else [" ".join(rng.sample(words, rng.randrange(1, 4))) for _ in range(4)]
        target = int(number % 4 == 0) if fixed else rng.randrange(len(choices))
        passage = f"p{number % 3}" if fixed else None
        rows.append({"id": str(number), "passage": passage, "context": context, "choices": choices, "target": target})
    return rows


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LMBENCH_OFFLINE", "1")
    _fill(tmp_path, "quartz", _rows(30))
    _fill(tmp_path, "corr2cause", _rows(20, fixed=True))
    return tmp_path


def test_scores_equal_those_of_one_pass_a_choice(model, tokenizer, cache):
    results = evaluate(model, tokenizer, ["quartz"], cache=cache)
    rows = {row.item: row for row in results.tasks["quartz"].rows}
    end = tokenizer.token_to_id("<|endoftext|>")
    for item in _rows(30):
        before = tokenizer.encode(item["context"]).ids or [end]
        likelihoods = []
        for choice in item["choices"]:
            tokens = tokenizer.encode(f"{item['context']} {choice}").ids
            tokens = tokens if item["context"] else [end, *tokens]
            likelihoods.append(slow_score(model, tokens, len(tokens) - len(before))[0])
        best = max(range(4), key=likelihoods.__getitem__)
        row = rows[item["id"]]
        assert row.score == row.score_lm_eval == (best == item["target"])
        size = len(f" {item['choices'][item['target']]}".encode())
        assert row.choice_bits_per_byte == pytest.approx(-likelihoods[item["target"]] / 0.693147 / size, rel=1e-3)


def test_the_harness_itself_comes_to_the_same_numbers(model, tokenizer, cache):
    """`lm_eval.evaluate` with our model as its LM, start to end."""
    from lm_eval.evaluator import evaluate as lm_eval_evaluate
    from lm_eval.tasks import TaskManager

    from bench.evaluate.asking import TASK_FILES

    names = ["quartz", "corr2cause"]
    ours = evaluate(model, tokenizer, names, cache=cache)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_defaults=False, metadata={"cache": str(cache)})
    tasks = manager.load([str(TASK_FILES / f"{name}.yaml") for name in names])
    theirs = lm_eval_evaluate(DecoderLM(model, tokenizer, forward=nullcontext), tasks, bootstrap_iters=0)
    assert theirs is not None
    for name in names:
        assert ours.tasks[name].accuracy_lm_eval == pytest.approx(theirs["results"][name]["acc,none"])


def test_a_constant_model_scores_chance(constant_model, tokenizer, cache):
    """Choices of equally many tokens: all tie, and each counts 1/k. The harness gives every tie to the first choice."""
    rows = [row | {"choices": ["x", "q", "z", "j"], "target": n % 4} for n, row in enumerate(_rows(30))]
    _fill(cache, "quartz", [row | {"context": f"the {row['id']}:"} for row in rows])
    result = evaluate(constant_model, tokenizer, ["quartz"], cache=cache).tasks["quartz"]
    assert {row.score for row in result.rows} == {0.25}
    assert result.accuracy == 0.25
    assert {row.score_lm_eval for row in result.rows} == {0.0, 1.0}


def test_a_constant_model_is_never_above_chance_where_all_items_offer_the_same(constant_model, tokenizer, cache):
    """Answers of different length do not tie: it always says the shortest one, and earns that answer's share."""
    result = evaluate(constant_model, tokenizer, ["corr2cause"], cache=cache).tasks["corr2cause"]
    assert result.chance == 0.75
    assert result.accuracy <= result.chance


def test_facts_and_readings(model, tokenizer, cache):
    results = evaluate(model, tokenizer, ["quartz", "corr2cause"], cache=cache)
    detail = results.detail()
    assert detail["quartz"]["family"] == "qa"
    assert detail["quartz"]["chance"] == 0.25
    assert detail["corr2cause"]["family"] == "nli"
    assert detail["corr2cause"]["n"] == 20
    assert results.readings()["accuracy/quartz"].value == results.tasks["quartz"].accuracy
    assert {row.passage for row in results.tasks["corr2cause"].rows} == {"p0", "p1", "p2"}
    assert json.dumps(detail, allow_nan=False)


def test_truncated_contexts_are_counted_by_task(model, tokenizer, cache):
    long = {"id": "0", "passage": None, "context": TEXT, "choices": ["a", "b"], "target": 0}
    short = long | {"id": "1", "context": "The sea"}
    _fill(cache, "quartz", [long, short])
    _fill(cache, "social_iqa", [short])
    detail = evaluate(model, tokenizer, ["quartz", "social_iqa"], cache=cache).detail()
    assert (detail["quartz"]["truncated"], detail["social_iqa"]["truncated"]) == (2, 0)


def test_the_first_items_are_taken_for_every_model(model, tokenizer, cache):
    result = evaluate(model, tokenizer, ["quartz"], cache=cache, limit=7).tasks["quartz"]
    assert sorted(row.item for row in result.rows) == sorted(row["id"] for row in _rows(7))


@pytest.mark.parametrize("batch_tokens", [1, 150])
def test_the_batch_size_does_not_matter(model, tokenizer, cache, batch_tokens):
    names = ["quartz", "corr2cause"]
    expected = evaluate(model, tokenizer, names, cache=cache)
    found = evaluate(model, tokenizer, names, cache=cache, batch_tokens=batch_tokens)
    for ours, theirs in zip(found.rows, expected.rows, strict=True):
        assert (ours.item, ours.score) == (theirs.item, theirs.score)
        assert ours.choice_bits_per_byte == pytest.approx(theirs.choice_bits_per_byte, abs=1e-4)


def test_steps_cover_all_tasks_and_leave_the_model_as_it_was(model, tokenizer, cache):
    model.train()
    steps = list(evaluate_steps(model, tokenizer, ["quartz", "corr2cause"], cache=cache, batch_tokens=200))
    assert model.training
    assert steps[-1].notes["requests"] == steps[-1].notes["requests_total"] == 30 * 4 + 20 * 2


def test_a_stopped_evaluation_leaves_the_model_as_it_was(model, tokenizer, cache):
    model.train()
    steps = evaluate_steps(model, tokenizer, ["quartz"], cache=cache, batch_tokens=50)
    next(steps)
    assert not model.training
    steps.close()
    assert model.training


def test_what_is_not_here_is_missing_with_a_reason(model, tokenizer, cache):
    results = evaluate(model, tokenizer, ["blimp", "quartz", "heldout_cloze", "logiqa"], cache=cache)
    assert set(results.tasks) == {"quartz"}
    assert "lmbench data import blimp" in results.missing["blimp"]
    assert "no corpus was given" in results.missing["heldout_cloze"]
    assert "LMBENCH_OFFLINE" in results.missing["logiqa"]
    reading = results.readings()["accuracy/blimp"]
    assert reading.value is None
    assert reading.reason


def test_nothing_but_missing_tasks(model, tokenizer, cache):
    results = evaluate(model, tokenizer, ["blimp"], cache=cache)
    assert results.rows == []
    assert set(results.missing) == {"blimp"}


def test_an_unknown_name_is_refused_before_any_work(model, tokenizer, cache):
    with pytest.raises(UnknownTask, match="did you mean 'quartz'"):
        evaluate(model, tokenizer, ["quarts"], cache=cache)


def test_ties_count_their_share():
    assert Choices(("a", "b", "c"), (1,)).score([-2.0, -1.0, -1.0]) == 0.5
    assert Choices(("a", "b", "c"), (0,)).score([-2.0, -1.0, -1.0]) == 0.0
    assert Choices(("a", "b", "c"), (1,)).score([-3.0, -1.0, -2.0]) == 1.0
    assert Choices(("a", "b", "c"), (0, 2)).score([-1.0, -1.0, -1.0]) == pytest.approx(2 / 3)


def test_a_broken_model_is_no_result(model, tokenizer, cache):
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        evaluate(model, tokenizer, ["quartz"], cache=cache)


def test_chance():
    varied = [Choices(("a", "b"), (0,)), Choices(("c", "d", "e"), (0,))]
    assert _chance(varied) == pytest.approx((1 / 2 + 1 / 3) / 2)
    same = [Choices(("yes", "no"), (target,)) for target in (0, 0, 0, 1)]
    assert _chance(same) == 0.75
    turned = [Choices(("yes", "no"), (0,)), Choices(("no", "yes"), (0,))]
    assert _chance(turned) == 0.5
    assert _chance([None, None]) == 0.0
    assert _chance([]) == 0.0


def test_progress_bars_and_warnings_stay_out_of_the_log(model, tokenizer, cache, capfd):
    evaluate(model, tokenizer, ["quartz"], cache=cache)
    assert capfd.readouterr().err == ""


def test_bf16_forward(model, tokenizer, cache):
    exact = evaluate(model, tokenizer, ["quartz"], cache=cache).tasks["quartz"]
    rounded = evaluate(
        model, tokenizer, ["quartz"], cache=cache, forward=lambda: torch.autocast("cpu", torch.bfloat16)
    ).tasks["quartz"]
    assert rounded.correct_choice_bits_per_byte != exact.correct_choice_bits_per_byte
    assert rounded.correct_choice_bits_per_byte == pytest.approx(exact.correct_choice_bits_per_byte, rel=0.05)
