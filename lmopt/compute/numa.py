"""Threads and memory of this process on chosen NUMA nodes, for as long as a context is open.

Affinity is set for every thread there is, and new threads inherit it. The memory policy is set for the calling thread
and inherited by the threads that it starts, so a context is opened before the first parallel work: torch's pool then
lies inside it. The kernel's own call is used (set_mempolicy(2)); no library is needed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lmopt.compute import topology
from lmopt.compute.topology import Node
from lmopt.recipe import Anywhere, Bound, FirstTouch, Interleaved

MPOL_DEFAULT, MPOL_PREFERRED, MPOL_BIND, MPOL_INTERLEAVE, MPOL_LOCAL = range(5)
"""Memory policies (include/uapi/linux/mempolicy.h)."""
SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
"""Number of the system call by machine (the kernel's tables of unistd)."""
MASK_BITS = 1024
"""Nodes that a mask has bits for: as many as a kernel can be built for (CONFIG_NODES_SHIFT is 10 at most)."""
WORD_BITS = 64
"""Bits of the words that a mask is made of: an `unsigned long` of the machines above."""


class PlacementError(OSError):
    """The kernel refused an affinity or a memory policy."""


class NotApplicable(ValueError):
    """A placement that would change nothing on this machine: no fault, and nothing to measure."""


@dataclass(frozen=True, slots=True)
class Placed:
    """What a context set."""

    kind: str
    nodes: tuple[int, ...]
    cpus: tuple[int, ...]
    """Processors that threads may run on; empty where they were left alone."""


def build(
    config: Anywhere | Bound | FirstTouch | Interleaved, there: list[Node] | None = None
) -> AbstractContextManager[Placed]:
    """The placement of a recipe as a context manager that gives a `Placed`.

    Args:
        there: the machine's nodes; default: as the kernel shows them.

    Raises:
        NoSuchNode: the machine lacks a node, or the node lacks what the placement takes from it.
        NotApplicable: there is one node that has memory and may be used.
    """
    there = topology.nodes() if there is None else there
    reason = topology.not_applicable(config, there)
    if reason:
        raise NotApplicable(reason)
    return _placed(config, there)


@contextmanager
def _placed(config: Anywhere | Bound | FirstTouch | Interleaved, there: list[Node]) -> Generator[Placed]:
    if isinstance(config, Anywhere):
        yield Placed(config.kind, (), ())
        return
    chosen = chosen_nodes(config, there)
    allowed = os.sched_getaffinity(0)
    everywhere = not isinstance(config, Bound) and not config.nodes  # a node without memory has processors all the same
    cpus = allowed & frozenset().union(*(one.cpu_numbers for one in there if everywhere or one.node in chosen))
    if not cpus:
        raise PlacementError(
            f"placement {config.kind}: this process may run on none of the processors of nodes {chosen}"
        )
    with ExitStack() as undo:
        undo.callback(pin, allowed)
        pin(cpus)
        set_policy(*policy_of(config, chosen))
        undo.callback(set_policy, MPOL_DEFAULT, ())
        yield Placed(config.kind, chosen, tuple(sorted(cpus)))


def chosen_nodes(config: Bound | FirstTouch | Interleaved, there: list[Node]) -> tuple[int, ...]:
    """Numbers of the nodes whose memory a placement uses."""
    if isinstance(config, Bound):
        return (config.node,)
    return config.nodes or tuple(one.node for one in there if one.has_memory)


def policy_of(config: Bound | FirstTouch | Interleaved, chosen: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """(policy, nodes of its mask). First touch is the local policy, which takes no mask."""
    match config:
        case Bound():
            return (MPOL_PREFERRED if config.overflow else MPOL_BIND), chosen
        case Interleaved():
            return MPOL_INTERLEAVE, chosen
        case FirstTouch():
            return MPOL_LOCAL, ()


def pin(cpus: Iterable[int]) -> None:
    """Let every thread of this process run on these processors only."""
    wanted = set(cpus)
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), wanted)
        except ProcessLookupError:
            continue  # it ended meanwhile
        except OSError as error:
            raise PlacementError(f"processors {sorted(wanted)} refused for a thread ({error.strerror})") from error


def set_policy(policy: int, nodes: tuple[int, ...]) -> None:
    """set_mempolicy(2) for the calling thread.

    Raises:
        PlacementError: the kernel refuses, or this kind of machine is not known.
    """
    number = SET_MEMPOLICY.get(platform.machine())
    if number is None:
        raise PlacementError(f"placement: the system call for memory policies is not known for {platform.machine()}")
    mask = node_mask(nodes) if nodes else None
    libc = ctypes.CDLL(None, use_errno=True)
    bits = MASK_BITS + 1 if nodes else 0  # the kernel takes one bit less than it is told (get_nodes in mm/mempolicy.c)
    if libc.syscall(number, policy, mask, bits) != 0:
        code = ctypes.get_errno()
        raise PlacementError(f"memory policy {policy} on nodes {nodes} refused ({os.strerror(code)})")


def node_mask(nodes: Iterable[int]) -> ctypes.Array[ctypes.c_uint64]:
    """A bit a node, as the kernel reads it."""
    mask = (ctypes.c_uint64 * (MASK_BITS // WORD_BITS))()
    for node in nodes:
        mask[node // WORD_BITS] |= 1 << (node % WORD_BITS)
    return mask


def bytes_by_node(numa_maps: Path = Path("/proc/self/numa_maps")) -> dict[int, int]:
    """Bytes of this process that lie on each node (numa_maps, `N0=... kernelpagesize_kB=...`)."""
    try:
        lines = numa_maps.read_text().splitlines()
    except OSError:
        return {}
    found: dict[int, int] = {}
    for line in lines:
        size = re.search(r"kernelpagesize_kB=(\d+)", line)
        for node, pages in re.findall(r"\bN(\d+)=(\d+)", line):
            found[int(node)] = found.get(int(node), 0) + int(pages) * (int(size[1]) if size else 4) * 1024
    return found


def remote_bytes(by_node: dict[int, int], near: Iterable[int]) -> int:
    """Bytes that lie on other nodes than those the threads run on."""
    close = set(near)
    return sum(size for node, size in by_node.items() if node not in close)


def allocation_counts(root: Path = Path("/")) -> dict[int, dict[str, int]]:
    """The kernel's counts of page allocations a node, since it started: `numa_hit`, `numa_miss`, `other_node`, ...

    A difference of two readings says how often memory was wanted on a node and came from another (numastat(8)); it is
    the machine's, not this process's alone.
    """
    found: dict[int, dict[str, int]] = {}
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        try:
            counts = re.findall(r"^(\w+) (\d+)$", (folder / "numastat").read_text(), re.MULTILINE)
        except OSError:
            continue
        found[int(folder.name.removeprefix("node"))] = {name: int(value) for name, value in counts}
    return found
