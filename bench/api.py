"""The same as the command line, for programs: `from bench import load_suite, run, judge, report, gate`."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.casefolder import write_atomically
from bench.estimate import Machine
from bench.lacking import lacking
from bench.plan import Plan, make_plan
from bench.suite import Suite, load_suite
from bench.toolchain import likely_device
from bench.words import several
from lmopt.compute.topology import nodes

if TYPE_CHECKING:
    from bench.executors import Executor
    from bench.gate import GateResult
    from bench.runner import Display
    from bench.study import Study

__all__ = ["RunResult", "compare", "export", "gate", "judge", "load_suite", "make_plan", "plan", "report", "run"]


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run left."""

    folder: Path
    """The run folder."""
    failed: tuple[str, ...]
    """A line for each case that failed in this run or has no result; those that build on it are counted there."""
    verdict: Mapping[str, Any]
    """The content of verdict.json."""
    written: tuple[Path, ...]
    """Report files."""


def plan(suite: Suite | Path | str, *, calibrate: bool = True, budget: str | None = None) -> Plan:
    """What a suite would run here and what it would cost.

    Args:
        suite: a loaded suite, or the path of one.
        calibrate: measure this machine for a few seconds if it was not measured before.
        budget: cut the study to this much (see `bench.budget`).

    Raises:
        SuiteError: the suite is invalid.
        BudgetError: the budget cannot be read, or nothing fits it.
    """
    return forecast(suite, calibrate=calibrate, budget=budget)[0]


def forecast(suite: Suite | Path | str, *, calibrate: bool = True, budget: str | None = None) -> tuple[Plan, list[str]]:
    """`plan`, and a line for each thing that the budget cut."""
    machine = this_machine(calibrate=calibrate)
    cut, notes = _cut(_loaded(suite), machine, budget)
    planned = make_plan(cut, machine)
    return planned.model_copy(update={"notes": (*planned.notes, *not_here(cut))}), notes


def not_here(suite: Suite) -> tuple[str, ...]:
    """A sentence, with a hint on its own line, for each part of a valid suite that cannot work on this machine."""
    from bench.machine import device_capability

    return lacking(suite, device_capability() if likely_device() == "cuda" else None)


def _loaded(suite: Suite | Path | str) -> Suite:
    return suite if isinstance(suite, Suite) else load_suite(Path(suite))


def _cut(suite: Suite, machine: Machine, budget: str | None) -> tuple[Suite, list[str]]:
    from bench.budget import fit, parse_budget

    amount = suite.budget if budget is None else budget  # an empty one is a mistake: a variable that was not set
    return fit(suite, machine, parse_budget(amount)) if amount is not None else (suite, [])


def this_machine(*, calibrate: bool) -> Machine:
    """What planning needs to know of this machine."""
    import shutil

    from bench import calibrate as calibration
    from bench import machine

    fingerprint = machine.fingerprint()
    try:
        speeds = calibration.calibrate() if calibrate else calibration.cached()
    except calibration.CalibrationError:
        speeds = None  # planning says "not known (no calibration)"; a study needs no speed to run
    return Machine(
        machine_class=machine.machine_class(fingerprint),
        memory_bytes=machine.device_memory_bytes() or machine.available_memory_bytes(),
        disk_bytes=shutil.disk_usage(Path.cwd()).free,
        numa=tuple(nodes()),
        flops_per_s=dict(speeds.train_flops_per_s) if speeds else {},
        fixed_s=dict(speeds.fixed_s) if speeds else {},
        bytes_per_s=speeds.bytes_per_s if speeds else None,
        peak_flops_per_s=dict(speeds.peak_flops_per_s) if speeds and not speeds.busy else {},
        disturbed=speeds is not None and speeds.busy,
    )


def run(
    suite: Suite | Path | str,
    *,
    out: Path | str | None = None,
    budget: str | None = None,
    executor: Executor | str | None = None,
    display: Display | None = None,
) -> RunResult:
    """Plan, run, judge and report a suite; continues what is in the folder.

    Args:
        suite: a loaded suite, or the path of one.
        out: the run folder; default `results/<suite>/<hash of suite, version and machine class>`.
        budget: cut the study to this much; default: the suite's own `budget`, if it has one.
        executor: where cases run: `local` (the default), `ray`, `slurm:partition=gpu` (`bench.executors.choice`), or
            an executor.
        display: who is shown the progress; default stderr.

    Raises:
        SuiteError: the suite is invalid.
        FolderInUse: another run writes into the folder.
        OtherRun: the folder holds another study.
        KeyboardInterrupt: stopped; what was finished is kept, the case in flight is continued by the next run.
    """
    from bench import runner
    from bench.display import open_display
    from bench.executors.choice import choose
    from bench.instruments.table import idle_power_w, open_sensors
    from bench.machine import environment, fingerprint

    with runner.interruptible():  # also while the machine is measured and the report is written
        machine = this_machine(calibrate=True)
        whole = _loaded(suite)
        loaded, cuts = _cut(whole, machine, budget)
        planned = make_plan(loaded, machine)
        folder = Path(out) if out else Path("results") / loaded.suite / planned.run
        shown = display or open_display()
        for line in (*(f"budget: {cut}" for cut in cuts), *not_here(loaded)):
            shown.note(line)
        with runner.locked(folder):
            found = environment(fingerprint(), open_sensors())
            runner.adopt(folder, planned, loaded.resolved_yaml(), found)
            context = runner.RunContext(
                executor=choose(executor, folder) if executor is None or isinstance(executor, str) else executor,
                display=shown,
                limits=runner.Limits(time_s=loaded.limits.case_time, memory_bytes=loaded.limits.case_memory),
                commit=found["machine"].get("commit"),
                env=found["env"],
                flops_per_s_peak=machine.peak_flops_per_s,
                idle_power_w=idle_power_w("cuda" if found["machine"]["gpus"] else "cpu"),
            )
            runner.run_cases(folder, planned, context)
            verdict = judge(folder)
            written = report(folder)
        return RunResult(folder, tuple(_without_result(folder, planned)), verdict, tuple(written))


def _without_result(folder: Path, planned: Plan) -> list[str]:
    from bench.record import read

    last = {record.case.id: record for record in read(folder / "records.jsonl")}
    failed = {case.id: case for case in planned.cases if case.id not in last or last[case.id].status == "failed"}
    reasons = {key: (last[key].reason or "no reason") if key in last else "no record" for key in failed}
    cause = {key: next((one for one in failed if f"({one}) failed:" in reasons[key]), key) for key in failed}
    behind = Counter(one for key, one in cause.items() if one != key)
    return [
        f"{case.label} ({key}): {reasons[key]}"
        + (f"\nnot run for it: {several(behind[key], 'case')}" if behind[key] else "")
        for key, case in failed.items()
        if cause[key] == key
    ]


def judge(run: Path | str) -> dict[str, Any]:
    """The verdict, from the records alone; written to verdict.json, and the look logged in looks.jsonl.

    Raises:
        RecordError, StudyError: the records cannot be judged; nothing is written.
    """
    from bench import study, verdict

    folder = Path(run)
    seen = study.load(folder)
    found = verdict.judge_study(seen)
    write_atomically(folder / "verdict.json", json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False))
    _log_look(folder, seen, found)
    return found


def _log_look(folder: Path, seen: Study, verdict: Mapping[str, Any]) -> None:
    """One line a judging that saw other records than the last: looking is what has to be paid for, not printing."""
    records = [record.sha256 for record in seen.records.values()]
    path = folder / "looks.jsonl"
    *lines, torn = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
    if torn:  # what a full disk or a kill left of a look that was never finished
        write_atomically(path, "".join(f"{line}\n" for line in lines))
    if lines and json.loads(lines[-1])["records"] == records:
        return
    look = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "records": records,
        "outcomes": {name: arm.get("outcome") for name, arm in verdict.get("arms", {}).items()},
    }
    with path.open("a") as file:
        file.write(json.dumps(look) + "\n")
        file.flush()
        os.fsync(file.fileno())


def report(run: Path | str) -> list[Path]:
    """Write report.html, report.pdf, report.md and the tables of a run again; returns their paths.

    Where the run was judged, it is judged again from the records: a verdict.json that somebody changed is not shown.
    Judging the same records again counts as no further look.

    Raises:
        RecordError, StudyError: the records cannot be reported, or a verdict that is there cannot be judged from them.
    """
    from bench.report import build
    from bench.report.runfolder import load

    folder = Path(run)
    if load(folder).verdict is not None:
        judge(folder)
    return build(folder)


def gate(run: Path | str, baseline: Path | str, *, update: bool = False, noise: Path | str | None = None) -> GateResult:
    """Compare a run with a stored baseline: passed, regressed, or could not measure.

    Args:
        run: the run folder.
        baseline: the baseline file; with `update` it is written from the run, and nothing is compared.
        update: store this run's values.
        noise: with `update`, an A/A run from whose scatter noisy rules take their floors.
    """
    from bench.gate import gate as against_baseline

    return against_baseline(Path(run), Path(baseline), update=update, noise=Path(noise) if noise else None)


def export(run: Path | str, *, to: str, place: str | None = None) -> str:
    """Send a run's records to a tracker (`mlflow`, `tensorboard`, `wandb`); returns where to look.

    Raises:
        ExportError: the tracker is unknown, not installed, or cannot write at `place`.
    """
    from bench.export import export as send

    return send(Path(run), to, place)


def compare(*runs: Path | str) -> list[dict[str, Any]]:
    """Two or more runs side by side: a row an arm, scale and metric, with each run's mean over its seeds."""
    from bench.comparison import rows

    return rows([Path(run) for run in runs])
