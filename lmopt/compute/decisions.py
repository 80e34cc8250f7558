"""Decisions of a pace while a training runs, and the file that repeats them: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Decision:
    """A change of the pace, and why."""

    step: int
    """Updates done before the first one it holds for."""
    portions: int
    micro: int | None
    why: str
    facts: Mapping[str, float] = field(default_factory=dict[str, float])
    """What was seen: `free_bytes`, `tokens_per_s`, `noise_scale_sequences`."""


class ReplayError(ValueError):
    """A file of decisions that cannot be read, or that does not fit the training."""


def write_decisions(decisions: list[Decision], path: Path) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in decisions), encoding="utf-8")


def read_decisions(path: Path) -> Iterator[Decision]:
    """What `write_decisions` wrote.

    Raises:
        ReplayError: no such file, or a line that is no decision.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        hint = "a relative path starts at the folder that the run was started in"
        raise ReplayError(f"batching.replay: {path}: {error.strerror}\nhint: {hint}") from error
    except UnicodeDecodeError as error:
        raise ReplayError(f"batching.replay: {path}: not a file of decisions ({error})") from error
    for number, line in enumerate(lines, 1):
        try:
            yield _decision(json.loads(line))
        except (ValueError, TypeError) as error:
            raise ReplayError(f"{path}:{number}: not a decision ({error})") from error


def _decision(fields: Mapping[str, Any]) -> Decision:
    """One line's decision.

    Raises:
        TypeError: other keys, or numbers that are none.
    """
    found = Decision(**fields)
    numbers = (found.step, found.portions, 0 if found.micro is None else found.micro)
    if not all(type(number) is int for number in numbers):
        raise TypeError(f"step, portions and micro must be whole numbers, got {numbers}")
    return found
