"""Timed steps in a process of their own: where two sides of a comparison cannot share one.

Threads of a process share its pool, and a pool has one memory policy: arms placed on different NUMA nodes are stepped
in one process each, one at a time, from here.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from bench.process import die_with_parent
from lmopt.step import Step


class StepsApart:
    """An iterator of steps that are made in a child; forked before this process has threads of its own."""

    def __init__(self, make: Callable[[], Iterator[Step]]) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, there = context.Pipe()
        self._child: Any = context.Process(target=_serve, args=(make, there), daemon=True)
        self._child.start()
        there.close()

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        """One step.

        Raises:
            RuntimeError: the child failed or died; says how.
        """
        try:
            self._pipe.send(True)
            answer = self._pipe.recv()
        except (EOFError, BrokenPipeError):
            raise RuntimeError("the process of a timed arm died (killed, or out of memory)") from None
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def close(self) -> None:
        """End the child."""
        self._pipe.close()
        self._child.join(10)


def _serve(make: Callable[[], Iterator[Step]], pipe: Connection) -> None:
    """The child: a step for each request."""
    die_with_parent()
    steps = None
    try:
        while pipe.recv():
            steps = steps or make()
            pipe.send(next(steps))
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001 - whatever breaks an arm is told to the parent
        pipe.send(f"{type(error).__name__}: {error}")
