from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.executors import Exit
from bench.executors.local import LocalExecutor, LocalRunning


@pytest.fixture
def executor() -> Iterator[LocalExecutor]:
    made = LocalExecutor("tests.bench.fake_worker")
    yield made
    made.close()


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def ended(running: LocalRunning) -> Exit:
    found: list[Exit] = []
    until(lambda: found or [found.append(e) for e in [running.poll()] if e], "the case did not end")
    return found[0]


def folder(tmp_path: Path, what: str) -> Path:
    made = tmp_path / what
    made.mkdir()
    (made / "do").write_text(what)
    return made


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_a_case_runs_in_a_child_of_its_own_and_prints_into_its_log(executor: LocalExecutor, tmp_path: Path) -> None:
    place = folder(tmp_path, "print")
    assert ended(executor.start(place)) == Exit(0)
    assert (place / "log.txt").read_text() == "hello from the case\n"
    assert int((place / "pid").read_text()) != os.getpid()


def test_a_killed_child_is_told_apart_from_one_that_left(executor: LocalExecutor, tmp_path: Path) -> None:
    assert ended(executor.start(folder(tmp_path, "die"))) == Exit(None, signal.SIGKILL)
    assert ended(executor.start(folder(tmp_path, "raise"))) == Exit(1)
    assert ended(executor.start(folder(tmp_path, "fine"))) == Exit(0)


def test_terminate_lets_the_case_leave_in_order(executor: LocalExecutor, tmp_path: Path) -> None:
    place = folder(tmp_path, "sleep")
    running = executor.start(place)
    until((place / "ready").exists, "the case did not start")
    assert running.poll() is None
    assert (running.resident_bytes() or 0) > 0
    running.terminate()
    assert ended(running) == Exit(75)


def test_a_server_that_was_killed_takes_its_case_along_and_is_started_again(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    place = folder(tmp_path, "sleep")
    running = executor.start(place)
    until((place / "ready").exists, "the case did not start")
    child = int((place / "pid").read_text())
    assert executor._server is not None
    executor._server.kill()
    assert ended(running) == Exit(None, signal.SIGKILL)
    until(lambda: not alive(child), "the case outlived its server")
    assert ended(executor.start(folder(tmp_path, "fine"))) == Exit(0)


def test_a_server_that_dies_while_it_is_asked_is_replaced(executor: LocalExecutor, tmp_path: Path) -> None:
    assert ended(executor.start(folder(tmp_path, "fine"))) == Exit(0)
    server = executor._server
    assert server is not None
    server.poll = lambda: None  # type: ignore[method-assign]  # its death has not been noticed yet
    server.kill()
    server.wait()
    assert ended(executor.start(folder(tmp_path, "print"))) == Exit(0)
    assert executor._server is not server


def test_sigterm_to_every_process_of_a_job_still_lets_the_case_leave_in_order(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    place = folder(tmp_path, "sleep")
    running = executor.start(place)
    until((place / "ready").exists, "the case did not start")
    assert executor._server is not None
    executor._server.terminate()
    time.sleep(0.2)
    running.terminate()
    assert ended(running) == Exit(75), "killed with the server, it would have saved nothing"


def test_nothing_survives_a_runner_that_was_killed(tmp_path: Path) -> None:
    place = folder(tmp_path, "sleep")
    program = (
        "import sys, time; from pathlib import Path; from bench.executors.local import LocalExecutor\n"
        "LocalExecutor('tests.bench.fake_worker').start(Path(sys.argv[1])); time.sleep(60)"
    )
    runner = subprocess.Popen([sys.executable, "-c", program, str(place)])
    until((place / "ready").exists, "the case did not start")
    child = int((place / "pid").read_text())
    runner.kill()
    runner.wait()
    until(lambda: not alive(child), "the case outlived its runner")


def test_a_worker_that_cannot_be_imported_says_why(tmp_path: Path) -> None:
    executor = LocalExecutor("no_such_module")
    with pytest.raises(RuntimeError, match="no_such_module"):
        executor.start(folder(tmp_path, "fine"))
    executor.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked on Linux only")
@pytest.mark.parametrize(("parent", "code"), [("os.getppid()", 0), ("os.getppid() + 1", -signal.SIGKILL)])
def test_a_child_whose_parent_ended_first_ends_too(parent: str, code: int) -> None:
    program = f"import os; from bench.process import die_with_parent; die_with_parent({parent})"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == code
