"""The warm server: a process that has imported torch, run nothing, and forks one child a case.

Importing takes seconds and a study has a hundred cases. The server reads `{"start": FOLDER}` lines on its standard
input and answers `{"pid": ...}`, then `{"pid": ..., "code": ..., "signal": ...}` when a child has ended. It dies with
the runner that started it, and its children die with it.

Run as `python -P -m bench.executors.warm MODULE`, where MODULE has `work(folder) -> exit code` (`bench.worker`).
"""

from __future__ import annotations

import importlib
import json
import os
import selectors
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from bench.process import die_with_parent

Work = Callable[[Path], int]
"""Does the case of a folder and returns the exit code."""


def main() -> None:
    """Serve until the input closes."""
    die_with_parent()
    work: Work = importlib.import_module(sys.argv[1]).work  # imports torch and all that a case needs, once for all
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, _note)
    # A scheduler may send SIGTERM to every process of a job, and a closed terminal sends SIGHUP: the server stays, or
    # its cases would die unsaved with it. Nor do they hear SIGHUP themselves: the runner asks them to save and leave.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    print(json.dumps({"ready": os.getpid()}), file=answers)
    children: set[int] = set()
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ, "request")
        selector.register(wake_read, selectors.EVENT_READ, "child")
        pending = b""
        while True:
            for key, _ in selector.select():
                if key.data == "child":
                    os.read(wake_read, 4096)
                    _reap(children, answers)
                    continue
                chunk = os.read(0, 65536)
                if not chunk:
                    _kill_all(children)
                    return
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    pid = _fork(work, Path(json.loads(line)["start"]), keep_out=(wake_read, wake_write))
                    children.add(pid)
                    print(json.dumps({"pid": pid}), file=answers)
                    _reap(children, answers)


def _note(_number: int, _frame: FrameType | None) -> None:
    """Having a handler makes SIGCHLD write to the wake-up pipe."""


def _fork(work: Work, folder: Path, keep_out: tuple[int, ...]) -> int:
    server = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        die_with_parent(server)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for descriptor in keep_out:
            os.close(descriptor)
        code = _run(work, folder)
    finally:
        os._exit(code)  # no clean-up of the parent's state: atexit handlers belong to the server


def _run(work: Work, folder: Path) -> int:
    """The child: its input is empty, what it prints goes to the case's log."""
    null = os.open(os.devnull, os.O_RDONLY)
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    code = work(folder)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _reap(children: set[int], answers: Any) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        children.discard(pid)
        ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        code = None if ended is not None else os.waitstatus_to_exitcode(status)
        print(json.dumps({"pid": pid, "code": code, "signal": ended}), file=answers)


def _kill_all(children: set[int]) -> None:
    for pid in children:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
