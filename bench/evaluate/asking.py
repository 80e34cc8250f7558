"""The harness's tasks and all that they ask, as the model takes it; and the model's answers put into each request."""

from __future__ import annotations

import contextlib
import io
import logging
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from bench.evaluate import hub
from bench.evaluate.index import HUB_PREFIX
from bench.evaluate.language_model import DecoderLM, Unanswerable
from bench.evaluate.loading import NotAvailable
from bench.evaluate.scoring import Score
from lmopt.step import Step

Task = Any
"""`lm_eval.api.task.Task`: its types are loose, what it returns is checked where it enters a value of ours."""
Instance = Any
"""`lm_eval.api.instance.Instance`: one request to the model and its answers."""
TASK_FILES = Path(__file__).parent / "tasks"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a task."""

    instance: Instance
    ready: Any
    """The same as the model takes it: `scoring.Request`, `writing.Prompt`, or a whole text."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The tasks that a name stands for (several for a group of the harness), and all that they ask."""

    parts: Sequence[Task]
    asked: Sequence[Asked]


def load(name: str, metadata: Mapping[str, Any], limit: int | None, lm: DecoderLM) -> Loaded:
    """Tasks with their requests built and tokenised, so that what cannot be answered is known before any work."""
    with _quiet():
        if name.startswith(HUB_PREFIX):
            tasks = hub.load(name.removeprefix(HUB_PREFIX))
        else:
            manager = TaskManager(include_defaults=False, metadata=dict(metadata))
            tasks = list(manager.load(str(TASK_FILES / f"{name}.yaml"))["tasks"].values())
        for task in tasks:
            task.build_all_requests(limit=limit)
        try:
            return Loaded(tasks, _ready(lm, [instance for task in tasks for instance in task.instances]))
        except Unanswerable as error:
            raise NotAvailable(f"{name}: {error}") from error


def _ready(lm: DecoderLM, instances: Sequence[Instance]) -> list[Asked]:
    prepare: dict[str, Callable[[Sequence[Any]], Sequence[Any]]] = {
        "loglikelihood": lm.requests,
        "generate_until": lm.prompts,
        "loglikelihood_rolling": lambda asked: [text for (text,) in asked],
    }
    found: list[Asked] = []
    for kind, group in groupby(instances, lambda instance: instance.request_type):
        alike = list(group)
        found += map(Asked, alike, prepare[kind]([instance.args for instance in alike]))
    return found


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Keep the harness's warnings and progress bars out of the case's log while it builds a task."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def answer(lm: DecoderLM, asked: Sequence[Asked]) -> Generator[Step]:
    """Put the model's answer into each request, those of all tasks together."""
    ways: dict[str, Callable[[Sequence[Any]], Generator[Step, None, Sequence[Any]]]] = {
        "loglikelihood": lm.score_steps,
        "generate_until": lm.write_steps,
        "loglikelihood_rolling": lm.rolling_steps,
    }
    by_kind: dict[str, list[Asked]] = defaultdict(list)
    for one in asked:
        by_kind[one.instance.request_type].append(one)
    for kind, group in by_kind.items():
        answers = yield from ways[kind]([one.ready for one in group])
        for one, found in zip(group, answers, strict=True):
            response = (found.log_likelihood, found.greedy) if isinstance(found, Score) else found
            one.instance.resps.extend([response] * one.instance.repeats)
