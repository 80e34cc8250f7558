"""Suites, records, checkpoints and reports are data: nothing in them is executed, nothing escapes its folder."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "bench").rglob("*.py"), *(ROOT / "lmopt").rglob("*.py")])

FORBIDDEN = {
    "eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "dill.loads", "joblib.load",
    "shelve.open", "marshal.loads", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system",
    "os.popen", "torch.hub.load",
}  # fmt: skip
"""Calls that run what they read."""


def calls() -> Iterator[tuple[Path, ast.Call, str]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path, node, ast.unparse(node.func)


def test_the_program_reads_nothing_that_could_run() -> None:
    found = [(str(path.relative_to(ROOT)), name) for path, _, name in calls() if name in FORBIDDEN]
    assert found == []


def test_no_switch_that_lets_data_run_is_on() -> None:
    """`shell=True`, `allow_pickle=True`, `weights_only=False`, and remote code of a model without being asked for."""
    switches = {"shell": True, "allow_pickle": True, "weights_only": False, "trust_remote_code": True}
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {word.arg}"
        for path, node, _ in calls()
        for word in node.keywords
        if word.arg in switches and isinstance(word.value, ast.Constant) and word.value.value is switches[word.arg]
    ]
    assert found == []


# --- suites --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.system ['touch pwned']", "!!python/object/new:os.system ['touch pwned']",
     "!!python/name:os.system", "!!python/module:antigravity", "!!python/object:os.system {}",
     "!!js/function 'touch pwned'", "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch pwned']",
     "!!binary cHduZWQ=", "!ruby/object:Gem::Installer {}"],
)  # fmt: skip
@pytest.mark.parametrize("where", ["suite: {}", "about: {}", "data: {{corpus: [{}]}}", "arms: [{{change: {}}}]"])
def test_no_tag_of_yaml_is_obeyed(tag: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.suite import check

    monkeypatch.chdir(tmp_path)
    path = tmp_path / "suite.yaml"
    path.write_text(where.format(tag) + "\n")
    assert check(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["../up", "/etc/x", "a/b", "..", ".hidden", "a\\b", "a\x00b", "C:x"])
@pytest.mark.parametrize("where", ["suite: NAME", "arms: [{name: NAME}]", "over: {scale: [{name: NAME}]}"])
def test_no_name_in_a_suite_is_a_path(name: str, where: str, tmp_path: Path) -> None:
    from bench.suite import check

    path = tmp_path / "suite.yaml"
    path.write_text(where.replace("NAME", json.dumps(name)) + "\n")
    assert any(
        "match" in problem.message or "name" in problem.message or "character" in problem.message
        for problem in check(path)
    ), [problem.message for problem in check(path)]


# --- records and plans ---------------------------------------------------------------------------


@pytest.mark.parametrize("identity", ["../../../etc/passwd", "/etc/passwd", "0" * 15, "g" * 16, "0" * 16 + "\n"])
def test_no_case_of_a_record_is_a_path(identity: str) -> None:
    from pydantic import ValidationError

    from bench.record import CaseKey

    with pytest.raises(ValidationError):
        CaseKey(id=identity, kind="train", arm="dense")


@pytest.mark.parametrize("place", ["arm", "scale"])
def test_no_name_in_a_plan_is_a_path(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bench import cli, mistakes
    from bench.record import read, to_line
    from tests.bench.report.study_folder import write

    folder = write(tmp_path / "deep" / "run")
    records = [
        one.model_copy(update={"case": one.case.model_copy(update={place: "../../../out"}), "sha256": None})
        for one in read(folder / "records.jsonl")
    ]
    (folder / "records.jsonl").write_text("".join(to_line(one) + "\n" for one in records))
    plan = json.loads((folder / "plan.json").read_text())
    for case in plan["cases"]:
        case[place] = "../../../out"
    (folder / "plan.json").write_text(json.dumps(plan))
    assert cli.main(["export", str(folder), "--to", "tensorboard"]) == mistakes.NOTHING
    assert f".{place}: String should match pattern" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


# --- checkpoints ---------------------------------------------------------------------------------


class Bomb:
    """Unpickling it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("victim", ["model.safetensors", "optimizer.safetensors"])
def test_a_pickle_in_a_checkpoint_is_refused_even_with_the_right_hash(victim: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from lmopt.recipe import Recipe
    from lmopt.train import checkpoint, loop

    recipe = Recipe.model_validate(
        {"model": {"layers": 1, "width": 16, "heads": 1, "vocab": 16, "context": 8}, "tokens": 64,
         "batching": {"sequences": 1, "length": 8}}
    )  # fmt: skip
    place = checkpoint.save(loop.start(recipe, seed=0), tmp_path / "checkpoint")
    (place / victim).write_bytes(pickle.dumps(Bomb(tmp_path / "pwned")))
    description = json.loads((place / "checkpoint.json").read_text())
    description["files"][victim]["sha256"] = hashlib.sha256((place / victim).read_bytes()).hexdigest()
    del description["schema"], description["sha256"]
    checkpoint.describe(place, description)
    with pytest.raises(checkpoint.CheckpointError, match="not a safetensors file"):
        checkpoint.load(tmp_path / "checkpoint", recipe)
    assert not (tmp_path / "pwned").exists()


# --- reports -------------------------------------------------------------------------------------


def test_a_report_runs_its_own_script_and_no_other(tmp_path: Path) -> None:
    """Hostile names and reasons are escaped (tests/bench/report); a browser would refuse them even if they were not."""
    from bench.report.html import render
    from bench.report.page import compose
    from bench.report.runfolder import load
    from tests.bench.report.study_folder import Folder, write

    page = render(compose(load(write(tmp_path / "run", Folder(about="<script>alert(1)</script>")))))
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.S)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert f"sha256-{digest}" in policy[1].replace("&#43;", "+").replace("&#39;", "'").replace("&#61;", "=")
    assert "default-src" in policy[1]
