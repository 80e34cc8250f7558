"""`lmbench init`: what it writes is valid, commented, of the size asked for and within the budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import calibrate
from bench import init as initiating
from bench.cli import main
from bench.estimate import Machine
from bench.init import NOMINAL_FLOPS_PER_S, init, learning_rate
from bench.plan import make_plan
from bench.problems import SuiteError
from bench.suite import Suite, check, load_suite
from lmopt import cost

EVALS = "pypi:evals==3.0.1.post1"


@pytest.fixture(autouse=True)
def _uncalibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "cached", lambda: None)


def made(folder: Path, *, data: str = EVALS, size: str = "1M", budget: str = "30min", name: str = "new.yaml") -> Suite:
    init(folder / name, data=data, size=size, budget=budget)
    assert check(folder / name) == []
    return load_suite(folder / name)


def parameters(suite: Suite) -> int:
    return cost.parameters(suite.resolve(suite.baseline.name, suite.over.scale[0].name)).total


@pytest.mark.parametrize(
    ("size", "wanted"),
    [("300k", 3e5), ("1M", 1e6), ("10M", 1e7), ("124M", 1.24e8), ("500M", 5e8), ("1B", 1e9), ("7B", 7e9)],
)
def test_the_model_has_the_size_asked_for(size: str, wanted: float, tmp_path: Path) -> None:
    suite = made(tmp_path, size=size)
    assert parameters(suite) == pytest.approx(wanted, rel=0.12)
    scale = suite.over.scale[0]
    assert 20 <= scale.width / scale.layers <= 100


def test_every_stanza_is_explained(tmp_path: Path) -> None:
    made(tmp_path)
    lines = (tmp_path / "new.yaml").read_text().splitlines()
    assert sum("#" in line for line in lines) >= 15
    assert "suite: new" in lines


def test_the_name_of_the_file_becomes_a_valid_name(tmp_path: Path) -> None:
    assert made(tmp_path, name="My First Suite!.yaml").suite == "my-first-suite"
    assert made(tmp_path, name="ünïcode.yml").suite == "n-code"
    assert made(tmp_path, name="!.yaml").suite == "suite"
    for name in ("2026", "true", "null", "1e5", "0.5"):  # which YAML reads as something else than a text
        assert made(tmp_path, name=f"{name}.yaml").suite == name


def test_a_folder_of_texts_is_a_source(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("a text")
    for number, data in enumerate((f"file:{texts}", str(texts))):
        assert made(tmp_path, data=data, name=f"{number}.yaml").data.corpus[0].source == f"file:{texts}"


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    assert made(tmp_path, name="a/b/c.yaml").suite == "c"


def flops(suite: Suite) -> float:
    plan = make_plan(suite, Machine(machine_class="any"))
    return sum(case.estimate.train_flops or 0.0 for case in plan.cases)


def test_the_budget_bounds_the_study(tmp_path: Path) -> None:
    small = made(tmp_path, budget="1e14 FLOP", name="small.yaml")
    large = made(tmp_path, budget="1e15 FLOP", name="large.yaml")
    assert 0.9e14 < flops(small) <= 1e14
    assert 0.95e15 < flops(large) <= 1e15
    hours = made(tmp_path, size="10M", budget="3h", name="hours.yaml")
    assert flops(hours) <= 3 * 3600 * NOMINAL_FLOPS_PER_S
    assert hours.budget == "3h"


def test_a_large_budget_stops_at_enough_tokens(tmp_path: Path) -> None:
    suite = made(tmp_path, budget="1000d")
    assert suite.over.scale[0].tokens == pytest.approx(20 * parameters(suite), rel=0.01)


def test_a_tiny_budget_still_trains_some_steps(tmp_path: Path) -> None:
    suite = made(tmp_path, budget="1s")
    assert suite.resolve("dense", suite.over.scale[0].name).steps(1.0) == initiating.MIN_STEPS


def test_a_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("it's mine.txt").write_text("text")
    assert made(tmp_path, data="it's mine.txt").data.corpus[0].source == "file:it's mine.txt"


def test_a_hub_data_set_gets_a_limit(tmp_path: Path) -> None:
    (corpus,) = made(tmp_path, data="hf:HuggingFaceFW/fineweb-edu").data.corpus
    assert corpus.limit == 200_000_000


@pytest.mark.parametrize(
    ("answer", "flag", "message"),
    [
        ({"size": "huge"}, "--size", "is not a count"),
        ({"size": "10"}, "--size", "allowed: 200k to 175B parameters"),
        ({"size": "1.5"}, "--size", "not a whole number"),
        ({"budget": "soon"}, "--budget", "is not understood"),
        ({"budget": "-3h"}, "--budget", "must be more than 0"),
        ({"data": "text"}, "--data", "is not a source"),
        ({"data": "./nowhere.txt"}, "--data", "no such file"),
        ({"data": "pypi:evals"}, "--data", "not a source of the form pypi:NAME==VERSION"),
        ({"data": "file:a\nb"}, "--data", "no such file"),
    ],
)
def test_a_wrong_answer_names_its_flag_and_writes_nothing(
    answer: dict[str, str], flag: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SuiteError, match=message) as caught:
        made(tmp_path, **answer)
    assert caught.value.problems[0].file == flag
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text("mine")
    with pytest.raises(SuiteError, match="exists already"):
        made(tmp_path)
    assert (tmp_path / "new.yaml").read_text() == "mine"


def test_larger_models_learn_at_lower_rates() -> None:
    rates = [learning_rate(10**n) for n in range(5, 13)]
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(124_000_000) == pytest.approx(6.4e-4)
    assert min(rates) >= 1e-4


def test_a_budget_of_plain_seconds_is_written_with_its_unit(tmp_path: Path) -> None:
    assert made(tmp_path, budget="1800").budget == "1800s"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "-5min"], "budget '-5min' must be more than 0"),
        (["--budget=-5min"], "budget '-5min' must be more than 0"),
        (["--size", "-3M"], "-3M parameters; allowed: "),
    ],
)
def test_a_value_that_begins_with_a_minus_is_read_as_one(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(tmp_path / "new.yaml"), *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "hint: " in said
