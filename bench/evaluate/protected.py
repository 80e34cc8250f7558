"""The texts of a suite's evaluation sets, which its training text must not repeat."""

from __future__ import annotations

from collections.abc import Iterable

from bench.evaluate.index import DERIVED, HUB_PREFIX, TASKS
from bench.evaluate.loading import NotAvailable, items


def texts(tasks: Iterable[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """What is protected, and what cannot be.

    Returns:
        name -> each context followed by each of its answers, right or wrong; and name -> why its text is not there.
        A set that is derived from held-out text is protected with the validation set it comes from.
    """
    found: dict[str, list[str]] = {}
    missing: dict[str, str] = {}
    for name in tasks:
        if name.startswith(HUB_PREFIX):
            missing[name] = "the hub's own task: its text passes through lm-evaluation-harness alone"
        elif TASKS[name].source != DERIVED:
            try:
                read = items(name)
            except NotAvailable as error:
                missing[name] = str(error)
                continue
            found[name] = list(dict.fromkeys(f"{item.context} {choice}" for item in read for choice in item.choices))
    return found, missing
