"""What a person sees of a run: two live bars on a terminal, plain lines anywhere else. All of it goes to stderr."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, TextIO

from bench.case import Case
from bench.lasting import lasting
from bench.pace import Pace
from bench.plan import Plan
from bench.record import Record
from lmopt.quantities import human_bytes, human_count, human_seconds

LINE_EVERY_S = 30.0
"""A long case writes a plain line this often."""


def open_display(stream: TextIO | None = None) -> PlainDisplay | LiveDisplay:
    """The live display on a terminal, plain lines elsewhere."""
    shown = lasting(stream)
    return LiveDisplay(shown) if shown.isatty() else PlainDisplay(shown)


def describe_progress(progress: Mapping[str, Any]) -> str:
    """`312/1000 steps, loss 4.21, 38.1k tokens/s, 12 J (modelled)`; `312 of at most 1000 steps`, too."""
    of = "" if not progress.get("total") else " of at most " if progress.get("at_most") else "/"
    parts = [f"{progress['done']}{of}{progress['total'] if of else ''} {progress['unit']}"]
    if progress.get("loss") is not None:
        parts.append(f"loss {progress['loss']:.3f}")
    if progress.get("tokens_per_s"):
        parts.append(f"{human_count(progress['tokens_per_s'])} tokens/s")
    if progress.get("energy_j") is not None:
        grade = progress.get("energy_grade")
        parts.append(f"{human_count(progress['energy_j'])} J" + (" (modelled)" if grade == "modelled" else ""))
    if progress.get("phase"):
        parts.append(str(progress["phase"]))
    return ", ".join(parts)


def describe_record(record: Record) -> str:
    """What a finished case found, in one line."""
    if record.status == "failed":
        another, failed, _ = str(record.reason).partition(" failed: ")  # which has said why, in a line of its own
        return f"{another} failed" if failed and another.startswith("not run: ") else f"FAILED: {record.reason}"
    if record.status == "diverged":
        return f"diverged: {record.reason}"
    if record.status == "not_applicable":
        return str(record.reason)
    parts: list[str] = []
    for name, text in (
        ("val_loss", "loss {:.4f}"),
        ("train_time_s", "trained {:.3g} s"),
        ("prepare_time_s", "{:.3g} s"),
        ("step_time_ratio", "step time x{:.3f}"),
    ):
        value = record.value(name)
        if value is not None:
            parts.append(text.format(value))
    flops = record.value("train_flops")
    if flops:
        parts.append(f"{flops:.3g} FLOP")
    memory = record.value("peak_memory_bytes")
    if memory:
        parts.append(human_bytes(memory))
    parts += [
        f"{name.removeprefix('accuracy/')} {100 * found.value:.1f}%"
        for name, found in record.metrics.items()
        if name.startswith("accuracy/") and found.value is not None
    ]
    return ", ".join(parts) or "done"


class PlainDisplay:
    """One line a finished case, and one now and then for a long one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._pace: Pace | None = None
        self._case_begun_s = 0.0
        self._next_line_s = 0.0

    def begin(self, plan: Plan, finished: Mapping[str, Record]) -> None:
        """Say how much is to do."""
        self._pace = Pace(plan, finished)
        self.note(f"{plan.design.suite}: {self._pace.total} cases, {self._pace.done} done already")

    def case_started(self, case: Case) -> None:  # noqa: ARG002 - the line comes at its end
        """Start the case's clock."""
        self._case_begun_s = time.monotonic()
        self._next_line_s = self._case_begun_s + LINE_EVERY_S

    def case_progress(self, case: Case, progress: Mapping[str, Any]) -> None:
        """A line every half minute."""
        if time.monotonic() >= self._next_line_s:
            self._next_line_s += LINE_EVERY_S
            self.note(f"        {case.label}: {describe_progress(progress)}")

    def case_ended(self, case: Case, record: Record) -> None:
        """A line with what was found and how long the rest will take."""
        assert self._pace is not None
        self._pace.ended(case, time.monotonic() - self._case_begun_s)
        left_s = self._pace.left_s()
        rest = f" [{human_seconds(left_s)} left]" if left_s else ""
        self.note(f"[{self._pace.done:>3}/{self._pace.total}] {case.label}: {describe_record(record)}{rest}")

    def note(self, text: str) -> None:
        """A plain line."""
        print(text, file=self._stream, flush=True)

    def end(self) -> None:
        """Nothing to take down."""


class LiveDisplay:
    """An overall bar and the current case's, redrawn in place; finished cases scroll up above them."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = Console(file=stream)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[words]}", markup=False),
            console=self._console,
            transient=True,
        )
        self._pace: Pace | None = None
        self._case_begun_s = 0.0

    def begin(self, plan: Plan, finished: Mapping[str, Record]) -> None:
        """Put the bars up."""
        self._pace = Pace(plan, finished)
        self._overall = self._progress.add_task(
            plan.design.suite, total=self._pace.total, completed=self._pace.done, words=""
        )
        self._current = self._progress.add_task("", total=None, words="", visible=False)
        self._progress.start()
        self._say_pace(0.0)

    def case_started(self, case: Case) -> None:
        """Show the case with an idle bar."""
        self._case_begun_s = time.monotonic()
        self._progress.reset(self._current, description=case.label, total=None, words="starting", visible=True)

    def case_progress(self, case: Case, progress: Mapping[str, Any]) -> None:  # noqa: ARG002 - shown already
        """Move both bars."""
        total = progress.get("total")
        self._progress.update(self._current, total=total, completed=progress["done"], words=describe_progress(progress))
        self._say_pace(progress["done"] / total if total else 0.0)

    def case_ended(self, case: Case, record: Record) -> None:
        """Leave a line behind."""
        assert self._pace is not None
        self._pace.ended(case, time.monotonic() - self._case_begun_s)
        style = "red" if record.status == "failed" else "yellow" if record.status == "diverged" else None
        self._console.print(f"{case.label}: {describe_record(record)}", style=style, markup=False, highlight=False)
        self._progress.update(self._current, visible=False)
        self._say_pace(0.0)

    def _say_pace(self, share: float) -> None:
        assert self._pace is not None
        left_s = self._pace.left_s(share)
        words = f"{self._pace.done}/{self._pace.total} cases" + (f", {human_seconds(left_s)} left" if left_s else "")
        self._progress.update(self._overall, completed=self._pace.done + share, words=words)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._console.print(text, markup=False, highlight=False)

    def end(self) -> None:
        """Take the bars down."""
        self._progress.stop()
