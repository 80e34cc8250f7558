"""What a case will cost on a machine, in closed form, and whether it fits there.

No torch: costs come from `lmopt.cost` and, where one was made, from a short calibration of the machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import Field

from bench import finetuning, generating
from bench.case import Case, Estimate
from bench.design import Frozen
from bench.expansion import flops_per_step
from bench.suite import Suite
from lmopt import cost, cost_memory
from lmopt.compute.topology import Node, NoSuchNode, not_applicable
from lmopt.quantities import human_bytes
from lmopt.recipe import AdaptiveMicro, Recipe

CHECKPOINT_BYTES = 3 * 4
"""Of one parameter in a checkpoint: its weight and two Adam moments, each in float32."""

MACHINE = "this machine has"
"""What limits memory where nothing else does."""

OWN = "batching.memory allows"
"""What limits a training without its process."""

WORKER_BYTES = 425 * 2**20
"""What the process of a case holds beside its model: Python, torch and all that is imported (357 MiB with the CPU build
of torch, the records' `rss_before_bytes`), and pages of these libraries that come in while it works (50 to 67 MiB,
which `peak_memory_bytes` leaves out of `peak_rss_bytes`)."""

BUILT_A_SECOND = 30e6
"""Parameters drawn, counted and let go of in a second, about: what a sample takes beside its steps."""


class Machine(Frozen):
    """What planning needs to know of a machine."""

    machine_class: str
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    flops_per_s: dict[str, float] = Field(default_factory=dict[str, float])
    """Sustained training FLOP/s by precision (`fp32`, `bf16`), and by precision and feed-forward (`bf16+moe`); empty
    before a calibration."""
    bytes_per_s: float | None = None
    """Memory bandwidth of the device that trains."""
    fixed_s: dict[str, float] = Field(default_factory=dict[str, float])
    """By the same names, seconds of one layer's forward and backward pass however small it is; empty: not known."""
    peak_flops_per_s: dict[str, float] = Field(default_factory=dict[str, float])
    """Best measured rate of a matrix product by precision; empty where it was not measured undisturbed."""
    numa: tuple[Node, ...] = ()
    """NUMA nodes, for placements."""
    disturbed: bool = False
    """Other work ran beside the calibration, so that the machine is faster than these rates."""

    def speed_of(self, recipe: Recipe) -> float | None:
        """Training FLOP/s to expect of a recipe; None before a calibration."""
        return _of_kind(self.flops_per_s, recipe)

    def step_overhead_s(self, recipe: Recipe) -> float:
        """Seconds of a step beside its arithmetic: calls a layer and pass, which rule tiny models, and the parameters'
        way through memory, which rules large ones.
        """
        batching = recipe.batching
        passes = batching.sequences // (getattr(batching, "micro_sequences", None) or batching.sequences)
        forward_only = recipe.teacher.model.layers / 3 if recipe.teacher is not None else 0.0
        calls_s = passes * (recipe.model.layers + 1 + forward_only) * (_of_kind(self.fixed_s, recipe) or 0.0)
        return calls_s + (cost_memory.update_bytes(recipe) / self.bytes_per_s if self.bytes_per_s else 0.0)


def judge_fits(cases: Iterable[Case], suite: Suite, machine: Machine) -> tuple[Case, ...]:
    """`judge_fit` of each.

    Raises:
        NoSuchNode: placements name nodes that this machine lacks; says so of all arms at once.
    """
    judged: list[Case] = []
    lacking: dict[str, None] = {}
    hints: dict[str, None] = {}
    for case in cases:
        try:
            judged.append(judge_fit(case, suite, machine))
        except NoSuchNode as error:
            said, _, hint = str(error).partition("\nhint: ")
            lacking[said] = None
            hints |= {hint: None} if hint else {}
    if lacking:
        raise NoSuchNode("\n".join([*lacking, *(f"hint: {hint}" for hint in hints)]))
    return tuple(judged)


def judge_fit(case: Case, suite: Suite, machine: Machine) -> Case:
    """The case with its estimate, and with the reason where it does not fit the machine."""
    reason = _not_applicable(case, machine)
    if reason:  # it will not run, so it costs nothing
        return case.model_copy(update={"estimate": Estimate(time_s=0), "applies": False, "reason": reason})
    estimate = _estimate(case, suite, machine)
    reason = _want_of_memory(case, estimate, suite, machine)
    if reason is None and machine.disk_bytes and estimate.disk_bytes and estimate.disk_bytes > machine.disk_bytes:
        reason = f"needs about {human_bytes(estimate.disk_bytes)} of disk, {human_bytes(machine.disk_bytes)} are free"
    if reason is None and case.kind != "generate" and case.recipe and estimate.peak_memory_bytes is not None:
        limit = _memory_limit(suite, machine)
        left = limit[0] - WORKER_BYTES - estimate.peak_memory_bytes if limit else None
        peak = estimate.peak_memory_bytes + _growth_bytes(case.recipe, left)
        estimate = estimate.model_copy(update={"peak_memory_bytes": peak})
    return case.model_copy(update={"estimate": estimate, "fits": reason is None, "reason": reason})


def _growth_bytes(recipe: Recipe, left_bytes: int | None) -> int:
    """What a micro-batch that adapts takes beyond a single sequence where so much is left: it will, and it need not."""
    if not isinstance(recipe.batching, AdaptiveMicro):
        return 0
    needed = cost_memory.bytes_by_micro(recipe, recipe.batching.sizes)
    own = recipe.batching.memory or max(needed.values())
    growths = [size - needed[1] for size in needed.values() if size <= own]
    return max((growth for growth in growths if left_bytes is None or growth <= left_bytes), default=0)


def _want_of_memory(case: Case, estimate: Estimate, suite: Suite, machine: Machine) -> str | None:
    """Why the case takes more memory than it may: its process than the machine or the suite allows, or its training."""
    whole_process = (WORKER_BYTES + (estimate.peak_memory_bytes or 0), _memory_limit(suite, machine))
    for needed_bytes, limit in (whole_process, (_own_bytes(case), _own_limit(case))):
        if not needed_bytes or not limit or needed_bytes <= limit[0]:
            continue
        hint = "a smaller model" if case.kind == "generate" else _less_memory(case)
        if limit[1] != MACHINE:
            hint = f"{hint}, or raise the limit" if case.recipe else "raise the limit"
        process = "" if limit[1] == OWN else f", {human_bytes(WORKER_BYTES)} of it for the process itself"
        if needed_bytes == WORKER_BYTES:
            process = " for the process itself"
        needs = f"needs about {human_bytes(needed_bytes)} of memory{process}"
        return f"{needs}; {limit[1]} {human_bytes(limit[0])}; hint: {hint}"
    return None


def _less_memory(case: Case) -> str:
    """What takes less memory: one that adapts is counted with a single sequence already."""
    if case.recipe is not None and case.recipe.batching.held_sequences == 1:
        return "shorten batching.length or lower the scale"
    return "lower batching.micro_sequences or the scale"


def _memory_limit(suite: Suite, machine: Machine) -> tuple[int, str] | None:
    """The tightest limit of a case in bytes, and what sets it in words that go before the number."""
    limits = ((machine.memory_bytes, MACHINE), (suite.limits.case_memory, "limits.case_memory allows"))
    return min(((size, words) for size, words in limits if size), default=None)


def _own_limit(case: Case) -> tuple[int, str] | None:
    """What a training may take in all by its own recipe; text that a model makes is no training."""
    own = getattr(case.recipe.batching, "memory", None) if case.recipe and case.kind != "generate" else None
    return (int(own), OWN) if own else None


def _own_bytes(case: Case) -> int | None:
    """What the recipe's own training needs: a timing case holds the reference's beside it."""
    return cost_memory.peak_memory_bytes(case.recipe) if case.recipe else None


def _not_applicable(case: Case, machine: Machine) -> str | None:
    """Why the case, or what it is timed against, would change nothing here.

    Raises:
        NoSuchNode: a placement names a node that this machine lacks.
    """
    recipes = [(case.arm, case.recipe)] if case.recipe else []
    if case.kind == "timing":
        recipes.append((case.spec["against"], Recipe.model_validate(case.spec["reference"])))
    for arm, recipe in recipes:
        try:
            reason = not_applicable(recipe.placement, list(machine.numa))
        except NoSuchNode as error:
            raise NoSuchNode(f"arm {arm!r}: {error}") from error
        if reason:
            return reason
    return None


def _estimate(case: Case, suite: Suite, machine: Machine) -> Estimate:
    if case.recipe is None:
        return Estimate()
    memory_bytes = cost_memory.peak_memory_bytes(case.recipe)
    disk_bytes = CHECKPOINT_BYTES * cost.parameters(case.recipe).total
    if case.kind == "train":
        assert case.horizon is not None
        flops = cost.training_flops(case.recipe, case.horizon)
        time_s = _training_time_s(flops, case.recipe.steps(case.horizon), case.recipe, machine)
        if case.purpose == "sample":
            disk_bytes = 0
            time_s = None if time_s is None else time_s + cost.parameters(case.recipe).total / BUILT_A_SECOND
        return Estimate(train_flops=flops, peak_memory_bytes=memory_bytes, time_s=time_s, disk_bytes=disk_bytes)
    if case.kind == "finetune":
        flops, trials = finetuning.flops(case), len(case.spec["rates"])
        time_s = _training_time_s(flops, trials * case.recipe.steps(1.0), case.recipe, machine)
        return Estimate(train_flops=flops, peak_memory_bytes=memory_bytes, time_s=time_s, disk_bytes=disk_bytes)
    if case.kind == "generate":
        return Estimate(
            generate_flops=generating.flops(case), peak_memory_bytes=generating.memory_bytes(case), disk_bytes=0
        )
    if case.kind == "timing":
        reference = Recipe.model_validate(case.spec["reference"])
        steps = suite.timing.blocks * suite.timing.steps
        both_s = [
            _training_time_s(steps * flops_per_step(recipe), steps, recipe, machine)
            for recipe in (case.recipe, reference)
        ]
        time_s = sum(part_s for part_s in both_s if part_s is not None) if None not in both_s else None
        memory_bytes += cost_memory.peak_memory_bytes(reference)
        return Estimate(peak_memory_bytes=memory_bytes, time_s=time_s, disk_bytes=0)
    return Estimate(peak_memory_bytes=memory_bytes, disk_bytes=0)


def _training_time_s(flops: float, steps: int, recipe: Recipe, machine: Machine) -> float | None:
    """Of so many FLOPs in so many steps; None before a calibration."""
    speed = machine.speed_of(recipe)
    return flops / speed + steps * machine.step_overhead_s(recipe) if speed else None


def _of_kind(figures: Mapping[str, float], recipe: Recipe) -> float | None:
    """What was measured of a precision with a feed-forward, else of the precision."""
    precision = recipe.precision.arithmetic
    return figures.get(f"{precision}+{recipe.ffn.kind}") or figures.get(precision)
