"""Synthetic run folders with planted truths: what a study would leave on disk if its arms saved what we say.

Losses follow one curve L(x) = FLOOR + LIFT * x^-EXPONENT of effective compute x (reference at horizon 1.0 = 1). An arm
that saves S reaches every loss at (1 - S) of the reference's FLOPs; noise is added to ln x: a part that all runs of a
seed share and a part of each run. Item scores follow a probit model whose mean accuracy is exactly what was asked for.

    make_run(folder, saving=0.3, seeds=5)          a folder that `lmbench judge` can read
    synthesize(saving=0.3, seeds=5)                the same in memory
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from bench import registered
from bench.design import AccuracyDrop, ArmDesign, Design, GateRule, Hypothesis, Saving
from bench.record import CaseKey, Reading, Record, missing, reading, to_line
from bench.study import Items, Study, assemble

FLOOR, LIFT, EXPONENT = 3.0, 1.2, 0.3
TOKENS = 1_000_000
"""Training tokens of every arm at horizon 1.0."""
TOKENS_PER_STEP = 4096
FLOPS_PER_TOKEN = 1e7
"""Of the reference."""
STEP_S = 0.08
JOULES_PER_TOKEN = 2e-4
DOMAINS = {"web": 0.0, "wiki": -0.06, "code": 0.11}
"""Validation domain -> offset in bits per byte."""
BYTES_PER_TOKEN = 3.1
TRIALS = {0.001: 4.2, 0.002: 4.1, 0.004: 4.15}
"""Learning rate -> loss of a tuning trial, of every arm."""
TRIAL_SEED = 1_000_000
ITEM_SD = 1.2
"""Probit scale of item difficulty; larger means fewer discordant pairs."""
RUN_SD = 0.6
"""Probit scale of what one trained model makes of one item by chance."""
HYPOTHESIS = Hypothesis()
DEFAULT_GATE = (
    GateRule(metric="train_flops_per_token"),
    GateRule(metric="params_total"),
    GateRule(metric="val_loss", floor=0.01),
)


@dataclass(frozen=True, slots=True)
class Task:
    """A synthetic evaluation task."""

    name: str
    family: str
    chance: float
    accuracy: float
    """Of the reference at horizon 1.0."""
    per_doubling: float = 0.04
    """Accuracy gained when compute doubles; 0 makes a task that sees nothing."""
    passages: int | None = None
    """Items share this many passages; None: each stands alone."""


TASKS = (
    Task("minimal_pairs", "lm", 0.5, 0.72),
    Task("quartz", "qa", 0.5, 0.64),
    Task("vitaminc", "nli", 0.5, 0.62),
)


@dataclass(frozen=True, slots=True)
class Planted:
    """An arm and the truth about it."""

    name: str
    role: str = "component"
    saving: float = 0.0
    """Of training FLOPs at equal loss."""
    primary: str = "flops"
    against: str | None = None
    parallel: bool = False
    flops_ratio: float = 1.0
    """Its FLOPs a token over the reference's."""
    step_ratio: float = 1.0
    """Its seconds a step over the reference's."""
    joules_ratio: float = 1.0
    """Its joules a token over the reference's."""
    accuracy_drop: float = 0.0
    """At the claim point, against the reference at horizon 1.0."""
    noise: float | None = None
    """SD of ln x of each of its runs; None: the study's."""
    own_preparation_s: float | None = None
    """It has data steps of its own that take this long; None: it trains on the baseline's shards."""
    diverged: tuple[int, ...] = ()
    """Seeds whose runs diverge."""
    failed: tuple[int, ...] = ()
    """Seeds whose runs fail (missing)."""


def default_arms(saving: float, accuracy_drop: float) -> tuple[Planted, ...]:
    """Four arms such as the first suites have: a timing arm, two components and the claim."""
    return (
        Planted("fp32", role="timing", step_ratio=1.9, joules_ratio=1.7),
        Planted("clean", saving=0.06, own_preparation_s=9.0),
        Planted("moe", saving=0.12, flops_ratio=1.02, step_ratio=1.6, joules_ratio=1.5),
        Planted(
            "all", role="claim", saving=saving, accuracy_drop=accuracy_drop, flops_ratio=1.02, step_ratio=1.5,
            joules_ratio=1.4, own_preparation_s=9.0,
        ),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class World:
    """Everything that a synthetic study is drawn from."""

    arms: tuple[Planted, ...]
    layout: str = "full"
    purpose: str = "explore"
    seeds: tuple[int, ...] = (0, 1, 2)
    scales: tuple[str, ...] = ("s",)
    horizons: tuple[float, ...] = (0.6, 0.8, 1.0)
    noise: float = 0.01
    """SD of ln x of each run."""
    seed_noise: float = 0.02
    """SD of ln x that all runs of a seed share."""
    tail: float | None = None
    """Degrees of freedom of a t distribution for the noise of runs; None: normal."""
    tasks: tuple[Task, ...] = TASKS
    items: int = 1500
    """Items a task; 0: no evaluation at all."""
    seed_accuracy_sd: float = 0.02
    """Probit scale of the whole accuracy of one trained model."""
    timing_blocks: int = 8
    timing_noise: float = 0.02
    energy: str | None = "counter"
    """Grade of energy readings; None: no sensor."""
    tuned: bool = False
    """Every arm has TRIALS and trains with the best of them."""
    hypothesis: Hypothesis = HYPOTHESIS
    gate: tuple[GateRule, ...] = DEFAULT_GATE
    controls: tuple[str, ...] = ("truncated", "half")
    draw: int = 0
    """Seed of every random number here."""


@dataclass(frozen=True, slots=True)
class Synthetic:
    """A study in memory: what `plan.json`, `records.jsonl` and the item tables would hold."""

    world: World
    plan: dict[str, Any]
    records: tuple[Record, ...]
    items: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Any])
    """case id -> columns of items.parquet."""


def make_run(folder: Path, **planted: Any) -> Path:
    """Write a complete run folder; the arguments are those of `synthesize`."""
    return write(folder, synthesize(**planted))


def synthesize(
    *,
    saving: float = 0.28,
    accuracy_drop: float = 0.0,
    seeds: int | Sequence[int] = 3,
    arms: Sequence[Planted] | None = None,
    margin: float = 0.01,
    margin_kind: str = "absolute",
    at_least: float = 0.20,
    timing_ratio: float | None = None,
    **world: Any,
) -> Synthetic:
    """A study with planted truths.

    Args:
        saving: what the claim arm saves of the reference's training FLOPs at equal loss.
        accuracy_drop: what its accuracy loses at the claim point.
        seeds: how many, or which.
        arms: instead of the four default ones (then `saving`, `accuracy_drop`, `timing_ratio` mean nothing).
        margin, margin_kind, at_least: the hypothesis.
        timing_ratio: seconds a step of the claim arm over the reference's.
        world: any field of `World`.
    """
    chosen = tuple(arms) if arms is not None else default_arms(saving, accuracy_drop)
    if timing_ratio is not None:
        chosen = tuple(replace(arm, step_ratio=timing_ratio) if arm.role == "claim" else arm for arm in chosen)
    if world.get("layout") == "economical":
        world.setdefault("horizons", (0.5, 0.7, 1.0, 1.4))
    world.setdefault(
        "hypothesis",
        Hypothesis(
            saving=Saving(at_least=at_least, target=max(0.3, at_least)),
            accuracy_drop=AccuracyDrop.model_validate({"less_than": margin, "kind": margin_kind}),
        ),
    )
    return draw(World(arms=chosen, seeds=tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds), **world))


def study_of(synthetic: Synthetic) -> Study:
    """A synthetic study as judging sees it, without a disk."""

    def items(record: Record) -> Items | None:
        table = synthetic.items.get(record.case.id)
        if table is None:
            return None
        return Items(*(table[name] for name in ("task", "item", "passage", "score", "choice_bits_per_byte")))

    return assemble(synthetic.plan, synthetic.records, items)


def draw(world: World) -> Synthetic:
    """Plan the cases of a world and draw a record for each."""
    random = np.random.default_rng(world.draw)
    design = _design(world)
    cases = list(_cases(world, design))
    for case in cases:
        if case["kind"] == "train" and case["purpose"] != "tune":
            ratio = _arms_by_name(world)[case["arm"]].flops_ratio
            case["estimate"]["train_flops"] = case["horizon"] * TOKENS * FLOPS_PER_TOKEN * ratio
    noise = {
        (scale, seed): world.seed_noise * random.standard_normal() for scale in world.scales for seed in world.seeds
    }
    items: dict[str, Mapping[str, Any]] = {}
    difficulty = {task.name: ITEM_SD * random.standard_normal(world.items) for task in world.tasks}
    records: list[Record] = []
    for case in cases:
        if case["kind"] == "evaluate":
            items[case["id"]] = _item_table(world, case, difficulty, random)
        records.append(_record(world, case, noise, items, random))
    plan = {
        "schema": 1,
        "run": hashlib.sha256(repr(world).encode()).hexdigest()[:10],
        "machine_class": "synthetic-8core",
        "design": design.model_dump(mode="json"),
        "arms": {
            name: {scale: _facts(arm) for scale in world.scales} for name, arm in _arms_by_name(world).items()
        },
        "cases": cases,
    }  # fmt: skip
    return Synthetic(world, plan, tuple(records), items)


def loss_at(effective_compute: float) -> float:
    """The curve that every run lies on, in nats a token."""
    return FLOOR + LIFT * effective_compute**-EXPONENT


# --- design and plan -----------------------------------------------------------------------------


BASELINE = Planted("dense", role="reference")


def _arms_by_name(world: World) -> dict[str, Planted]:
    return {"dense": BASELINE} | {arm.name: arm for arm in world.arms}


def _claim_horizon(world: World, arm: Planted) -> float:
    steps = int((1 - world.hypothesis.saving.at_least) / arm.flops_ratio * TOKENS / TOKENS_PER_STEP)
    return round(steps * TOKENS_PER_STEP / TOKENS, 6)


def _design(world: World) -> Design:
    claims = [arm for arm in world.arms if arm.role == "claim"]
    return Design.model_validate(
        {
            "suite": "synthetic",
            "purpose": world.purpose,
            "layout": world.layout,
            "baseline": "dense",
            "arms": [
                ArmDesign.model_validate(
                    {"name": arm.name, "role": arm.role, "primary": arm.primary, "against": arm.against,
                     "parallel": arm.parallel}
                )
                for arm in world.arms
            ],
            "scales": world.scales,
            "seeds": world.seeds,
            "horizons": world.horizons,
            "hypothesis": world.hypothesis,
            "gate": world.gate,
            "tuned": world.tuned,
            "claim_points": {arm.name: dict.fromkeys(world.scales, _claim_horizon(world, arm)) for arm in claims},
            "controls": dict.fromkeys(world.controls, "dense")
            | {arm.name: arm.name for arm in world.arms if arm.role == "control" and arm.name in ("smaller", "aa")},
        }
    )  # fmt: skip


def _facts(arm: Planted) -> dict[str, Any]:
    return {
        "params_total": 1_000_000,
        "params_active": 1_000_000,
        "train_flops_per_token": FLOPS_PER_TOKEN * arm.flops_ratio,
        "infer_flops_per_token": FLOPS_PER_TOKEN * arm.flops_ratio / 3,
        "change": f"synthetic: saves {arm.saving:.0%}",
    }


def _case(kind: str, arm: str, purpose: str, parents: Sequence[str] = (), **key: Any) -> dict[str, Any]:
    fields = {"kind": kind, "arm": arm, "scale": None, "seed": None, "horizon": None, "parents": list(parents),
              "purpose": purpose, "recipe": None, "spec": {}} | key  # fmt: skip
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
    estimate = {
        "train_flops": None,
        "peak_memory_bytes": None,
        "time_s": 30.0 if kind == "train" else 5.0,
        "disk_bytes": None,
    }
    return {"id": digest} | fields | {"estimate": estimate, "fits": True, "reason": None}


def _cases(world: World, design: Design) -> Iterator[dict[str, Any]]:
    corpus = _case("prepare", "dense", "corpus")
    plain = _case("prepare", "dense", "shards", [corpus["id"]])
    yield from (corpus, plain)
    own: dict[str, str] = {}
    for arm in world.arms:
        if arm.own_preparation_s is not None:
            shards = _case("prepare", arm.name, "shards", [corpus["id"]])
            own[arm.name] = shards["id"]
            yield shards
    for arm, scale in product(_arms_by_name(world).values(), world.scales):
        data = own.get(arm.name, plain["id"])
        if arm is not BASELINE:
            yield _case("timing", arm.name, "timing", [data], scale=scale, seed=world.seeds[0])
        if arm.role == "timing":
            continue
        trials = [
            _case(
                "train",
                arm.name,
                "tune",
                [data],
                scale=scale,
                seed=TRIAL_SEED,
                horizon=0.25,
                spec={"trial": {"lr": lr}},
            )
            for lr in (TRIALS if world.tuned else ())
        ]
        yield from trials
        tuning = {"tune": {"metric": "val_loss"}} if trials else {}
        for (horizon, purpose), seed in product(_horizons(world, design, arm, scale).items(), world.seeds):
            parents = [data, *(trial["id"] for trial in trials)]
            train = _case("train", arm.name, purpose, parents, scale=scale, seed=seed, horizon=horizon, spec=tuning)
            yield train
            evaluated = purpose in ("claim_point", "truncated", "half") or (
                arm is BASELINE and horizon in (1.0, 0.8, 0.5)
            )
            if world.items and evaluated:
                yield _case("evaluate", arm.name, "evaluate", [train["id"], corpus["id"]], scale=scale, seed=seed,
                            horizon=horizon)  # fmt: skip


def _horizons(world: World, design: Design, arm: Planted, scale: str) -> dict[float, str]:
    if arm is BASELINE:
        found = dict.fromkeys(world.horizons, "reference")
        if "truncated" in world.controls:
            found.setdefault(round(1 - world.hypothesis.saving.at_least, 6), "truncated")
        if "half" in world.controls:
            found.setdefault(0.5, "half")
        return found
    found = dict.fromkeys(world.horizons if world.layout == "full" and arm.role == "claim" else (1.0,), "variant")
    if arm.name in design.claim_points:
        found.setdefault(design.claim_points[arm.name][scale], "claim_point")
    return found


# --- records -------------------------------------------------------------------------------------


def _record(
    world: World,
    case: Mapping[str, Any],
    noise: Mapping[tuple[str, int], float],
    items: Mapping[str, Mapping[str, Any]],
    random: np.random.Generator,
) -> Record:
    arm = _arms_by_name(world)[case["arm"]]
    key = {"id": case["id"], "kind": case["kind"], "arm": case["arm"], "scale": case["scale"], "seed": case["seed"],
           "horizon": case["horizon"]}  # fmt: skip
    status, reason = "ok", None
    metrics: dict[str, Reading] = {}
    detail: dict[str, Any] = {}
    if case["kind"] in ("train", "evaluate") and case["seed"] in arm.failed:
        status, reason = "failed", "out of memory: synthetic"
    elif case["kind"] == "train" and case["seed"] in arm.diverged:
        status, reason = "diverged", "loss became nan at step 17"
    elif case["kind"] == "evaluate" and case["seed"] in arm.diverged:
        status, reason = "failed", "its training left no model"
    elif case["purpose"] == "tune":
        metrics, detail = _trial(case)
    elif case["kind"] == "prepare":
        metrics, detail = _prepare(world, case, arm)
    elif case["kind"] == "train":
        metrics, detail = _train(world, case, arm, noise[case["scale"], case["seed"]], random)
        detail |= _choice(case) if case["spec"] else {}
    elif case["kind"] == "evaluate":
        metrics, detail = _evaluate(world, items[case["id"]])
    else:
        metrics, detail = _timing(world, arm, random)
    return Record(
        schema=1, status=status, commit="0" * 40, env="synthetic0", reason=reason,
        case=CaseKey.model_validate(key), metrics=metrics, detail=detail,
    )  # fmt: skip


def _energy(world: World, joules: float) -> Reading:
    if world.energy is None:
        return missing("J", "no RAPL in this VM", "package0")
    return Reading(value=joules, unit="J", grade=world.energy, scope="package0")  # pyright: ignore[reportArgumentType]


def _prepare(world: World, case: Mapping[str, Any], arm: Planted) -> tuple[dict[str, Reading], dict[str, Any]]:
    own = case["purpose"] == "shards" and arm.own_preparation_s is not None
    took_s = 20.0 if case["purpose"] == "corpus" else (arm.own_preparation_s if own else 3.0) or 0.0
    metrics = {
        "prepare_time_s": reading(took_s, "s", "timed", "host"),
        "prepare_flops": reading(0, "FLOP", "counted"),
        "energy_j": _energy(world, 4.0 * took_s),
    }
    documents_out = 9_000 if own else 10_000
    detail = {
        "stage": case["purpose"], "documents_in": 10_000, "documents_out": documents_out,
        "dropped": {"near_duplicate": 800, "exact_duplicate": 200} if own else {}, "bytes_in": 40_000_000,
        "bytes_out": 4000 * documents_out, "tokens": 1300 * documents_out,
        "manifest_sha256": hashlib.sha256(case["id"].encode()).hexdigest(),
    }  # fmt: skip
    return metrics, detail


def _trial(case: Mapping[str, Any]) -> tuple[dict[str, Reading], dict[str, Any]]:
    lr = case["spec"]["trial"]["lr"]
    flops = 0.25 * TOKENS * FLOPS_PER_TOKEN
    metrics = {
        "train_flops": reading(flops, "FLOP", "counted"), "train_time_s": reading(5.0, "s", "timed"),
        "energy_j": missing("J", "no RAPL in this VM", "package0"),
        "val_loss": reading(TRIALS[lr], "nat/token", "counted"),
    }  # fmt: skip
    return metrics, {"trial": {"lr": lr}, "tokens": round(0.25 * TOKENS)}


def _choice(case: Mapping[str, Any]) -> dict[str, Any]:
    """How a training came to its setting: its trials are the parents after the shards."""
    best = min(TRIALS, key=lambda lr: TRIALS[lr])
    trials = [
        {"case": parent, "seed": TRIAL_SEED, "lr": lr, "loss": TRIALS[lr]}
        for parent, lr in zip(case["parents"][1:], TRIALS, strict=True)
    ]
    return {
        "tuning": {"chosen": {"lr": best}, "loss": TRIALS[best], "metric": "val_loss", "edges": {}, "trials": trials}
    }


def _train(
    world: World, case: Mapping[str, Any], arm: Planted, seed_noise: float, random: np.random.Generator
) -> tuple[dict[str, Reading], dict[str, Any]]:
    sd = world.noise if arm.noise is None else arm.noise
    own = random.standard_normal() if world.tail is None else random.standard_t(world.tail)
    cost = case["horizon"] * arm.flops_ratio
    shift = seed_noise + sd * own - math.log(1 - arm.saving)
    loss = loss_at(cost * math.exp(shift))
    tokens = round(case["horizon"] * TOKENS)
    flops_per_token = FLOPS_PER_TOKEN * arm.flops_ratio
    s_per_token = STEP_S * arm.step_ratio / TOKENS_PER_STEP * math.exp(0.05 * random.standard_normal())
    joules = JOULES_PER_TOKEN * arm.joules_ratio * tokens * math.exp(0.01 * random.standard_normal())
    bits = loss / math.log(2) / BYTES_PER_TOKEN
    metrics = {
        "train_flops": reading(tokens * flops_per_token, "FLOP", "counted"),
        "train_model_flops": reading(0.97 * tokens * flops_per_token, "FLOP", "counted"),
        "train_flops_per_token": reading(flops_per_token, "FLOP/token", "counted"),
        "infer_flops_per_token": reading(flops_per_token / 3, "FLOP/token", "counted"),
        "train_time_s": reading(tokens * s_per_token, "s", "timed"),
        "step_time_s": reading(s_per_token * TOKENS_PER_STEP, "s", "timed"),
        "tokens_per_s": reading(1 / s_per_token, "token/s", "timed"),
        "compile_time_s": reading(0.0, "s", "timed"),
        "energy_j": _energy(world, joules),
        "energy_net_j": missing("J", "no idle power was measured", "package0"),
        "energy_j_per_token": missing("J/token", "no RAPL in this VM", "package0") if world.energy is None
        else reading(joules / tokens, "J/token", world.energy, "package0"),  # pyright: ignore[reportArgumentType]
        "peak_memory_bytes": reading(3e8, "B", "timed", "host"),
        "params_total": reading(1_000_000, "1", "counted"),
        "params_active": reading(1_000_000, "1", "counted"),
        "mfu": missing("1", "the peak of this processor is not known"),
        "val_loss": reading(loss, "nat/token", "counted"),
        "perplexity": reading(math.exp(loss), "1", "counted"),
        "bits_per_byte": reading(bits, "bit/byte", "counted"),
    }  # fmt: skip
    for name, offset in DOMAINS.items():
        metrics[f"bits_per_byte/{name}"] = reading(bits + offset, "bit/byte", "counted")
    detail = {
        "tokens": tokens, "steps": round(tokens / TOKENS_PER_STEP), "data_stall_s": 0.1,
        "curve": _curve(case["horizon"], arm, shift, flops_per_token, s_per_token, joules / tokens),
        "counts": {"agree": True, "disagreement": None},
        "router": {}, "prepare_parents": list(case["parents"]),
    }  # fmt: skip
    return metrics, detail


def _curve(
    horizon: float, arm: Planted, shift: float, flops_per_token: float, s_per_token: float, j_per_token: float
) -> list[dict[str, Any]]:
    """Twenty points of one annealed run: above the curve of annealed ends until its own end."""
    points: list[dict[str, Any]] = []
    for n in range(1, 21):
        share = n / 20
        tokens = round(share * horizon * TOKENS)
        loss = loss_at(share * horizon * arm.flops_ratio * math.exp(shift)) + 0.15 * (1 - share) ** 0.7
        points.append(
            {"tokens": tokens, "loss": loss, "val_loss": loss if n == 20 else None,
             "train_flops": tokens * flops_per_token, "seconds": tokens * s_per_token, "joules": tokens * j_per_token}
        )  # fmt: skip
    return points


def _timing(world: World, arm: Planted, random: np.random.Generator) -> tuple[dict[str, Reading], dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    for _ in range(world.timing_blocks):
        drift = math.exp(0.2 * random.standard_normal())
        pair = STEP_S * drift * np.exp(world.timing_noise / math.sqrt(2) * random.standard_normal(2))
        joules = (
            JOULES_PER_TOKEN * TOKENS_PER_STEP * np.exp(world.timing_noise / math.sqrt(2) * random.standard_normal(2))
        )
        blocks.append(
            {"reference_s": float(pair[0]), "arm_s": float(pair[1] * arm.step_ratio),
             "reference_j": float(joules[0]) if world.energy else None,
             "arm_j": float(joules[1] * arm.joules_ratio) if world.energy else None}
        )  # fmt: skip
    ratio = math.exp(float(np.mean([math.log(block["arm_s"] / block["reference_s"]) for block in blocks])))
    metrics = {
        "step_time_s": reading(float(np.mean([block["arm_s"] for block in blocks])), "s", "timed"),
        "step_time_ratio": reading(ratio, "1", "timed"),
        "energy_j": _energy(world, 20 * sum(block["arm_j"] or 0.0 for block in blocks)),
    }
    steps = {"tokens_per_step": TOKENS_PER_STEP, "reference_tokens_per_step": TOKENS_PER_STEP}
    return metrics, {"against": arm.against or "dense", "blocks": blocks} | steps


# --- evaluation ----------------------------------------------------------------------------------


def _item_table(
    world: World, case: Mapping[str, Any], difficulty: Mapping[str, Any], random: np.random.Generator
) -> dict[str, Any]:
    """Columns of items.parquet: a probit model with item, model and item x model effects."""
    arm = _arms_by_name(world)[case["arm"]]
    drop = arm.accuracy_drop if case["arm"] != "dense" else 0.0
    names, ids, passages, scores, bits = [], [], [], [], []
    for task in world.tasks:
        gain = task.per_doubling * math.log2(case["horizon"]) if case["arm"] == "dense" else 0.0
        wanted = task.accuracy + gain - drop
        scale = math.sqrt(ITEM_SD**2 + RUN_SD**2 + world.seed_accuracy_sd**2)
        latent = (
            NormalDist().inv_cdf(wanted) * scale
            + difficulty[task.name]
            + world.seed_accuracy_sd * random.standard_normal()
            + RUN_SD * random.standard_normal(world.items)
        )
        names += [task.name] * world.items
        ids += [f"{task.name}-{n}" for n in range(world.items)]
        passages += [f"{task.name}-p{n % task.passages}" if task.passages else None for n in range(world.items)]
        scores.append((latent > 0).astype(float))
        bits.append(np.exp(0.3 - 0.2 * latent))
    score = np.concatenate(scores)
    return {"task": names, "item": ids, "passage": passages, "score": score, "score_lm_eval": score,
            "choice_bits_per_byte": np.concatenate(bits)}  # fmt: skip


def _evaluate(world: World, table: Mapping[str, Any]) -> tuple[dict[str, Reading], dict[str, Any]]:
    metrics: dict[str, Reading] = {}
    tasks: dict[str, Any] = {}
    for n, task in enumerate(world.tasks):
        rows = slice(n * world.items, (n + 1) * world.items)
        metrics[f"accuracy/{task.name}"] = reading(float(np.mean(table["score"][rows])), "1", "counted")
        tasks[task.name] = {
            "family": task.family, "chance": task.chance, "n": world.items,
            "correct_choice_bits_per_byte": float(np.mean(table["choice_bits_per_byte"][rows])),
        }  # fmt: skip
    return metrics, {"tasks": tasks}


# --- to disk -------------------------------------------------------------------------------------


def write(folder: Path, synthetic: Synthetic) -> Path:
    """The run folder of a synthetic study."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for record in synthetic.records:
        if record.case.id in synthetic.items and record.status == "ok":
            path = folder / "cases" / record.case.id / "items.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            table = synthetic.items[record.case.id]
            pq.write_table(pa.table({**table, "passage": pa.array(table["passage"], pa.string())}), path)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            record = record.model_copy(update={"detail": {**record.detail, "items_sha256": digest}})
        lines.append(to_line(record))
    (folder / "records.jsonl").write_text("".join(line + "\n" for line in lines))
    (folder / "plan.json").write_text(json.dumps(synthetic.plan, indent=1))
    (folder / "suite.yaml").write_text(_suite_text(synthetic.world))
    if synthetic.world.purpose == "confirm":
        held = registered.content(synthetic.plan["run"], Design.model_validate(synthetic.plan["design"]))
        (folder / registered.NAME).write_text(json.dumps({"time": "2026-01-01T00:00:00Z", **held}))
    (folder / "environment.json").write_text(json.dumps(_environment(synthetic.world), indent=1))
    return folder


def _suite_text(world: World) -> str:
    lines = ["suite: synthetic", "about: A study with planted truths.", f"purpose: {world.purpose}"]
    lines += ["baseline: {name: dense}", "arms:"]
    lines += [f"  - {{name: {arm.name}, role: {arm.role}, primary: {arm.primary}}}" for arm in world.arms]
    lines.append(f"over: {{seed: {list(world.seeds)}, horizon: {list(world.horizons)}}}")
    return "\n".join(lines) + "\n"


def _environment(world: World) -> dict[str, Any]:
    return {
        "schema": 1,
        "env": "synthetic0",
        "machine": {"class": "synthetic-8core", "cpu": "synthetic", "cores": 8, "commit": "0" * 40, "dirty": False},
        "sensors": {
            "rapl": {"available": world.energy == "counter", "reason": "synthetic", "hint": None, "grade": "counter",
                     "update_period_s": 0.001},
        },
    }  # fmt: skip
