"""What two ways of decoding wrote behind the same prompts, and the readings of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.record import Reading, missing, reading
from lmopt.infer.sequence import Decoded
from lmopt.recipe import EarlyExit, Speculative


@dataclass(slots=True)
class Run:
    """One prompt continued once by one side."""

    first_s: float
    """Seconds to the first token."""
    rest_s: float
    """Seconds of all that follow."""
    steps: list[Decoded]

    @property
    def text(self) -> list[int]:
        """The new tokens."""
        return [token for step in self.steps for token in step.added[0]]


@dataclass(slots=True)
class Prompt:
    """One held-out prompt and how each side continued it."""

    tokens: list[int]
    document: int
    block: int
    runs: dict[str, list[Run]] = field(default_factory=lambda: {"reference": [], "arm": []})

    def rest_s(self, side: str) -> float:
        """Mean seconds a token behind the first."""
        runs = self.runs[side]
        return math.fsum(run.rest_s / (len(run.text) - 1) for run in runs) / len(runs)

    def first_s(self, side: str) -> float:
        """Mean seconds to the first token."""
        return math.fsum(run.first_s for run in self.runs[side]) / len(self.runs[side])


def row(one: Prompt, flops: Mapping[str, float]) -> dict[str, Any]:
    """What judging needs of a prompt."""
    row: dict[str, Any] = {"document": one.document, "block": one.block}
    for name in ("reference", "arm"):
        row |= {f"{name}_s": one.rest_s(name), f"{name}_first_s": one.first_s(name), f"{name}_flops": flops[name]}
    return row


def metrics(
    prompts: Sequence[Prompt],
    flops: Sequence[Mapping[str, float]],
    blocks: Sequence[Mapping[str, Any]],
    found: Mapping[str, Any],
    config: Any,
) -> dict[str, Reading]:
    """The arm's own readings; its ratios to the reference are judged from the prompts."""
    token_s = [one.rest_s("arm") for one in prompts]
    ratios = [one.rest_s("arm") / one.rest_s("reference") for one in prompts]
    first_s = statistics.median(one.first_s("arm") for one in prompts)
    readings = {
        "decode_tokens_per_s": reading(1 / statistics.fmean(token_s), "token/s", "timed", "host"),
        "time_to_first_token_s": reading(first_s, "s", "timed", "host"),
        "decode_time_ratio": reading(statistics.geometric_mean(ratios), "1", "timed", "host"),
        "decode_flops_per_token": reading(statistics.fmean(one["arm"] for one in flops), "FLOP/token", "counted"),
        "decode_j_per_token": _energy(blocks),
    }
    runs = [one.runs["arm"][0] for one in prompts]
    if isinstance(config, Speculative):
        readings |= _speculation(runs)
    if isinstance(config, EarlyExit):
        readings |= _depth(runs)
        readings["exit_threshold"] = reading(config.threshold, "1", "counted")
    if "quality" in found:
        quality = found["quality"]
        total = quality["tokens"] * len(quality["document"])
        readings["token_accuracy"] = reading(sum(quality["arm_right"]) / total, "1", "counted")
        readings["token_agreement"] = reading(sum(quality["same"]) / total, "1", "counted")
        readings["decode_loss"] = reading(math.fsum(quality["arm_nats"]) / total, "nat/token", "counted")
    return readings


def _energy(blocks: Sequence[Mapping[str, Any]]) -> Reading:
    values = [block["arm_j"] for block in blocks]
    if any(value is None for value in values):
        reason = next((str(block["reason"]) for block in blocks if block["reason"]), "no counter covers the blocks")
        return missing("J/token", reason, blocks[0]["scope"])
    return reading(statistics.fmean(values), "J/token", blocks[0]["grade"], blocks[0]["scope"])


def _speculation(runs: Sequence[Run]) -> dict[str, Reading]:
    steps = [step for run in runs for step in run.steps[1:]]
    drafted, kept = (sum(step.notes[name] for step in steps) for name in ("drafted", "kept"))
    tokens = sum(step.tokens for step in steps)
    rate = reading(kept / drafted, "1", "counted") if drafted else missing("1", "nothing was drafted")
    return {"acceptance_rate": rate, "tokens_per_call": reading(tokens / len(steps), "token", "counted")}


def _depth(runs: Sequence[Run]) -> dict[str, Reading]:
    counts: dict[int, float] = {}
    for run in runs:
        for step in run.steps[1:]:
            for name, value in step.notes.items():
                layer = int(name.removeprefix("left/"))
                counts[layer] = counts.get(layer, 0.0) + value
    mean = sum(layer * value for layer, value in counts.items()) / sum(counts.values())
    return {"mean_exit_layer": reading(mean, "1", "counted")}
