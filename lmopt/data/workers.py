"""Where the looking of a data step is done: in many processes of this machine, or on a Ray cluster.

Batches go out in order, a bounded number at a time, and what was found comes back in order, so that the output is the
same for any number of workers.
"""

from __future__ import annotations

import importlib
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any

from lmopt import children
from lmopt.data.stage import Batch, Look, Mapper
from lmopt.data.storage import DataError

AHEAD = 2
"""Batches a worker that are out at a time: one it works on and one that waits."""


@contextmanager
def processes(count: int) -> Iterator[Mapper]:
    """`count` processes of this machine.

    Raises:
        DataError: a worker was killed.
    """
    # A fresh interpreter a worker: forking a process that has threads can hang.
    with children.guarded(), ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        try:
            yield partial(_in_order, pool.submit, lambda future: future.result(), AHEAD * count)
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process was killed, perhaps for want of memory\nhint: fewer workers; the build starts over"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def ray_cluster(address: str | None = None, *, workers: int | None = None) -> Iterator[Mapper]:
    """The CPUs of a Ray cluster; without an address, of one that is started on this machine.

    Args:
        address: of a running cluster, `auto` for the one this machine belongs to.
        workers: CPUs of a cluster that is started here; default: all.

    Raises:
        DataError: Ray is not installed.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise DataError("Ray is not installed\nhint: pip install 'lmbench-suite[ray]'") from error
    started = not ray.is_initialized()
    if started:
        local = {"num_cpus": workers, "include_dashboard": False} if address is None else {"address": address}
        with children.guarded_cluster():
            ray.init(**local, log_to_driver=False)
    try:
        call = ray.remote(num_cpus=1)(children.from_here(_call))
        yield partial(_in_order, call.remote, partial(_got, ray), AHEAD * int(ray.cluster_resources().get("CPU", 1)))
    finally:
        if started:
            ray.shutdown()


def _got(ray: Any, future: Any) -> Any:
    """What a remote look found; what it raised is raised as itself, without Ray around it."""
    try:
        return ray.get(future)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def _call(look: Look, batch: Batch) -> Any:
    return look(batch)


def _in_order(
    submit: Callable[[Look, Batch], Any], result: Callable[[Any], Any], most: int, look: Look, work: Iterable[Batch]
) -> Iterator[tuple[Batch, Any]]:
    """(batch, what was found) in the order of the batches, with up to `most` of them out."""
    out: deque[tuple[Batch, Any]] = deque()
    for batch in work:
        out.append((batch, submit(look, batch)))
        if len(out) >= most:
            first, pending = out.popleft()
            yield first, result(pending)
    while out:
        first, pending = out.popleft()
        yield first, result(pending)
