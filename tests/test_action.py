"""The GitHub Action and the GitLab snippet: well-formed, and nothing of an input becomes part of a script."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent


def action() -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load((ROOT / "action.yml").read_text())


def scripts() -> dict[str, str]:
    return {step["name"]: step["run"] for step in action()["runs"]["steps"] if "run" in step}


def test_every_input_has_a_description_and_every_script_a_shell() -> None:
    found = action()
    assert found["runs"]["using"] == "composite"
    assert all(one.get("description") for one in (*found["inputs"].values(), *found["outputs"].values()))
    assert all(step["shell"] == "bash" for step in found["runs"]["steps"] if "run" in step)


@pytest.mark.parametrize("name", ["Install", "Run", "Gate", "Comment"])
def test_no_expression_stands_inside_a_script(name: str) -> None:
    assert "${{" not in scripts()[name], "hand it over as an environment variable"
    subprocess.run(["bash", "-n", "-c", scripts()[name]], check=True)


@pytest.mark.parametrize(
    ("exit_code", "outcome"), [(0, "pass"), (1, "regressed"), (3, "could not measure"), (2, "could not measure")]
)
def test_the_gates_exit_code_becomes_the_outcome_and_fails_the_step(
    exit_code: int, outcome: str, tmp_path: Path
) -> None:
    program = tmp_path / "lmbench" / "bin" / "lmbench"
    program.parent.mkdir(parents=True)
    program.write_text(
        f'#!/bin/bash\necho "$@" > {tmp_path}/asked\necho "| gate |" > {tmp_path}/gate.md\nexit {exit_code}\n'
    )
    program.chmod(0o755)
    environment = os.environ | {
        "RUNNER_TEMP": str(tmp_path), "FOLDER": str(tmp_path), "BASELINE": "b.json; touch pwned",
        "GITHUB_OUTPUT": str(tmp_path / "output"), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
    }  # fmt: skip
    done = subprocess.run(["bash", "-e", "-c", scripts()["Gate"]], env=environment, cwd=tmp_path, check=False)
    assert done.returncode == exit_code
    assert (tmp_path / "output").read_text().strip() == f"outcome={outcome}"
    assert "| gate |" in (tmp_path / "summary").read_text()
    assert "--baseline b.json; touch pwned" in (tmp_path / "asked").read_text()
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(("exit_code", "goes_on"), [(0, True), (4, True), (2, False), (5, False)])
def test_a_failed_case_is_left_to_the_gate_and_an_invalid_suite_is_not(
    exit_code: int, goes_on: bool, tmp_path: Path
) -> None:
    program = tmp_path / "lmbench" / "bin" / "lmbench"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/bash\nexit {exit_code}\n")
    program.chmod(0o755)
    environment = os.environ | {"RUNNER_TEMP": str(tmp_path), "SUITE": "s.yaml", "BUDGET": "",
                                "GITHUB_OUTPUT": str(tmp_path / "output")}  # fmt: skip
    done = subprocess.run(["bash", "-e", "-c", scripts()["Run"]], env=environment, cwd=tmp_path, check=False)
    assert (done.returncode == 0) == goes_on
    assert "folder=" in (tmp_path / "output").read_text(), "what a broken run left is not kept"


def test_suites_of_one_job_share_neither_folder_nor_artifact(tmp_path: Path) -> None:
    program = tmp_path / "lmbench" / "bin" / "lmbench"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/bash\ntest -d "$4" && touch "$4/records.jsonl" && echo "$4" >> {tmp_path}/folders\n')
    program.chmod(0o755)
    names: list[str] = []
    for suite in ("suites/one.yaml", "suites/two: 2.yaml"):
        output = tmp_path / "output"
        environment = os.environ | {"RUNNER_TEMP": str(tmp_path), "SUITE": suite, "BUDGET": "",
                                    "GITHUB_OUTPUT": str(output)}  # fmt: skip
        subprocess.run(["bash", "-e", "-c", scripts()["Run"]], env=environment, cwd=tmp_path, check=True)
        told = dict(line.split("=", 1) for line in output.read_text().splitlines())
        assert (Path(told["folder"]) / "records.jsonl").exists()
        names.append(told["artifact"])
        output.unlink()
    assert names == ["lmbench-run-suites-one.yaml", "lmbench-run-suites-two--2.yaml"]
    assert len(set((tmp_path / "folders").read_text().split())) == 2
    (kept,) = (step for step in action()["runs"]["steps"] if step.get("name") == "Keep the records")
    assert kept["with"]["name"] == "${{ steps.run.outputs.artifact }}"


def test_the_jobs_in_the_documents_are_yaml() -> None:
    blocks = re.findall(r"```yml\n(.*?)```", (ROOT / "docs" / "ci.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert YAML(typ="safe", pure=True).load(block)


@pytest.mark.parametrize(
    ("known", "asked"), [("", "POST repos/o/r/issues/7/comments"), ("42\n43", "PATCH repos/o/r/issues/comments/42")]
)
def test_a_suite_has_one_comment_of_its_own(known: str, asked: str, tmp_path: Path) -> None:
    (tmp_path / "gate.md").write_text("| gate |\n")
    program = tmp_path / "gh"
    program.write_text('#!/bin/bash\nif [[ "$*" == *--jq* ]]; then printf %s "$KNOWN"; else echo "$4 $5" > asked; fi\n')
    program.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "FOLDER": str(tmp_path), "GITHUB_REPOSITORY": "o/r", "PULL": "7",
        "MARK": "<!-- lmbench gate of s.yaml -->", "KNOWN": known,
    }  # fmt: skip
    subprocess.run(["bash", "-e", "-c", scripts()["Comment"]], env=environment, cwd=tmp_path, check=True)
    assert (tmp_path / "asked").read_text().strip() == asked
    assert (tmp_path / "comment.md").read_text() == "<!-- lmbench gate of s.yaml -->\n\n| gate |\n"
