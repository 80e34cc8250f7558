"""Trackers get the records' own numbers, once, and words where there is no number."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import cli, mistakes
from bench.export import ExportError, entries, export
from tests.bench.report.study_folder import Folder, write


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write(tmp_path / "run", Folder(seeds=(0,), horizons=(1.0,), arms=(("moe", "component"),)))


def test_an_entry_holds_what_the_record_holds(run: Path) -> None:
    study = entries.read(run)
    dense = next(one for one in study.entries if one.labels["kind"] == "train" and one.labels["arm"] == "dense")
    assert dense.group == "dense/s"
    assert dense.metrics["val_loss"] > 0
    assert dense.units["val_loss"] == "nat/token"
    assert dense.missing["energy_j"] == "no RAPL in this VM"
    assert "energy_j" not in dense.metrics
    assert dense.curve
    assert study.outcomes.keys() == {"moe"}
    assert len({one.key for one in study.entries}) == len(study.entries)


def test_an_unknown_tracker_is_refused(run: Path) -> None:
    with pytest.raises(ExportError, match="allowed: mlflow, tensorboard, wandb"):
        export(run, "excel")


def test_a_tracker_that_is_not_installed_says_how_to_get_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "tensorboard":
            raise ImportError("No module named 'tensorboard'")
        return real(name, *rest, **more)

    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("bench.export.importlib.import_module", refuse)
    assert cli.main(["export", str(run), "--to", "tensorboard"]) == mistakes.INVALID
    assert "pip install 'lmbench-suite[tensorboard]'" in capsys.readouterr().err


def test_importing_the_package_imports_no_tracker() -> None:
    import subprocess

    program = "import sys, bench.api, bench.export; print({'mlflow', 'tensorboard', 'wandb'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_tensorboard_reads_back_what_was_written_and_nothing_is_written_twice(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    place = tmp_path / "events"
    for _ in range(2):
        assert "tensorboard --logdir" in export(run, "tensorboard", str(place))
    study = entries.read(run)
    written = sorted(place.rglob("events.out.tfevents.*"))
    assert len(written) == len(study.entries)
    dense = next(one for one in study.entries if one.labels["kind"] == "train" and one.labels["arm"] == "dense")
    (file,) = (path for path in written if dense.key in str(path))
    events = EventAccumulator(str(file.parent))
    events.Reload()
    losses = [(one.step, one.value) for one in events.Scalars("train_loss")]
    assert losses == [(point.tokens, pytest.approx(point.loss)) for point in dense.curve]
    (final,) = events.Scalars("final/val_loss")
    assert (final.step, final.value) == (dense.final_tokens, pytest.approx(dense.metrics["val_loss"]))
    assert "final/energy_j" not in events.Tags()["scalars"]


def test_a_folder_that_cannot_be_written_is_a_users_mistake(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ExportError, match="hint"):
        export(run, "tensorboard", str(tmp_path / "file" / "events"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_reads_back_from_a_real_store_what_was_written_and_nothing_is_written_twice(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow.tracking import MlflowClient

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    place = f"sqlite:///{tmp_path}/mlflow.db"
    for _ in range(2):
        assert place in export(run, "mlflow", place)
    client = MlflowClient(tracking_uri=place)
    study = entries.read(run)
    found = client.search_runs([client.get_experiment_by_name("quickstart").experiment_id])
    assert len(found) == len(study.entries) + 1
    dense = next(one for one in study.entries if one.labels["kind"] == "train" and one.labels["arm"] == "dense")
    (sent,) = (one for one in found if one.data.tags.get("lmbench.key") == dense.key)
    assert sent.data.metrics["val_loss"] == pytest.approx(dense.metrics["val_loss"])
    assert sent.data.params["arm"] == "dense"
    assert sent.data.tags["missing.energy_j"] == "no RAPL in this VM"
    assert "energy_j" not in sent.data.metrics
    history = client.get_metric_history(sent.info.run_id, "train_loss")
    assert [(one.step, one.value) for one in history] == [(p.tokens, pytest.approx(p.loss)) for p in dense.curve]
    (parent,) = (one for one in found if one.data.tags.get("lmbench.key", "").startswith("run "))
    assert sent.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.tags["outcome.moe"]
    assert {one.path for one in client.list_artifacts(parent.info.run_id)} == {path.name for path in study.files}
    assert list((tmp_path / "here").iterdir()) == [], "files lie beside the store, not where the program was called"
    assert (tmp_path / "mlartifacts").is_dir()


@pytest.mark.parametrize("place", ["bogus://x", "/proc/none", "http://127.0.0.1:1"])
def test_an_mlflow_that_is_not_there_is_a_users_mistake_and_takes_no_minutes(
    run: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # kept: what the user has set wins
    with pytest.raises(ExportError, match=f"mlflow at {place}.*hint: --at sqlite"):
        export(run, "mlflow", place)


def test_nothing_is_written_beside_a_run_folder_whose_name_ends_an_address(run: Path) -> None:
    pytest.importorskip("mlflow")
    odd = run.rename(run.with_name("odd?run"))
    with pytest.raises(ExportError, match="question mark; hint: --at"):
        export(odd, "mlflow")
    assert not [path.name for path in odd.parent.iterdir() if path != odd and path.name.startswith("odd")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_writes_offline_runs_and_nothing_twice(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    for _ in range(2):
        assert "wandb sync" in export(run, "wandb", str(tmp_path / "wb"))
    files = list((tmp_path / "wb").rglob("*.wandb"))
    assert len(files) == len(entries.read(run).entries)
    assert all(path.stat().st_size > 0 for path in files)
