"""Messages whose reader may go away (a closed terminal, `2>&1 | head`, a log on a full disk): the run goes on."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO, cast


def deafen(stream: TextIO) -> None:
    """Let everything further go nowhere, what the stream still holds too: Python writes that when it ends."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor holds nothing back
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class Lasting:
    """A stream that takes what is written, whether or not anybody hears it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or do nothing."""
        try:
            return self._stream.write(text)
        except OSError:
            deafen(self._stream)
            return len(text)

    def flush(self) -> None:
        """Flush, or do nothing."""
        try:
            self._stream.flush()
        except OSError:
            deafen(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def lasting(stream: TextIO | None = None) -> TextIO:
    """The stream, default stderr, as one that no reader can end; one that goes nowhere where stderr is closed."""
    shown = stream or cast("TextIO | None", sys.stderr)
    if shown is None:
        shown = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - it lives as long as the process
    return shown if isinstance(shown, Lasting) else cast("TextIO", Lasting(shown))
