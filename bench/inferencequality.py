"""Whether a way of decoding kept what it writes: the same text where it must be exact, else its next-token accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.noninferiority import MIN_ABOVE_CHANCE
from bench.record import Record
from bench.stats.crossed import Stratum, crossed_mean, items_only
from bench.stats.effect import Effect
from bench.stats.power import items_needed
from bench.study import Study
from bench.words import finite, interval, margin_words, percent, points


@dataclass(frozen=True, slots=True)
class Read:
    """What the records of an arm at a scale hold, a row a seed."""

    records: tuple[Record, ...]
    dropped: Mapping[int, str]
    """Seeds without a result, and why."""


def mean(table: Any, clusters: Any, alpha: float) -> Effect:
    """Of a table seeds x texts, with its interval over both at `alpha`; `clusters` names texts that go together."""
    stratum = Stratum(table, 1.0, clusters)
    return items_only([stratum]) if len(table) == 1 else crossed_mean([stratum], alpha).effect


def exactness(read: Read) -> dict[str, Any]:
    """Whether the arm wrote what the reference writes, on every seed's model."""
    found: dict[str, Any] = {
        "kind": "exact",
        "kept": None,
        "why": next(iter(read.dropped.values()), "nothing was generated"),
    }
    checks = [record.detail.get("exact") for record in read.records]
    if not checks or any(one is None for one in checks):
        return found
    high = [one["float32"] for one in checks if one]
    timed = [one["timed"] for one in checks if one and one.get("timed")]
    distances = [one["sampled_distance"] for one in high if one.get("sampled_distance") is not None]
    counts = {
        name: {key: sum(one[key] for one in part) for key in ("texts", "identical", "tied", "wrong")}
        for name, part in (("float32", high), ("timed", timed))
    }
    kept = all(one["is_exact"] for one in checks if one)
    distance = max(distances, default=None)
    drafted = [one["sampled_drafted"] for one in high if "sampled_drafted" in one]
    was_tried = not drafted or any(drafted)
    return {
        "kind": "exact", "kept": kept, "sampled_distance": distance, **counts,
        "why": _exact_words(kept, counts, distance, was_tried),
    }  # fmt: skip


def _exact_words(kept: bool, counts: Mapping[str, Mapping[str, int]], distance: float | None, was_tried: bool) -> str:
    high, timed = counts["float32"], counts["timed"]
    text = f"{high['identical']} of {high['texts']} greedy texts are the reference's token for token in float32"
    if timed["texts"]:
        text += f", {timed['identical']} of {timed['texts']} in the format that was timed"
        text += f" ({timed['tied']} part where two tokens tie)" if timed["tied"] else ""
    if distance is not None and not was_tried:
        text += "; sampled text was not put to the test: nothing was drafted behind the prompts tried"
    elif distance is not None:
        text += f"; sampled text is {distance:.1g} from the model's own distribution, by enumeration"
    return text if kept else f"it does not write what the reference writes: {text}"


def kept_quality(study: Study, read: Read, alpha: float) -> dict[str, Any]:
    """Non-inferiority of next-token accuracy on held-out text that both sides read, and the loss beside it."""
    found: dict[str, Any] = {
        "kind": "non-inferiority", "kept": None, "difference": None, "bounds": [None, None], "margin": None,
        "reference_accuracy": None, "loss_difference": None, "loss_bounds": [None, None], "agreement": None,
        "more_texts": None,
    }  # fmt: skip
    columns = [record.detail.get("quality") for record in read.records]
    if not columns or any(one is None for one in columns):
        return found | {"why": next(iter(read.dropped.values()), "quality was not measured")}
    known = [one for one in columns if one]
    if len({len(one["document"]) for one in known}) != 1:
        return found | {"why": "the records hold different numbers of texts"}
    tokens = float(known[0]["tokens"])
    clusters = np.unique(known[0]["document"], return_inverse=True)[1]
    ours, theirs, same = (
        np.array([one[key] for one in known]) / tokens for key in ("arm_right", "reference_right", "same")
    )
    nats = np.array([np.subtract(one["arm_nats"], one["reference_nats"]) for one in known]) / tokens
    drop = study.design.hypothesis.accuracy_drop
    relative = drop.kind == "relative"
    tested = mean(ours - (1 - drop.less_than) * theirs if relative else ours - theirs, clusters, alpha)
    floor = 0.0 if relative else -drop.less_than
    difference, loss = mean(ours - theirs, clusters, alpha), mean(nats, clusters, alpha)
    reference = float(theirs.mean())
    found |= {
        "difference": difference.low, "bounds": _bounds(difference, alpha), "margin": drop.less_than,
        "reference_accuracy": reference, "loss_difference": loss.low, "loss_bounds": _bounds(loss, alpha),
        "agreement": float(same.mean()),
    }  # fmt: skip
    chance = float(np.mean([one["chance"] for one in known]))
    if reference < chance + MIN_ABOVE_CHANCE:
        why = (
            f"the reference guesses {percent(reference)} of the tokens, and the commonest is {percent(chance)} of them"
        )
        return found | {"why": f"{why}: nothing could be lost"}
    kept, verdict = _kept(tested, floor, alpha)
    if kept and (cap := _could_not_fail(read, floor)):
        kept, verdict = None, cap
    if kept is None and tested.se:
        variance = tested.se**2
        found["more_texts"] = items_needed(abs(tested.low - floor), variance, 0.0, alpha)
    margin = margin_words(drop.less_than, drop.kind)
    shown = f"next-token accuracy differs by {points(difference.low)} {interval(found['bounds'], 100, 2)}"
    return found | {"kept": kept, "why": f"{shown}, margin {margin}: {verdict}"}


def _bounds(effect: Effect, alpha: float) -> list[float | None]:
    return [finite(effect.lower(alpha)), finite(effect.upper(alpha))]


def _kept(tested: Effect, floor: float, alpha: float) -> tuple[bool | None, str]:
    if tested.lower(alpha) > floor:
        return True, "the drop is below the margin"
    if tested.upper(alpha) < floor:
        return False, "the drop is above the margin"
    return None, "the interval holds drops on both sides of the margin"


def _could_not_fail(read: Read, floor: float) -> str | None:
    """Where leaving every token at the first exit is within the margin too, no threshold was put to the test."""
    drops: list[float] = []
    for record in read.records:
        curve = sorted(record.detail.get("curve") or [], key=lambda point: point["threshold"])
        if not curve:
            return None
        first, full = float(curve[0]["accuracy"]), float(curve[-1]["accuracy"])
        drops.append(first - full)
    if sum(drops) / len(drops) > floor:
        return "quality could not have failed: leaving every token at the first exit is within the margin too"
    return None
