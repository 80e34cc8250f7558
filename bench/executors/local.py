"""Cases on this machine, one child process each, forked from a warm server."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

from bench.executors import ExecutorError, Exit
from bench.process import resident_bytes
from lmopt import children

START_TIMEOUT_S = 300.0
"""Longest wait for the server to import torch (a cold disk can take a minute)."""

CLOSE_TIMEOUT_S = 5.0

SERVER_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "GOMP_SPINCOUNT": "10000"}
"""NumPy's BLAS would start threads at import, and a process with threads should not fork. OpenMP's threads wait by
spinning; where a neighbour takes a core, spinning without end made a step ten times slower (docs/training.md), so
they spin for some microseconds and then sleep. What the user has set wins."""


class ServerGone(ExecutorError):
    """The process that forks cases died, or never started."""


class LocalExecutor:
    """Owns the warm server; restarts it when it has died. One case at a time: two would disturb each other's times."""

    slots = 1
    is_remote = False

    def __init__(self, worker: str = "bench.worker") -> None:
        """`worker` is the module whose `work(folder)` does a case."""
        self._worker = worker
        self._server: subprocess.Popen[str] | None = None
        self._started: queue.Queue[int] = queue.Queue()
        self._ended: dict[int, Exit] = {}
        self._errors: list[str] = []
        self._readers: list[threading.Thread] = []

    def start(self, folder: Path) -> LocalRunning:
        """Fork a child for the case in `folder`; a server that dies while it is asked is replaced once.

        Raises:
            ExecutorError: the server cannot be started; the message holds what it printed.
        """
        try:
            return self._ask(folder)
        except ServerGone:
            self.close()
            return self._ask(folder)

    def _ask(self, folder: Path) -> LocalRunning:
        server = self._server
        if server is None or server.poll() is not None:
            self.close()
            server = self._start_server()
        assert server.stdin is not None
        try:
            server.stdin.write(json.dumps({"start": str(folder.resolve())}) + "\n")
            server.stdin.flush()
        except BrokenPipeError:  # of stdout it would mean that a reader has enough, which is no error
            raise ServerGone("the process that runs cases died while it was asked for one") from None
        return LocalRunning(self._next_pid(server), self._ended, server)

    def _start_server(self) -> subprocess.Popen[str]:
        self._ended, self._started, self._errors = {}, queue.Queue(), []  # what an earlier server still said is void
        server = self._server = subprocess.Popen(
            children.command("bench.executors.warm", self._worker),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=SERVER_ENVIRONMENT | children.environment(),
            start_new_session=True,  # Ctrl-C reaches the runner alone, which then stops the case in order
        )
        self._readers = [
            threading.Thread(target=_listen, args=(server, self._ended, self._started), daemon=True),
            threading.Thread(target=_collect, args=(server, self._errors), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self._next_pid(server)
        return server

    def _next_pid(self, server: subprocess.Popen[str]) -> int:
        for _ in range(int(START_TIMEOUT_S / 0.5)):
            try:
                return self._started.get(timeout=0.5)
            except queue.Empty:
                if server.poll() is not None:
                    break
        raise ServerGone("the process that runs cases did not start:\n" + "".join(self._errors[-40:]))

    def close(self) -> None:
        """End the server and with it any case still running."""
        server, self._server = self._server, None
        if server is None:
            return
        assert server.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died before us
            server.stdin.close()
        try:
            server.wait(timeout=CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        for reader in self._readers:
            reader.join(timeout=CLOSE_TIMEOUT_S)


def _listen(server: subprocess.Popen[str], ended: dict[int, Exit], started: queue.Queue[int]) -> None:
    """What a server says of its children, until it dies; a line that its death cut short says nothing."""
    assert server.stdout is not None
    with server.stdout as answers:
        for line in answers:
            if not line.endswith("\n"):
                return
            answer: dict[str, Any] = json.loads(line)
            if "code" in answer:
                ended[answer["pid"]] = Exit(answer["code"], answer["signal"])
            else:
                started.put(answer["ready"] if "ready" in answer else answer["pid"])


def _collect(server: subprocess.Popen[str], errors: list[str]) -> None:
    assert server.stderr is not None
    with server.stderr as lines:
        errors.extend(lines)


class LocalRunning:
    """A forked case."""

    def __init__(self, pid: int, ended: dict[int, Exit], server: subprocess.Popen[str]) -> None:
        self.pid = pid
        self._ended = ended
        self._server = server

    def poll(self) -> Exit | None:
        """How it ended; a case whose server died was killed with it."""
        if self.pid in self._ended:
            return self._ended.pop(self.pid)
        return None if self._server.poll() is None else Exit(None, signal.SIGKILL)

    def is_waiting(self) -> bool:
        """Never: it has this machine."""
        return False

    def resident_bytes(self) -> int | None:
        """Its resident memory now."""
        return resident_bytes(self.pid)

    def terminate(self) -> None:
        """SIGTERM: the worker saves a checkpoint and leaves."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.pid not in self._ended:
            with contextlib.suppress(ProcessLookupError):  # it ended in the meantime: poll() tells how
                os.kill(self.pid, number)
