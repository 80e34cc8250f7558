"""Where a training's threads run and its memory lies on a machine of several NUMA nodes, as plain data."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lmopt.techniques.technique import Technique

MAX_NODE = 1023
"""Linux numbers at most 1,024 nodes (CONFIG_NODES_SHIFT is 10 at most)."""
Node = Annotated[int, Field(ge=0, le=MAX_NODE)]


class Anywhere(Technique):
    """Threads and memory wherever the operating system puts them."""

    builder: ClassVar[str] = "lmopt.compute.numa:build"
    kind: Literal["anywhere"] = "anywhere"


class Bound(Technique):
    """Threads on the processors of one node, memory from that node alone (as `numactl -N n -m n`)."""

    builder: ClassVar[str] = "lmopt.compute.numa:build"
    kind: Literal["bound"] = "bound"
    node: Node = 0
    """The node."""
    overflow: bool = False
    """Take memory from other nodes when this one is full, instead of running out (as `numactl --preferred`)."""


class FirstTouch(Technique):
    """Threads spread over nodes, memory where the thread that writes it first runs."""

    builder: ClassVar[str] = "lmopt.compute.numa:build"
    kind: Literal["first_touch"] = "first_touch"
    nodes: tuple[Node, ...] = ()
    """Nodes to use; default: processors of all, memory of all that have some."""


class Interleaved(Technique):
    """Threads spread over nodes, memory page by page in turn from each (as `numactl -i`): no node is near, none far."""

    builder: ClassVar[str] = "lmopt.compute.numa:build"
    kind: Literal["interleaved"] = "interleaved"
    nodes: tuple[Node, ...] = ()
    """Nodes to use; default: processors of all, memory of all that have some."""
