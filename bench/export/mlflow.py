"""To MLflow: an experiment a suite, a run a record, under one parent a run folder; loss curves step by token.

A record is recognised by its key, so that a second export adds only what is new.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.export import ExportError
from bench.export.entries import Entry, Study

KEY = "lmbench.key"
PARENT = "mlflow.parentRunId"
FEW_RETRIES = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
"""How often a server that does not answer is asked again, unless the user says so: MLflow's own seven take minutes."""
BATCH = 1000
"""Metrics MLflow takes in one call."""
PARAMETER_LENGTH = 500
"""Longest text that is sent as a tag: MLflow's smallest limit."""


def send(study: Study, place: str) -> str:
    """Write to the tracking server or store at the URI `place`."""
    os.environ.setdefault(*FEW_RETRIES)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        client: Any = MlflowClient(tracking_uri=place)
        found = client.get_experiment_by_name(study.suite)
        experiment: str = (
            found.experiment_id if found else client.create_experiment(study.suite, artifact_location=_artifacts(place))
        )
        known = set(_keys(client, experiment))
        parent = _parent(client, experiment, study)
        for entry in study.entries:
            if entry.key not in known:
                _send_entry(client, experiment, parent, entry)
    except (MlflowException, OSError, ImportError) as error:
        raise ExportError(f"mlflow at {place}: {error}; hint: --at sqlite:///FILE, or the URI of a server") from error
    return f"mlflow ui --backend-store-uri {place}"


def _artifacts(place: str) -> str | None:
    """Where files go: beside a database that is a file, where MLflow would take the current folder; a server knows."""
    _, is_file, path = place.partition("sqlite:///")
    return (Path(path).resolve().parent / "mlartifacts").as_uri() if is_file else None


def _keys(client: Any, experiment: str) -> Iterator[str]:
    """Keys of all runs that are there already."""
    page: str | None = None
    while True:
        runs = client.search_runs([experiment], filter_string="", page_token=page)
        yield from (run.data.tags.get(KEY, "") for run in runs)
        page = runs.token
        if not page:
            return


def _parent(client: Any, experiment: str, study: Study) -> str:
    """The run that stands for the run folder, made or found; it carries the outcomes and the files."""
    key = f"run {study.run}"
    there = client.search_runs([experiment], filter_string=f"tags.`{KEY}` = '{key}'", max_results=1)
    if there:
        parent: str = there[0].info.run_id
    else:
        parent = client.create_run(experiment, tags={KEY: key}, run_name=study.run).info.run_id
    for arm, outcome in study.outcomes.items():
        client.set_tag(parent, f"outcome.{arm}", outcome)
    for path in study.files:
        client.log_artifact(parent, str(path))
    client.set_terminated(parent)
    return parent


def _send_entry(client: Any, experiment: str, parent: str, entry: Entry) -> None:
    from mlflow.entities import Metric, Param, RunTag

    run = client.create_run(experiment, tags={PARENT: parent}, run_name=entry.name).info.run_id
    metrics = [Metric(name, value, 0, entry.final_tokens) for name, value in entry.metrics.items()]
    metrics += [Metric("train_loss", point.loss, 0, point.tokens) for point in entry.curve]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run, metrics=metrics[start : start + BATCH])
    named = {"case", "kind", "arm", "scale", "seed", "horizon", "change"}
    client.log_batch(
        run,
        params=[Param(name, text[:PARAMETER_LENGTH]) for name, text in entry.labels.items() if name in named],
        tags=[
            *(RunTag(name, text[:PARAMETER_LENGTH]) for name, text in entry.labels.items() if name not in named),
            *(RunTag(f"unit.{name}", unit) for name, unit in entry.units.items()),
            *(RunTag(f"missing.{name}", reason[:PARAMETER_LENGTH]) for name, reason in entry.missing.items()),
        ],
    )
    client.set_tag(run, KEY, entry.key)  # last: a run that was cut short is sent again, not taken for done
    client.set_terminated(run)
