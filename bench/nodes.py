"""Values of a YAML text that remember where they stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the text: line and column from 0, and how many characters belong to it."""

    line: int
    column: int
    width: int = 1


@dataclass(slots=True)
class Node:
    """A value with its place. `value` is a scalar, a list of nodes, or a dict of nodes by key."""

    value: Any
    mark: Mark
    keys: dict[str, Mark] = field(default_factory=dict[str, Mark])
    """Places of a mapping's keys."""
    size: int = 1
    """Values in it, itself included, with aliases followed."""
    depth: int = 1
    """Levels in it, itself included, with aliases followed."""
    is_block: bool = False
    """A list or mapping written on lines of its own."""

    def child(self, part: str | int) -> Node | None:
        """The value under a key or at a position, where there is one."""
        if isinstance(self.value, dict):
            return self.value.get(part)
        if isinstance(self.value, list) and isinstance(part, int) and 0 <= part < len(self.value):
            return self.value[part]
        return None

    def plain(self) -> Any:
        """The value without positions."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value
