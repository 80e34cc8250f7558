"""A worker without torch: does what the file `do` in its case folder says."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def work(folder: Path) -> int:
    """Exit, sleep, die, print or stop in order."""
    what = (folder / "do").read_text()
    (folder / "pid").write_text(str(os.getpid()))
    if what == "print":
        print("hello from the case")
    elif what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "raise":
        raise ValueError("a fault of the worker itself")
    elif what == "sleep":
        stopped = []
        signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
        (folder / "ready").touch()
        while not stopped:
            time.sleep(0.01)
        return 75
    return 0
