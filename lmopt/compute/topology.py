"""NUMA nodes of this machine, as the kernel describes them in /sys. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
LIST = re.compile(r"(\d+(-\d+)?(,\d+(-\d+)?)*)?")
"""Numbers as the kernel lists them: `0-3,8`, or none (cpuset(7), list format)."""


class NoSuchNode(ValueError):
    """A placement names a node that this machine lacks, or one without what the placement takes from it."""


@dataclass(frozen=True, slots=True)
class Node:
    """One NUMA node."""

    node: int
    cpus: str
    """As the kernel lists them: `0-3,8`."""
    memory_bytes: int | None
    distances: tuple[int, ...]
    """To every node in order of their numbers; 10 is itself, 20 twice as far (ACPI's SLIT)."""
    allowed: bool = True
    """Whether this process may take memory there: a container or a batch job may be kept to some nodes (cpuset(7))."""
    runs: bool = True
    """Whether it may run on one of its processors: a batch job may be given some, and memory anywhere."""

    @property
    def cpu_numbers(self) -> frozenset[int]:
        """The processors of `cpus`."""
        return frozenset(parse_list(self.cpus))

    @property
    def has_memory(self) -> bool:
        """Whether it has memory that this process may take; where the kernel does not say how much, it has."""
        return self.allowed and self.memory_bytes != 0


def nodes(root: Path = ROOT) -> list[Node]:
    """NUMA nodes by their numbers; empty where the kernel shows none."""
    found: list[Node] = []
    status = _text(root / "proc/self/status")
    allowed, usable = _kept_to("Mems", status), _kept_to("Cpus", status)
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        if not folder.name.removeprefix("node").isdecimal():
            continue
        memory = re.search(r"MemTotal:\s+(\d+) kB", _text(folder / "meminfo"))
        number, cpus = int(folder.name.removeprefix("node")), _text(folder / "cpulist")
        cpus = cpus if LIST.fullmatch(cpus) else ""
        found.append(
            Node(
                node=number,
                cpus=cpus,
                memory_bytes=int(memory[1]) * 1024 if memory else None,
                distances=tuple(int(one) for one in _text(folder / "distance").split() if one.isdecimal()),
                allowed=allowed is None or number in allowed,
                runs=usable is None or not usable.isdisjoint(parse_list(cpus)),
            )
        )
    return sorted(found, key=lambda one: one.node)


def _kept_to(what: str, status: str) -> frozenset[int] | None:
    """The processors or memory nodes that this process is kept to; None where the kernel does not say."""
    found = re.search(rf"^{what}_allowed_list:[ \t]*(\S+)$", status, re.MULTILINE)
    return frozenset(parse_list(found[1])) if found and LIST.fullmatch(found[1]) else None


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
    with_memory = [one.node for one in there if one.has_memory]
    if len(with_memory) < 2:
        return f"not applicable here: {_why_one(there)}, so placement {kind} would change nothing"
    for one in there:
        if one.node in asked:
            _refuse_useless(one, kind, with_memory)
    if asked and not any(one.cpus and one.runs for one in there if one.node in asked):
        raise NoSuchNode(
            f"placement {kind}: NUMA nodes {', '.join(map(str, asked))} have no processors that this process may run on"
        )
    return None


def _why_one(there: list[Node]) -> str:
    """Why there is no choice of memory."""
    if not there:
        return "the kernel shows no NUMA nodes"
    if len(there) == 1:
        return "one NUMA node"
    if len([one for one in there if one.memory_bytes != 0]) < 2:
        return f"one of {len(there)} NUMA nodes has memory"
    return f"this process may take memory of one of {len(there)} NUMA nodes (its cpuset)"


def _refuse_useless(one: Node, kind: str, with_memory: list[int]) -> None:
    """A node that a placement names must have what the placement takes from it.

    Raises:
        NoSuchNode: it has no memory, or no processors where threads are to run.
    """
    if one.memory_bytes == 0:
        raise NoSuchNode(f"placement {kind}: NUMA node {one.node} has no memory of its own")
    if not one.allowed:
        others = ", ".join(map(str, with_memory))
        raise NoSuchNode(
            f"placement {kind}: this process may take no memory of NUMA node {one.node}\n"
            f"hint: its cpuset allows {others}; a batch job is given nodes when it is submitted"
        )
    if not one.cpus and kind != "interleaved":
        raise NoSuchNode(
            f"placement {kind}: NUMA node {one.node} has no processors that threads could run on\n"
            "hint: its memory can be one of several that `interleaved` takes in turn"
        )
    if not one.runs and kind == "bound":
        raise NoSuchNode(
            f"placement {kind}: this process may run on none of the processors of NUMA node {one.node}\n"
            "hint: a batch job is given processors when it is submitted; taskset(1) shows which"
        )


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
