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
        if not name.startswith(HUB_PREFIX) and TASKS[name].source == DERIVED:
            continue
        try:
            found[name] = _of_hub(name) if name.startswith(HUB_PREFIX) else _of_ours(name)
        except NotAvailable as error:
            missing[name] = str(error)
    return found, missing


def _of_ours(name: str) -> list[str]:
    return list(dict.fromkeys(f"{item.context} {choice}" for item in items(name) for choice in item.choices))


def _of_hub(name: str) -> list[str]:
    from bench.evaluate import hub  # the harness takes seconds to import

    return hub.texts(name.removeprefix(HUB_PREFIX))
