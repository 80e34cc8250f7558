"""Records + stored baseline + rules -> pass | regressed | could not measure.

Exact metrics (FLOPs, parameters) are compared to the last digit. Noisy ones regress when they are worse by more than
the rule's floor *and* beyond their interval; worse by more than the floor but inside it, nobody knows, and the gate
says so. It never fails open: a missing file, record, value, or comparison is never a pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from bench import baseline as stored
from bench.baseline import Baseline, BaselineError, Cell, Floor
from bench.design import GateRule
from bench.gatereport import Check, GateResult
from bench.metrics import Metric, UnknownMetric, find
from bench.record import RecordError
from bench.stats.effect import Effect, combine, mean_of
from bench.stats.noise import Noise
from bench.stats.power import detectable
from bench.study import PlannedCase, Study, StudyError, load
from bench.words import interval, percent

FLOP_METRICS = ("train_flops", "train_model_flops", "train_flops_per_token", "infer_flops_per_token")
"""Refused where the independent counts disagree."""
WELCH = "Welch"
"""How an effect says that it compares what a case repeats inside itself, not seeds."""


def gate(run: Path, baseline: Path, *, update: bool = False, noise: Path | None = None) -> GateResult:
    """Compare a run with a baseline file, or write that file from the run.

    Args:
        run: the run folder.
        baseline: the baseline file; with `update` it is written, and nothing is compared.
        update: store this run's values.
        noise: with `update`, an A/A run whose scatter replaces the floors of noisy rules.

    Returns:
        What was found; unreadable, edited or empty records and a broken baseline are `could not measure`.
    """
    try:
        study = load(run)
        return _store(study, baseline, noise) if update else compare(study, stored.read(baseline))
    except (RecordError, StudyError, BaselineError, UnknownMetric) as error:
        return GateResult(suite=run.name, problems=(str(error),))


def _store(study: Study, path: Path, noise: Path | None) -> GateResult:
    suite = study.design.suite
    if not study.design.gate:
        return GateResult(suite=suite, problems=(NO_RULES,))
    unmeasured = [rule.metric for rule in stored.without_value(study, study.design)]
    if unmeasured:
        problem = f"nothing was stored: the run holds no value of {', '.join(unmeasured)}"
        return GateResult(suite=suite, problems=(problem,))
    floors = stored.noise_of(load(noise), _noisy_metrics(study)) if noise is not None else {}
    stored.write(path, stored.of(study, floors))
    notes = [f"stored this run's values in {path}"]
    notes += [f"noise of {name}: {percent(floor.sd, 2)} a run, from {floor.run}" for name, floor in floors.items()]
    return GateResult(suite=suite, notes=tuple(notes), updated=True)


def _noisy_metrics(study: Study) -> list[str]:
    """Metrics of the rules that compare by interval and floor."""
    return list(dict.fromkeys(rule.metric for rule in study.design.gate if not _is_exact(rule, find(rule.metric))))


def _is_exact(rule: GateRule, metric: Metric) -> bool:
    return rule.kind == "exact" if rule.kind else metric.exact


NO_RULES = "the suite has no gate rules, so nothing can be said; hint: add `gate: [{metric: train_flops_per_token}]`"


def compare(study: Study, baseline: Baseline) -> GateResult:
    """Compare a study with a baseline, rule by rule."""
    suite = study.design.suite
    if baseline.suite != suite:
        problem = f"the baseline is of suite {baseline.suite}, the run of {suite}; hint: store a baseline of this suite"
        return GateResult(suite=suite, problems=(problem,))
    if not study.design.gate:
        return GateResult(suite=suite, problems=(NO_RULES,))
    same_machine = baseline.machine_class == study.machine_class
    checks = [check for rule in study.design.gate for check in _apply(study, baseline, rule, same_machine)]
    notes: list[str] = []
    if not same_machine:
        notes.append(
            f"the baseline is from another machine ({baseline.machine_class}, here {study.machine_class}): "
            "only exact metrics are compared"
        )
    return GateResult(suite=suite, checks=tuple(checks), notes=tuple(notes))


def _apply(study: Study, baseline: Baseline, rule: GateRule, same_machine: bool) -> Iterator[Check]:
    metric = find(rule.metric)
    exact = _is_exact(rule, metric)
    noise = baseline.noise.get(rule.metric)
    if not exact and not same_machine:
        yield Check(rule, "", "skipped", "noisy, and the baseline is from another machine")
        return
    before = {name: cell for name, cell in baseline.metrics.get(rule.metric, {}).items() if _concerns(name, rule)}
    after = stored.cells(study, metric, rule)
    if not before and not after:
        yield Check(rule, "", "could not measure", f"neither the baseline nor the run holds a value{_why(study, rule)}")
    disagreement = _disagreement(study) if rule.metric in FLOP_METRICS else None
    for name in sorted(before.keys() | after.keys()):
        if name not in before:
            yield Check(rule, name, "could not measure", "not in the baseline; hint: store it with --update")
        elif name not in after:
            yield _absent(study, rule, name)
        elif disagreement:
            yield Check(rule, name, "could not measure", disagreement)
        elif diverged := _diverged(study, name):
            yield Check(rule, name, "regressed", diverged)
        else:
            alpha = study.design.hypothesis.alpha
            check = (
                _exact(rule, metric, name, before[name], after[name])
                if exact
                else _noisy(rule, metric, name, (before[name], after[name]), alpha, noise)
            )
            lost = _lost_seeds(study, rule.metric, name, before[name], after[name])
            if lost and check.finding in ("passed", "improved"):
                check = replace(check, finding="could not measure", why=f"{check.why}; but {lost}")
            yield check


def _lost_seeds(study: Study, metric: str, cell: str, before: Cell, after: Cell) -> str | None:
    """Seeds of the baseline that this run was to train and has no value of: those that ended may be the lucky ones."""
    lost = [seed for seed in before.values if seed not in after.values and seed in map(str, study.design.seeds)]
    if not lost or stored.WITHOUT_SEED in after.values:
        return None
    cases = [case for case in study.cases.values() if str(case.seed) in lost and stored.cell_name(study, case) == cell]
    why = f" ({_why_lost(study, metric, cases[0])})" if cases else ""
    return f"seed {', '.join(lost)} of the baseline has no value here{why}"


def _why_lost(study: Study, metric: str, case: PlannedCase) -> str:
    record = study.finished(case)
    if record is None or record.status != "ok":
        return study.missing_words(case)
    found = record.metrics.get(metric)
    return (found.reason if found else None) or "its record does not hold it"


def _concerns(cell: str, rule: GateRule) -> bool:
    """Whether a stored case (`train all/s x1`) is of the rule's arm."""
    return rule.arm is None or cell.split(" ")[1].partition("/")[0] == rule.arm


def _why(study: Study, rule: GateRule) -> str:
    """The first reason that a record gives for having no value."""
    for record in study.records.values():
        found = record.metrics.get(rule.metric)
        if found is not None and found.value is None and rule.arm in (None, record.case.arm):
            return f" ({found.reason})"
    return ""


def _disagreement(study: Study) -> str | None:
    for record in study.records.values():
        counts = record.detail.get("counts") or {}
        if counts.get("agree") is False:
            return f"the independent FLOP counts of {record.case.arm} disagree: {counts.get('disagreement')}"
        if record.case.kind == "train" and record.status == "ok" and counts.get("agree") is not True:
            return f"the FLOPs of {record.case.arm} were not confirmed by a second count"
    return None


def _absent(study: Study, rule: GateRule, cell: str) -> Check:
    """A case of the baseline that has no value here: a divergence is a regression, anything else unknown."""
    diverged = _diverged(study, cell)
    if diverged:
        return Check(rule, cell, "regressed", diverged)
    for case in study.cases.values():
        record = study.records.get(case.id)
        if record is not None and stored.cell_name(study, case) == cell and record.status == "failed":
            return Check(rule, cell, "could not measure", study.missing_words(case))
    return Check(rule, cell, "could not measure", f"in the baseline, not in the run{_why(study, rule)}")


def _diverged(study: Study, cell: str) -> str | None:
    for case in study.cases.values():
        record = study.records.get(case.id)
        if record is not None and record.status == "diverged" and stored.cell_name(study, case) == cell:
            return f"seed {record.case.seed} diverged ({record.reason})"
    return None


# --- comparing -----------------------------------------------------------------------------------


def _exact(rule: GateRule, metric: Metric, name: str, before: Cell, after: Cell) -> Check:
    pairs = _pairs(before, after)
    if not pairs:
        return Check(rule, name, "could not measure", "no seed is in both")
    changed = [(seed, one, two) for seed, one, two in pairs if one != two]
    if not changed:
        return Check(rule, name, "passed", f"exactly {pairs[0][1]:.12g}{_unit(metric)}", pairs[0][1], pairs[0][2])
    seed, one, two = max(changed, key=lambda change: metric.worsening(change[1], change[2]))
    worse = metric.worsening(one, two)
    change = (two - one) / abs(one) if one else math.inf
    of_seed = "" if seed == stored.WITHOUT_SEED else f", seed {seed}"
    told = f"{one:.12g} -> {two:.12g}{_unit(metric)} ({100 * change:+.3g}%{of_seed})"
    return Check(rule, name, "regressed" if worse > 0 else "improved", told, one, two)


def _unit(metric: Metric) -> str:
    return "" if metric.unit == "1" else f" {metric.unit}"


def _pairs(before: Cell, after: Cell) -> list[tuple[str, float, float]]:
    """(seed, before, after) for common seeds; where all seeds agree on each side, any seed stands for all."""
    common = [seed for seed in before.values if seed in after.values]
    if common:
        return [(seed, before.values[seed], after.values[seed]) for seed in common]
    ones, twos = set(before.values.values()), set(after.values.values())
    return [(stored.WITHOUT_SEED, ones.pop(), twos.pop())] if len(ones) == len(twos) == 1 else []


def _noisy(
    rule: GateRule, metric: Metric, name: str, cells: tuple[Cell, Cell], alpha: float, noise: Floor | None
) -> Check:
    effect = _worsening(metric, *cells)
    if effect is None:
        return Check(rule, name, "could not measure", "no seed is in both")
    one, two = (math.fsum(cell.values.values()) / len(cell.values) for cell in cells)
    worse, lower, upper = effect.low, effect.lower(alpha), effect.upper(alpha)
    floor, source = rule.floor, ""
    if noise is not None:
        floor, source = Noise(noise.sd, noise.df).floor(effect.n, alpha), f" of chance, after {noise.run}"
    if math.isinf(floor):
        why = f"the noise that the baseline took from {noise.run if noise else 'its run'} hides any change"
        return Check(rule, name, "could not measure", f"{why}; hint: store it again with --update", one, two)
    bounds = [None, None] if effect.se is None else [lower, upper]
    direction = "worse" if worse >= 0 else "better"
    told = f"{one:.6g} -> {two:.6g}{_unit(metric)}, {percent(abs(worse), 2)} {direction}"
    told += f" {interval(bounds, 100, 2)}" if effect.se is not None else ", no interval from one seed"
    room = detectable(effect, alpha)
    told += f"; could have seen {percent(max(room, floor), 1)}" if room is not None else ""
    limit = f"the floor{source} is {percent(floor, 2 if noise else 1)}"
    if worse > floor and (lower > 0 or noise is not None):
        return Check(rule, name, "regressed", f"{told}; {limit}", one, two)
    if worse > floor:
        repeats = "seeds" if effect.how != WELCH else "prompts" if metric.name.startswith("decode_") else "blocks"
        reason = f"{told}; above the floor of {percent(floor)} but within the noise: more {repeats} are needed"
        return Check(rule, name, "could not measure", reason, one, two)
    if worse < -floor and (upper < 0 or noise is not None):
        return Check(rule, name, "improved", told, one, two)
    return Check(rule, name, "passed", f"{told}; {limit}" if noise else told, one, two)


def _worsening(metric: Metric, before: Cell, after: Cell) -> Effect | None:
    """Mean relative change to the worse: of blocks where a case repeats inside itself, else paired by seed."""
    if len(before.samples) > 1 and len(after.samples) > 1:
        return _welch(metric, before.samples, after.samples)
    common = [seed for seed in before.values if seed in after.values]
    if not common:
        return None
    return mean_of([metric.worsening(before.values[seed], after.values[seed]) for seed in common])


def _welch(metric: Metric, before: Sequence[float], after: Sequence[float]) -> Effect:
    """Relative change of the mean of two unpaired samples (Welch 1947), to first order in the change."""
    one, two = mean_of(before), mean_of(after)
    worse = metric.worsening(one.low, two.low)
    se, df = combine([(one.se, one.df), (two.se, two.df)])
    return Effect(low=worse, high=worse, se=None if se is None else se / abs(one.low), df=df, n=len(after), how=WELCH)
