"""A fine-tuning as the child does it: learns, chooses, tests on other questions, and continues to the same bits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import finetune, interruption, workloads
from bench.case import Case, identify
from bench.casefolder import Job, Outcome
from bench.evaluate import items as item_tables
from bench.evaluate import loading, practice, splits
from bench.evaluate.sets import Item
from bench.interruption import Interrupted
from lmopt.data import tokenizer as bpe
from lmopt.data.spec import Bpe
from lmopt.recipe import Recipe
from lmopt.step import Step
from lmopt.train import checkpoint, loop
from lmopt.train.loop import Diverged, TrainState

COLOURS = ("red", "blue")


def question(number: int) -> Item:
    """The answer is the word that stands in the question: a model that learns anything learns this."""
    colour = number % 2
    return Item(str(number), None, f"Stone {number} is {COLOURS[colour]}. Its colour is", COLOURS, colour)


ITEMS = [question(number) for number in range(600)]


@pytest.fixture(autouse=True)
def _small_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("LMBENCH_CACHE", str(tmp_path / "cache"))

    def items(name: str, *, limit: int | None = None, **_: Any) -> list[Item]:
        assert name == "quartz"
        return ITEMS[:limit]

    monkeypatch.setattr(practice, "items", items)
    monkeypatch.setattr(loading, "items", items)
    monkeypatch.setattr(interruption.requested, "is_set", lambda: False)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A fine-tuning of a model that was never trained."""
    model = {"layers": 1, "width": 32, "heads": 2, "vocab": 300, "context": 32}
    batching = {"kind": "packed", "sequences": 2, "length": 32}
    recipe = Recipe.model_validate(
        {"model": model, "precision": {"kind": "fp32"}, "batching": batching, "tokens": 64 * 60}
    )
    corpus = tmp_path / "corpus" / "data"
    corpus.mkdir(parents=True)
    bpe.train([item.context + " red blue" for item in ITEMS], Bpe(vocab=300)).save(str(corpus / "tokenizer.json"))
    checkpoint.save_model(loop.start(recipe, seed=0).model, recipe, tmp_path / "train" / "model")
    case = identify(
        Case(id="", kind="finetune", arm="dense", scale="s", seed=3, horizon=1.0, parents=("a" * 16, "b" * 16),
             purpose="finetune", recipe=recipe,
             spec={"task": "quartz", "learn": [], "test_share": 0.5, "limit": None, "rates": [1e-5, 1e-2]})
    )  # fmt: skip
    return Job(case=case, parents={"a" * 16: str(tmp_path / "train"), "b" * 16: str(tmp_path / "corpus")})


def run(job: Job, folder: Path) -> Outcome:
    folder.mkdir(exist_ok=True)
    return finetune.finetune(job, folder)


def test_it_learns_at_the_better_rate_and_is_tested_on_questions_that_it_never_saw(job: Job, tmp_path: Path) -> None:
    outcome = run(job, tmp_path / "case")
    assert outcome.status == "ok"
    told = outcome.detail["finetune"]
    assert told["chosen"] == 1e-2
    assert [one["lr"] for one in told["trials"]] == [1e-5, 1e-2]
    assert {one["tokens"] for one in told["trials"]} == {64 * 60}
    assert outcome.metrics["accuracy/quartz-finetuned"].value == pytest.approx(1.0, abs=0.05)
    facts = outcome.detail["tasks"]["quartz-finetuned"]
    assert facts["family"] == "qa"
    tested = splits.tested(ITEMS, 0.5)
    assert facts["n"] == len(tested)
    rows = item_tables.read(tmp_path / "case" / "items.parquet", expect_sha256=outcome.detail["items_sha256"])
    assert {row.item for row in rows} == {item.id for item in tested}
    assert {row.task for row in rows} == {"quartz-finetuned"}
    counts = outcome.detail["counts"]
    assert counts["agree"] is True
    assert outcome.metrics["train_flops"].value == pytest.approx(2 * 64 * 60 * counts["train"]["closed"] / 32, rel=5e-3)
    assert outcome.segments == 1


def test_stopped_at_any_moment_it_continues_to_the_same_bits(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(job, tmp_path / "whole")
    asked = iter(n in (20, 21, 100, 101) for n in range(10**6))  # in the first trial, then in the second
    monkeypatch.setattr(interruption.requested, "is_set", lambda: next(asked))
    for _ in range(2):
        with pytest.raises(Interrupted):
            run(job, tmp_path / "broken")
    broken = run(job, tmp_path / "broken")
    assert broken.segments == 3
    assert broken.detail["items_sha256"] == whole.detail["items_sha256"]
    for one, other in zip(broken.detail["finetune"]["trials"], whole.detail["finetune"]["trials"], strict=True):
        assert {name: one[name] for name in ("lr", "accuracy", "nats", "tokens", "steps")} == {
            name: other[name] for name in ("lr", "accuracy", "nats", "tokens", "steps")
        }


def test_where_every_rate_diverges_the_model_is_tested_as_it_was(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(state: TrainState, _batches: Iterator[torch.Tensor]) -> Iterator[Step]:
        yield Step(1, 64, loss=9.0)
        raise Diverged(2, float("nan"), float("nan"))

    monkeypatch.setattr(workloads, "train", diverge)
    outcome = run(job, tmp_path / "case")
    assert outcome.status == "ok"
    told = outcome.detail["finetune"]
    assert told["chosen"] is None
    assert [one["accuracy"] for one in told["trials"]] == [None, None]
    assert outcome.metrics["train_flops"].value, "what it took until then is paid for"
    assert outcome.detail["tasks"]["quartz-finetuned"]["n"] == len(splits.tested(ITEMS, 0.5))


def test_a_set_that_cannot_be_had_is_not_measured(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> list[Item]:
        raise loading.NotAvailable("no network")

    monkeypatch.setattr(practice, "items", gone)
    outcome = run(job, tmp_path / "case")
    assert outcome.status == "ok"
    found = outcome.metrics["accuracy/quartz-finetuned"]
    assert (found.value, found.reason) == (None, "no network")
    assert json.loads(outcome.model_dump_json())["detail"] == {"tasks": {}}
