"""Is the engine right about its own uncertainty? Simulated studies through the real path from records to verdict.

    python -m benchmarks.validity --studies 10000 --processes 8 --out benchmarks/validity.json

For each scenario: the share of studies whose printed 95% interval holds the planted saving (of each arm, training
alone), and the share that is SUPPORTED although the truth is not better than the claim. Normal scenarios should cover
94 to 96%, hard ones never below 93%; false SUPPORTED at most alpha + 2 SE.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.verdict import judge_study
from tests.bench.synthetic import TASKS, Planted, study_of, synthesize

CHUNK = 250
"""Studies a task of a worker process."""
NORMAL, HARD = (0.94, 0.96), (0.93, 1.0)
"""Coverage that is asked of 95% intervals."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A world that studies are drawn from."""

    name: str
    planted: dict[str, Any]
    hard: bool = False
    supported_is_false: bool = False
    """The truth is not better than the claim (or the drop not below the margin): SUPPORTED is a false alarm."""
    only: str | None = None
    """`saving`: accuracy is not simulated, and SUPPORTED is read off the primary endpoint."""


@dataclass(slots=True)
class Tally:
    """Counts over studies."""

    studies: int = 0
    covered: Counter[str] = field(default_factory=Counter[str])
    outcomes: Counter[str] = field(default_factory=Counter[str])
    false_supported: int = 0
    accuracy_covered: int = 0

    def coverage(self, arm: str) -> float:
        """Share of studies whose interval of the arm's saving held the truth."""
        return self.covered[arm] / self.studies

    def add(self, other: Tally) -> None:
        """Take in the counts of other studies."""
        self.studies += other.studies
        self.covered += other.covered
        self.outcomes += other.outcomes
        self.false_supported += other.false_supported
        self.accuracy_covered += other.accuracy_covered


def claim(saving: float, **more: Any) -> Planted:
    """The claim arm."""
    return Planted("all", role="claim", saving=saving, **more)


PARTS = (Planted("clean", saving=0.06), Planted("moe", saving=0.12))
SCENARIOS = (
    Scenario("economical, 3 seeds", {"arms": (*PARTS, claim(0.25)), "layout": "economical", "seeds": 3}),
    Scenario("economical, 5 seeds", {"arms": (*PARTS, claim(0.25)), "layout": "economical", "seeds": 5}),
    Scenario("full, 3 seeds", {"arms": (claim(0.3),), "seeds": 3}),
    Scenario("full, 2 seeds", {"arms": (claim(0.3),), "seeds": 2}),
    Scenario("full, 5 seeds", {"arms": (claim(0.3),), "seeds": 5}),
    Scenario("full, noisy", {"arms": (claim(0.3),), "seeds": 5, "noise": 0.03}),
    Scenario("true saving at the claim", {"arms": (claim(0.2),), "seeds": 5}, supported_is_false=True, only="saving"),
    Scenario(
        "two claims, one at the claim", {"arms": (claim(0.3), Planted("two", role="claim", saving=0.2)), "seeds": 5},
        hard=True, supported_is_false=True, only="saving",
    ),
    Scenario("nothing saved", {"arms": (claim(0.0),), "seeds": 5, "layout": "economical"}, supported_is_false=True,
             only="saving"),
    Scenario("heavy tails", {"arms": (claim(0.3),), "seeds": 5, "tail": 3.0}, hard=True),
    Scenario("censored at the far end", {"arms": (claim(-0.05),), "seeds": 5}, hard=True),
    Scenario(
        "a component ten times as noisy",
        {"arms": (Planted("loud", saving=0.1, noise=0.05), Planted("quiet", saving=0.1, noise=0.005)),
         "layout": "economical", "seeds": 5, "noise": 0.005},
        hard=True,
    ),
    *(
        Scenario(
            f"one of three components five times as noisy, {seeds} seeds",
            {"arms": (*PARTS, Planted("loud", saving=0.1, noise=0.05)), "layout": "economical", "seeds": seeds},
            hard=True,
        )
        for seeds in (2, 3, 4)
    ),
    Scenario("a seed failed", {"arms": (*PARTS, claim(0.25, failed=(1,))), "layout": "economical", "seeds": 5},
             hard=True),
    Scenario(
        "true drop at the margin",
        {"arms": (claim(0.3, accuracy_drop=0.01),), "seeds": 5, "items": 6000, "tasks": TASKS[:1], "noise": 0.005},
        supported_is_false=True,
    ),
)  # fmt: skip


def simulate(scenario: Scenario, draws: Iterable[int]) -> Tally:
    """Judge one study a draw, and count."""
    tally = Tally()
    for draw in draws:
        planted = {"items": 0, "timing_blocks": 2} | scenario.planted
        synthetic = synthesize(draw=draw, **planted)
        verdict = judge_study(study_of(synthetic))
        _count(tally, scenario, synthetic.world.arms, verdict)
    return tally


def _count(tally: Tally, scenario: Scenario, arms: Sequence[Planted], verdict: dict[str, Any]) -> None:
    tally.studies += 1
    false_alarm = False
    for arm in arms:
        judged = verdict["arms"][arm.name]
        at_scale = judged["scales"]["s"]
        flops = at_scale["endpoints"]["flops"]
        low, high = flops["bounds_training"]
        tally.covered[arm.name] += (low is None or low <= arm.saving) and (high is None or arm.saving <= high)
        outcome = flops["outcome"] if scenario.only == "saving" else judged["outcome"]
        tally.outcomes[f"{arm.name} {outcome}"] += 1
        if arm.role != "claim":
            continue
        at_most = verdict["hypothesis"]["saving"]["at_least"]
        margin = verdict["hypothesis"]["accuracy_drop"]["less_than"]
        untrue = arm.saving <= at_most or arm.accuracy_drop >= margin
        false_alarm |= scenario.supported_is_false and untrue and outcome == "SUPPORTED"
        accuracy = at_scale["accuracy"]["bounds"]
        if accuracy[0] is not None:
            tally.accuracy_covered += accuracy[0] <= -arm.accuracy_drop <= accuracy[1]
    tally.false_supported += false_alarm


def run(scenario: Scenario, studies: int, processes: int, first: int) -> Tally:
    """Simulate in several processes; every scenario has its own range of random draws."""
    chunks = [range(start, min(start + CHUNK, first + studies)) for start in range(first, first + studies, CHUNK)]
    total = Tally()
    with ProcessPoolExecutor(processes) as pool:
        for tally in pool.map(simulate, [scenario] * len(chunks), chunks):
            total.add(tally)
    return total


def summary(scenario: Scenario, tally: Tally, alpha: float = 0.025) -> dict[str, Any]:
    """Rates with their standard errors, and whether they are what is asked for."""
    n = tally.studies
    low, high = HARD if scenario.hard else NORMAL
    slack = 2 * math.sqrt(0.05 * 0.95 / n)
    coverage = {arm: tally.coverage(arm) for arm in tally.covered}
    false_rate = tally.false_supported / n
    covers = all(low - slack <= rate <= high + slack for rate in coverage.values())
    rare = false_rate <= alpha + 2 * math.sqrt(alpha * (1 - alpha) / n)
    return {
        "scenario": scenario.name, "studies": n, "hard": scenario.hard, "coverage": coverage,
        "accuracy_coverage": tally.accuracy_covered / n if tally.accuracy_covered else None,
        "false_supported": false_rate if scenario.supported_is_false else None,
        "outcomes": {name: count / n for name, count in sorted(tally.outcomes.items())},
        "as_asked": covers and (rare or not scenario.supported_is_false),
    }  # fmt: skip


def main() -> int:
    """Run every scenario, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", help="scenarios whose name holds this text")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found: list[dict[str, Any]] = []
    for number, scenario in enumerate(SCENARIOS):
        if arguments.only and arguments.only not in scenario.name:
            continue
        started_s = time.monotonic()
        tally = run(scenario, arguments.studies, arguments.processes, first=number * 1_000_000)
        result = summary(scenario, tally)
        found.append(result)
        cover = ", ".join(f"{arm} {rate:.3f}" for arm, rate in result["coverage"].items())
        false = result["false_supported"]
        print(
            f"{'ok ' if result['as_asked'] else 'OFF'} {scenario.name}: covers {cover}"
            + (f"; false SUPPORTED {false:.4f}" if false is not None else "")
            + (f"; accuracy covers {result['accuracy_coverage']:.3f}" if result["accuracy_coverage"] else "")
            + f" ({time.monotonic() - started_s:.0f} s)",
            flush=True,
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if all(result["as_asked"] for result in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
