"""Where cases run. An executor starts a case folder and says how it ended; everything else goes through files.

A case folder holds `case.json` before it starts; the worker keeps `progress.json` current, writes its log to
`log.txt` and its result to `outcome.json`. So a case that ran elsewhere comes back in the same form.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Exit:
    """How a case's process ended."""

    code: int | None
    """Exit code, or None if a signal ended it."""
    signal: int | None = None
    """The signal that ended it."""
    lost: bool = False
    """It was taken away from outside (its node died, its scheduler wants the place): worth another try now."""
    reason: str | None = None
    """Why, where the executor knows more than code and signal say."""


class ExecutorError(RuntimeError):
    """Cases cannot be run there: no cluster, no node left, a parameter that it does not know."""


class Running(Protocol):
    """A case under way."""

    def poll(self) -> Exit | None:
        """How it ended, or None while it runs."""
        ...

    def is_waiting(self) -> bool:
        """Whether it has no machine yet: time limits do not run then."""
        ...

    def resident_bytes(self) -> int | None:
        """Memory it holds now; None where that cannot be seen."""
        ...

    def terminate(self) -> None:
        """Ask it to save what it can and stop (SIGTERM)."""
        ...

    def kill(self) -> None:
        """End it now."""
        ...


class Executor(Protocol):
    """Somewhere to run cases."""

    @property
    def slots(self) -> int:
        """How many cases may run there at once, none beside another on one device."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether cases run on machines that may differ from this one."""
        ...

    def start(self, folder: Path) -> Running:
        """Start the case whose folder this is."""
        ...

    def close(self) -> None:
        """Let go of what the executor holds; ends whatever still runs."""
        ...
