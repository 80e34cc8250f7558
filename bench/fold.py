"""Lines longer than a terminal is wide, broken between words under where their last column or sentence begins."""

from __future__ import annotations

import shutil
import sys
import textwrap

LEAST = 24
"""Letters that must be left under a last column for a line to be broken there."""
NUMBER = 12
"""Letters of a last column up to which a row is left as it is: it ends in a number, and the terminal breaks it."""


def width() -> int:
    """Letters a line of the terminal; 100 where there is none."""
    return shutil.get_terminal_size((100, 24)).columns


def fitted(text: str) -> str:
    """Folded to the width of a terminal; as it is for a file or a pipe, where programs read lines."""
    return fold(text, width()) if sys.stdout.isatty() else text


def fold(text: str, width: int) -> str:
    """The same text with no line longer than `width`, where its words allow that; shorter lines stay as they are."""
    return "\n".join(piece for line in text.split("\n") for piece in _folded(line, width))


def _folded(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    own = len(line) - len(line.lstrip())
    gap = line.rfind("  ", own)
    column = gap + 2
    if gap >= 0 and len(line) - column <= NUMBER:
        return [line]
    indent = column if gap >= 0 and column <= width - LEAST else own + 2
    return textwrap.wrap(line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
