"""NUMA nodes of this machine, as the kernel describes them in /sys. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class Node:
    """One NUMA node."""

    node: int
    cpus: str
    """As the kernel lists them: `0-3,8`."""
    memory_bytes: int | None
    distances: tuple[int, ...]
    """To every node in order of their numbers; 10 is itself, 20 twice as far (ACPI's SLIT)."""

    @property
    def cpu_numbers(self) -> frozenset[int]:
        """The processors of `cpus`."""
        return frozenset(parse_list(self.cpus))


def nodes(root: Path = ROOT) -> list[Node]:
    """NUMA nodes by their numbers; empty where the kernel shows none."""
    found: list[Node] = []
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        memory = re.search(r"MemTotal:\s+(\d+) kB", _text(folder / "meminfo"))
        found.append(
            Node(
                node=int(folder.name.removeprefix("node")),
                cpus=_text(folder / "cpulist"),
                memory_bytes=int(memory[1]) * 1024 if memory else None,
                distances=tuple(int(number) for number in _text(folder / "distance").split()),
            )
        )
    return sorted(found, key=lambda one: one.node)


def parse_list(text: str) -> list[int]:
    """`0-3,8` -> [0, 1, 2, 3, 8] (cpuset(7), list format)."""
    numbers: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def not_applicable(placement: object, there: list[Node]) -> str | None:
    """Why a placement would change nothing on such nodes; None where it can be applied.

    Raises:
        NoSuchNode: it names a node that is not there.
    """
    kind = getattr(placement, "kind", "anywhere")
    if kind == "anywhere":
        return None
    asked = (placement.node,) if kind == "bound" else placement.nodes  # type: ignore[attr-defined]
    for node in asked if there else ():
        if node not in {one.node for one in there}:
            known = ", ".join(str(one.node) for one in there)
            raise NoSuchNode(f"placement {kind}: no NUMA node {node} on this machine\nhint: it has {known}")
    with_memory = [one.node for one in there if one.memory_bytes is None or one.memory_bytes > 0]
    if len(with_memory) < 2:
        seen = "one NUMA node" if there else "the kernel shows no NUMA nodes"
        return f"not applicable here: {seen}, so placement {kind} would change nothing"
    for node in asked:
        if node not in with_memory:
            raise NoSuchNode(f"placement {kind}: NUMA node {node} has no memory of its own")
    return None


class NoSuchNode(ValueError):
    """A placement names a node that this machine lacks."""


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
