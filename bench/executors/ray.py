"""Cases on a Ray cluster: one at a time on each GPU, or on each node where it has none.

A case gets a whole place (a GPU, or all cores of a node): nothing else of this cluster runs beside what is being
timed. A case whose node is lost comes back as lost, and the runner tries it again elsewhere. Run folders must lie on a
file system that all nodes see.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bench import interruption
from bench.executors import ExecutorError, Exit, attend
from lmopt import children

CONNECT_S = 10
"""Longest wait for a cluster's port to answer."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one case can run: a GPU of a node (`index` of several), or a node without one."""

    node: str
    index: int
    cpus: float
    gpus: int


class RayExecutor:
    """Owns the connection to a cluster; starts a local one where no address is given."""

    is_remote = True

    def __init__(self, address: str | None = None, *, worker: str = "bench.worker") -> None:
        """Connect.

        Args:
            address: of a running cluster (`auto`, `ray://...`); default: `RAY_ADDRESS`, else a cluster on this machine.
            worker: the module whose `work(folder)` does a case.

        Raises:
            ExecutorError: there is no such cluster.
        """
        address = address or os.environ.get("RAY_ADDRESS")
        self._worker = worker
        self._busy: dict[Place, RayRunning] = {}
        self._owns_connection = not ray.is_initialized()
        if self._owns_connection:
            _refuse_unreachable(address or "")
            try:
                with children.guarded_cluster():
                    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except (RayError, ConnectionError, ValueError) as error:
                raise ExecutorError(
                    f"ray: no cluster at {address}: {error}; hint: start one with `ray start`"
                ) from error
        self._attend: Any = ray.remote(max_retries=0)(children.from_here(attend.attend))

    @property
    def slots(self) -> int:
        """Cases that can run at once: the places of the nodes that are alive now, at least one."""
        return max(1, len(self._places()))

    def start(self, folder: Path) -> RayRunning:
        """Start the case whose folder this is on a free place.

        Raises:
            ExecutorError: every node is gone.
        """
        self._busy = {place: running for place, running in self._busy.items() if running.poll() is None}
        free = [place for place in self._places() if place not in self._busy]
        if not free:
            raise ExecutorError("ray: no node is left to run a case on; hint: `ray status`, then run again")
        place = free[0]
        ticket = attend.prepare(folder)
        reference = self._attend.options(
            num_cpus=place.cpus,
            num_gpus=place.gpus,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=place.node, soft=False),
        ).remote(self._worker, str(folder.resolve()), ticket)
        running = self._busy[place] = RayRunning(reference, folder)
        return running

    def close(self) -> None:
        """End what still runs; leave the cluster as it was found."""
        for running in self._busy.values():
            if running.poll() is None:
                running.kill()
        self._busy.clear()
        if self._owns_connection:
            ray.shutdown()

    def _places(self) -> list[Place]:
        found: list[Place] = []
        for node in ray.nodes():
            if not node["Alive"]:
                continue
            resources: dict[str, float] = node["Resources"]
            cpus, gpus = resources.get("CPU", 0.0), int(resources.get("GPU", 0))
            if gpus:
                found += [Place(node["NodeID"], index, max(1.0, cpus // gpus), 1) for index in range(gpus)]
            elif cpus:
                found.append(Place(node["NodeID"], 0, cpus, 0))
        return found


class RayRunning(attend.Attended):
    """A case on some node."""

    def __init__(self, reference: Any, folder: Path) -> None:
        super().__init__(folder)
        self._reference = reference

    def is_done(self) -> bool:
        return bool(ray.wait([self._reference], timeout=0)[0])

    def end(self) -> Exit:
        """A node or process that went away is a lost case."""
        try:
            code, number = ray.get(self._reference)
        except RayTaskError as error:  # the attendant itself failed: its message says why
            return Exit(None, None, reason=str(error.cause or error).strip().splitlines()[-1])
        except RayError as error:
            asked = attend.was_asked(self.folder)
            return Exit(None, signal.SIGKILL, lost=not asked, reason=f"its node or process was lost: {_short(error)}")
        return Exit(code, number, lost=code == interruption.EXIT_CODE and not attend.was_asked(self.folder))

    def cancel(self) -> None:
        with contextlib.suppress(RayError, ValueError, TypeError):
            ray.cancel(self._reference, force=True)


def _refuse_unreachable(address: str) -> None:
    """Where nothing listens at a HOST:PORT; Ray itself would try again for minutes.

    Raises:
        ExecutorError: so it is.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # `auto`, or a mistake that Ray names
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ExecutorError(f"ray: no cluster at {address}: {error}; hint: start one with `ray start`") from error


def _short(error: Exception) -> str:
    return (
        f"{type(error).__name__}: {str(error).strip().splitlines()[0]}" if str(error).strip() else type(error).__name__
    )
