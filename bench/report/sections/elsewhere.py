"""What a study of several sizes carries to the size at which this one only measured what steps cost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.report.runfolder import RunFolder, mapping, number, sequence

LADDER = "ladder"
"""The suite whose sizes are extrapolated."""
AS_LARGE = 0.1
"""Largest relative difference between a size here and one that is extrapolated to."""


def ladder(study: RunFolder) -> tuple[Path, dict[str, dict[str, Any]]] | None:
    """A judged ladder that is carried to this study's size: its folder, and arm -> its entry with those targets alone.

    It is looked for beside this run, among the published studies beside its suite's folder, and in those of the folder
    that the program was started in.
    """
    parent = study.run.resolve().parent
    for folder in (parent / LADDER, parent.parent / "reference" / LADDER, Path("results") / "reference" / LADDER):
        arms = {name: {**one, "at_targets": found} for name, one, found in _arms(folder, _parameters(study))}
        if arms:
            return folder, arms
    return None


def _parameters(study: RunFolder) -> list[float]:
    """Of the baseline at each size, embeddings included."""
    found = (number(study.planned(study.design.baseline, scale).get("params_total")) for scale in study.design.scales)
    return [count for count in found if count]


def _arms(folder: Path, sizes: list[float]) -> Iterator[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    try:
        verdict = mapping(json.loads((folder / "verdict.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return  # no such study, or one that is not finished: the page then says that nothing is known
    for name, one in mapping(mapping(verdict.get("sizes")).get("arms")).items():
        targets = [mapping(there) for there in sequence(mapping(one).get("at_targets"))]
        close = [there for there in targets if any(_as_large(number(there.get("params")), size) for size in sizes)]
        if close:
            yield name, mapping(one), close


def _as_large(params: float | None, size: float) -> bool:
    return params is not None and abs(params / size - 1) <= AS_LARGE
