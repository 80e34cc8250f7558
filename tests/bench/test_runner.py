from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from bench import api, mistakes, runner, study
from bench.case import Case
from bench.casefolder import Job, Outcome, write_atomically
from bench.display import describe_record
from bench.executors import Exit
from bench.record import CaseKey, Record, RecordError, append, read, reading
from bench.report import runfolder
from bench.runner import FolderInUse, Limits, OtherRun, RunContext, adopt, interruptible, locked, run_cases
from lmopt.recipe import Recipe
from tests.bench.fakes import Behaviour, FakeDisplay, FakeExecutor, case, chain, plan, succeed


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "POLL_EVERY_S", 0.0)


def context(behaviours: dict[str, Behaviour] | None = None, **limits: float) -> RunContext:
    return RunContext(
        executor=FakeExecutor(behaviours), display=FakeDisplay(), limits=Limits(**{"time_s": 60.0} | limits)
    )


def test_every_case_leaves_one_record_in_order(tmp_path: Path) -> None:
    cases = chain(3)
    run_cases(tmp_path, plan(*cases), context())
    records = read(tmp_path / "records.jsonl")
    assert [record.case.id for record in records] == [c.id for c in cases]
    assert all(record.status == "ok" and record.attempt == 1 for record in records)


def test_finished_cases_are_not_run_again(tmp_path: Path) -> None:
    cases = chain(3)
    run_cases(tmp_path, plan(*cases[:2]), context())
    second = context()
    run_cases(tmp_path, plan(*cases), second)
    assert second.executor.started == [cases[2].id]
    assert second.display.finished_before == {cases[0].id, cases[1].id}
    assert len(read(tmp_path / "records.jsonl")) == 3


def test_a_failed_case_has_its_reason_the_others_go_on_and_the_next_run_tries_again(tmp_path: Path) -> None:
    def explode(job: Job, folder: Path) -> Exit:
        outcome = Outcome(status="failed", reason="ValueError: no")
        write_atomically(folder / "outcome.json", outcome.model_dump_json())
        return Exit(0)

    one, two = case(1), case(2)
    run_cases(tmp_path, plan(one, two), context({one.id: explode}))
    assert [(r.status, r.reason) for r in read(tmp_path / "records.jsonl")] == [
        ("failed", "ValueError: no"),
        ("ok", None),
    ]
    run_cases(tmp_path, plan(one, two), context())
    last = read(tmp_path / "records.jsonl")[-1]
    assert (last.case.id, last.status, last.attempt) == (one.id, "ok", 2)


def test_a_case_is_told_the_memory_that_it_may_take(tmp_path: Path) -> None:
    told: list[int | None] = []

    def look(job: Job, folder: Path) -> Exit:
        told.append(job.memory_limit_bytes)
        return Exit(0)

    for limit in (None, 2**30):
        run_cases(tmp_path / str(limit), plan(case(1)), context({case(1).id: look}, memory_bytes=limit))
    assert told == [None, 2**30]


def test_a_killed_child_is_a_failure_with_the_signal_in_its_reason(tmp_path: Path) -> None:
    one = case(1)
    run_cases(tmp_path, plan(one), context({one.id: lambda job, folder: Exit(None, 9)}))
    (record,) = read(tmp_path / "records.jsonl")
    assert record.status == "failed"
    assert "SIGKILL" in (record.reason or "")


@pytest.mark.parametrize(("last", "said"), [("MemoryError\n", True), ("ValueError: no\n", False)])
def test_a_child_that_could_not_even_say_so_was_out_of_memory_by_its_log(tmp_path: Path, last: str, said: bool) -> None:
    def fail(job: Job, folder: Path) -> Exit:
        (folder / "log.txt").write_text(last)
        return Exit(1)

    one = case(1)
    run_cases(tmp_path, plan(one), context({one.id: fail}))
    (record,) = read(tmp_path / "records.jsonl")
    assert ("out of memory" in (record.reason or "")) == said


def test_what_builds_on_a_failed_case_is_not_started(tmp_path: Path) -> None:
    cases = chain(3)
    ctx = context({cases[0].id: lambda job, folder: Exit(3)})
    run_cases(tmp_path, plan(*cases), ctx)
    assert ctx.executor.started == [cases[0].id]
    records = read(tmp_path / "records.jsonl")
    assert [r.status for r in records] == ["failed"] * 3
    assert "code 3" in (records[0].reason or "")
    first = f"{cases[0].label} ({cases[0].id}) failed: {records[0].reason}"  # whatever stands between
    assert [r.reason for r in records[1:]] == [f"not run: {first}"] * 2
    assert describe_record(records[0]) == f"FAILED: {records[0].reason}"
    assert describe_record(records[2]) == f"not run: {cases[0].label} ({cases[0].id}) failed"


def test_what_builds_on_a_lost_folder_is_not_started_and_says_so(tmp_path: Path) -> None:
    cases = chain(3)
    run_cases(tmp_path, plan(*cases[:2]), context())
    shutil.rmtree(tmp_path / "cases")
    ctx = context()
    run_cases(tmp_path, plan(*cases), ctx)
    assert ctx.executor.started == []
    last = read(tmp_path / "records.jsonl")[-1]
    assert (last.case.id, last.status) == (cases[2].id, "failed")
    assert f"what {cases[1].label} left is gone ({tmp_path / 'cases' / cases[1].id}); hint: bring" in (
        last.reason or ""
    )


def test_a_diverged_case_is_a_result_and_is_not_tried_again(tmp_path: Path) -> None:
    def diverge(job: Job, folder: Path) -> Exit:
        write_atomically(folder / "outcome.json", Outcome(status="diverged", reason="loss nan").model_dump_json())
        return Exit(0)

    one = case(1)
    run_cases(tmp_path, plan(one), context({one.id: diverge}))
    again = context()
    run_cases(tmp_path, plan(one), again)
    assert again.executor.started == []
    assert [r.status for r in read(tmp_path / "records.jsonl")] == ["diverged"]


def tuned(rates: Mapping[float, float | None]) -> tuple[list[Case], dict[str, Behaviour]]:
    """Trials that end at these losses (None: they diverge), then a training that builds on them."""
    recipe = Recipe.model_validate({"model": {"layers": 1, "width": 8, "heads": 1, "vocab": 300}, "tokens": 10_000})
    fields = {"kind": "train", "scale": "s", "recipe": recipe, "seed": 7, "horizon": 0.25}
    cases = [
        case(n, **fields, purpose="tune", spec={"trial": {"lr": lr}}) for n, lr in enumerate(rates, 1)
    ]  # fmt: skip
    parents = tuple(trial.id for trial in cases)
    cases.append(case(9, **fields, purpose="variant", parents=parents, spec={"tune": {"metric": "val_loss"}}))
    return cases, {trial.id: ends_at(loss) for trial, loss in zip(cases, rates.values(), strict=False)}


def ends_at(loss: float | None) -> Behaviour:
    def behaviour(job: Job, folder: Path) -> Exit:
        metrics = {} if loss is None else {"val_loss": reading(loss, "nat/token", "counted")}
        outcome = Outcome(status="diverged" if loss is None else "ok", reason="loss nan" if loss is None else None,
                          metrics=metrics)  # fmt: skip
        write_atomically(folder / "outcome.json", outcome.model_dump_json())
        return Exit(0)

    return behaviour


def trained_at(folder: Path) -> float:
    job = Job.model_validate_json((folder / "cases" / ("9" * 16) / "case.json").read_text())
    assert job.case.recipe is not None
    return job.case.recipe.optimizer.lr


def test_a_training_starts_at_the_best_setting_of_its_trials_and_records_the_whole_grid(tmp_path: Path) -> None:
    cases, behaviours = tuned({0.001: 3.0, 0.002: 2.9, 0.004: None})
    run_cases(tmp_path, plan(*cases), context(behaviours))
    assert trained_at(tmp_path) == 0.002
    records = read(tmp_path / "records.jsonl")
    assert [record.status for record in records] == ["ok", "ok", "diverged", "ok"], "a bad setting is a result"
    assert records[2].detail == {"trial": {"lr": 0.004}}
    tuning = records[-1].detail["tuning"]
    assert tuning["chosen"] == {"lr": 0.002}
    assert tuning["edges"] == {}
    assert [(one["lr"], one["loss"]) for one in tuning["trials"]] == [(0.001, 3.0), (0.002, 2.9), (0.004, None)]


def test_a_tuned_training_is_continued_at_the_same_setting(tmp_path: Path) -> None:
    cases, behaviours = tuned({0.001: 2.8, 0.002: 2.9})

    def stopped(job: Job, folder: Path) -> Exit:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cases(tmp_path, plan(*cases), context({**behaviours, cases[-1].id: stopped}))
    before = trained_at(tmp_path)
    again = context(behaviours)
    run_cases(tmp_path, plan(*cases), again)
    assert again.executor.started == [cases[-1].id]
    assert trained_at(tmp_path) == before == 0.001
    assert read(tmp_path / "records.jsonl")[-1].detail["tuning"]["edges"] == {"lr": "lowest"}


def test_a_tuned_training_waits_for_all_its_trials_and_when_lost_is_tried_again_at_the_same_setting(
    tmp_path: Path,
) -> None:
    cases, behaviours = tuned({0.001: 3.0, 0.002: 2.9, 0.004: 2.95})
    ctx = context()
    tried: list[float] = []

    def lost_once(job: Job, folder: Path) -> Exit:
        assert job.case.recipe is not None
        tried.append(job.case.recipe.optimizer.lr)
        return Exit(None, 15, lost=True, reason="its node is gone") if len(tried) == 1 else succeed(job, folder)

    ctx.executor = FakeExecutor({**behaviours, cases[-1].id: lost_once}, slots=8)
    run_cases(tmp_path, plan(*cases), ctx)
    assert tried == [0.002, 0.002]
    first, second = read(tmp_path / "records.jsonl")[-2:]
    assert [first.status, second.status] == ["failed", "ok"]
    assert first.detail["tuning"] == second.detail["tuning"]
    assert len(second.detail["tuning"]["trials"]) == 3


def test_where_every_trial_diverged_the_training_fails_with_the_reason(tmp_path: Path) -> None:
    cases, behaviours = tuned({0.001: None, 0.002: None})
    ctx = context(behaviours)
    run_cases(tmp_path, plan(*cases), ctx)
    assert cases[-1].id not in ctx.executor.started
    last = read(tmp_path / "records.jsonl")[-1]
    assert last.status == "failed"
    assert "every trial of dense at scale s diverged" in (last.reason or "")


def test_a_trial_that_failed_keeps_its_arm_from_training(tmp_path: Path) -> None:
    cases, behaviours = tuned({0.001: 3.0, 0.002: 2.9})
    ctx = context({**behaviours, cases[0].id: lambda job, folder: Exit(3)})
    run_cases(tmp_path, plan(*cases), ctx)
    assert cases[-1].id not in ctx.executor.started, "equal trials or none"
    assert cases[0].id in (read(tmp_path / "records.jsonl")[-1].reason or "")


def test_a_case_that_does_not_fit_is_never_started(tmp_path: Path) -> None:
    one = case(1, fits=False, reason="needs 90 GiB")
    ctx = context()
    run_cases(tmp_path, plan(one), ctx)
    assert ctx.executor.started == []
    assert "90 GiB" in (read(tmp_path / "records.jsonl")[0].reason or "")


def test_a_case_over_its_time_limit_is_stopped_and_says_so(tmp_path: Path) -> None:
    one = case(1)
    run_cases(tmp_path, plan(one), context({one.id: lambda job, folder: None}, time_s=0.0))
    assert "time limit" in (read(tmp_path / "records.jsonl")[0].reason or "")


def test_a_case_over_its_memory_limit_is_stopped_and_says_so(tmp_path: Path) -> None:
    one = case(1)
    run_cases(tmp_path, plan(one), context({one.id: lambda job, folder: None}, memory_bytes=10))
    assert "memory limit of 10 B by 990 B" in (read(tmp_path / "records.jsonl")[0].reason or "")


def test_a_silent_case_is_stopped(tmp_path: Path) -> None:
    one = case(1)
    run_cases(tmp_path, plan(one), context({one.id: lambda job, folder: None}, hang_s=0.0))
    assert "no progress" in (read(tmp_path / "records.jsonl")[0].reason or "")


def test_an_outcome_whose_runner_was_killed_is_recorded_by_the_next_run_without_running_again(tmp_path: Path) -> None:
    one = case(1)

    def finish_but_lose_the_runner(job: Job, folder: Path) -> Exit:
        succeed(job, folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cases(tmp_path, plan(one), context({one.id: finish_but_lose_the_runner}))
    assert not (tmp_path / "records.jsonl").exists()
    ctx = context()
    run_cases(tmp_path, plan(one), ctx)
    assert ctx.executor.started == []
    assert read(tmp_path / "records.jsonl")[0].metrics["val_loss"] == reading(4.0, "nat/token", "counted")


def test_a_half_written_last_record_is_dropped_and_its_case_run_again(tmp_path: Path) -> None:
    cases = chain(2)
    run_cases(tmp_path, plan(*cases), context())
    path = tmp_path / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    ctx = context()
    run_cases(tmp_path, plan(*cases), ctx)
    assert ctx.executor.started == [cases[1].id]


def test_edited_records_are_refused_before_anything_runs(tmp_path: Path) -> None:
    one = case(1)
    run_cases(tmp_path, plan(one), context())
    path = tmp_path / "records.jsonl"
    path.write_text(path.read_text().replace("4.0", "3.0"))
    ctx = context()
    with pytest.raises(RecordError, match="sha256"):
        run_cases(tmp_path, plan(one), ctx)
    assert ctx.executor.started == []


def test_the_executor_is_closed_whatever_happens(tmp_path: Path) -> None:
    def lost(job: Job, folder: Path) -> Exit:
        raise RuntimeError("the machine is gone")

    one = case(1)
    ctx = context({one.id: lost})
    with pytest.raises(RuntimeError):
        run_cases(tmp_path, plan(one), ctx)
    assert ctx.executor.closed


def _hold(folder: Path, held: multiprocessing.synchronize.Event, leave: multiprocessing.synchronize.Event) -> None:
    with locked(folder):
        held.set()
        leave.wait(30)


def test_a_second_run_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    held, leave = spawn.Event(), spawn.Event()
    other = spawn.Process(target=_hold, args=(tmp_path, held, leave))
    other.start()
    try:
        assert held.wait(30)
        with pytest.raises(FolderInUse, match="another run"), locked(tmp_path):
            pass
    finally:
        leave.set()
        other.join()
    with locked(tmp_path):
        pass


def test_a_folder_of_another_study_is_refused(tmp_path: Path) -> None:
    adopt(tmp_path, plan(run="aaaaaaaaaa"), "suite: fake\n", {})
    with pytest.raises(OtherRun, match=r"aaaaaaaaaa.*the budget"):
        adopt(tmp_path, plan(run="bbbbbbbbbb"), "suite: fake\n", {})
    adopt(tmp_path, plan(run="aaaaaaaaaa"), "suite: fake\n", {})
    assert json.loads((tmp_path / "plan.json").read_text())["run"] == "aaaaaaaaaa"


def test_a_suite_that_drops_what_has_records_is_refused_and_the_plan_stays(tmp_path: Path) -> None:
    """Else its records would be of cases that no plan knows, and nothing in the folder could be judged."""
    seeds = [case(number, kind="train", purpose="variant", seed=number) for number in (0, 1)]
    adopt(tmp_path, plan(*seeds), "suite: fake\n", {})
    adopt(tmp_path, plan(seeds[0]), "suite: fake\n", {})  # nothing was run yet
    adopt(tmp_path, plan(*seeds), "suite: fake\n", {})
    key = CaseKey(id=seeds[1].id, kind="train", arm="dense", seed=1)
    append(tmp_path / "records.jsonl", Record(status="ok", case=key))
    before = (tmp_path / "plan.json").read_bytes()
    with pytest.raises(OtherRun, match="records of seed 1, which this suite leaves out"):
        adopt(tmp_path, plan(seeds[0]), "suite: fake\n", {})
    assert (tmp_path / "plan.json").read_bytes() == before
    adopt(tmp_path, plan(*seeds, case(2)), "suite: fake\n", {})


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"7", b"{", b"\xff"])
def test_a_damaged_plan_is_refused_with_what_mends_it_and_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    adopt(tmp_path, plan(run="aaaaaaaaaa"), "suite: fake\n", {})
    (tmp_path / "records.jsonl").touch()
    damaged = tmp_path / "plan.json"
    damaged.write_bytes(content)
    with pytest.raises(OtherRun, match=r"put back the plan\.json"):
        adopt(tmp_path, plan(run="aaaaaaaaaa"), "suite: fake\n", {})
    assert damaged.read_bytes() == content
    for load in (study.load, runfolder.load):  # whatever a command says, it is no advice that `run` refuses
        with pytest.raises(study.StudyError, match=r"put back the plan\.json"):
            load(tmp_path)


def test_a_case_that_does_not_apply_here_is_said_so_and_neither_run_nor_tried_again(tmp_path: Path) -> None:
    one, child = chain(2)
    one = one.model_copy(update={"applies": False, "reason": "not applicable here: one NUMA node"})
    first = context()
    run_cases(tmp_path, plan(one, child), first)
    assert first.executor.started == []
    assert [(r.status, r.reason) for r in read(tmp_path / "records.jsonl")] == [
        ("not_applicable", "not applicable here: one NUMA node")
    ] * 2
    run_cases(tmp_path, plan(one, child), context())
    assert len(read(tmp_path / "records.jsonl")) == 2


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = r"the run folder .*file/run cannot be made \(Not a directory\); hint: .*--out"
    with pytest.raises(OSError, match=message), locked(tmp_path / "file" / "run"):
        pass


def _refuse_size(_descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_named_and_left_without_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "a.json", "old")
    monkeypatch.setattr(os, "fsync", _refuse_size)
    with pytest.raises(OSError, match="No space left") as full:
        write_atomically(tmp_path / "a.json", "new")
    assert mistakes.words(full.value) == f"{tmp_path / 'a.json'}: no space left on device{mistakes.ROOM}"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "old")]
    with pytest.raises(OSError, match="No space left") as full:
        append(tmp_path / "records.jsonl", Record(status="failed", case=CaseKey(id="1" * 16, kind="train", arm="a")))
    assert str(tmp_path / "records.jsonl") in mistakes.words(full.value)
    assert mistakes.words(OSError(errno.ENOSPC, "No space left on device")).startswith("no space left")


def test_what_killed_writers_left_beside_their_files_is_removed(tmp_path: Path) -> None:
    one = case(1)
    place = tmp_path / "cases" / one.id
    place.mkdir(parents=True)
    left = [tmp_path / ".plan.json.123", place / ".case.json.7", place / ".outcome.json.8"]
    for path in left:
        path.write_text("{")
    mine = tmp_path / ".plan.json.bak"
    mine.touch()
    adopt(tmp_path, plan(one), "suite: fake\n", {})
    run_cases(tmp_path, plan(one), context())
    assert not any(path.exists() for path in left)
    assert mine.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_stop_and_a_closed_terminal_are_an_interrupt(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # under nohup the tests themselves would be deaf to one
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_request_to_stop_is_an_interrupt_while_the_machine_is_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    monkeypatch.setattr(api, "this_machine", lambda **_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(KeyboardInterrupt):
            api.run("no.yaml")
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_run_that_shall_outlive_its_terminal_does() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
