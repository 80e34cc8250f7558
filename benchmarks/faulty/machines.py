"""Machines that misbehave: clocks that jump, sensors that go away, cases that hang, memory that ends, two runners."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import flight
from bench.record import read
from benchmarks.faulty import study

CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

/* The clock on the wall jumps by up to a week, either way, each time it is read; the monotonic one is left alone. */
static time_t jump(void) { static unsigned seed = 7; return (time_t)(rand_r(&seed) % 1209600) - 604800; }
int clock_gettime(clockid_t id, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, at);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += jump();
    return failed;
}
int gettimeofday(struct timeval *at, void *zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
    int failed = real(at, zone);
    if (!failed) at->tv_sec += jump();
    return failed;
}
time_t time(time_t *at) {
    static time_t (*real)(time_t *);
    if (!real) real = dlsym(RTLD_NEXT, "time");
    time_t now = real(0) + jump();
    if (at) *at = now;
    return now;
}
"""
HOUR_S = 3600.0


def clocks(place: Path) -> dict[str, Any]:
    """A whole study under a clock that jumps with every look at it: same bits, and no duration that the jumps made.

    Raises:
        OSError: no C compiler.
    """
    study.prepare(place, tokens=60_000, seeds=1)
    assert study.run(place, "whole")[0] == 0
    (place / "clock.c").write_text(CLOCK)
    library = place / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, place / "clock.c", "-ldl"], check=True)
    code, errors = study.run(place, "jumping", LD_PRELOAD=str(library))
    assert code == 0, errors
    durations = [
        reading.value
        for record in read(place / "jumping" / "records.jsonl")
        for reading in record.metrics.values()
        if reading.unit == "s" and reading.value is not None
    ]
    return {
        "durations": len(durations),
        "impossible": sum(not 0 <= value < HOUR_S for value in durations),
        "tracebacks": int("Traceback" in errors),
        "not_bit_identical": int(study.result(place / "jumping") != study.result(place / "whole")),
    }


# --- cases that go wrong inside ------------------------------------------------------------------


def work(folder: Path) -> int:
    """`bench.worker` on a machine where, as the file `fault.json` of the run says, something is wrong."""
    from bench import worker

    wrong = json.loads((folder.parents[1] / "fault.json").read_text())
    if "sensor" in wrong:
        _break_sensor(wrong["sensor"])
    is_training = json.loads((folder / "case.json").read_text())["case"]["kind"] == "train"
    if "spare_address_bytes" in wrong and is_training:
        own_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (own_bytes + wrong["spare_address_bytes"],) * 2)
    if "group" in wrong and is_training:
        (Path(wrong["group"]) / "cgroup.procs").write_text(str(os.getpid()))
    return worker.work(folder)


def _break_sensor(moment: str) -> None:
    """The sensor of memory, which every machine has, fails at a moment of its life."""
    from bench.instruments.memory import HostMemory

    def gone(*_: Any, **__: Any) -> Any:
        raise OSError("sensor is gone")

    setattr(HostMemory, moment, gone)


class Silent:
    """A display that shows nothing."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_: None


def _run(place: Path, name: str, wrong: dict[str, Any], **limits: float) -> Path:
    """The study run by this process, its cases done by `work`; the run folder."""
    from bench.api import this_machine
    from bench.executors.local import LocalExecutor
    from bench.plan import make_plan
    from bench.runner import Limits, RunContext, adopt, run_cases
    from bench.suite import load_suite

    here = Path.cwd()
    os.chdir(place)
    try:
        suite = load_suite(Path("tiny.yaml"))
        planned = make_plan(suite, this_machine(calibrate=False))
        folder = place / name
        folder.mkdir(exist_ok=True)
        (folder / "fault.json").write_text(json.dumps(wrong))
        adopt(folder, planned, suite.resolved_yaml(), {})
        context = RunContext(
            executor=LocalExecutor("benchmarks.faulty.machines"),
            display=Silent(),
            limits=Limits(**{"time_s": HOUR_S, **limits}),
        )
        run_cases(folder, planned, context)
    finally:
        os.chdir(here)
    return folder


def _failures(folder: Path) -> list[str]:
    """Reasons of the trainings that failed."""
    found = read(folder / "records.jsonl")
    return [record.reason or "" for record in found if record.status == "failed" and record.case.kind == "train"]


def sensors(place: Path) -> dict[str, Any]:
    """A sensor that fails when it is looked for, at the start, at the end: training goes on, the reading says why."""
    study.prepare(place, tokens=20_000, seeds=1)
    found = {"trainings": 0, "finished": 0, "readings_with_a_reason": 0}
    for moment in ("probe", "start", "stop"):
        folder = _run(place, f"sensor-{moment}", {"sensor": moment})
        for record in read(folder / "records.jsonl"):
            if record.case.kind == "train":
                memory = record.metrics.get("peak_memory_bytes")
                found["trainings"] += 1
                found["finished"] += record.status == "ok"
                found["readings_with_a_reason"] += memory is not None and memory.value is None and bool(memory.reason)
    return found


class Stopper(threading.Thread):
    """Stops (SIGSTOP) each case of this process' runner as soon as it has saved a checkpoint."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.stopped, self.is_over = folder, set[int](), False

    def run(self) -> None:
        while not self.is_over:
            saved = {path.parents[1].name for path in self.folder.glob("cases/*/checkpoint/step-*")}
            for server in study.children(os.getpid()):
                for worker in study.children(server):
                    if worker not in self.stopped and saved and study.kill(worker, signal.SIGSTOP):
                        self.stopped.add(worker)
            time.sleep(0.01)


def hung(place: Path) -> dict[str, Any]:
    """Cases that stand still and are deaf to SIGTERM: the watchdog ends them, the next run finishes them."""
    study.prepare(place, tokens=60_000, seeds=2)
    expected = study.result(_run(place, "whole", {}))
    before_s, flight.STOP_GRACE_S = flight.STOP_GRACE_S, 1.0
    measure_every = os.environ.get("LMBENCH_CHECKPOINT_EVERY_S")
    os.environ["LMBENCH_CHECKPOINT_EVERY_S"] = "0.1"
    stopper = Stopper(place / "hung")
    try:
        stopper.start()
        folder = _run(place, "hung", {}, hang_s=15.0)
    finally:
        stopper.is_over = True
        stopper.join()
        flight.STOP_GRACE_S = before_s
        if measure_every is None:
            del os.environ["LMBENCH_CHECKPOINT_EVERY_S"]
    noticed = sum("no progress for" in reason for reason in _failures(folder))
    _run(place, "hung", {})
    return {
        "hung": len(stopper.stopped),
        "noticed": noticed,
        "not_bit_identical": int(study.result(folder) != expected),
    }


def memory(place: Path) -> dict[str, Any]:
    """Trainings that run out of address space (an allocation fails), and out of memory (the kernel kills)."""
    study.prepare(place, tokens=20_000, seeds=1)
    expected = study.result(_run(place, "whole", {}))
    folder = _run(place, "limited", {"spare_address_bytes": 4 << 20})
    found: dict[str, Any] = {"refused": len(_failures(folder)), "refused_said_so": _said(folder, "memory")}
    _run(place, "limited", {})
    found["not_bit_identical"] = int(study.result(folder) != expected)
    try:
        with _memory_group(4 << 20) as group:
            folder = _run(place, "killed", {"group": str(group)})
    except OSError as error:
        return found | {"killed_by_kernel": None, "why": f"no memory group may be made here: {error}"}
    found |= {"killed_by_kernel": len(_failures(folder)), "killed_said_so": _said(folder, "want of memory")}
    _run(place, "killed", {})
    found["not_bit_identical"] += int(study.result(folder) != expected)
    return found


def _said(folder: Path, word: str) -> int:
    return sum(word in reason for reason in _failures(folder))


@contextmanager
def _memory_group(limit_bytes: int) -> Iterator[Path]:
    """A control group with so much memory (version 1 or 2 of the kernel's interface).

    Raises:
        OSError: this user may not make one.
    """
    first = Path("/sys/fs/cgroup/memory")
    group = (first if first.is_dir() else first.parent) / f"faults-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if first.is_dir() else "memory.max")).write_text(str(limit_bytes))
        yield group
    finally:
        group.rmdir()


# --- signals and rivals --------------------------------------------------------------------------


def sigterm(place: Path, draw: random.Random, times: int = 12) -> dict[str, Any]:
    """What a scheduler does: SIGTERM at a random moment, to the runner alone or to every process of the job."""
    study.prepare(place, tokens=200_000, seeds=1)
    assert study.run(place, "whole")[0] == 0
    expected = study.result(place / "whole")
    found = {"signals": 0, "left_with_130": 0, "saved": 0, "in_training": 0, "records_lost": 0, "tracebacks": 0,
             "not_bit_identical": 0, "studies": 0}  # fmt: skip
    while found["signals"] < times:
        folder = place / f"stopped-{found['studies']}"
        while True:
            before = study.lines(folder)
            started_s = time.time()
            process = study.start(place, folder, LMBENCH_CHECKPOINT_EVERY_S="3600")
            is_there = found["signals"] < times and study.until(
                lambda folder=folder, started_s=started_s: _trains(folder, started_s), process
            )
            if is_there:
                time.sleep(draw.uniform(0, 0.5))
                everyone = study.family(process.pid) if found["signals"] % 2 else []
                for pid in (process.pid, *everyone):
                    study.kill(pid, signal.SIGTERM)
            code, errors = study.ended(process)
            found["tracebacks"] += "Traceback" in errors
            found["records_lost"] += study.lines(folder)[: len(before)] != before
            if code == 0:
                break
            found["signals"] += 1
            found["left_with_130"] += code == 130
            found["in_training"] += _trains(folder)
            found["saved"] += _trains(folder) and bool(list(folder.glob("cases/*/checkpoint/step-*/checkpoint.json")))
        found["studies"] += 1
        found["not_bit_identical"] += study.result(folder) != expected
    return found


def _trains(folder: Path, since_s: float = 0.0) -> bool:
    """Whether a training is under way: it has shown a step since then, and has no outcome yet."""
    for progress in folder.glob("cases/*/progress.json"):
        shown = '"unit": "steps"' in progress.read_text() and progress.stat().st_mtime > since_s
        if shown and not (progress.parent / "model").exists():
            return True
    return False


def rivals(place: Path, runners: int = 4) -> dict[str, Any]:
    """Runners started at once on one folder: one works, the others leave it alone."""
    study.prepare(place, tokens=60_000, seeds=1)
    assert study.run(place, "whole")[0] == 0
    started = [study.start(place, "shared") for _ in range(runners)]
    ends = [study.ended(process) for process in started]
    codes = [code for code, _ in ends]
    return {
        "runners": runners,
        "worked": codes.count(0),
        "refused": codes.count(5),
        "tracebacks": sum("Traceback" in errors for _, errors in ends),
        "records_duplicated": study.duplicated(place / "shared"),
        "not_bit_identical": int(study.result(place / "shared") != study.result(place / "whole")),
    }
