"""Cut a study to what fits: `--budget 30min`, `--budget 5M tokens`, `--budget 1e15 FLOP`.

First whole seeds go, from the last, down to two (a single seed has no interval); then every scale's tokens shrink by
one factor, for all arms alike. Where even the shortest trainings do not fit, a few steps of every arm at true size
remain: they measure what an arm costs and nothing of its quality. What was cut is said before anything runs.
"""

from __future__ import annotations

from bench import finetuning
from bench.allowance import Budget, BudgetError, parse_budget
from bench.case import Case
from bench.estimate import Machine
from bench.plan import Plan, make_plan
from bench.stanzas import MIN_SAMPLE, MIN_STEPS
from bench.suite import Suite

__all__ = ["Budget", "BudgetError", "fit", "parse_budget"]

MIN_SEEDS = 2
"""Below two seeds there is no spread and so no interval: tokens are cut before that."""
OVERHEAD = 1.35
"""Preparation, validation, evaluation and loading, as a factor on the time of training and timing."""


class UnknownTime(BudgetError):
    """A budget of time, on a machine whose speed is not known."""


def fit(suite: Suite, machine: Machine, budget: Budget) -> tuple[Suite, list[str]]:
    """The suite cut to the budget, and a line for each cut.

    Raises:
        BudgetError: not even the shortest form of the study fits, or its time cannot be estimated.
    """
    notes: list[str] = []
    spent = _spent(make_plan(suite, machine), budget)
    while spent > budget.amount and len(suite.over.seed) > MIN_SEEDS:
        notes = [f"seeds cut to {', '.join(map(str, suite.over.seed[:-1]))}"]
        suite = suite.with_over(seed=suite.over.seed[:-1])
        spent = _spent(make_plan(suite, machine), budget)
    if spent <= budget.amount:
        return suite, notes
    if suite.layout != "sample":
        shorter = _with_fewer_tokens(suite, machine, budget)
        if shorter is not None:
            return shorter[0], [*notes, shorter[1]]
    return _sampled(suite, machine, budget)


def _spent(plan: Plan, budget: Budget) -> float:
    """What a plan takes, in the budget's unit.

    Raises:
        UnknownTime: the unit is seconds, and this machine was not calibrated.
    """
    if budget.kind == "flops":
        return sum(case.estimate.train_flops or 0.0 for case in plan.cases)
    if budget.kind == "tokens":
        return sum(_tokens(case) for case in plan.cases)
    times = [case.estimate.time_s for case in plan.cases if case.kind in ("train", "finetune", "timing")]
    if None in times:
        raise UnknownTime(
            "the time of this study is not known here; hint: let lmbench calibrate, or give tokens or FLOP"
        )
    return OVERHEAD * sum(time_s for time_s in times if time_s is not None)


def _sampled(suite: Suite, machine: Machine, budget: Budget) -> tuple[Suite, list[str]]:
    """Steps instead of trainings: first for every seed, then for one; as many as fit, up to what `sample` asks for.

    Raises:
        BudgetError: not even MIN_SAMPLE steps of one seed fit.
    """
    seeds = suite.over.seed
    for kept in dict.fromkeys((seeds, seeds[:1])):
        for steps in range(suite.sample.steps, MIN_SAMPLE - 1, -1):
            sample = suite.sample.model_copy(update={"steps": steps})
            cut = _untrained(suite.with_over(seed=kept).model_copy(update={"layout": "sample", "sample": sample}))
            if _spent(make_plan(cut, machine), budget) <= budget.amount:
                untried = ["tuning trials are left out: there is no training to tune"] if suite.tune else []
                unwritten = (
                    ["ways of decoding are left out: there is no trained model to write"] if suite.inference else []
                )
                return cut, [
                    f"every training is cut to {steps} steps at true size, seeds to {', '.join(map(str, kept))}: "
                    "FLOPs, time, energy and memory are measured",
                    *untried,
                    *unwritten,
                    "loss, accuracy and savings at equal quality are not measurable at this budget",
                ]
    raise BudgetError(
        f"nothing of this study fits {budget.words()}, not even {MIN_SAMPLE} steps of each arm; "
        "hint: give more, or choose a smaller scale"
    )


def _untrained(suite: Suite) -> Suite:
    """The suite without what needs a trained model: its ways of decoding, and the gate's rules on them."""
    if suite.inference is None:
        return suite
    gone = {arm.name for arm in suite.inference.arms}
    gate = tuple(rule for rule in suite.gate if rule.arm not in gone)
    return suite.model_copy(update={"inference": None, "gate": gate})


def _tokens(case: Case) -> int:
    if case.kind == "finetune":
        return finetuning.tokens(case)
    return case.recipe.trained_tokens(case.horizon) if case.kind == "train" and case.recipe and case.horizon else 0


def _with_fewer_tokens(suite: Suite, machine: Machine, budget: Budget) -> tuple[Suite, str] | None:
    """Every scale's tokens times the largest factor that fits, found by bisection; None where no training fits."""
    low, high = 0.0, 1.0
    for _ in range(12):
        factor = (low + high) / 2
        try:
            fits = _spent(make_plan(_scaled(suite, factor), machine), budget) <= budget.amount
        except UnknownTime:
            raise
        except BudgetError:
            fits = False
        low, high = (factor, high) if fits else (low, factor)
    if low == 0.0:
        return None
    return _scaled(suite, low), f"training tokens cut to {100 * low:.1f}% of what the suite asks for"


def _scaled(suite: Suite, factor: float) -> Suite:
    """All scales with `factor` times their tokens, in whole steps.

    Raises:
        BudgetError: a training or a trial would have fewer than MIN_STEPS steps.
    """
    scales = []
    shortest = suite.tune.share if suite.tune else 1.0
    for scale in suite.over.scale:
        recipe = suite.resolve(suite.baseline.name, scale.name)
        steps = int(factor * recipe.steps(1.0))
        if shortest * steps < MIN_STEPS:
            raise BudgetError(f"scale {scale.name} would train for {int(shortest * steps)} steps only")
        scales.append(scale.model_copy(update={"tokens": steps * recipe.batching.tokens}))
    return suite.with_over(scale=tuple(scales))
