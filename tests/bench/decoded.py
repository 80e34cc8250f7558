"""Synthetic studies of ways of decoding, with a known saving and a known loss of quality."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.record import CaseKey, Record, missing, reading
from bench.study import Study, assemble

PROMPTS, BLOCKS, TEXTS, TOKENS = 16, 8, 400, 63
AGREE = {"agree": True, "disagreement": None}
EXACT = {
    "float32": {"texts": 16, "identical": 16, "tied": 0, "wrong": 0, "sampled_distance": 3e-8},
    "timed": {"texts": 16, "identical": 15, "tied": 1, "wrong": 0},
    "is_exact": True,
}


def generated(
    *,
    saving: float = 0.3,
    drop: float = 0.0,
    lossless: bool = False,
    primary: str = "time",
    seeds: Sequence[int] = (0, 1, 2),
    scales: Sequence[str] = ("s",),
    noise: float = 0.03,
    draw: int = 0,
    without: Sequence[int] = (),
    change: Mapping[str, Any] | None = None,
    **record: Any,
) -> Study:
    """A study of one arm, `fast`, against `plain`.

    Args:
        saving: true share of a token's time (and half of it in FLOPs) that is saved.
        drop: true drop of next-token accuracy, a share.
        noise: SD of ln time of one prompt.
        without: seeds that have no record.
        change: put into every record's detail.
        record: fields of every record.
    """
    rng = np.random.default_rng(draw)
    cases: list[dict[str, Any]] = []
    records: list[Record] = []
    for scale in scales:
        for seed in seeds:
            key = CaseKey(id=f"{len(cases) + 1:016x}", kind="generate", arm="fast", scale=scale, seed=seed)
            cases.append({**key.model_dump(), "parents": [], "purpose": "generate", "fits": True})
            if seed not in without:
                detail = _detail(rng, saving, drop, lossless, noise) | dict(change or {})
                metrics = {
                    "decode_tokens_per_s": reading(200.0, "token/s", "timed"),
                    "decode_time_ratio": reading(1 - saving, "1", "timed"),
                    "decode_j_per_token": missing("J/token", "no RAPL in this VM"),
                }
                fields = {"status": "ok", "commit": "c", "env": "e", "metrics": metrics, "detail": detail} | record
                records.append(Record(case=key, **fields))
    design = {
        "suite": "decoded", "baseline": "dense", "arms": [], "scales": list(scales), "seeds": list(seeds),
        "horizons": [1.0],
        "inference": {
            "model": "dense", "reference": "plain", "new_tokens": 64,
            "arms": [{"name": "fast", "primary": primary, "lossless": lossless, "decoding": "in words"}],
        },
    }  # fmt: skip
    return assemble({"schema": 1, "run": "r", "design": design, "cases": cases}, records, lambda _: None)


def _detail(rng: Any, saving: float, drop: float, lossless: bool, noise: float) -> dict[str, Any]:
    prompts = []
    for number in range(PROMPTS):
        plain_s = 0.005 * math.exp(noise * rng.standard_normal())
        ratio = (1 - saving) * math.exp(noise * rng.standard_normal())
        prompts.append(
            {
                "document": number, "block": number * BLOCKS // PROMPTS,
                "reference_s": plain_s, "arm_s": ratio * plain_s,
                "reference_first_s": 2 * plain_s, "arm_first_s": 2 * plain_s * math.exp(noise * rng.standard_normal()),
                "reference_flops": 1e6, "arm_flops": 1e6 * (1 - saving / 2),
            }
        )  # fmt: skip
    detail: dict[str, Any] = {
        "against": "plain", "lossless": lossless, "counts": AGREE, "prompts": prompts,
        "blocks": [{"reference_j": None, "arm_j": None, "reason": "no RAPL in this VM"}] * BLOCKS,
    }  # fmt: skip
    if lossless:
        return detail | {"exact": EXACT}
    theirs = rng.binomial(TOKENS, 0.4, TEXTS)
    lost, won = rng.binomial(theirs, (0.03 + drop) / 0.4), rng.binomial(TOKENS - theirs, 0.03 / 0.6)
    columns = {
        "document": [number // 2 for number in range(TEXTS)],
        "reference_right": theirs.tolist(), "arm_right": (theirs - lost + won).tolist(),
        "reference_nats": [150.0] * TEXTS, "arm_nats": [151.0] * TEXTS, "same": (TOKENS - lost - won).tolist(),
    }  # fmt: skip
    return detail | {"quality": {"tokens": TOKENS, "chance": 0.05, **columns}}
