"""Events of a YAML text -> nodes: everything that is not plain data is a problem with its place.

No recursion, so that no nesting exhausts the stack.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    DocumentStartEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceStartEvent,
)

from bench import scalar
from bench.nodes import Mark, Node
from bench.problems import Problem, quoted, suggest

MAX_PROBLEMS = 100
"""Mistakes of the text itself after which reading stops."""
MAX_DEPTH = 32
"""Nesting of lists and mappings."""
MAX_NODES = 20_000
"""Values after aliases are followed: more is a YAML bomb."""


def placed(file: str, lines: tuple[str, ...] | list[str], mark: Mark, message: str, hint: str | None) -> Problem:
    """A problem at a place of the text, with the line it stands in."""
    line = min(mark.line, max(0, len(lines) - 1))
    text = lines[line] if lines else ""
    column = min(mark.column, len(text)) if line == mark.line else len(text)
    return Problem(file, line + 1, column + 1, message, hint, text, mark.width)


class _Stop(Exception):
    """Reading further would be wrong or unsafe; the problem is already reported."""


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end was not seen yet."""

    node: Node
    anchor: str | None
    key: tuple[str, Mark] | None = None
    """Of a mapping: the key that waits for its value."""
    skips: bool = False
    """The value that follows belongs to a key that was refused."""


class Builder:
    """Builds nodes without recursion, so that no nesting exhausts the stack."""

    def __init__(self, file: str, lines: tuple[str, ...]) -> None:
        self.file = file
        self.lines = lines
        self.problems: list[Problem] = []
        # First and last line of the last quoted text that has several: where a quote may be missing.
        self._quoted: tuple[int, int] | None = None
        self._open: list[_Open] = []
        self._anchors: dict[str, Node] = {}
        self._root: Node | None = None
        self._documents = 0

    def report(self, mark: Mark, message: str, hint: str | None = None) -> None:
        self.problems.append(placed(self.file, self.lines, mark, message, hint))
        if len(self.problems) >= MAX_PROBLEMS:
            raise _Stop

    def build(self, text: str) -> Node | None:
        """The document's node; None when there is none or it cannot be trusted."""
        try:
            for event in _events(text):
                self._take(event)
        except _Stop:
            return None
        except MarkedYAMLError as error:
            self._report_syntax(error)
            return None
        except (
            YAMLError,
            ArithmeticError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            AssertionError,
        ) as error:
            # The scanner meets some malformed texts (a cut-off escape, a bad directive) with plain exceptions.
            self.report(Mark(0, 0), f"not YAML: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            return None
        if self._root is None or (self._root.value is None and not self.problems):
            hint = "`lmbench init` writes a commented suite to start from"
            self.problems.append(Problem(self.file, 1, 1, "the file is empty", hint))
            return None
        return self._root

    def _report_syntax(self, error: MarkedYAMLError) -> None:
        place = error.problem_mark or error.context_mark
        mark = Mark(0, 0) if place is None else Mark(place.line, place.column)
        message = " ".join(str(error.problem or error.context or "malformed").split())
        if error.context and error.problem:
            message += f" {' '.join(str(error.context).split())}"
            start = error.context_mark
            if start is not None and start.line != mark.line:
                message += f" that starts at line {start.line + 1}"
        line = self.lines[mark.line] if mark.line < len(self.lines) else ""
        hint = _syntax_hint(message, line)
        if self._quoted is not None and self._quoted[1] == mark.line:
            hint = f"the quote before it opened at line {self._quoted[0] + 1}: close it there"
        self.report(mark, f"not YAML: {message}", hint)

    def _take(self, event: Any) -> None:
        if isinstance(event, DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                self.report(_mark(event), "a second document; a suite is one document", "remove the `---` line")
                raise _Stop
        elif isinstance(event, MappingStartEvent | SequenceStartEvent):
            self._start(event)
        elif isinstance(event, CollectionEndEvent):
            self._end()
        elif isinstance(event, ScalarEvent):
            mark = _mark(event)
            if event.style in ("'", '"') and event.end_mark.line > mark.line:
                self._quoted = mark.line, event.end_mark.line
            self._refuse_tag(event, mark)
            self._finish(Node(self._scalar(event, mark), mark), event.anchor)
        elif isinstance(event, AliasEvent):
            self._alias(event)

    def _start(self, event: Any) -> None:
        mark = _mark(event)
        self._refuse_tag(event, mark)
        if len(self._open) >= MAX_DEPTH:
            self.report(mark, f"nested deeper than {MAX_DEPTH} levels")
            raise _Stop
        value: Any = {} if isinstance(event, MappingStartEvent) else []
        self._open.append(_Open(Node(value, mark, is_block=not event.flow_style), event.anchor))

    def _end(self) -> None:
        opened = self._open.pop()
        self._finish(opened.node, opened.anchor)

    def _alias(self, event: Any) -> None:
        mark = _mark(event)
        node = self._anchors.get(event.anchor)
        if node is None:
            is_open = any(opened.anchor == event.anchor for opened in self._open)
            message = "contains itself" if is_open else "has no anchor before it"
            self.report(mark, f"alias *{event.anchor} {message}", suggest(event.anchor, self._anchors))
            raise _Stop
        self._finish(replace(node, mark=mark, is_block=False), None)

    def _finish(self, node: Node, anchor: str | None) -> None:
        """A node is complete: keep its anchor and hand it to what it belongs to."""
        if anchor is not None:
            self._anchors[anchor] = node
        if not self._open:
            self._root = node
            return
        parent = self._open[-1]
        if isinstance(parent.node.value, list):
            parent.node.value.append(node)
            self._grow(parent.node, node)
        elif parent.skips:
            parent.skips = False
        elif parent.key is None:
            self._take_key(parent, node)
        else:
            key, mark = parent.key
            parent.key = None
            if node.value is None and node.mark.line > mark.line:
                node = replace(node, mark=mark)  # left empty: the parser stands at whatever comes next
            parent.node.value[key] = node
            parent.node.keys[key] = mark
            self._grow(parent.node, node)

    def _grow(self, parent: Node, child: Node) -> None:
        parent.size += child.size
        parent.depth = max(parent.depth, child.depth + 1)
        if parent.depth > MAX_DEPTH:
            self.report(child.mark, f"nested deeper than {MAX_DEPTH} levels once aliases are followed")
            raise _Stop
        if parent.size > MAX_NODES:
            self.report(child.mark, f"more than {MAX_NODES:,} values once aliases are followed", "write the values out")
            raise _Stop

    def _take_key(self, parent: _Open, node: Node) -> None:
        if isinstance(node.value, str) and node.value == "<<":
            self.report(node.mark, "merge keys (`<<`) are not part of YAML 1.2", "an arm's `change` already merges")
        elif not isinstance(node.value, str):
            self.report(node.mark, f"keys are text, got {quoted(node.plain())}", "put it in quotes")
        elif node.value in parent.node.value:
            first = parent.node.keys[node.value]
            self.report(node.mark, f"duplicate key `{node.value}`", f"it is first given at line {first.line + 1}")
        else:
            parent.key = (node.value, node.mark)
            return
        parent.skips = True

    def _refuse_tag(self, event: Any, mark: Mark) -> None:
        if event.tag is not None:
            name = str(event.tag).replace("tag:yaml.org,2002:", "!!")
            self.report(mark, f"tag `{name}` is refused", "a suite is plain data: write the value without a tag")

    def _scalar(self, event: Any, mark: Mark) -> Any:
        try:
            return scalar.resolve(event.value, is_plain=event.style is None and event.tag is None)
        except scalar.BadScalar as error:
            self.report(mark, str(error), error.hint)
            return error.stand_in


def _events(text: str) -> Iterator[Any]:
    return YAML(typ="safe", pure=True).parse(text)


def _mark(event: Any) -> Mark:
    start, end = event.start_mark, event.end_mark
    width = end.column - start.column if end.line == start.line else 1
    return Mark(start.line, start.column, max(1, width))


def _syntax_hint(message: str, line: str) -> str | None:
    if "\\t" in message or "\t" in line[: len(line) - len(line.lstrip())]:
        return "indent with spaces; YAML does not allow tabs"
    if "mapping values are not allowed" in message:
        return "put text that holds `: ` in quotes, and check the indentation"
    if "quoted scalar" in message:
        return "close the quote"
    if "flow sequence" in message:
        return "close the `[` with `]`, with commas between"
    if "flow mapping" in message:
        return "close the `{` with `}`, with commas between"
    if "block end" in message or "block mapping" in message or "block collection" in message:
        return "check the indentation of this line and the one before"
    if "cannot start any token" in message:
        return "put the value in quotes"
    return None
