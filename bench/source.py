"""YAML text -> plain data and positions.

One parser for both: ruamel.yaml's events (YAML 1.2) are built into nodes that remember where they stand. Only plain
data comes out: strings, numbers, true, false, null, lists and mappings with string keys. Tags, duplicate keys, merge
keys, alias bombs and anything beyond a limit are reported, never followed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import scalar
from bench.nodebuilder import Builder, placed
from bench.nodes import Mark, Node
from bench.problems import Problem, nearest, quoted

MAX_BYTES = 128 * 1024
"""A suite is a page or two of text."""

DataPath = tuple[str | int, ...]
"""Keys and positions from the root to a value."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file as it was read: what could be made of it, and what is wrong with it."""

    file: str
    lines: tuple[str, ...]
    root: Node | None
    problems: tuple[Problem, ...]

    def data(self) -> dict[str, Any]:
        """The plain content; empty where there is none."""
        return {} if self.root is None else self.root.plain()

    def problem(self, path: DataPath, message: str, hint: str | None = None, *, at_key: bool = False) -> Problem:
        """A problem at a path of the data; where the path does not exist, at the deepest part of it that does."""
        return placed(self.file, self.lines, self._mark(path, at_key), message, hint)

    def _mark(self, path: DataPath, at_key: bool) -> Mark:
        node = self.root
        if node is None:
            return Mark(0, 0)
        mark = node.mark
        for depth, part in enumerate(path):
            child = node.child(part)
            if child is None:
                break
            wants_key = child.is_block or (at_key and depth == len(path) - 1)
            mark = node.keys[part] if isinstance(part, str) and wants_key else child.mark
            node = child
        return mark


# --- reading -------------------------------------------------------------------------------------

MAX_NEARBY = 40
"""Files of a folder that are listed where a suite is not there."""


def read(path: Path) -> Source:
    """Read a suite's file. Never raises for what the file holds: every mistake is in `problems`."""
    file = str(path)
    try:
        if path.is_dir():
            return _unreadable(file, "is a folder, not a suite")
        with path.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return _unreadable(file, "no such file", _hint_nearby(path))
    except (OSError, ValueError) as error:
        return _unreadable(file, f"cannot be read ({getattr(error, 'strerror', None) or error})")
    return parse_bytes(content, file)


def _unreadable(file: str, message: str, hint: str | None = None) -> Source:
    return Source(file, (), None, (Problem(file, 0, 0, message, hint),))


def _hint_nearby(path: Path) -> str | None:
    try:
        suites = {
            entry.stem: entry.name for entry in sorted(path.parent.iterdir()) if entry.suffix in (".yaml", ".yml")
        }
    except OSError:
        suites = {}
    if not suites:
        return "`lmbench init` writes a new suite"
    close = nearest(path.stem, suites)  # not by the ending, which all have
    return f"did you mean `{suites[close]}`?" if close else f"there are: {', '.join([*suites.values()][:MAX_NEARBY])}"


def parse_bytes(content: bytes, file: str) -> Source:
    """UTF-8 text of a suite -> nodes and problems."""
    if len(content) > MAX_BYTES:
        return _unreadable(file, f"larger than {MAX_BYTES // 1024} KiB; a suite is a page or two of text")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8")
        lines = content.decode("utf-8", "replace").splitlines()
        mark = Mark(before.count("\n"), len(before) - (before.rfind("\n") + 1))
        message = f"not UTF-8: byte 0x{content[error.start]:02x}"
        return Source(file, (), None, (placed(file, lines, mark, message, "save the file as UTF-8"),))
    return parse_text(text.removeprefix("\ufeff"), file)


def parse_text(text: str, file: str) -> Source:
    """Text of a suite -> nodes and problems."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = tuple(text.split("\n"))
    control = scalar.CONTROL.search(text)
    if control is not None:
        line = text.count("\n", 0, control.start())
        mark = Mark(line, control.start() - (text.rfind("\n", 0, control.start()) + 1))
        message = f"control character U+{ord(control[0]):04X}"
        return Source(file, lines, None, (placed(file, lines, mark, message, "remove it"),))
    builder = Builder(file, lines)
    root = builder.build(text)
    if root is not None and not builder.problems and not isinstance(root.value, dict):
        builder.report(root.mark, f"a suite is a mapping, got {quoted(root.plain())}", "start with `suite: NAME`")
        root = None
    return Source(file, lines, root, tuple(builder.problems))
