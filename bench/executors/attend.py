"""Stays beside a case on a machine that the runner cannot reach, and talks to it through the case folder.

The folder lies on a file system that both machines see. `attend.json` says where the case runs and how much memory it
holds; a file `stop` holding the number of a signal is passed on. `ticket` names the one start of a case that may write
there: a job that outlived its runner, or waited in a queue meanwhile, ends when the next run starts its case again.
Used by the executors for Ray and Slurm.
"""

from __future__ import annotations

import json
import secrets
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path

from bench.casefolder import write_atomically
from bench.executors import Exit
from bench.executors.local import SERVER_ENVIRONMENT
from bench.process import resident_bytes
from lmopt import children

POLL_EVERY_S = 0.2
SHOW_EVERY_S = 1.0
ATTENDANCE = "attend.json"
STOP = "stop"
TICKET = "ticket"

Ended = tuple[int | None, int | None]
"""Exit code, or None and the signal that ended it."""


def attend(worker: str, folder: str, ticket: str) -> Ended:
    """Run the case of a folder in a child of its own, to its end, or until another start has taken its place.

    Args:
        worker: the module whose `work(folder)` does a case.
        folder: the case folder, as this machine sees it.
        ticket: what `prepare` gave for this start.

    Raises:
        FileNotFoundError: this machine does not see the folder.
    """
    place = Path(folder)
    if not (place / "case.json").exists():
        raise FileNotFoundError(
            f"{place}/case.json is not there on {socket.gethostname()}; "
            "hint: run folders must lie on a file system that all machines share (--out)"
        )
    if not _holds(place, ticket):
        return None, signal.SIGKILL
    with (place / "log.txt").open("ab") as log:
        child = subprocess.Popen(
            children.command("bench.executors.child", worker, folder),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=SERVER_ENVIRONMENT | children.environment(),
        )  # fmt: skip
    shown_s = float("-inf")
    sent: int | None = None
    while (code := child.poll()) is None:
        if not _holds(place, ticket):
            child.kill()
            child.wait()
            return None, signal.SIGKILL
        if time.monotonic() - shown_s > SHOW_EVERY_S:
            shown_s = time.monotonic()
            _show(place, child.pid)
        wanted = _asked(place)
        if wanted is not None and wanted != sent:
            child.send_signal(wanted)
            sent = wanted
        time.sleep(POLL_EVERY_S)
    return (None, -code) if code < 0 else (code, None)


def _show(place: Path, pid: int) -> None:
    seen = {"host": socket.gethostname(), "pid": pid, "resident_bytes": resident_bytes(pid)}
    write_atomically(place / ATTENDANCE, json.dumps(seen))


def _holds(place: Path, ticket: str) -> bool:
    """Whether this start is still the one that may write there."""
    try:
        return (place / TICKET).read_text() == ticket
    except FileNotFoundError:  # the run folder was removed
        return False
    except OSError:  # a file system that does not answer says nothing
        return True


def _asked(place: Path) -> int | None:
    """The signal that the runner wants sent; None where it wants none."""
    try:
        return int((place / STOP).read_text())
    except (OSError, ValueError):
        return None


# --- the runner's side ---------------------------------------------------------------------------


def prepare(place: Path) -> str:
    """Forget what an earlier attempt left, and end it where it still runs; returns the ticket of the new one."""
    ticket = secrets.token_hex(8)
    write_atomically(place / TICKET, ticket)
    for name in (ATTENDANCE, STOP):
        (place / name).unlink(missing_ok=True)
    return ticket


def ask(place: Path, number: signal.Signals) -> None:
    """Have a signal sent to the case."""
    write_atomically(place / STOP, str(int(number)))


def was_asked(place: Path) -> bool:
    """Whether the runner itself asked the case to stop."""
    return (place / STOP).exists()


def is_waiting(place: Path) -> bool:
    """Whether the case still waits for a machine."""
    return attendance(place) is None


def seen_resident_bytes(place: Path) -> int | None:
    """Memory that the case held when its attendant looked last; None before, and where that cannot be seen."""
    found = (attendance(place) or {}).get("resident_bytes")
    return found if isinstance(found, int) else None


def attendance(place: Path) -> dict[str, object] | None:
    """What the attendant saw last; None while the case waits for a machine."""
    try:
        return json.loads((place / ATTENDANCE).read_text())
    except (OSError, ValueError):
        return None


class Attended(ABC):
    """A case that an attendant stays beside, as the runner sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ended: Exit | None = None

    def poll(self) -> Exit | None:
        """How it ended; a case whose machine was taken away is lost. None while it runs or waits."""
        if self._ended is None and self.is_done():
            self._ended = self.end()
        return self._ended

    def is_waiting(self) -> bool:
        """Whether it has no machine yet."""
        return is_waiting(self.folder)

    def resident_bytes(self) -> int | None:
        """What its attendant saw last."""
        return seen_resident_bytes(self.folder)

    def terminate(self) -> None:
        """SIGTERM, through the case folder; a case that still waits for a machine is taken back."""
        ask(self.folder, signal.SIGTERM)
        if self.is_waiting():
            self.kill()

    def kill(self) -> None:
        """End it now."""
        ask(self.folder, signal.SIGKILL)
        self.cancel()

    @abstractmethod
    def is_done(self) -> bool:
        """Whether whoever started the attendant says that it ended."""

    @abstractmethod
    def end(self) -> Exit:
        """How an ended one ended."""

    @abstractmethod
    def cancel(self) -> None:
        """Take it back from whoever started the attendant, as far as that can be done."""
