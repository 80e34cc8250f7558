"""A case that is asked to stop: it looks between two steps, saves what it needs, and leaves no outcome."""

from __future__ import annotations

import threading

EXIT_CODE = 75
"""Exit code of a case that was asked to stop and can be continued (EX_TEMPFAIL of sysexits.h)."""

requested = threading.Event()
"""Set by the signal handler of the worker."""


class Interrupted(Exception):
    """The case was asked to stop and has saved what it needs to continue."""


def stop_if_asked() -> None:
    """Called where nothing would be lost.

    Raises:
        Interrupted: the case was asked to stop.
    """
    if requested.is_set():
        raise Interrupted
