"""A run folder written by hand: small, with every kind of record, and knobs for what tests want to see missing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.design import ArmDesign, Design
from bench.record import CaseKey, Reading, Record, append, missing, reading

NO_RAPL = "no RAPL in this VM"


@dataclass(frozen=True)
class Folder:
    """What to write. The defaults are a small finished study with one claim, one component and one timing arm."""

    arms: tuple[tuple[str, str], ...] = (("all", "claim"), ("moe", "component"), ("fp32", "timing"))
    seeds: tuple[int, ...] = (0, 1, 2)
    horizons: tuple[float, ...] = (0.5, 0.8, 1.0, 1.4)
    scales: tuple[str, ...] = ("s",)
    about: str = "Do sparse experts and clean data reach the dense model's loss with less compute?"
    energy: bool = False
    judged: bool = True
    reason: str = NO_RAPL
    keep: float = 1.0
    """The share of the cases that have finished."""
    suite_text: str | None = None
    domains: tuple[str, ...] = ("web", "wiki")
    machine: dict[str, Any] = field(default_factory=lambda: {"cpu": "Xeon", "memory_bytes": 16 * 2**30, "gpus": []})

    @property
    def design(self) -> Design:
        return Design(
            suite="quickstart",
            baseline="dense",
            arms=tuple(ArmDesign.model_construct(name=name, role=role, primary="flops", against=None, parallel=False)
                       for name, role in self.arms),
            scales=self.scales,
            seeds=self.seeds,
            horizons=self.horizons,
            claim_points={name: dict.fromkeys(self.scales, 0.8) for name, role in self.arms if role == "claim"},
        )  # fmt: skip


def write(folder: Path, what: Folder | None = None) -> Path:
    """Write the run folder and return it."""
    what = what or Folder()
    folder.mkdir(parents=True, exist_ok=True)
    records = list(_records(what))
    cases = [
        {"id": one.case.id, "kind": one.case.kind, "arm": one.case.arm, "scale": one.case.scale, "seed": one.case.seed,
         "horizon": one.case.horizon, "parents": [], "fits": True, "reason": None}
        for one in records
    ]  # fmt: skip
    design = what.design.model_dump(mode="json")
    plan = {"schema": 1, "run": "0123456789", "machine_class": "x86-64, 2 cores", "design": design, "cases": cases,
            "arms": {name: {scale: _planned(name, k) for scale in what.scales}
                     for k, name in enumerate(["dense", *(n for n, _ in what.arms)])}}  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "records.jsonl").touch()
    for record in records[: math.ceil(what.keep * len(records))]:
        append(folder / "records.jsonl", record)
    sensors = {"rapl": {"available": False, "reason": what.reason, "hint": "read powercap as root", "grade": "counter"},
               "clock": {"available": True, "reason": "monotonic clock", "hint": None, "grade": "timed"}}  # fmt: skip
    environment = {"schema": 1, "env": "abcdef0123", "machine": what.machine, "sensors": sensors}
    (folder / "environment.json").write_text(json.dumps(environment))
    text = what.suite_text or f"suite: quickstart\nabout: {json.dumps(what.about)}\nbaseline: {{name: dense}}\n"
    (folder / "suite.yaml").write_text(text)
    if what.judged:
        (folder / "verdict.json").write_text(json.dumps({"schema": 1, "arms": dict(_verdict(what))}))
    return folder


def _planned(name: str, number: int) -> dict[str, Any]:
    return {"params_total": 1_200_000 * (1 + number), "params_active": 1_200_000,
            "train_flops_per_token": 9.1e6 * max(0.05, 1 - 0.05 * number), "infer_flops_per_token": 3.0e6,
            "change": f"what {name} changes"}  # fmt: skip


def _key(kind: str, arm: str, scale: str | None, seed: int | None, horizon: float | None) -> CaseKey:
    import hashlib

    digest = hashlib.sha256(repr((kind, arm, scale, seed, horizon)).encode()).hexdigest()[:16]
    return CaseKey.model_construct(id=digest, kind=kind, arm=arm, scale=scale, seed=seed, horizon=horizon)


def _records(what: Folder) -> Iterator[Record]:
    preparing = _key("prepare", "dense", None, None, None)
    yield _record(
        preparing,
        {"prepare_time_s": reading(12.5, "s", "timed"), "prepare_flops": missing("FLOP", "hashing does no FLOPs")},
        {"stage": "shards", "tokens": 3_000_000},
    )
    for scale in what.scales:
        for number, (arm, role) in enumerate((("dense", "reference"), *what.arms)):
            horizons = {"reference": what.horizons, "claim": (0.8, 1.0), "timing": ()}.get(role, (1.0,))
            for horizon in horizons:
                for seed in what.seeds:
                    yield _train(what, arm, number, scale, seed, horizon, preparing.id)
            for horizon in {"reference": (0.5, 1.0), "claim": (0.8,)}.get(role, ()):
                for seed in what.seeds:
                    yield _evaluate(arm, number, scale, seed, horizon)
            if number:
                yield _record(
                    _key("timing", arm, scale, 0, None),
                    {
                        "step_time_s": reading(0.051, "s", "timed"),
                        "step_time_ratio": reading(0.7 + 0.3 * number, "1", "timed"),
                    },
                    {"against": "dense", "blocks": [{"reference_s": 0.05, "arm_s": 0.051}]},
                )


def _record(case: CaseKey, metrics: dict[str, Reading], detail: dict[str, Any]) -> Record:
    return Record.model_construct(
        schema_=1, status="ok", attempt=1, segments=1, commit="16b59e9", env="abcdef0123", reason=None, case=case,
        metrics=metrics, detail=detail, sha256=None,
    )  # fmt: skip


def _train(what: Folder, arm: str, number: int, scale: str, seed: int, horizon: float, parent: str) -> Record:
    tokens = round(1e6 * horizon)
    flops = tokens * 9.1e6 * max(0.05, 1 - 0.05 * number)
    loss = 4.9 - 0.35 * math.log(horizon) - 0.06 * number + 0.012 * math.sin(3 * seed + number)
    bits = loss / math.log(2) / 2.9
    metrics = {
        "train_flops": reading(flops, "FLOP", "counted"),
        "train_flops_per_token": reading(flops / tokens, "FLOP/token", "counted"),
        "infer_flops_per_token": reading(3.0e6, "FLOP/token", "counted"),
        "train_time_s": reading(tokens / 14000 * (1 + 0.3 * number), "s", "timed"),
        "energy_j": reading(tokens / 300, "J", "counter") if what.energy else missing("J", what.reason, "package0"),
        "peak_memory_bytes": reading(412 * 2**20, "B", "counted"),
        "params_total": reading(1_200_000 * (1 + number), "1", "counted"),
        "params_active": reading(1_200_000, "1", "counted"),
        "val_loss": reading(loss, "nat/token", "counted"),
        "bits_per_byte": reading(bits, "bit/byte", "counted"),
        **{
            f"bits_per_byte/{domain}": reading(bits + 0.04 * k, "bit/byte", "counted")
            for k, domain in enumerate(what.domains)
        },
    }
    curve = [
        {"tokens": tokens * t // 20, "loss": loss + 2.5 * (1 - t / 20) ** 2, "val_loss": None,
         "train_flops": flops * t / 20, "seconds": tokens / 14000 * t / 20,
         "joules": tokens / 300 * t / 20 if what.energy else None}
        for t in range(1, 21)
    ]  # fmt: skip
    counts = {"length": 256, "forward": {"closed": 3.0e6, "dispatched": 3.0e6, "fvcore": 2.999e6},
              "train": {"closed": 9.1e6, "dispatched": 9.1e6}, "agree": True, "disagreement": None}  # fmt: skip
    detail = {"tokens": tokens, "steps": tokens // 4096, "curve": curve, "counts": counts, "prepare_parents": [parent]}
    return _record(_key("train", arm, scale, seed, horizon), metrics, detail)


def _evaluate(arm: str, number: int, scale: str, seed: int, horizon: float) -> Record:
    metrics = {
        "accuracy/quartz": reading(0.52 + 0.002 * number + 0.003 * seed, "1", "counted"),
        "accuracy/corr2cause": reading(0.84 - 0.001 * number, "1", "counted"),
        "accuracy/blimp": missing("1", "hub:blimp is not in the cache and there is no network"),
    }
    tasks = {
        "quartz": {"family": "qa", "chance": 0.5, "n": 784},
        "corr2cause": {"family": "nli", "chance": 0.84, "n": 1162},
    }
    return _record(_key("evaluate", arm, scale, seed, horizon), metrics, {"tasks": tasks})


def _verdict(what: Folder) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, (name, role) in enumerate(what.arms):
        if role == "timing":
            continue
        saving = 0.18 - 0.25 * number
        one = len(what.seeds) < 2
        flops = {"saving_training": saving + 0.01, "saving_all_in": saving,
                 "bounds": None if one else [saving - 0.08, saving + 0.07],
                 "bounds_adjusted": None if one else [saving - 0.08, saving + 0.07], "level": 0.95,
                 "n_seeds": len(what.seeds), "outcome": "INCONCLUSIVE" if role == "claim" else "COSTS",
                 "why": "The interval holds 20%."}  # fmt: skip
        time = dict(flops, saving_training=-0.3, saving_all_in=-0.32, bounds=None if one else [-0.5, -0.1])
        none = {"saving_training": None, "saving_all_in": None, "bounds": None, "bounds_adjusted": None,
                "outcome": "NOT MEASURED", "why": what.reason}  # fmt: skip
        accuracy = {"difference": -0.004, "bounds": [-0.021, 0.012], "margin": 0.01, "outcome": "INCONCLUSIVE",
                    "why": "The margin lies inside the interval.",
                    "families": {"qa": {"difference": -0.006, "bounds": [-0.03, 0.02]},
                                 "lm": {"difference": None, "why": "no task counted"}}}  # fmt: skip
        conditions = [{"name": "saving", "met": False, "why": "the interval holds 20%"},
                      {"name": "counts", "met": True, "why": "all counts agree"},
                      {"name": "accuracy", "met": None, "why": "no task counted"}]  # fmt: skip
        said = {
            "endpoints": {"flops": flops, "time": time, "energy": none},
            "sign_disagreement": "saves training FLOPs but costs more training time" if saving > 0 else None,
            "per_token": {
                "flops": 0.05,
                "time": -0.3,
                "time_bounds": [-0.35, -0.25],
                "energy": None,
                "energy_bounds": [None, None],
            },
            "ledger": {
                "charged": [_charge(what, "own")],
                "charged_to_reference": [],
                "shared": [_charge(what, "corpus")],
            },
        }
        if role == "claim":
            test = {"difference": 0.01, "bounds": [-0.01, 0.03], "why": "not as good", "met": False}
            said |= {"accuracy": accuracy, "conditions": conditions, "direct_test": test,
                     "claim_point": {"horizon": 0.8, "cost_ratio": 0.79}}  # fmt: skip
        scales = dict.fromkeys(what.scales, said)
        outcome = "INCONCLUSIVE" if role == "claim" else "COSTS"
        yield name, {"role": role, "scales": scales, "outcome": outcome, "why": "Three seeds leave 10% to 25% open.",
                     "next": "Five more seeds would narrow the interval to 5 points."}  # fmt: skip


def _charge(what: Folder, label: str) -> dict[str, Any]:
    case = f"{sum(map(ord, label)):016x}"
    return {"case": case, "label": f"prepare {label}", "flops": 0.0, "time": 12.5, "energy": None,
            "reasons": {"energy": what.reason}}  # fmt: skip
