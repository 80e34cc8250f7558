"""Cases elsewhere: through the case folder, several at once, tried again when a machine goes away."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.casefolder import Job
from bench.company import Company
from bench.executors import Executor, ExecutorError, Exit, Running, attend
from bench.executors.choice import choose
from bench.record import read
from bench.runner import MAX_LOSSES, Limits, RunContext, run_cases
from tests.bench.fakes import FakeDisplay, FakeExecutor, FakeRunning, case, chain, plan, succeed

WORKER = "tests.bench.fake_worker"


def job(folder: Path, do: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "case.json").write_text("{}")
    (folder / "do").write_text(do)
    return folder


def attended(folder: Path) -> attend.Ended:
    return attend.attend(WORKER, str(folder), attend.prepare(folder))


def until(condition: Callable[[], object], what: str, timeout_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.02)


def ended(running: Running) -> Exit:
    until(running.poll, "the case does not end")
    found = running.poll()
    assert found is not None
    return found


# --- the attendant -------------------------------------------------------------------------------


def test_the_attendant_returns_how_the_case_ended_and_keeps_its_log(tmp_path: Path) -> None:
    assert attended(job(tmp_path / "a", "print")) == (0, None)
    assert "hello from the case" in (tmp_path / "a" / "log.txt").read_text()
    assert attended(job(tmp_path / "b", "die")) == (None, signal.SIGKILL)


def test_the_attendant_passes_a_signal_on_and_says_where_the_case_runs(tmp_path: Path) -> None:
    folder = job(tmp_path / "a", "sleep")
    found: list[attend.Ended] = []
    thread = threading.Thread(target=lambda: found.append(attended(folder)))
    thread.start()
    until((folder / "ready").exists, "the case does not start")
    until(lambda: attend.attendance(folder), "nobody says where it runs")
    seen = attend.attendance(folder)
    assert seen is not None
    assert seen["pid"] == int((folder / "pid").read_text())
    attend.ask(folder, signal.SIGTERM)
    thread.join(60)
    assert found == [(75, None)]


def test_a_job_that_outlived_its_runner_ends_when_its_case_is_started_again(tmp_path: Path) -> None:
    """A killed runner leaves its jobs running or queued: two of them must never write into one case folder."""
    folder = job(tmp_path / "a", "sleep")
    queued = attend.prepare(folder)
    found: list[attend.Ended] = []
    thread = threading.Thread(target=lambda: found.append(attended(folder)))
    thread.start()
    until((folder / "ready").exists, "the case does not start")
    attend.prepare(folder)
    thread.join(60)
    assert found == [(None, signal.SIGKILL)]
    assert not Path(f"/proc/{(folder / 'pid').read_text()}").exists()
    (folder / "ready").unlink()
    assert attend.attend(WORKER, str(folder), queued) == (None, signal.SIGKILL)
    assert not (folder / "ready").exists()


def test_a_folder_that_the_machine_does_not_see_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="file system that all machines share"):
        attend.attend(WORKER, str(tmp_path / "nowhere"), "")


# --- what a person writes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "words"),
    [("cloud", "allowed: local, ray, slurm"), ("local:x=1", "no option 'x'"), ("slurm:gpu", "KEY=VALUE"),
     ("slurm:time=soon,cluster=local", "not a duration"), ("slurm:color=red", "no option 'color'.* time, memory"),
     ("slurm:cluster=bogus", "cluster is 'bogus', allowed: slurm, local, debug"),
     ("slurm:gpus=many,cluster=local", "gpus is 'many', allowed: a whole number from 0"),
     ("slurm:slots=0,cluster=local", "slots is '0', allowed: a whole number from 1"),
     ("slurm:cpus=²,cluster=local", "cpus is '²', allowed"), ("slurm:cpus=-1,cluster=local", "cpus is '-1', allowed")],
)  # fmt: skip
def test_mistakes_in_the_executor_are_named(where: str, words: str, tmp_path: Path) -> None:
    if where.startswith("slurm"):
        pytest.importorskip("submitit")
    with pytest.raises(ExecutorError, match=words):
        choose(where, tmp_path)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999", "[::1]:1"])
def test_an_address_where_no_cluster_is_says_so_at_once(address: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    begin_s = time.monotonic()
    with pytest.raises(ExecutorError, match=re.escape(f"ray: no cluster at {address}: ")):
        choose(f"ray:address={address}", tmp_path)
    assert time.monotonic() - begin_s < 30


def test_a_partition_or_account_of_digits_is_a_name() -> None:
    from bench.executors.choice import _slurm

    found = _slurm({"partition": "2024", "account": "007", "gpus": "2", "slots": "3"})
    assert found == {"slurm_partition": "2024", "slurm_account": "007", "gpus_per_node": 2, "slots": 3}


def test_a_library_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ExecutorError, match=r"pip install 'lmbench-suite\[ray\]'"):
        choose("ray", tmp_path)


# --- the runner with several places --------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.runner.POLL_EVERY_S", 0.0)
    monkeypatch.setattr("bench.flight.STOP_POLL_S", 0.0)


def context(executor: Executor) -> RunContext:
    return RunContext(executor=executor, display=FakeDisplay(), limits=Limits(time_s=1000))


class Together(FakeExecutor):
    """Each case ends only when `slots` of them run."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots=slots)
        self.most = 0
        self.under_way: list[FakeRunning] = []

    def start(self, folder: Path) -> FakeRunning:
        running = FakeRunning(None)
        done = super().start(folder).end
        self.under_way.append(running)
        now = [one for one in self.under_way if one.end is None]
        self.most = max(self.most, len(now))
        if len(now) == self.slots:
            for one in now:
                one.end = done
        return running


def test_as_many_cases_run_at_once_as_there_are_places_and_parents_come_first(tmp_path: Path) -> None:
    root = case(1)
    children = [case(number, parents=(root.id,)) for number in range(2, 8)]
    executor = Together(1)
    executor.slots = 1
    run_cases(tmp_path / "one", plan(root, *children), context(executor))
    assert executor.most == 1
    assert executor.started[0] == root.id

    class Wide(FakeExecutor):
        most = 0
        open_: list[FakeRunning] = []  # noqa: RUF012 - one instance

        def start(self, folder: Path) -> FakeRunning:
            running = FakeRunning(None)
            self.open_.append(running)
            Wide.most = max(Wide.most, len(self.open_))
            end = super().start(folder).end
            polls = iter([None, None, end])

            def poll() -> Exit | None:
                running.end = next(polls, end)
                if running.end is not None and running in self.open_:
                    self.open_.remove(running)
                return running.end

            running.poll = poll  # type: ignore[method-assign]
            return running

    wide = Wide(slots=3)
    made = run_cases(tmp_path / "three", plan(root, *children), context(wide))
    assert wide.started[0] == root.id
    assert Wide.most == 3
    assert len(made) == len(read(tmp_path / "three" / "records.jsonl")) == 7


def test_a_lost_case_is_tried_again_in_the_same_run(tmp_path: Path) -> None:
    times: list[int] = []

    def lose_once(job: Job, folder: Path) -> Exit | None:
        times.append(1)
        return Exit(None, 9, lost=True, reason="its node was lost") if len(times) == 1 else succeed(job, folder)

    one = case(1)
    made = run_cases(tmp_path, plan(one), context(FakeExecutor({one.id: lose_once})))
    assert [(record.status, record.attempt) for record in made] == [("failed", 1), ("ok", 2)]
    assert made[0].reason == "its node was lost"


def test_a_case_that_is_lost_again_and_again_is_left_to_the_next_run(tmp_path: Path) -> None:
    one, two = chain(2)
    lose = {one.id: lambda _job, _folder: Exit(None, 9, lost=True)}
    made = run_cases(tmp_path, plan(one, two), context(FakeExecutor(lose)))
    assert [record.case.id for record in made] == [one.id] * (MAX_LOSSES + 1) + [two.id]
    assert f"not run: {one.label} ({one.id}) failed:" in (made[-1].reason or "")


@pytest.mark.parametrize("is_remote", [True, False])
def test_idle_power_of_this_machine_is_not_that_of_another(tmp_path: Path, *, is_remote: bool) -> None:
    executor = FakeExecutor()
    executor.is_remote = is_remote
    here = context(executor)
    here.idle_power_w = 40.0
    run_cases(tmp_path, plan(case(1)), here)
    job = json.loads((tmp_path / "cases" / case(1).id / "case.json").read_text())
    assert job["idle_power_w"] == (None if is_remote else 40.0)


def test_time_in_a_queue_is_not_time_of_the_case(tmp_path: Path) -> None:
    class Queued(FakeRunning):
        looks = 0

        def poll(self) -> Exit | None:
            Queued.looks += 1
            return self.end if Queued.looks > 5 else None

        def is_waiting(self) -> bool:
            time.sleep(0.02)
            return True

    class Queue(FakeExecutor):
        def start(self, folder: Path) -> FakeRunning:
            return Queued(super().start(folder).end)

    limits = Limits(time_s=0.01, hang_s=0.01)
    made = run_cases(tmp_path, plan(case(1)), RunContext(executor=Queue(), display=FakeDisplay(), limits=limits))
    assert made[0].status == "ok"


# --- company -------------------------------------------------------------------------------------


def test_the_record_says_who_else_was_there(tmp_path: Path) -> None:
    with Company("a" * 16, tmp_path) as alone:
        assert alone.found()["other_cases"] == 0
        program = (
            "import sys, time; from pathlib import Path; from bench.company import Company\n"
            "with Company('b' * 16, Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
        )
        other = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        assert alone.found()["other_cases"] == 1
        other.kill()
        other.wait()
        other.stdout.close()
    with Company("c" * 16, tmp_path) as later:
        found = later.found()
    assert found["other_cases"] == 0, "a dead case is nobody"
    assert found["host"]
    assert found["cpus"] == os.cpu_count()


def test_a_folder_that_cannot_be_written_costs_no_case(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Company("a" * 16, tmp_path / "file" / "in") as company:
        found = company.found()
    assert found["other_cases"] is None
    assert "cannot be written" in found["other_cases_reason"]


# --- slurm ---------------------------------------------------------------------------------------


@pytest.fixture
def quiet_pythonpath(monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", f"{root}:{os.environ.get('PYTHONPATH', '')}")


@pytest.mark.usefixtures("quiet_pythonpath")
@pytest.mark.filterwarnings("ignore")
def test_submitit_debug_runs_a_case(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    from bench.executors.slurm import SlurmExecutor

    executor = SlurmExecutor(tmp_path / "slurm", cluster="debug", worker=WORKER)
    assert ended(executor.start(job(tmp_path / "a", "print"))) == Exit(0, None)
    assert "hello from the case" in (tmp_path / "a" / "log.txt").read_text()
    executor.close()


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_pythonpath")
@pytest.mark.filterwarnings("ignore")
def test_submitit_local_runs_stops_and_loses_cases(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    from bench.executors.slurm import SlurmExecutor

    executor = SlurmExecutor(tmp_path / "slurm", cluster="local", worker=WORKER)
    assert executor.slots == 1
    assert ended(executor.start(job(tmp_path / "a", "print"))) == Exit(0, None)
    assert ended(executor.start(job(tmp_path / "dies", "die"))) == Exit(None, signal.SIGKILL)

    stopped = executor.start(job(tmp_path / "b", "sleep"))
    until((tmp_path / "b" / "ready").exists, "the case does not start")
    assert not stopped.is_waiting()
    stopped.terminate()
    assert ended(stopped) == Exit(75, None, lost=False)

    taken = executor.start(job(tmp_path / "c", "sleep"))
    until((tmp_path / "c" / "ready").exists, "the case does not start")
    os.kill(int((tmp_path / "c" / "pid").read_text()), signal.SIGTERM)  # the scheduler wants its node
    assert ended(taken) == Exit(75, None, lost=True)

    crashed = executor.start(job(tmp_path / "d", "sleep"))
    until((tmp_path / "d" / "ready").exists, "the case does not start")
    crashed._job._process.kill()
    found = ended(crashed)
    assert found.lost
    assert "without a result" in (found.reason or "")

    unseen = executor.start(job(tmp_path / "e", "print"))
    (tmp_path / "e" / "case.json").unlink(missing_ok=True)
    ended(unseen)
    executor.close()


# --- ray -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_pythonpath")
@pytest.mark.filterwarnings("ignore")
def test_a_real_ray_cluster_runs_cases_on_every_node_and_a_lost_nodes_case_is_tried_again(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    from bench.executors.ray import RayExecutor

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    executor = RayExecutor(worker=WORKER)
    try:
        assert executor.slots == 2
        first, second = (executor.start(job(tmp_path / name, "sleep")) for name in "ab")
        until(lambda: (tmp_path / "a" / "ready").exists() and (tmp_path / "b" / "ready").exists(), "both run at once")
        with pytest.raises(ExecutorError, match="no node is left"):
            executor.start(job(tmp_path / "c", "sleep"))
        first.terminate()
        assert ended(first) == Exit(75, None, lost=False)

        place = next(place for place, running in executor._busy.items() if running is second)
        cluster.remove_node(next(node for node in nodes if node.node_id == place.node), allow_graceful=False)
        lost = ended(second)
        assert lost.lost
        assert "lost" in (lost.reason or "")
        until(lambda: executor.slots == 1, "the node is gone")
        assert ended(executor.start(job(tmp_path / "again", "print"))) == Exit(0, None)
    finally:
        executor.close()
        ray.shutdown()
        cluster.shutdown()
