"""Lines longer than a terminal is wide, broken between words under where their last column or sentence begins."""

from __future__ import annotations

import textwrap

LEAST = 30
"""Letters that must be left beside an indent for it to be kept."""


def fold(text: str, width: int) -> str:
    """The same text with no line longer than `width`, where its words allow that; shorter lines stay as they are."""
    return "\n".join(piece for line in text.split("\n") for piece in _folded(line, width))


def _folded(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    indent = _indent(line, width)
    return textwrap.wrap(line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def _indent(line: str, width: int) -> int:
    """Where what follows is to begin: under the last column of a table's row, else a little within the line's own."""
    own = len(line) - len(line.lstrip())
    column = line.rfind("  ", own) + 2
    return column if own < column <= width - LEAST else min(own + 2, max(0, width - LEAST))
