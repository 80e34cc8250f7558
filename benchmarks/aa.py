"""How often does the engine see a difference where there is none? Splits of a real A/A run, through the real judge.

    lmbench run suites/aa.yaml
    python -m benchmarks.aa RUN --out results/reference/aa/false-alarms.json

Every run of the study is the same recipe with another draw of initial weights and data order. A comparison takes one
arm, one reference with a curve of its own, and `--seeds` of the seeds; the judge says SAVES, COSTS or UNCLEAR, and the
first two are false alarms: their rate should be 2 alpha. A *split* is a set of comparisons that share no run: each of
the references with another arm, for each of the disjoint groups of seeds. Comparisons of one split are independent,
those of different splits are not; so the rate is the mean over many splits, and its interval is the exact binomial one
(Clopper & Pearson 1934) of a single split with that many alarms, which more splits cannot narrow.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scipy.stats import beta

from bench.design import ArmDesign
from bench.study import Study, load
from bench.verdict import judge_study

SPLITS = 200
SEEDS = 3


@dataclass(frozen=True, slots=True)
class Comparison:
    """An arm against a reference that is the same thing, over some seeds."""

    arm: str
    reference: str
    seeds: tuple[int, ...]


def splits(
    references: Sequence[str], others: Sequence[str], seeds: Sequence[int], size: int
) -> Iterator[list[Comparison]]:
    """Endless random splits: every reference with another arm, in each disjoint group of `size` seeds."""
    draw = random.Random(0)
    while True:
        order = draw.sample(list(seeds), len(seeds))
        groups = [tuple(sorted(order[at : at + size])) for at in range(0, len(order) - size + 1, size)]
        yield [
            Comparison(arm, reference, group)
            for group in groups
            for reference, arm in zip(references, draw.sample(list(others), len(references)), strict=True)
        ]


def judge(study: Study, one: Comparison) -> dict[str, Any]:
    """What the engine says of a comparison."""
    arm = ArmDesign(name=one.arm, role="component", against=one.reference)
    design = study.design.model_copy(update={"arms": (arm,), "seeds": one.seeds, "claim_points": {}, "controls": {}})
    (judged,) = judge_study(replace(study, design=design))["arms"].values()
    return judged


def interval(alarms: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a rate; `alarms` may be a mean and so not whole."""
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, alarms, n - alarms + 1)) if alarms > 0 else 0.0
    high = float(beta.ppf(1 - tail, alarms + 1, n - alarms)) if alarms < n else 1.0
    return low, high


def references_of(study: Study) -> list[str]:
    """Arms that were trained at several horizons."""
    names = [study.design.baseline, *(arm.name for arm in study.design.arms)]
    scale = study.design.scales[0]
    return [name for name in names if len({case.horizon for case in study.planned("train", name, scale)}) > 1]


def measure(study: Study, count: int, size: int) -> dict[str, Any]:
    """False alarms over `count` splits."""
    references = references_of(study)
    others = [arm.name for arm in study.design.arms if arm.name not in references]
    outcomes: Counter[str] = Counter()
    covered = exact = 0
    known: dict[Comparison, dict[str, Any]] = {}
    made = splits(references, others, study.design.seeds, size)
    per_split = 0
    for _ in range(count):
        split = next(made)
        per_split = len(split)
        for one in split:
            if one not in known:
                known[one] = judge(study, one)
            judged = known[one]
            outcomes[str(judged["outcome"])] += 1
            (at_scale,) = judged["scales"].values()
            low, high = at_scale["endpoints"]["flops"]["bounds"]
            exact += at_scale["endpoints"]["flops"]["saving_all_in"] is not None
            covered += (low is None or low <= 0) and (high is None or high >= 0)
    total = sum(outcomes.values())
    rate = (outcomes["SAVES"] + outcomes["COSTS"]) / total
    return {
        "suite": study.design.suite, "run": study.run, "machine_class": study.machine_class,
        "alpha": study.design.hypothesis.alpha, "seeds_a_comparison": size, "splits": count,
        "comparisons_a_split": per_split, "distinct_comparisons": len(known),
        "rate": rate, "expected": 2 * study.design.hypothesis.alpha, "interval": interval(rate * per_split, per_split),
        "covers_zero": covered / total, "uncensored": exact / total,
        "outcomes": {name: count / total for name, count in sorted(outcomes.items())},
    }  # fmt: skip


def main() -> int:
    """Measure, print a line for each size of comparison, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[SEEDS], help="seeds a comparison; several are done in turn"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    study = load(arguments.run)
    found = [measure(study, arguments.splits, size) for size in arguments.seeds]
    for one in found:
        low, high = one["interval"]
        print(
            f"{one['seeds_a_comparison']} seeds: false alarms {one['rate']:.3f} [{low:.3f}, {high:.3f}], expected "
            f"{one['expected']:.3f} ({one['splits']} splits of {one['comparisons_a_split']} comparisons, "
            f"{one['distinct_comparisons']} distinct); intervals hold zero {one['covers_zero']:.3f}"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
