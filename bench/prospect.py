"""What a planned study can show: the smallest savings and drops it would detect, and the seeds and items it lacks.

Power is 80% for what is true, at the hypothesis' own one-sided alpha. The noise is that of a stored run of the same
suite where there is one, else a stated default with its origin.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.case import TUNING
from bench.design import ArmDesign, Design
from bench.evaluate import index
from bench.plan import Plan
from bench.stats.additive import pooled_df
from bench.stats.power import MAX_SEEDS, POWER, items_for_margin, power, room, seeds_needed
from bench.words import margin_words, percent, several

DEFAULT_SD = 0.12
"""Of one seed's ln(cost of an arm / cost of its reference) at equal loss, root mean square over three trained arms: the
larger of two quickstarts, a million parameters and 300,000 tokens (the other, the published one, showed 0.08). Larger
and longer trainings are quieter."""
DEFAULT_ORIGIN = "the larger of two quickstarts': 1M parameters, 300k tokens; larger models are quieter"
DISCORDANT = (0.1, 0.2, 0.3)
"""Shares of items that exactly one of two models gets right, from similar models to different ones."""
ACCURACIES = (0.5, 0.7, 0.9)
"""Of a reference, for margins that are a share of it."""
COMPARED = 0.75
"""Share of a task's items that the comparison uses; the rest decide whether the task counts."""


@dataclass(frozen=True, slots=True)
class Noise:
    """Assumed noise of one seed."""

    sd: float
    """Of ln(cost of an arm / cost of its reference)."""
    origin: str


DEFAULT = Noise(DEFAULT_SD, DEFAULT_ORIGIN)


# --- where the noise comes from ------------------------------------------------------------------


def stored_noise(suite: str, results: Path) -> dict[str, Noise]:
    """scale -> noise of the last judged run of a suite under `results` (or `results/reference`); empty without one."""
    runs = [*results.glob(f"{suite}/*/verdict.json"), results / "reference" / suite / "verdict.json"]
    there = sorted((path for path in runs if path.is_file()), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in there:
        found = dict(_measured(path))
        if found:
            return found
    return {}


def _measured(path: Path) -> Iterator[tuple[str, Noise]]:
    """Root mean square SD of the arms at each scale of a verdict, weighted by degrees of freedom."""
    try:
        arms: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["arms"]
    except (OSError, ValueError, KeyError):
        return  # an unfinished or foreign run says nothing, and planning must not fail for it
    by_scale: dict[str, list[tuple[float, int]]] = {}
    for arm in arms.values():
        for scale, judged in arm.get("scales", {}).items():
            flops = judged.get("endpoints", {}).get("flops", {})
            if flops.get("sd") and flops.get("n_seeds", 0) > 1:
                by_scale.setdefault(scale, []).append((float(flops["sd"]), int(flops["n_seeds"]) - 1))
    for scale, parts in by_scale.items():
        df = sum(each for _, each in parts)
        sd = math.sqrt(sum(each * sd**2 for sd, each in parts) / df)
        yield scale, Noise(sd, f"measured in {path.parent}: {several(len(parts), 'arm')}, {df} degrees of freedom")


# --- what can be shown ---------------------------------------------------------------------------


def render(plan: Plan, noise: dict[str, Noise]) -> str:
    """The prospects of a plan as text."""
    design = plan.design
    alpha = design.hypothesis.alpha
    if not design.trains:
        return (
            "what this study can show: intervals are over texts, and how far these scatter is not known before they "
            "are written; `lmbench explain` says how many more would decide"
        )
    lines = [f"what this study can show, with {percent(POWER, 0)} power at one-sided alpha {alpha:g}:"]
    claims = sum(arm.role == "claim" for arm in design.arms)
    if claims > 1:
        lines.append(
            f"  each of {claims} claims, and its accuracy, at {_of_claims(design):g}: what Holm's procedure leaves it"
        )
    nothing = _nothing(plan)
    if nothing:
        lines.append(f"  nothing on savings: {nothing}")
        return "\n".join([*lines, *(f"  {line}" for line in _accuracy(plan))])
    for scale in design.scales:
        one = noise.get(scale, DEFAULT)
        where = f" at {scale}" if len(design.scales) > 1 else ""
        lines.append(f"  noise{where}: SD {percent(one.sd)} of a seed's cost ratio ({one.origin})")
        lines += [f"  {line}{where}" for line in _savings(design, one, alpha)]
    lines += [f"  {line}" for line in _accuracy(plan)]
    return "\n".join(lines)


def _of_claims(design: Design) -> float:
    """One-sided error of a claim whatever the others show: several share alpha, by Holm's first step."""
    return design.hypothesis.alpha / max(1, sum(arm.role == "claim" for arm in design.arms))


def _nothing(plan: Plan) -> str | None:
    """Why a study shows no saving at equal loss, whatever its noise; None where it may."""
    design = plan.design
    if design.layout == "sample":
        return "a few steps of every arm show what they cost, not what they reach"
    if not any(arm.role in ("claim", "component", "control") and not arm.parallel for arm in design.arms):
        return "for arms that are only timed, or parallel, no noise is known beforehand"
    trained = {
        case.horizon
        for case in plan.cases
        if case.kind == "train" and case.arm == design.baseline and case.purpose not in TUNING
    }
    if len(trained) < 2:
        return (
            f"{design.baseline} is trained to one horizon, and that is no curve to read them on\n"
            "  hint: horizons around 1.0, as in `over: {horizon: [0.6, 1.0, 1.4]}`"
        )
    return None


def _savings(design: Design, noise: Noise, alpha: float) -> Iterator[str]:
    claims = [arm for arm in design.arms if arm.role == "claim"]
    others = [arm for arm in design.arms if arm.role in ("component", "control") and not arm.parallel]
    for arm in claims:
        yield _claim(design, arm, len(_class(claims, arm)), noise, _of_claims(design))
    for size in sorted({len(_class(others, arm)) for arm in others}):
        members = [arm.name for arm in others if len(_class(others, arm)) == size]
        yield _components(design, members, size, noise, alpha)
    yield from _ablation(design, noise, alpha)


def _class(arms: Sequence[ArmDesign], arm: ArmDesign) -> list[ArmDesign]:
    """Arms that lend each other their noise: those compared with the same reference."""
    return [other for other in arms if other.against == arm.against]


def _claim(design: Design, arm: ArmDesign, size: int, noise: Noise, alpha: float) -> str:
    """Power of the claim at its target, and the seeds that it needs."""
    saving, n = design.hypothesis.saving, len(design.seeds)
    distance = math.log(1 - saving.at_least) - math.log(1 - saving.target)
    needed = seeds_needed(distance, noise.sd, alpha, POWER, size)
    enough = f"{needed} seeds give {percent(POWER, 0)}" if needed else f"not even {MAX_SEEDS} seeds are enough"
    text = f"claim {arm.name}, true saving {percent(saving.target, 0)} against {percent(saving.at_least, 0)}: "
    if n < 2:
        return f"{text}one seed gives no interval; {enough}"
    se, df = noise.sd / math.sqrt(n), pooled_df(size, n)
    least = 1 - (1 - saving.at_least) * math.exp(-room(se, df, alpha))
    return (
        f"{text}power {percent(power(distance, se, df, alpha), 0)} with {several(n, 'seed')}, {enough}; "
        f"a true saving of {percent(least, 0)} would be shown"
    )


def _components(design: Design, names: Sequence[str], size: int, noise: Noise, alpha: float) -> str:
    """The smallest saving and cost of a single technique that is told from none."""
    n = len(design.seeds)
    who = f"{several(len(names), 'component')} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
    if n < 2:
        return f"{who}: one seed gives no interval"
    least = room(noise.sd / math.sqrt(n), pooled_df(size, n), alpha)
    return f"{who}: savings from {percent(-math.expm1(-least), 0)} or costs from {percent(math.expm1(least), 0)}"


def _ablation(design: Design, noise: Noise, alpha: float) -> Iterator[str]:
    """What the table of an ablation shows: main effects, pairs, and whether savings multiply."""
    ablation, n = design.ablation, len(design.seeds)
    if ablation is None:
        return
    cell_sd = noise.sd / math.sqrt(2)  # a paired difference holds the noise of two cells
    head = (
        f"ablation of {ablation.of}, {several(len(ablation.factors), 'factor')}, {several(len(ablation.cells), 'cell')}"
    )
    if n < 2:
        yield f"{head}: one seed gives no interval"
        return
    single = room(noise.sd / math.sqrt(n), pooled_df(len(ablation.cells) - 1, n), alpha)
    yield f"{head}: a factor alone or in the whole saves from {percent(-math.expm1(-single), 0)}"
    if ablation.generators is not None:
        runs = 2 ** (len(ablation.factors) - len(ablation.generators))
        effect = room(2 * cell_sd / math.sqrt(runs * n), (runs - 1) * (n - 1), alpha)
        yield (
            f"  on average over the others from {percent(-math.expm1(-effect), 0)}; a pair departs from multiplying "
            f"from {percent(math.expm1(2 * effect), 0)}"
        )
    alone = sum(len(on) == 1 for on in ablation.cells.values())
    k = len(ablation.factors)
    if alone == k:
        whole = room(cell_sd * math.sqrt((1 + k + (k - 1) ** 2) / n), pooled_df(len(ablation.cells) - 1, n), alpha)
        yield f"  the whole departs from the product of single savings from {percent(math.expm1(whole), 0)}"


# --- for a program -------------------------------------------------------------------------------


def describe(plan: Plan, noise: dict[str, Noise]) -> dict[str, Any]:
    """The prospects of a plan as plain data, and in words (`text`)."""
    design, alpha = plan.design, plan.design.hypothesis.alpha
    specs = {repr(case.spec): case.spec for case in plan.cases if case.kind in ("evaluate", "finetune")}.values()
    drop = design.hypothesis.accuracy_drop
    families, of_claims = _families(specs), _of_claims(design)
    return {
        "power": POWER, "alpha": alpha, "alpha_of_claims": of_claims,
        "scales": {
            scale: _described(design, noise.get(scale, DEFAULT), alpha, shown=_nothing(plan) is None)
            for scale in design.scales
        },
        "accuracy": {
            "margin": drop.less_than, "kind": drop.kind, "items_compared": families,
            "margin_shown": {
                f"{share:g}": _margin(families.values(), share, of_claims) for share in DISCORDANT if families
            },
            "items_needed": {
                f"{share:g}": items_for_margin(drop.less_than, share, of_claims)
                for share in DISCORDANT if drop.kind == "absolute"
            },
        },
        "text": render(plan, noise).split("\n"),
    }  # fmt: skip


def _described(design: Design, noise: Noise, alpha: float, *, shown: bool) -> dict[str, Any]:
    """Of each arm whose noise is known: what it would show, in shares of the training FLOPs; null with one seed, and
    where the design shows no savings (`shown`)."""
    saving, n = design.hypothesis.saving, len(design.seeds)
    arms: dict[str, Any] = {}
    for roles in (("claim",), ("component", "control")):
        same = [arm for arm in design.arms if arm.role in roles and not arm.parallel]
        for arm in same:
            se, df = noise.sd / math.sqrt(n), pooled_df(len(_class(same, arm)), n)
            error = _of_claims(design) if arm.role == "claim" else alpha
            least = room(se, df, error) if n > 1 and shown else None
            arms[arm.name] = {
                "role": arm.role,
                "saves_from": None if least is None else -math.expm1(-least),
                "costs_from": None if least is None else math.expm1(least),
            }
            if arm.role == "claim":
                distance = math.log(1 - saving.at_least) - math.log(1 - saving.target)
                arms[arm.name] |= {
                    "power_at_target": power(distance, se, df, error) if n > 1 and shown else None,
                    "seeds_needed": seeds_needed(distance, noise.sd, error, POWER, len(_class(same, arm)))
                    if shown
                    else None,
                }
    return {"noise_sd": noise.sd, "noise_from": noise.origin, "seeds": n, "arms": arms}


# --- accuracy ------------------------------------------------------------------------------------


def _accuracy(plan: Plan) -> Iterator[str]:
    """The margin that the items allow, and the items that the claimed margin needs."""
    alpha = _of_claims(plan.design)
    specs = {repr(case.spec): case.spec for case in plan.cases if case.kind in ("evaluate", "finetune")}.values()
    drop = plan.design.hypothesis.accuracy_drop
    if not specs or not any(arm.role == "claim" for arm in plan.design.arms):
        return
    families = _families(specs)
    if drop.kind == "relative":
        yield from _relative(drop.less_than, families, alpha)
        return
    shares = ", ".join(percent(share, 0) for share in DISCORDANT)
    needed = ", ".join(f"{items_for_margin(drop.less_than, share, alpha):,}" for share in DISCORDANT)
    margin = margin_words(drop.less_than, drop.kind)
    text = f"accuracy, margin {margin}, if {shares} of the items are discordant: {needed} items"
    if not families:
        yield f"{text} are needed; how many its tasks have is not known here"
        return
    margins = ", ".join(f"{100 * _margin(families.values(), share, alpha):.1f}" for share in DISCORDANT)
    have = ", ".join(f"{family} {items:,.0f}" for family, items in families.items())
    yield f"{text} are needed; those compared here ({have}) show a margin of {margins} points"
    yield "  seed noise comes on top, and a task at chance counts for nothing"


def _relative(share: float, families: Mapping[str, float], alpha: float) -> Iterator[str]:
    """A share of the reference's accuracy, which is not known yet, at several that it may have."""
    points = ", ".join(f"{100 * share * accuracy:.2g}" for accuracy in ACCURACIES)
    at = ", ".join(percent(accuracy, 0) for accuracy in ACCURACIES)
    needed = ", ".join(f"{items_for_margin(share * accuracy, DISCORDANT[1], alpha):,}" for accuracy in ACCURACIES)
    text = (
        f"accuracy, margin {percent(share)} of the reference's: {points} points where that is {at}; if "
        f"{percent(DISCORDANT[1], 0)} of the items are discordant, {needed} items are needed"
    )
    shown = f"; those compared here show {100 * _margin(families.values(), DISCORDANT[1], alpha):.1f} points"
    yield text + (shown if families else "; how many its tasks have is not known here")
    yield "  seed noise comes on top, and a task at chance counts for nothing"


def _families(specs: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """family -> items that are compared; tasks of unknown size are left out."""
    found: dict[str, float] = {}
    for spec in specs:
        for name in spec["tasks"] if "tasks" in spec else [spec["task"]]:
            facts, limit = index.TASKS.get(name), spec.get("limit")
            if facts is not None:
                items = spec.get("test_share", 1.0) * facts.items
                found[facts.family] = found.get(facts.family, 0.0) + COMPARED * (min(items, limit) if limit else items)
    return found


def _margin(items: Iterable[float], discordant: float, alpha: float) -> float:
    """Margin shown with power when the true difference is zero: families weigh the same, seeds add nothing."""
    counts = list(items)
    variance = sum(discordant / count for count in counts) / len(counts) ** 2
    return room(math.sqrt(variance), math.inf, alpha)
