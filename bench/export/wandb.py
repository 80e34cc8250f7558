"""To Weights & Biases, offline: a run a record, grouped by arm and scale, in a folder that `wandb sync` uploads.

Nothing leaves this machine: whoever wants the runs in the cloud syncs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.export import ExportError
from bench.export.entries import Entry, Study


def send(study: Study, place: str) -> str:
    """Write offline runs under `place`/wandb; a record that is there already is left alone."""
    root = Path(place)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"wandb at {place}: {error}; hint: --at a folder that can be written") from error
    for entry in study.entries:
        if not list(root.glob(f"wandb/offline-run-*-{entry.key}/*.wandb")):
            _send_entry(study, entry, root)
    return f"wandb sync {root}/wandb/offline-run-*"


def _send_entry(study: Study, entry: Entry, root: Path) -> None:
    import wandb

    settings = wandb.Settings(mode="offline", silent=True, console="off", disable_git=True, x_disable_stats=True)
    run: Any = wandb.init(
        project=study.suite,
        group=entry.group,
        job_type=entry.labels["kind"],
        name=entry.name,
        id=entry.key,
        dir=str(root),
        config={**entry.labels, "units": dict(entry.units), "missing": dict(entry.missing)},
        settings=settings,
    )
    run.define_metric("*", step_metric="tokens")
    for point in entry.curve:
        run.log({"tokens": point.tokens, "train_loss": point.loss, "seconds": point.seconds})
    run.summary.update(dict(entry.metrics))
    run.finish()
