"""Runs from a folder whose modules have the names of libraries: data, of which nothing is run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lmopt import children
from tests.bench.test_executors import WORKER, ended, job

NAMES = ("json", "queue", "torch", "numpy", "yaml", "tokenizers", "struct", "selectors", "pyarrow", "psutil", "bench",
         "lmopt", "submitit", "ray", "sitecustomize")  # fmt: skip
POISON = "import pathlib\npathlib.Path(__file__).with_name('marker').write_text(__name__)\nraise SystemExit(9)\n"
SUITE = """
suite: strange
about: A suite in a folder of a stranger.
purpose: selftest
data:
  corpus: [{source: "file:text.jsonl"}]
  validation: [{kind: holdout, share: 0.1}]
  tokenizer: {vocab: 300}
baseline: {name: dense, recipe: {batching: {sequences: 4, length: 32}}}
arms: [{name: chosen, timed: false, change: {data: [{kind: classifier, function: "named_hook:score", min_score: 0}]}}]
over:
  scale: [{name: xs, layers: 1, width: 32, heads: 2, tokens: 3000, context: 32}]
  seed: [0]
  horizon: [1.0]
"""
HOOK = "import named_helper\n\n\ndef score(texts):\n    return [named_helper.SCORE] * len(texts)\n"


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    folder = tmp_path / "strange"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(POISON)
    return folder


def program(tmp_path: Path, text: str) -> list[str]:
    """A script in a folder of its own, as the console script `lmbench` is."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    path = tmp_path / "bin" / "program"
    path.write_text(text)
    return [sys.executable, str(path)]


def ran(command: list[str], folder: Path, **environment: str) -> str:
    """Standard output of a program that must succeed, run in `folder`."""
    known = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    known |= {"PYTHONPATH": str(children.ROOT), "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True, timeout=900, check=False)
    assert not (folder / "marker").exists(), f"{(folder / 'marker').read_text()} was run: {done.stderr}"
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_suite_beside_modules_with_the_names_of_libraries_runs_none_of_them_but_its_hook(
    tmp_path: Path, strange: Path
) -> None:
    draw = random.Random(0)
    words = ("the", "a", "cat", "dog", "sees", "hears", "walks", "under", "near", "house", "tree", "river", "slowly")
    texts = (json.dumps({"text": " ".join(draw.choices(words, k=60)) + "."}) for _ in range(400))
    (strange / "text.jsonl").write_text("\n".join(texts))
    (strange / "suite.yaml").write_text(SUITE)
    (strange / "named_hook.py").write_text(HOOK)
    (strange / "named_helper.py").write_text("SCORE = 0.5\n")
    lmbench = program(tmp_path, "import sys\nfrom bench.cli import main\nsys.exit(main())\n")
    out = ran([*lmbench, "run", "suite.yaml", "--out", "run"], strange, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert out.strip() == "run"
    records = [json.loads(line) for line in (strange / "run" / "records.jsonl").read_text().splitlines()]
    assert {record["status"] for record in records} == {"ok"}
    assert list(tmp_path.glob("cache/lmbench/calibration-*.json")), "the machine was calibrated there too"


def test_worker_processes_of_data_steps_import_nothing_from_there(tmp_path: Path, strange: Path) -> None:
    text = (
        "import os\nfrom lmopt.data import workers\n\n\ndef look(batch):\n    return [len(one) for one in batch]\n\n\n"
        "if __name__ == '__main__':\n"
        "    with workers.processes(1) as mapper:\n"
        "        print([found for _, found in mapper(look, [['a', 'bc']])], 'PYTHONSAFEPATH' in os.environ)\n"
        "    print('PYTHONSAFEPATH' in os.environ)\n"
    )
    assert ran(program(tmp_path, text), strange) == "[[1, 2]] True\nFalse\n", "and the environment is as it was"


def test_an_attended_case_imports_nothing_from_there(
    tmp_path: Path, strange: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.executors import attend

    monkeypatch.chdir(strange)
    folder = job(tmp_path / "a", "print")
    assert attend.attend(WORKER, str(folder), attend.prepare(folder)) == (0, None)
    assert not (strange / "marker").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_submitted_jobs_import_nothing_from_there(
    tmp_path: Path, strange: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    from bench.executors.slurm import SlurmExecutor

    monkeypatch.chdir(strange)
    executor = SlurmExecutor(tmp_path / "slurm", cluster="local", worker=WORKER)
    assert ended(executor.start(job(tmp_path / "a", "print"))).code == 0
    assert ended(executor.start(job(tmp_path / "b", "die"))).signal == signal.SIGKILL
    executor.close()
    assert not (strange / "marker").exists()


def test_a_script_of_slurm_says_it_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    import shutil

    from bench.executors.slurm import SlurmExecutor

    def found(name: str, *_: object, **__: object) -> str | None:
        return f"/usr/bin/{name}" if name in ("srun", "sbatch") else None

    monkeypatch.setattr(shutil, "which", found)
    executor = SlurmExecutor(tmp_path, cluster="slurm")
    assert " -P -u -m submitit.core._submit " in executor._executor._executor._submitit_command_str


@pytest.mark.slow
def test_workers_of_a_ray_cluster_import_nothing_from_there(tmp_path: Path, strange: Path) -> None:
    pytest.importorskip("ray")
    text = (
        "import os, sys, time\nfrom pathlib import Path\nfrom bench.executors.ray import RayExecutor\n"
        f"executor = RayExecutor(worker={WORKER!r})\n"
        "running = executor.start(Path(sys.argv[1]))\n"
        "while (end := running.poll()) is None:\n    time.sleep(0.1)\n"
        "executor.close()\nprint(end.code, os.getcwd())\n"
    )
    case = job(tmp_path / "a", "print")
    assert ran([*program(tmp_path, text), str(case)], strange) == f"0 {strange}\n"
    assert "hello from the case" in (case / "log.txt").read_text()
    text = (
        "import os\nfrom lmopt.data import workers\n"
        "with workers.ray_cluster(workers=1) as mapper:\n"
        "    print([found for _, found in mapper(lambda batch: [os.getcwd() for _ in batch], [['a']])])\n"
    )
    assert ran(program(tmp_path, text), strange) == f"[[{str(strange)!r}]]\n"
