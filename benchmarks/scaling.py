"""Do the loss laws come back? Besiroglu et al.'s parameters (arXiv 2404.10102) from data drawn from their fit.

    python -m benchmarks.scaling --draws 20 --resamples 200 --out benchmarks/scaling.json

Their reconstructed data are not part of this repository, so points are drawn from their fit at sizes and lengths like
Chinchilla's (44M to 16B parameters along nine budgets of compute), with a residual as theirs. Each draw is fitted from
many starts and resampled; the table gives the mean fit over draws, its spread, and how often the 95% bootstrap interval
holds the parameter that the data were drawn from.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from bench.stats.scaling import Array, Chinchilla, fit_chinchilla, intervals, resampled

BESIROGLU = Chinchilla(A=482.01, B=2085.43, E=1.8172, alpha=0.3478, beta=0.3658)
"""Table 1 of arXiv 2404.10102."""
STANDARD_ERRORS = Chinchilla(A=124.58, B=1293.23, E=0.03, alpha=0.02, beta=0.02)
"""Of the same table (bootstrap)."""
BUDGETS_FLOPS = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21)
"""IsoFLOP budgets of Hoffmann et al. (arXiv 2203.15556, section 3.2)."""
POINTS = 240
"""The points that Besiroglu et al. fit: 245 reconstructed, five outliers left out."""
NOISE = 0.005
"""SD of the residual in ln L: half a percent, as their residuals look (figure 3)."""


def drawn(*, noise: float = NOISE, seed: int = 0, points: int = POINTS) -> tuple[Array, Array, Array]:
    """N, D and loss of trainings along the budgets, sizes a decade and a half around each budget's best."""
    random = np.random.default_rng(seed)
    budget = np.resize(np.array(BUDGETS_FLOPS), points)
    best = np.array([BESIROGLU.optimum(float(flops))[0] for flops in budget])
    n = np.clip(best * 10 ** random.uniform(-0.75, 0.75, points), 44e6, 16e9)
    d = budget / (6 * n)
    loss = np.asarray(BESIROGLU.loss(n, d)) * np.exp(noise * random.standard_normal(points))
    return n, d, loss


def main() -> None:
    """Fit, resample, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--descents", type=int, default=24)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    began = time.process_time()
    fits: list[Chinchilla] = []
    held = dict.fromkeys((field.name for field in fields(Chinchilla)), 0)
    for seed in range(arguments.draws):
        n, d, loss = drawn(seed=seed)
        law = fit_chinchilla(n, d, loss, descents=arguments.descents)
        fits.append(law)
        ends = intervals(resampled(n, d, loss, law, seed=seed, resamples=arguments.resamples))
        for name, (low, high) in ends.items():
            held[name] += low <= getattr(BESIROGLU, name) <= high
    found: dict[str, Any] = {
        "drawn_from": asdict(BESIROGLU), "published_standard_errors": asdict(STANDARD_ERRORS),
        "points": POINTS, "noise_ln": NOISE, "draws": arguments.draws, "resamples": arguments.resamples,
        "descents": arguments.descents, "processor_s": round(time.process_time() - began, 1),
        "fitted": {
            name: {
                "median": float(np.median([getattr(law, name) for law in fits])),
                "sd": float(np.std([getattr(law, name) for law in fits], ddof=1)),
                "intervals_that_hold_it": f"{count} of {arguments.draws}",
            }
            for name, count in held.items()
        },
    }  # fmt: skip
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
