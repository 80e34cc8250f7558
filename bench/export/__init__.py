"""Records sent to an experiment tracker: optional, after the fact, and the same numbers as everywhere else.

A tracker is one file with `send(study, place) -> str` (where to look) and one line in the table. Its library is
imported when it is used. Sending a run again adds what is new and repeats nothing.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

from bench.export.entries import read


class ExportError(ValueError):
    """A tracker that is not known or not installed, or a place it cannot write to."""


@dataclass(frozen=True, slots=True)
class Tracker:
    """A line of the table."""

    module: str
    library: str
    """The import that must work."""
    extra: str
    """What brings it: `pip install 'lmbench-suite[EXTRA]'`."""
    place: str
    """Where it writes unless told otherwise; `{run}` is the run folder."""


TRACKERS: dict[str, Tracker] = {
    "mlflow": Tracker("bench.export.mlflow", "mlflow", "mlflow", "sqlite:///{run}/mlflow.db"),
    "tensorboard": Tracker("bench.export.tensorboard", "tensorboard", "tensorboard", "{run}/tensorboard"),
    "wandb": Tracker("bench.export.wandb", "wandb", "wandb", "{run}"),
}


def export(run: Path, to: str, place: str | None = None) -> str:
    """Send a run's records to a tracker; returns where to look.

    Args:
        to: `mlflow`, `tensorboard` or `wandb`.
        place: a tracking URI (MLflow) or a folder; default: inside the run folder.

    Raises:
        ExportError: the tracker is unknown, its library is not installed, or it cannot write there.
        StudyError, RecordError: the folder holds no run, or its records cannot be trusted.
    """
    tracker = TRACKERS.get(to)
    if tracker is None:
        raise ExportError(f"no tracker is called {to!r}; allowed: {', '.join(TRACKERS)}")
    study = read(run)
    try:
        importlib.import_module(tracker.library)
    except ImportError as error:
        raise ExportError(
            f"{to} is not installed ({error}); hint: pip install 'lmbench-suite[{tracker.extra}]'"
        ) from error
    inside = str(run.resolve())
    if place is None and "://" in tracker.place and "?" in inside:
        raise ExportError(f"{to} at {inside}: an address ends at a question mark; hint: --at a place without one")
    send = importlib.import_module(tracker.module).send
    return send(study, place or tracker.place.format(run=inside))
