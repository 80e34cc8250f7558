"""A way of decoding measured against the reference on one trained model: time, joules, FLOPs, exactness, quality.

Both write behind the same held-out prompts in this one process, block by block in the order reference, arm, arm,
reference: what drifts hits both alike. What is not timed (calibration, quality, exactness) stands outside the blocks.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import interruption, writers
from bench.casefolder import Job, Outcome, Progress
from bench.instruments.flops import TOLERANCE
from bench.instruments.formulas import FORMULAS, known_operators
from bench.instruments.table import Window
from bench.record import EVIDENCE, Reading
from bench.workloads import device
from bench.writers import Models, Texts, Told, Writer
from bench.written import Prompt, Run, metrics, row
from lmopt.cost_decoding import early_exit_flops_per_token, token_flops, written_flops
from lmopt.recipe import EarlyExit, Recipe
from lmopt.techniques.decoding import Sampling

SIDES = ("reference", "arm", "arm", "reference")
SAMPLED_TOLERANCE = 1e-4
"""Largest distance of the enumerated distribution that is rounding: probabilities are float32."""


def generate(job: Job, folder: Path) -> Outcome:
    """Time the two sides, then judge what the arm changes: nothing where it is lossless, else its quality."""
    spec, recipe = job.case.spec, job.case.recipe
    assert recipe is not None
    *trained, corpus = (Path(job.parents[parent]) for parent in job.case.parents)
    progress = Progress(folder, unit="parts")
    progress.show(0, phase="loading")
    texts = writers.texts(corpus / "data", spec)
    models = writers.own_models(spec) if "own" in spec else writers.models(trained)
    prompt, new = int(spec["prompt_tokens"]), int(spec["new_tokens"])
    decoding, found = writers.described(spec["decoding"]), dict[str, Any]()
    begin_s = time.perf_counter()
    if (store := writers.store(corpus / "data", decoding)) is not None:
        models = replace(models, store=store)
        found["store"] = {"tokens": store.tokens, "bytes": store.nbytes, "build_s": time.perf_counter() - begin_s}
    curve = None
    if isinstance(decoding, EarlyExit):
        curve = writers.curve(decoding, models, texts, prompt, told=_told(progress, "calibrating"))
        decoding = decoding.model_copy(update={"threshold": curve.chosen})
        found["curve"] = _curve(curve, recipe, texts, prompt, decoding)
        found["calibration"] = _calibration(curve)
    sides = {"reference": writers.writer(writers.described(spec["reference"]), models)}
    sides["arm"] = writers.writer(decoding, models)
    prompts = _prompts(texts, spec)
    blocks = _timed(sides, prompts, spec, job.idle_power_w, _told(progress, "timing"))
    draft = Recipe.model_validate(spec["draft_recipe"]) if spec.get("draft_recipe") else None
    flops = _flops(sides, prompts, recipe, draft)
    found["counts"] = _counts(sides, models, prompts[0], new, recipe, draft)
    if spec["lossless"]:
        found["exact"] = _exactness(sides, models, prompts, spec, _told(progress, "checking"))
    else:
        found["quality"] = _quality(sides, texts, prompt, _told(progress, "judging"))
    found |= {
        "against": spec["against"], "lossless": spec["lossless"], "new_tokens": new, "blocks": blocks,
        "prompts": [row(one, flops[number]) for number, one in enumerate(prompts)],
        "weights_bytes": {name: side.decoder.nbytes for name, side in sides.items()},
        "repeated_share": statistics.fmean(_repeated(one.runs["arm"][0].text) for one in prompts),
    }  # fmt: skip
    return Outcome(status="ok", metrics=metrics(prompts, flops, blocks, found, sides["arm"].config), detail=found)


def _told(progress: Progress, phase: str) -> Told:
    """Counts the parts of a phase that are done, for whoever watches, and stops between two of them if asked to."""
    done = itertools.count(1)
    progress.show(0, phase=phase)

    def told() -> None:
        progress.show(next(done), phase=phase)
        interruption.stop_if_asked()

    return told


# --- time ----------------------------------------------------------------------------------------


def _prompts(texts: Texts, spec: Mapping[str, Any]) -> list[Prompt]:
    """The first of the judged texts, dealt out to the blocks in order."""
    wanted, blocks = int(spec["prompts"]), int(spec["blocks"])
    rows = texts.judged[:wanted, : int(spec["prompt_tokens"])].tolist()
    return [Prompt(row, texts.documents[n], n * blocks // wanted) for n, row in enumerate(rows)]


def _timed(
    sides: Mapping[str, Writer], prompts: Sequence[Prompt], spec: Mapping[str, Any], idle_w: float | None, told: Told
) -> list[dict[str, Any]]:
    """Every block in the order A B B A; returns joules of each side a block, where a counter can tell."""
    sampling, new = Sampling.model_validate(spec["sampling"]), int(spec["new_tokens"])
    for side in sides.values():  # first allocations, kernel choices
        _run(side, prompts[0].tokens, new, sampling, seed=0)
    blocks: list[dict[str, Any]] = []
    for block in range(int(spec["blocks"])):
        here = [one for one in prompts if one.block == block]
        joules: dict[str, list[Reading]] = {"reference": [], "arm": []}
        for name in SIDES:
            window = Window(device=str(device()), idle_power_w=idle_w)
            window.start()
            for number, one in enumerate(here):
                one.runs[name].append(_run(sides[name], one.tokens, new, sampling, seed=block * len(prompts) + number))
            joules[name].append(window.stop()["energy_j"])
        blocks.append(_energy_of_block(joules, len(here) * new))
        told()
    return blocks


def _run(side: Writer, prompt: Sequence[int], new: int, sampling: Sampling, seed: int) -> Run:
    steps = side.write(prompt, max_new=new, sampling=sampling, seed=seed)
    begin_s = time.perf_counter()
    first = next(steps)
    first_s = time.perf_counter()
    rest = list(steps)
    end_s = time.perf_counter()
    return Run(first_s - begin_s, end_s - first_s, [first, *rest])


def _energy_of_block(joules: Mapping[str, Sequence[Reading]], tokens: int) -> dict[str, Any]:
    """Joules a token of each side, and the first reason why they are no evidence; of a block of so many tokens."""
    found: dict[str, Any] = {f"{name}_j": _joules_a_token(readings, tokens) for name, readings in joules.items()}
    reasons = (_no_joules(one) for readings in joules.values() for one in readings)
    first = joules["arm"][0]
    return found | {"reason": next(filter(None, reasons), None), "scope": first.scope, "grade": first.grade}


def _no_joules(found: Reading) -> str | None:
    """Why a reading is no evidence on energy; None where it is."""
    if found.value is None:
        return found.reason or "no energy sensor works here"
    return None if found.grade in EVIDENCE else f"energy is {found.grade} here, not measured"


def _joules_a_token(found: Sequence[Reading], tokens: int) -> float | None:
    """Of a counter or of sampled power; an estimate is no evidence."""
    values = [one.value for one in found if one.grade in EVIDENCE and one.value is not None]
    return math.fsum(values) / (len(found) * tokens) if len(values) == len(found) else None


# --- FLOPs ---------------------------------------------------------------------------------------


def _flops(
    sides: Mapping[str, Writer], prompts: Sequence[Prompt], recipe: Recipe, draft: Recipe | None
) -> list[dict[str, float]]:
    """FLOPs a token behind the first, of each side and prompt, in closed form from what its steps said."""
    return [
        {
            name: written_flops(side.config, recipe, one.runs[name][0].steps[1:], prompt=len(one.tokens), draft=draft)
            / (len(one.runs[name][0].text) - 1)
            for name, side in sides.items()
        }
        for one in prompts
    ]


def _counts(
    sides: Mapping[str, Writer], models: Models, prompt: Prompt, new: int, recipe: Recipe, draft: Recipe | None
) -> dict[str, Any]:
    """The closed form against dispatched operations, on one prompt in float32 (whose kernels the counter knows)."""
    counts: dict[str, Any] = {"agree": True, "disagreement": None}
    for name, side in sides.items():
        high = writers.writer(side.config, models, "fp32")
        steps = high.write(prompt.tokens, max_new=new)
        next(steps)
        counter = FlopCounterMode(display=False, custom_mapping=known_operators(FORMULAS))
        with counter:
            rest = list(steps)
        closed = written_flops(high.config, recipe, rest, prompt=len(prompt.tokens), draft=draft)
        dispatched = float(counter.get_total_flops())
        counts[name] = {"closed": closed, "dispatched": dispatched}
        if abs(closed - dispatched) > TOLERANCE * max(closed, dispatched):
            counts["agree"] = False
            counts["disagreement"] = f"{name}: closed {closed:.6g}, dispatched {dispatched:.6g} FLOPs a text"
    return counts


# --- exactness and quality -----------------------------------------------------------------------


def _exactness(
    sides: Mapping[str, Writer], models: Models, prompts: Sequence[Prompt], spec: Mapping[str, Any], told: Told
) -> dict[str, Any]:
    """Whether the arm writes what the reference writes: in float32, and in the format that was timed."""
    tokens = [one.tokens for one in prompts]
    found: dict[str, Any] = {
        "float32": writers.exact_in_float32(
            sides["arm"].config, sides["reference"].config, models, tokens, int(spec["new_tokens"]), told=told
        )
    }
    if Sampling.model_validate(spec["sampling"]).greedy:
        theirs, ours = ([one.runs[name][0].text for one in prompts] for name in ("reference", "arm"))
        found["timed"] = writers.agreement(sides["reference"], tokens, theirs, ours)
    distance = found["float32"].get("sampled_distance")
    wrong = found["float32"]["wrong"] + found.get("timed", {}).get("wrong", 0)
    found["is_exact"] = wrong == 0 and (distance is None or distance <= SAMPLED_TOLERANCE)
    return found


def _quality(sides: Mapping[str, Writer], texts: Texts, prompt: int, told: Told) -> dict[str, Any]:
    """What each side says of the same held-out words, text by text."""
    theirs, ours = (writers.read(sides[name], texts.judged, prompt, told=told) for name in ("reference", "arm"))
    target_BN = texts.judged[:, prompt + 1 :]
    columns = {
        "document": list(texts.documents),
        "reference_right": (theirs.choice_BN == target_BN).sum(1).tolist(),
        "arm_right": (ours.choice_BN == target_BN).sum(1).tolist(),
        "reference_nats": [round(value, 4) for value in theirs.nats_BN.sum(1).tolist()],
        "arm_nats": [round(value, 4) for value in ours.nats_BN.sum(1).tolist()],
        "same": (theirs.choice_BN == ours.choice_BN).sum(1).tolist(),
    }
    commonest = int(torch.bincount(target_BN.flatten()).max())
    return {"tokens": target_BN.shape[1], "chance": commonest / target_BN.numel(), **columns}


def _calibration(curve: writers.Curve) -> dict[str, Any]:
    if curve.calibration is None:
        return {"threshold": curve.chosen, "texts": 0}
    found = curve.calibration
    return {
        "threshold": found.threshold, "risk": found.risk, "level": found.level, "texts": found.texts,
        "tested": [
            {"threshold": one.threshold, "loss": one.mean_loss, "p": one.p_value, "passed": one.rejected}
            for one in found.tested
        ],
    }  # fmt: skip


def _curve(
    curve: writers.Curve, recipe: Recipe, texts: Texts, prompt: int, config: EarlyExit
) -> list[dict[str, float]]:
    """Depth, quality and FLOPs a token at each threshold, on the texts that are judged."""
    target_BN, whole = texts.judged[:, prompt + 1 :], curve.judged[1.0]
    flops = token_flops(recipe, prompt + (target_BN.shape[1] + 1) / 2)
    points: list[dict[str, float]] = []
    for threshold, said in curve.judged.items():
        asked = () if threshold == 1 or config.measure == "similarity" else config.exits
        left = {int(layer): int(n) for layer, n in zip(*said.left_BN.unique(return_counts=True), strict=True)}
        points.append(
            {
                "threshold": threshold,
                "mean_exit_layer": float(said.left_BN.double().mean()),
                "accuracy": float((said.choice_BN == target_BN).double().mean()),
                "nats": float(said.nats_BN.double().mean()),
                "agreement": float((said.choice_BN == whole.choice_BN).double().mean()),
                "flops_per_token": early_exit_flops_per_token(flops, left, asked),
            }
        )
    return points


def _repeated(text: Sequence[int], n: int = 4) -> float:
    """Share of n-grams that occurred earlier in the text: small models repeat themselves, which flatters lookup."""
    grams = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
