"""Cases that time: steps of an arm and of its reference in turn, in one process."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench import interruption, workloads
from bench.apart import StepsApart
from bench.casefolder import Job, Outcome, Progress
from bench.instruments.table import Window
from bench.measure import drop, shards_folder
from bench.record import EVIDENCE, reading
from lmopt.recipe import Recipe
from lmopt.step import Step


def timing(job: Job, folder: Path) -> Outcome:
    """Steps of an arm and of its reference in turn, A B B A, in this one process: what drifts hits both alike."""
    spec = job.case.spec
    assert job.case.recipe is not None
    recipes = {"reference": Recipe.model_validate(spec["reference"]), "arm": job.case.recipe}
    data = shards_folder(job)
    half = max(1, spec["steps"] // 2)
    total = spec["warmup"] + 2 * half * spec["blocks"]
    pulled = {side: _timed(recipe, recipes, data, job.case.seed or 0, total) for side, recipe in recipes.items()}
    progress = Progress(folder, total=spec["blocks"], unit="blocks")
    compile_s = sum(drop(steps, spec["warmup"]) for steps in pulled.values())
    blocks: list[dict[str, Any]] = []
    for number in range(spec["blocks"]):
        blocks.append(_block(pulled, half))
        progress.show(number + 1, phase="timing")
        interruption.stop_if_asked()
    for steps in pulled.values():
        if isinstance(steps, StepsApart):
            steps.close()
    ratios = [block["arm_s"] / block["reference_s"] for block in blocks]
    tokens = recipes["arm"].batching.tokens
    step_s = statistics.median(block["arm_s"] for block in blocks)
    metrics = {
        "step_time_s": reading(step_s, "s", "timed", "host"),
        "step_time_ratio": reading(statistics.geometric_mean(ratios), "1", "timed", "host"),
        "tokens_per_s": reading(tokens / step_s, "token/s", "timed", "host"),
        "compile_time_s": reading(compile_s, "s", "timed", "host"),
    }
    detail = {
        "against": spec["against"],
        "blocks": blocks,
        "tokens_per_step": tokens,
        "reference_tokens_per_step": recipes["reference"].batching.tokens,
    }
    return Outcome(status="ok", metrics=metrics, detail=detail)


def _timed(recipe: Recipe, recipes: Mapping[str, Recipe], data: Path, seed: int, steps: int) -> Iterator[Step]:
    """Steps of one side; in a process of its own where a side has a placement."""
    if all(one.placement.kind == "anywhere" for one in recipes.values()):
        return workloads.timed(recipe, data, seed=seed, steps=steps)
    return StepsApart(lambda: workloads.timed_in_place(recipe, data, seed=seed, steps=steps))


def _block(pulled: Mapping[str, Iterator[Step]], half: int) -> dict[str, Any]:
    """Mean seconds (and joules, where a counter can tell) a step of each side in the order A B B A."""
    found: dict[str, Any] = {}
    sums: dict[str, list[tuple[float, float | None]]] = {"reference": [], "arm": []}
    for side in ("reference", "arm", "arm", "reference"):
        window = Window(device=str(workloads.device()))
        window.start()
        for _ in range(half):
            next(pulled[side])
        energy = window.stop()["energy_j"]
        sums[side].append((window.duration_s, energy.value if energy.grade in EVIDENCE else None))
    for side, parts in sums.items():
        joules = [joule for _, joule in parts if joule is not None]
        found[f"{side}_s"] = sum(seconds for seconds, _ in parts) / (2 * half)
        found[f"{side}_j"] = sum(joules) / (2 * half) if len(joules) == len(parts) else None
    return found
