"""What is wrong with a suite, and where: one value a mistake, shown as compilers show theirs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MAX_SHOWN_COLUMNS = 160
"""Longer lines are cut around the caret."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a file."""

    file: str
    line: int
    """Counted from 1; 0 where the file as a whole is meant."""
    column: int
    """Counted from 1, in characters."""
    message: str
    hint: str | None = None
    text: str = ""
    """The offending line, without its end."""
    width: int = 1
    """Characters to underline."""

    @property
    def where(self) -> str:
        """`file:line:col`, or the file alone."""
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "message": self.message,
            "hint": self.hint,
            "text": self.text,
        }


class SuiteError(ValueError):
    """A suite that cannot be used; `problems` holds everything that is wrong with it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(format_problem(problem) for problem in problems))
        self.problems = tuple(problems)


def format_problem(problem: Problem) -> str:
    """`file:line:col: error: message`, the line, a caret under the place, and the hint on a line of its own."""
    lines = [visible(f"{problem.where}: error: {problem.message}")]
    if problem.line and problem.text.strip():
        lines += _excerpt(problem)
    if problem.hint:
        lines.append(f"  hint: {visible(problem.hint)}")
    return "\n".join(lines)


def _excerpt(problem: Problem) -> list[str]:
    """The line with its number, and carets under the part that is meant. A tab is shown as one space."""
    start, text = problem.column - 1, visible(problem.text.replace("\t", " "))
    cut = max(0, min(start - MAX_SHOWN_COLUMNS // 2, len(text) - MAX_SHOWN_COLUMNS))
    shown = text[cut : cut + MAX_SHOWN_COLUMNS].rstrip()
    width = max(1, min(problem.width, len(shown) - (start - cut)))
    gutter = f"{problem.line:>5} | "
    return [f"{gutter}{shown}", f"{' ' * (len(gutter) - 2)}| {' ' * (start - cut)}{'^' * width}"]


def visible(text: str) -> str:
    """The text with everything that could disturb a terminal or break a line replaced by U+FFFD."""
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)


def quoted(value: Any, limit: int = 60) -> str:
    """A value as it looks in YAML, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value)
    end = text[-1] if isinstance(value, str) else ""
    return text if len(text) <= limit else f"{text[: limit - 3 - len(end)]}...{end}"


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """The allowed word that was probably meant."""
    candidates = list(allowed)
    folded = {candidate.lower().replace("-", "_"): candidate for candidate in candidates}
    close = difflib.get_close_matches(word.lower().replace("-", "_"), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def suggest(word: str, allowed: Iterable[str]) -> str | None:
    """`did you mean `x`?`, or everything that is allowed; None where nothing is."""
    candidates = list(dict.fromkeys(allowed))
    if not candidates:
        return None
    close = nearest(word, candidates)
    return f"did you mean `{close}`?" if close else f"allowed: {', '.join(candidates)}"
