"""Records that were written, hashed and are still impossible: an error that says so, never a verdict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.plausible import implausible
from bench.record import RecordError
from bench.study import StudyError
from bench.verdict import judge
from tests.bench.synthetic import make_run, synthesize

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path, saving=0.3, seeds=2, items=60)


def signed(fields: dict[str, Any]) -> str:
    """The line with the hash that belongs to it, as a program that errs would write it."""

    def canonical(value: dict[str, Any]) -> str:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    rest = {name: value for name, value in fields.items() if name != "sha256"}
    return canonical(rest | {"sha256": hashlib.sha256(canonical(rest).encode()).hexdigest()})


def change(run: Path, kind: str, how: Change) -> str:
    """Change the claim arm's first record of a kind; returns the id of its case."""
    path = run / "records.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    number = next(n for n, one in enumerate(records) if (one["case"]["kind"], one["case"]["arm"]) == (kind, "all"))
    how(records[number])
    path.write_text("".join(signed(one) + "\n" for one in records))
    return records[number]["case"]["id"]


def value(metric: str, to: Any) -> Change:
    return lambda record: record["metrics"][metric].update(value=to)


def facts(**to: Any) -> Change:
    return lambda record: [task.update(to) for task in record["detail"]["tasks"].values()]


@pytest.mark.parametrize(
    ("kind", "how", "error", "words"),
    [
        ("train", value("train_flops", 0), StudyError, "train_flops is 0, which cannot be"),
        ("train", value("train_flops", -1e12), StudyError, "train_flops is -1e+12, which cannot be"),
        ("train", value("val_loss", -3.0), StudyError, "val_loss is -3, which cannot be"),
        ("train", value("val_loss", 0), StudyError, "val_loss is 0, which cannot be"),
        ("train", value("energy_j", 1e200), StudyError, "energy_j is 1e+200, which cannot be"),
        ("train", value("val_loss", "3.0"), RecordError, "'3.0', expected a number or null"),
        ("train", value("val_loss", True), RecordError, "True, expected a number or null"),
        ("train", value("val_loss", float("nan")), RecordError, "NaN is not a number a record may hold"),
        ("train", lambda one: one["metrics"]["train_flops"].update(unit="TFLOP"), StudyError, "in 'TFLOP', expected"),
        ("train", lambda one: one["metrics"].pop("val_loss"), StudyError, "holds no val_loss"),
        ("train", lambda one: one["detail"].update(counts="yes"), StudyError, "its counts are a str"),
        ("train", lambda one: one.update(schema="1"), RecordError, "schema version '1'"),
        ("evaluate", lambda one: one["detail"].update(tasks=[1]), StudyError, "its tasks are a list"),
        ("evaluate", facts(chance=None), StudyError, "chance level is None"),
        ("evaluate", facts(family="maths"), StudyError, "family 'maths'"),
        ("evaluate", value("accuracy/quartz", 1.2), StudyError, "expected a share from 0 to 1"),
        ("evaluate", value("accuracy/quartz", 0.99), StudyError, "states accuracy/quartz 0.99, its items give"),
        ("evaluate", lambda one: one["detail"].pop("items_sha256"), StudyError, "holds no hash of it"),
    ],
)
def test_the_impossible_is_an_error(run: Path, kind: str, how: Change, error: type[Exception], words: str) -> None:
    change(run, kind, how)
    with pytest.raises(error) as raised:
        judge(run)
    assert words in str(raised.value)
    assert "hint:" in str(raised.value) or "expected" in str(raised.value)


@pytest.mark.parametrize("score", [float("nan"), 7.0, -1.0])
def test_scores_that_are_none_are_an_error(run: Path, score: float) -> None:
    def with_scores(record: dict[str, Any]) -> None:
        path = run / "cases" / record["case"]["id"] / "items.parquet"
        table = pq.read_table(path)
        scores = [score, *table.column("score").to_pylist()[1:]]
        pq.write_table(table.set_column(table.column_names.index("score"), "score", pa.array(scores)), path)
        record["detail"]["items_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()

    change(run, "evaluate", with_scores)
    with pytest.raises(StudyError, match=r"no number from 0 to 1.*remove the case's line"):
        judge(run)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"blocks": [{"arm_s": 1.0}, "x"]}, "no list of mappings"),
        ({"blocks": "fast"}, "no list of mappings"),
        ({"blocks": [{"arm_s": "fast"}]}, "a block's arm_s is 'fast'"),
        ({"tokens": "many"}, "its tokens are 'many'"),
        ({"tokens_per_step": True}, "its tokens_per_step are True"),
        ({"blocks": [{"arm_s": 1, "arm_j": None}], "tokens": 5, "anything": [1, {}]}, None),
    ],
)
def test_blocks_and_tokens_are_numbers(written, words):
    record = synthesize(saving=0.3, seeds=2, items=0).records[0]
    found = implausible(record.model_copy(update={"detail": {**record.detail, **written}}))
    assert found is None if words is None else words in (found or "")
