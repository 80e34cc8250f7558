"""Every example of docs/suites.md does what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.design import Design
from bench.problems import format_problem
from bench.suite import Suite, check, load_suite
from tests.bench.small_suite import ROOT

PAGE = (ROOT / "docs" / "suites.md").read_text(encoding="utf-8")


def block(label: str) -> str:
    """The code of the one block with this label."""
    (code,) = re.findall(rf"```{label}\n(.*?)```", PAGE, re.DOTALL)
    return code


@pytest.fixture
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_in_folder")
def test_the_example_is_valid_and_the_program_runs(capsys: pytest.CaptureFixture[str]) -> None:
    Path("suite.yaml").write_text(block("yaml suite"))
    assert check("suite.yaml") == []
    exec(compile(block("python suite"), "docs/suites.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == ["8 488", "precision: bf16 -> fp32"]


@pytest.mark.usefixtures("_in_folder")
def test_the_broken_example_is_shown_as_printed() -> None:
    Path("suite.yaml").write_text(block("yaml broken"))
    shown = "\n".join(format_problem(problem) for problem in check("suite.yaml"))
    assert shown + "\n" == block("text broken")


def test_every_key_of_a_suite_is_in_the_table() -> None:
    table = PAGE[PAGE.index("| key | holds |") : PAGE.index("Every key has a default")]
    named = set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines() if "|" in line)))
    assert named == set(Suite.model_fields)


@pytest.mark.usefixtures("_in_folder")
def test_only_the_named_keys_are_required() -> None:
    Path("suite.yaml").write_text(
        "suite: a\ndata: {corpus: ['stdlib:']}\nbaseline: {}\narms: [{name: b, change: {tokens: 2M}}]\n"
        "over: {scale: [{name: s, layers: 1, width: 8, heads: 1, tokens: 1M}]}\n"
    )
    assert isinstance(load_suite("suite.yaml").design(), Design)
