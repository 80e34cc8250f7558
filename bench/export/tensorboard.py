"""To TensorBoard: a folder a record, grouped by arm and scale; the loss curve and every metric over tokens."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

from bench.export import ExportError
from bench.export.entries import Entry, Study


def send(study: Study, place: str) -> str:
    """Write event files under the folder `place`; a record that has its folder already is left alone."""
    root = Path(place)
    try:
        for entry in study.entries:
            folder = root / entry.group / f"{entry.name.replace('/', '-').replace(' ', '-')}-{entry.key}"
            if not folder.exists():
                _write(folder, entry)
    except OSError as error:
        raise ExportError(f"tensorboard at {place}: {error}; hint: --at a folder that can be written") from error
    return f"tensorboard --logdir {root}"


def _write(folder: Path, entry: Entry) -> None:
    """The events of one record, beside their place first: a folder that is there is whole."""
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    writer: Any = EventFileWriter(str(partial))
    event, summary = cast("Any", event_pb2).Event, cast("Any", summary_pb2).Summary  # made at run time from a protocol

    def scalar(tag: str, value: float, step: int, wall_time_s: float) -> None:
        found = summary(value=[summary.Value(tag=tag, simple_value=value)])
        writer.add_event(event(step=step, wall_time=wall_time_s, summary=found))

    for point in entry.curve:
        scalar("train_loss", point.loss, point.tokens, point.seconds or 0.0)
    for name, value in entry.metrics.items():
        scalar(f"final/{name}", value, entry.final_tokens, 0.0)
    writer.close()
    partial.rename(folder)
