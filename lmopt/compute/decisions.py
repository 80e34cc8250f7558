"""Decisions of a pace while a training runs, and the file that repeats them: one JSON object a line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lmopt.techniques.batching import AdaptiveMicro, NoiseRamp


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


def sha256_of(path: Path) -> str:
    """The hash of a file of decisions.

    Raises:
        ReplayError: it cannot be read.
    """
    return hashlib.sha256(_content(path)).hexdigest()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        hint = "a relative path starts at the folder that the run was started in"
        raise ReplayError(f"batching.replay: {path}: {error.strerror}\nhint: {hint}") from error


def read_decisions(path: Path, sha256: str | None = None) -> Iterator[Decision]:
    """What `write_decisions` wrote: one decision a step at most, in order.

    Args:
        sha256: the hash that the file must have.

    Raises:
        ReplayError: no such file, another one than was said, or a line that is no decision or out of order.
    """
    content = _content(path)
    digest = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, digest):
        raise ReplayError(f"batching.replay: {path}: holds other decisions than it did: its SHA-256 is {digest}")
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ReplayError(f"batching.replay: {path}: not a file of decisions ({error})") from error
    latest = -1
    for number, line in enumerate(lines, 1):
        try:
            found = _decision(json.loads(line, object_pairs_hook=_once))
        except (ValueError, TypeError, RecursionError) as error:
            raise ReplayError(f"{path}:{number}: not a decision ({error})") from error
        if found.step <= latest:
            raise ReplayError(f"{path}:{number}: step {found.step} stands behind step {latest}: lines were changed")
        latest = found.step
        yield found


def fitting_decisions(batching: NoiseRamp | AdaptiveMicro) -> list[Decision]:
    """The decisions that a recipe's `batching.replay` holds, each one that its own training could have made.

    Raises:
        ReplayError: as `read_decisions`, none for the first step, or one that another recipe or kind of batching made.
    """
    assert batching.replay is not None
    path = Path(batching.replay)
    found = list(read_decisions(path, batching.sha256))
    if not found or found[0].step:
        raise ReplayError(f"{path}: no decision for the first step (step 0)")
    before = 1
    for one in found:
        misfit = _misfit(one, before, batching)
        if misfit:
            raise ReplayError(
                f"{path}: step {one.step} takes {one.portions * batching.portion} sequences, {one.micro} at once, "
                f"which does not fit this recipe: {misfit}\nhint: it was written by another recipe"
            )
        before = one.portions
    return found


def _misfit(decision: Decision, before: int, batching: NoiseRamp | AdaptiveMicro) -> str | None:
    """Why a training with this batching never decides so after steps of `before` portions; None where it may."""
    if isinstance(batching, AdaptiveMicro):
        if decision.portions != 1:
            return f"its batch is always {batching.sequences}"
        return None if decision.micro in batching.sizes else f"it may have {_listed(batching.sizes)} at once"
    portions, most = decision.portions, batching.sequences // batching.portion
    if portions > most or portions != (2 * before if decision.step else 1):
        return f"its batch begins with {batching.start}, doubles up to {batching.sequences} and never shrinks"
    if decision.step % batching.every:
        return f"it decides every {batching.every} steps"
    return None if decision.micro == batching.micro_sequences else f"it has {batching.micro_sequences} at once"


def _is_finite(number: Any) -> bool:
    return type(number) in (int, float) and abs(number) < float("inf")  # NaN is not below either


def _listed(sizes: tuple[int, ...]) -> str:
    return ", ".join(map(str, sizes))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON.

    Raises:
        ValueError: it gives a key twice.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it gives a key twice")
    return found


def _decision(fields: Any) -> Decision:
    """One line's decision.

    Raises:
        TypeError: other keys, numbers that are none, or a reason that is no text.
    """
    needed = ("step", "portions", "micro", "why")
    if not isinstance(fields, dict) or not {*needed} <= fields.keys() <= {*needed, "facts"}:
        raise TypeError(f"it needs {', '.join(needed)}, and may have facts")
    found = Decision(**fields)
    if not isinstance(found.why, str):
        raise TypeError(f"why must be text, got {found.why!r}")
    facts: Any = found.facts
    if not isinstance(facts, dict) or not all(_is_finite(number) for number in facts.values()):
        raise TypeError(f"facts must be finite numbers by name, got {facts!r}")
    numbers = (found.step, found.portions, 0 if found.micro is None else found.micro)
    if not all(type(number) is int for number in numbers):
        raise TypeError(f"step, portions and micro must be whole numbers, got {numbers}")
    if found.step < 0 or found.portions < 1 or (found.micro is not None and found.micro < 1):
        raise ValueError(f"step must be 0 or more, portions and micro 1 or more, got {numbers}")
    return found
