"""The command line beside its commands: help, version, exit codes, and how messages stand on a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cli import main
from bench.executors.local import ServerGone
from bench.explain import UnknownArm
from bench.fold import fold
from bench.mistakes import code_of, words
from bench.study import StudyError
from tests.bench.synthetic import make_run


def test_the_help_says_what_every_exit_code_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    for code in (0, 1, 2, 3, 4, 5, 130):
        assert f"\n  {code} " in shown


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.startswith("lmbench 0.")


@pytest.mark.parametrize(
    "message", ["it is not; hint: do that", "it is not\nhint: do that", "it is not\n  hint: do that"]
)
def test_a_hint_has_a_line_of_its_own(message: str) -> None:
    assert words(StudyError(message)) == "it is not\n  hint: do that"


def test_a_mistake_in_the_command_is_told_from_a_study_without_a_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(make_run(tmp_path / "run", items=0))
    assert main(["explain", run, "nosuch"]) == 2
    assert main(["compare", run]) == 2
    assert main(["explain", str(tmp_path / "nowhere"), "all"]) == 3
    assert "\n  hint: one of dense, fp32" in capsys.readouterr().err


@pytest.mark.parametrize(("mistake", "code"), [(ServerGone("it died"), 2), (UnknownArm("x"), 2), (StudyError("x"), 3)])
def test_a_special_case_of_a_mistake_is_one_too(mistake: Exception, code: int) -> None:
    assert code_of(mistake) == code


def test_a_fault_of_the_program_has_no_code_and_so_keeps_its_traceback() -> None:
    assert code_of(ValueError("x")) is None


def test_long_lines_are_folded_under_their_last_column() -> None:
    table = "arm   role   change\nmoe   claim  " + "word " * 20
    lines = fold(table, 50).split("\n")
    assert lines[0] == "arm   role   change"
    assert all(len(line) <= 50 for line in lines)
    assert all(line.startswith(" " * 13 + "word") for line in lines[2:])
    assert " ".join(lines).split() == table.split()


def test_sentences_are_folded_a_little_within_their_indent() -> None:
    lines = fold("  [met] saving: " + "word " * 20, 40).split("\n")
    assert all(line.startswith("    word") for line in lines[1:])
    assert fold("word " * 20, 40).split("\n")[1].startswith("  word")
    assert fold("x" * 90 + "\n", 40) == "x" * 90 + "\n"
    assert fold("train moe/s  " + "0 " * 40 + "  506 KiB", 40).count("\n") == 0
