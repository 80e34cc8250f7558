"""One unit of work: what it computes, what it builds on, what it is expected to cost.

A case is known by a hash of its content, so that the same work has the same id in every plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from pydantic import Field

from bench.design import Frozen
from bench.record import CaseKind
from lmopt.recipe import Recipe

Purpose = Literal[
    "corpus",
    "shards",
    "tune",
    "trial_source",
    "reference",
    "variant",
    "claim_point",
    "truncated",
    "half",
    "smaller",
    "timing",
    "evaluate",
    "sample",
    "generate",
    "finetune",
]

TUNING: tuple[Purpose, ...] = ("tune", "trial_source")
"""Trainings that no arm is judged by: trials, and what trials start or learn from."""

_WORDS = {"corpus": "corpus", "shards": "shards", "tune": "trial", "trial_source": "trial source"}
"""Purposes that say more than the kind."""


class Estimate(Frozen):
    """What a case is expected to cost here, before it runs."""

    train_flops: float | None = None
    generate_flops: float | None = None
    peak_memory_bytes: int | None = None
    time_s: float | None = None
    disk_bytes: int | None = None


class Case(Frozen):
    """One unit of work, identified by what it computes."""

    id: str
    kind: CaseKind
    arm: str
    scale: str | None = None
    seed: int | None = None
    horizon: float | None = None
    parents: tuple[str, ...] = ()
    purpose: Purpose
    recipe: Recipe | None = None
    spec: dict[str, Any] = Field(default_factory=dict[str, Any])
    """What the kind needs beside the recipe: a stage, tasks, timing blocks, the setting that a trial tries."""
    estimate: Estimate = Estimate()
    fits: bool = True
    applies: bool = True
    """Whether it would change anything on this machine (a placement on one NUMA node would not)."""
    reason: str | None = None
    """Why it does not fit this machine, or does not apply to it."""

    @property
    def label(self) -> str:
        """Short name for people: `train moe/s seed 0 x1.0`."""
        parts = [_WORDS.get(self.purpose, self.kind), self.arm]
        if self.scale is not None:
            parts[1] += f"/{self.scale}"
        if self.seed is not None:
            parts.append(f"seed {self.seed}")
        if self.horizon is not None:
            parts.append(f"x{self.horizon:g}")
        parts += [self.spec["task"]] if self.kind == "finetune" else []
        parts += [f"{name} {value:g}" for name, value in self.spec.get("trial", {}).items()]
        return " ".join(parts)


LATER: tuple[tuple[str, Any], ...] = (
    ("objective", {"kind": "next_token"}),
    ("inference", None),
    ("activations", {"kind": "keep"}),
    ("sample", {"steps": 10, "warmup": 2}),
    ("hf", None),
    ("sha256", None),
)
"""Keys that descriptions have had only since a later version, each with the value that means what there was before."""


def _as_before(value: Any) -> Any:
    """Without the later keys that say nothing new: such a study goes on in its folder."""
    if isinstance(value, Mapping):
        entries = cast("Mapping[str, Any]", value).items()
        return {key: _as_before(held) for key, held in entries if (key, held) not in LATER}
    if isinstance(value, list | tuple):
        return [_as_before(held) for held in cast("Sequence[Any]", value)]
    return value


def canonical_hash(value: Any, digits: int) -> str:
    """The first hex digits of the SHA-256 of a JSON value, independent of key order."""
    text = json.dumps(_as_before(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def identify(case: Case) -> Case:
    """Fill in the id: a hash of what is computed, not of what the arm is called."""
    recipe = None if case.recipe is None else case.recipe.model_dump(mode="json")
    content = [case.kind, recipe, case.spec, case.scale, case.seed, case.horizon, list(case.parents)]
    return case.model_copy(update={"id": canonical_hash(content, 16)})
