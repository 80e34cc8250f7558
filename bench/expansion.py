"""Suite -> cases: what has to be run to compare the arms, and why each of them.

In no order yet but that parents come before their children; what a case costs is not asked here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from bench import finetuning, generating, trials
from bench.case import Case, Purpose, canonical_hash, identify
from bench.design import Design
from bench.inferstanza import Inference
from bench.suite import Arm, Scale, Suite
from lmopt import cost
from lmopt.recipe import Recipe

SAME_HORIZON = 0.02
"""A claim arm's horizon this close to its claim point is left to the claim point, which joins the arm's curve."""


def with_claim_points(suite: Suite) -> Design:
    """The design, with the horizon at which each claim arm has spent (1 - at_least) of the reference's FLOPs."""
    design = suite.design()
    points = {
        arm.name: {scale.name: _claim_horizon(suite, arm, scale) for scale in suite.over.scale}
        for arm in suite.arms
        if arm.role == "claim"
    }
    return design.model_copy(update={"claim_points": points})


def unaffordable(suite: Suite) -> Iterator[str]:
    """Claims that cannot hold, in words: what comes before their first step costs all that they may spend."""
    for arm, scale in product(suite.arms, suite.over.scale):
        allowed, before = _allowed_flops(suite, arm, scale) if arm.role == "claim" else (1.0, 0.0)
        if before >= allowed:
            yield (
                f"claim {arm.name}/{scale.name} cannot hold: the training that it begins from or learns from costs "
                f"{before:.3g} FLOP, and the claim leaves it {allowed:.3g} in all"
            )


def _allowed_flops(suite: Suite, arm: Arm, scale: Scale) -> tuple[float, float]:
    """FLOPs that a claim leaves an arm in all, and those of trainings that come before its own."""
    recipe = suite.resolve(arm.name, scale.name)
    reference = suite.resolve(arm.against or suite.baseline.name, scale.name)
    allowed = (1 - suite.hypothesis.saving.at_least) * _mean_flops_per_step(reference) * reference.steps(1.0)
    before = 0.0
    if recipe.start.kind == "upcycled":
        before += _mean_flops_per_step(reference) * reference.steps(recipe.start.horizon)
    if recipe.objective.kind == "distillation":
        before += cost.training_flops(suite.resolve(recipe.objective.teacher, scale.name), 1.0)
    return allowed, before


def _claim_horizon(suite: Suite, arm: Arm, scale: Scale) -> float:
    recipe = suite.resolve(arm.name, scale.name)
    allowed, before = _allowed_flops(suite, arm, scale)
    steps = max(1, int((allowed - before) / _mean_flops_per_step(recipe)))
    if len(recipe.phases(1.0)) > 1:
        return _paid_share(recipe, steps, allowed - before)
    return round(steps * recipe.batching.tokens / recipe.tokens, 6)


def _paid_share(recipe: Recipe, steps: int, flops: float) -> float:
    """The horizon of steps that differ: the same share of every phase, at most `steps`, paid for by `flops`.

    Each phase is rounded to whole steps by itself, so that all together may come out dearer than their mean says.
    """
    whole = recipe.steps(1.0)
    while steps > 1 and cost.training_flops(recipe, round(steps / whole, 6)) > flops:
        steps -= 1
    return round(steps / whole, 6)


def _mean_flops_per_step(recipe: Recipe) -> float:
    if len(recipe.phases(1.0)) > 1:
        return cost.training_flops(recipe, 1.0) / recipe.steps(1.0)
    return flops_per_step(recipe)


def flops_per_step(recipe: Recipe) -> float:
    """Training FLOPs of one full optimizer step, as executed."""
    return cost.train_flops_per_token(recipe).executed * recipe.batching.tokens


def cases_of(suite: Suite, design: Design) -> Iterator[Case]:
    """Every case of the study; parents come before their children."""
    corpus = _corpus_case(suite)
    yield corpus
    shards: dict[str, Case] = {}
    if design.trains:
        yield from _shards(suite, corpus, shards)
        sources: set[str] = set()
        for arm, scale in product(suite.all_arms(), suite.over.scale):
            for case in _arm_cases(suite, design, arm, scale, shards):
                if case.id in sources:
                    continue  # arms may share one
                if case.purpose == "trial_source":
                    sources.add(case.id)
                yield case
    if suite.inference is not None:
        for scale, seed in product(suite.over.scale, suite.over.seed):
            yield from _generations(suite, suite.inference, scale, seed, shards, corpus)


def _corpus_case(suite: Suite) -> Case:
    spec: dict[str, Any] = {"stage": "corpus", "data": suite.data.model_dump(mode="json")}
    if suite.data.decontaminate is not None:
        spec["protect"] = list(dict.fromkeys([*suite.evaluate.tasks, *(one.task for one in suite.finetune)]))
    return identify(Case(id="", kind="prepare", arm=suite.baseline.name, purpose="corpus", spec=spec))


def _shards(suite: Suite, corpus: Case, shards: dict[str, Case]) -> Iterator[Case]:
    """The training shards of every chain of data steps, each once; noted in `shards` by the hash of the chain."""
    for arm in suite.all_arms():
        steps = [step.model_dump(mode="json") for step in suite.resolve(arm.name, suite.over.scale[0].name).data]
        key = canonical_hash(steps, 16)
        if key not in shards:
            shards[key] = identify(
                Case(id="", kind="prepare", arm=arm.name, purpose="shards", parents=(corpus.id,),
                     spec={"stage": "shards", "steps": steps})
            )  # fmt: skip
            yield shards[key]


def _arm_cases(suite: Suite, design: Design, arm: Arm, scale: Scale, shards: Mapping[str, Case]) -> Iterator[Case]:
    recipe = suite.resolve(arm.name, scale.name)
    data = _shards_of(recipe, shards)
    if suite.layout == "sample":
        yield from _sample_cases(suite, arm, scale, recipe, data)
        return
    if arm.timed and arm.name != suite.baseline.name:
        yield _timing_case(suite, arm, scale, recipe, data)
    if arm.role == "timing":
        return
    yield from _trial_sources(suite, arm, scale, shards)
    yield from _trials(suite, arm, scale, shards)
    for (horizon, purpose), seed in product(_horizons(suite, design, arm, scale).items(), suite.over.seed):
        train = _training(suite, arm, scale, seed, horizon, shards).model_copy(update={"purpose": purpose})
        yield train
        if _is_evaluated(suite, purpose, horizon):
            yield from _evaluations(suite, train, data.parents[0], recipe)


def _evaluations(suite: Suite, train: Case, corpus: str, recipe: Recipe) -> Iterator[Case]:
    """What a trained model is scored on, as it is and after fine-tuning."""
    if suite.evaluate.tasks:
        yield identify(
            Case(id="", kind="evaluate", arm=train.arm, scale=train.scale, seed=train.seed, horizon=train.horizon,
                 parents=(train.id, corpus), purpose="evaluate", recipe=recipe,
                 spec={"tasks": list(suite.evaluate.tasks), "limit": suite.evaluate.limit})
        )  # fmt: skip
    for stanza in suite.finetune:
        yield finetuning.case(train, corpus, stanza, recipe)


def _shards_of(recipe: Recipe, shards: Mapping[str, Case]) -> Case:
    return shards[canonical_hash([step.model_dump(mode="json") for step in recipe.data], 16)]


def _training(suite: Suite, arm: Arm, scale: Scale, seed: int, horizon: float, shards: Mapping[str, Case]) -> Case:
    """A training. Its parents: its shards, the training that it starts or learns from, its trials, the corpus."""
    recipe = suite.resolve(arm.name, scale.name)
    data = _shards_of(recipe, shards)
    begun = (source.id for source in _source(suite, arm, scale, seed, shards))
    tried = (trial.id for trial in _trials(suite, arm, scale, shards))
    return identify(
        Case(id="", kind="train", arm=arm.name, scale=scale.name, seed=seed, horizon=horizon,
             parents=(data.id, *begun, *tried, *data.parents), purpose="variant", recipe=recipe, spec=_tuning(suite))
    )  # fmt: skip


def _source(suite: Suite, arm: Arm, scale: Scale, seed: int, shards: Mapping[str, Case]) -> tuple[Case, ...]:
    """The training of this seed that an arm starts or learns from, if it does."""
    recipe = suite.resolve(arm.name, scale.name)
    if recipe.start.kind == "upcycled":
        source = suite.arm(arm.against or suite.baseline.name)
        return (_training(suite, source, scale, seed, recipe.start.horizon, shards),)
    if recipe.objective.kind == "distillation":
        return (_training(suite, suite.arm(recipe.objective.teacher), scale, seed, 1.0, shards),)
    return ()


def _trials(suite: Suite, arm: Arm, scale: Scale, shards: Mapping[str, Case]) -> Iterator[Case]:
    if suite.tune is not None:
        recipe = suite.resolve(arm.name, scale.name)
        begun = {
            seed: tuple(source.id for source in _source(suite, arm, scale, seed, shards)) for seed in suite.tune.seed
        }
        yield from trials.trials(
            suite.tune, arm.name, scale.name, recipe, _shards_of(recipe, shards), begun.__getitem__
        )


def _trial_sources(suite: Suite, arm: Arm, scale: Scale, shards: Mapping[str, Case]) -> Iterator[Case]:
    """What an arm's trials start or learn from, trained at the setting that the trials of its own arm chose.

    Of the trials' seeds: a choice made with a training of the study's own would fit its noise.
    """
    if suite.tune is None:
        return
    for seed in suite.tune.seed:
        for source in _source(suite, arm, scale, seed, shards):
            yield from _trial_sources(suite, suite.arm(source.arm), scale, shards)
            yield source.model_copy(update={"purpose": "trial_source"})


def _tuning(suite: Suite) -> dict[str, Any]:
    """What a training needs to choose among the trials that it builds on."""
    if suite.tune is None:
        return {}
    return {"tune": {"metric": trials.metric(suite.tune, suite.data.validation[0].name)}}


def _sample_cases(suite: Suite, arm: Arm, scale: Scale, recipe: Recipe, data: Case) -> Iterator[Case]:
    """A few steps of an arm, whatever its role; another seed is another look at a machine that wanders."""
    sample = suite.sample
    horizon = round((sample.warmup + sample.steps) * recipe.batching.tokens / recipe.tokens, 9)
    for seed in suite.over.seed:
        yield identify(
            Case(id="", kind="train", arm=arm.name, scale=scale.name, seed=seed, horizon=horizon,
                 parents=(data.id, *data.parents), purpose="sample", recipe=recipe, spec=sample.model_dump())
        )  # fmt: skip


def _horizons(suite: Suite, design: Design, arm: Arm, scale: Scale) -> dict[float, Purpose]:
    """horizon -> why it is run. A horizon that serves two ends keeps the first."""
    found: dict[float, Purpose] = {}
    is_referred = arm.name in {suite.baseline.name} | {other.against for other in suite.arms}
    if is_referred:
        found |= dict.fromkeys(suite.over.horizon, "reference")
    elif suite.layout == "full" and arm.role == "claim":
        found |= {horizon: "variant" for horizon in suite.over.horizon if horizon <= 1.0}
    else:
        found[1.0] = "variant"
    if arm.role == "claim":
        point = design.claim_points[arm.name][scale.name]
        near = [horizon for horizon in found if horizon != 1.0 and abs(horizon - point) <= SAME_HORIZON * point]
        found = {horizon: purpose for horizon, purpose in found.items() if is_referred or horizon not in near}
        found.setdefault(point, "claim_point")
    if is_referred and any(other.role == "claim" for other in suite.arms):
        if suite.controls.truncated:
            found[round(1 - suite.hypothesis.saving.at_least, 6)] = "truncated"
        if suite.controls.half:
            found[0.5] = "half"
    return found


def _generations(
    suite: Suite, asked: Inference, scale: Scale, seed: int, shards: Mapping[str, Case], corpus: Case
) -> Iterator[Case]:
    def model_of(arm: str) -> Case:
        return _training(suite, suite.arm(arm or suite.baseline.name), scale, seed, 1.0, shards)

    recipe = suite.resolve(asked.arm or suite.baseline.name, scale.name)
    yield from generating.cases(asked, recipe, scale.name, seed, corpus, model_of)


def _is_evaluated(suite: Suite, purpose: Purpose, horizon: float) -> bool:
    if suite.evaluate.when == "every":
        return True
    return purpose in ("claim_point", "truncated", "half") or (purpose == "reference" and horizon == 1.0)


def _timing_case(suite: Suite, arm: Arm, scale: Scale, recipe: Recipe, data: Case) -> Case:
    against = arm.against or suite.baseline.name
    spec = {
        "against": against,
        "reference": suite.resolve(against, scale.name).model_dump(mode="json"),
        **suite.timing.model_dump(mode="json"),
    }
    return identify(
        Case(id="", kind="timing", arm=arm.name, scale=scale.name, seed=suite.over.seed[0], parents=(data.id,),
             purpose="timing", recipe=recipe, spec=spec)
    )  # fmt: skip
