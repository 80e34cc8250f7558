"""lm-evaluation-harness's own tasks, by name: they need a network, or a Hugging Face cache that was filled with one."""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
import socket
from collections.abc import Generator
from typing import Any
from urllib.parse import urlsplit

from lm_eval.tasks import TaskManager

from bench.evaluate.index import HUB_PREFIX, TASKS
from bench.evaluate.loading import NotAvailable
from lmopt.data import cache as store

REACH_TIMEOUT_S = 3.0
"""How long the hub may take to accept a connection before only the cache is looked at."""


def load(name: str) -> list[Any]:
    """The tasks of a name (several for a group), with their data sets.

    Raises:
        NotAvailable: the harness knows no such task, or its data set is neither on this machine nor to be had.
    """
    manager = _manager()
    if name not in manager.all_tasks:
        close = difflib.get_close_matches(name, manager.all_tasks, n=1)
        hint = f"\nhint: did you mean {HUB_PREFIX}{close[0]}?" if close else ""
        raise NotAvailable(f"lm-evaluation-harness has no task {name!r}{hint}")
    network = reachable()
    try:
        with contextlib.nullcontext() if network else cache_only():
            return list(manager.load(name)["tasks"].values())
    except Exception as error:  # whatever a foreign task's loader raises, the reason goes on record
        where = "its data set cannot be loaded" if network else "no network, and its data set is not in the cache"
        raise NotAvailable(
            f"{HUB_PREFIX}{name}: {where} ({type(error).__name__}: {error})\n"
            f"hint: run it once with a network, or use a task that needs none: {', '.join(sorted(TASKS))}"
        ) from error


def texts(name: str) -> list[str]:
    """All that a task asks, each context followed by each of its answers: what training text must not repeat.

    Raises:
        NotAvailable: as `load`, or its requests cannot be built.
    """
    found: dict[str, None] = {}
    for task in load(name):
        try:
            task.set_config(key="num_fewshot", value=0)
            task.build_all_requests(rank=0, world_size=1)
            for request in task.instances:
                said = request.args[1] if request.request_type == "loglikelihood" else task.doc_to_target(request.doc)
                found[f"{request.args[0]}{said if isinstance(said, str) else ''}"] = None
        except Exception as error:  # a foreign task's code may raise anything
            reason = f"its questions cannot be read ({type(error).__name__}: {error})"
            raise NotAvailable(f"{HUB_PREFIX}{name}: {reason}") from error
    return list(found)


@functools.cache
def _manager() -> TaskManager:
    """The index of the harness's thousands of task files, read once a process (seconds)."""
    return TaskManager()


def reachable() -> bool:
    """Whether it is worth asking the hub: not forbidden, and something answers (or a proxy is set, which is asked)."""
    if store.offline():
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        with socket.create_connection((host.hostname or "", host.port or 443), timeout=REACH_TIMEOUT_S):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def cache_only() -> Generator[None]:
    """Keep `datasets` and the hub's client from trying a network that is not there, again and again."""
    import datasets.config
    import huggingface_hub.constants

    settings: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [setting.HF_HUB_OFFLINE for setting in settings]
    try:
        for setting in settings:
            setting.HF_HUB_OFFLINE = True
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.HF_HUB_OFFLINE = value
