"""Files of decisions that a suite replays: their hash becomes part of what is computed, and so of a case's identity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.draft import value_of
from bench.findings import Finding, split_hint
from bench.source import DataPath
from bench.stanzas import Arm, Baseline
from lmopt.compute.decisions import ReplayError, sha256_of

_BATCHING = "batching"


def pinned(baseline: Baseline, arms: tuple[Arm, ...]) -> tuple[Baseline, tuple[Arm, ...], list[Finding]]:
    """Baseline and arms with the hash of each file that they replay, and the files that cannot be read."""
    wrong: list[Finding] = []

    def with_hash(change: Mapping[str, Any], path: DataPath) -> dict[str, Any]:
        replay = value_of(change, _BATCHING, "replay")
        if not isinstance(replay, str):
            return dict(change)
        try:
            found = sha256_of(Path(replay))
        except ReplayError as error:
            wrong.append(Finding((*path, _BATCHING, "replay"), *split_hint(str(error))))
            return dict(change)
        return {**change, _BATCHING: {**change[_BATCHING], "sha256": found}}

    of_baseline = baseline.model_copy(update={"recipe": with_hash(baseline.recipe, ("baseline", "recipe"))})
    of_arms = tuple(
        arm.model_copy(update={"change": with_hash(arm.change, ("arms", index, "change"))})
        for index, arm in enumerate(arms)
    )
    return of_baseline, of_arms, wrong
