"""Cases that prepare, train or evaluate: pull the work from `workloads`, under instruments, return what was found.

Building, warming up and compiling lie outside the measuring window; so do validation and loading.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from bench import interruption, trainmetrics, workloads
from bench.casefolder import Job, Outcome, Progress
from bench.evaluate import items
from bench.instruments import flops
from bench.instruments.clock import Stall
from bench.instruments.flops import FlopCounts
from bench.instruments.table import Window
from bench.record import Reading, missing, reading
from bench.trainlog import TrainLog
from lmopt.compute.decisions import write_decisions
from lmopt.recipe import Recipe
from lmopt.step import Step
from lmopt.train.loop import TrainState

CHECKPOINT_EVERY_S = float(os.environ.get("LMBENCH_CHECKPOINT_EVERY_S", "20"))
"""Training time that a killed process may lose."""
WARMUP_STEPS = 3
QUALITY = {"val_loss": "nat/token", "perplexity": "1", "bits_per_byte": "bit/byte"}
"""What a sample cannot say, with its unit."""

Found = TypeVar("Found")
"""What a generator of steps returns."""


def parents_of(job: Job) -> dict[str, Path]:
    """Case folders of what the case builds on, by id."""
    return {case: Path(folder) for case, folder in job.parents.items()}


# --- prepare -------------------------------------------------------------------------------------


def prepare(job: Job, folder: Path) -> Outcome:
    """Build a corpus or its shards; an interrupted one starts over, but finds the texts again that models had made.

    Whoever finds them is charged what they took: FLOPs and seconds are kept beside them, joules are not.
    """
    out = folder / "data"
    on_cpu = workloads.device().type == "cpu"  # idle power is that of the devices that trainings are measured on
    window = Window(device="cpu", idle_power_w=job.idle_power_w if on_cpu else None)
    progress = Progress(folder, unit="units")
    stage: str = job.case.spec["stage"]
    window.start()
    for step in workloads.prepare(job.case.spec, parents_of(job), out):
        progress.show(step.index, phase=stage)
        interruption.stop_if_asked()
    metrics = window.stop()
    facts = workloads.prepared(out)
    earlier_s = float(facts.get("earlier_s", 0.0))
    metrics["prepare_time_s"] = reading(window.duration_s + earlier_s, "s", "timed", "host")
    metrics["prepare_flops"] = reading(facts.get("flops", 0.0), "FLOP", "counted")
    if earlier_s:
        metrics |= {
            name: missing(found.unit, "part of the text was made by an earlier process", found.scope)
            for name, found in metrics.items()
            if name.startswith("energy") and found.value is not None
        }
    return Outcome(status="ok", metrics=metrics, detail={"stage": stage, **facts})


# --- train ---------------------------------------------------------------------------------------


def train(job: Job, folder: Path) -> Outcome:
    """Train to the horizon, then validate, where the recipe places it; continues from a checkpoint that is there."""
    with workloads.placed(_training_of(job)[0]) as where:
        outcome = _train(job, folder)
    return outcome.model_copy(update={"detail": outcome.detail | {"placement": where}}) if where else outcome


def _train(job: Job, folder: Path) -> Outcome:
    if job.case.purpose == "sample":
        return _sample(job, folder)
    recipe, seed, horizon = _training_of(job)
    data = shards_folder(job)
    window = Window(device=str(workloads.device()), idle_power_w=job.idle_power_w)
    window.before_model()
    compile_s = _warm_up(recipe, seed, data)  # gone before the model is built: two would not fit where one just does
    state, log = _start_or_resume(job, folder)
    counts = _counts(state, horizon)
    batches = Stall(workloads.batches(recipe, data, seed=seed, start=state.pace.portions, horizon=horizon))
    begin_log(log, state, counts)
    window.start()
    progress = Progress(folder, total=state.total_steps)
    pull(workloads.train(state, batches), state, log, window, folder / "checkpoint", progress)
    metrics = window.stop()
    if job.case.purpose != "tune":  # nobody builds on a trial's weights
        workloads.save_model(state, folder / "model")

    metrics |= trainmetrics.training_metrics(job, counts, log, compile_s + log.compile_s, metrics["energy_j"])
    metrics |= _validation_metrics(job, state, folder)
    router = state.model.report()
    metrics |= trainmetrics.router_metrics(router)
    detail = {
        "tokens": log.tokens,
        "steps": state.step,
        "curve": log.points,
        "counts": trainmetrics.counts_detail(counts, recipe),
        "router": router,
        "data_stall_s": batches.seconds,
        "sensors": window.findings,
        **trainmetrics.compiled_detail(state),
        **trainmetrics.kernels_detail(state),
    }
    if state.pace.decisions:
        detail["batching"] = [asdict(one) for one in state.pace.decisions]
        write_decisions(state.pace.decisions, folder / "batching.jsonl")
    return Outcome(status="ok", segments=log.segments, metrics=metrics, detail=detail)


def _sample(job: Job, folder: Path) -> Outcome:
    """A few steps at true size: FLOPs, time, energy and memory as in a training, and no quality.

    Nothing is saved, and the first steps are the warm-up: a throw-away model of this size would take too long.
    """
    recipe, seed, horizon = _training_of(job)
    window = Window(device=str(workloads.device()), idle_power_w=job.idle_power_w)
    window.before_model()
    progress = Progress(folder, unit="warm-up steps")  # each takes minutes: silence would be taken for a hung case
    progress.show(0, phase="drawing the model")
    state, log = workloads.start(recipe, seed=seed, horizon=horizon), TrainLog(folder / "checkpoint")
    progress.show(0, phase="counting FLOPs")
    counts = _counts(state, horizon)
    batches = Stall(workloads.batches(recipe, shards_folder(job), seed=seed))
    steps = workloads.train(state, batches)
    compile_s = 0.0
    for number in range(job.case.spec["warmup"]):
        progress.show(number, phase="warming up")
        compile_s += drop(steps, 1)
    progress.show(job.case.spec["warmup"], phase="measuring")
    begin_log(log, state, counts)
    window.start()
    pull(steps, state, log, window, None, Progress(folder, total=state.total_steps))
    metrics = window.stop()
    metrics |= trainmetrics.training_metrics(job, counts, log, compile_s + log.compile_s, metrics["energy_j"])
    reason = f"not measurable at this budget: {len(log.durations_s)} steps are no training"
    metrics |= {name: missing(unit, reason) for name, unit in QUALITY.items()}
    router = state.model.report()
    metrics |= trainmetrics.router_metrics(router)
    detail = {
        "tokens": log.tokens,
        "steps": len(log.durations_s),
        "steps_s": log.durations_s,
        "predicted_memory_bytes": job.case.estimate.peak_memory_bytes,
        **trainmetrics.compiled_detail(state),
        **trainmetrics.kernels_detail(state),
        "counts": trainmetrics.counts_detail(counts, recipe),
        "router": router,
        "data_stall_s": batches.seconds,
        "sensors": window.findings,
    }
    return Outcome(status="ok", segments=log.segments, metrics=metrics, detail=detail)


def _training_of(job: Job) -> tuple[Recipe, int, float]:
    case = job.case
    assert case.recipe is not None
    assert case.seed is not None
    assert case.horizon is not None
    return case.recipe, case.seed, case.horizon


def shards_folder(job: Job) -> Path:
    """Where the training tokens lie: left by the first of the case's parents."""
    return parents_of(job)[job.case.parents[0]] / "data"


def _start_or_resume(job: Job, folder: Path) -> tuple[TrainState, TrainLog]:
    recipe, seed, horizon = _training_of(job)
    log = TrainLog(folder / "checkpoint")
    other = parents_of(job)[job.case.parents[1]] / "model"  # the training that this one starts or learns from, if any
    teacher = other if recipe.teacher is not None else None
    state = workloads.resume(folder / "checkpoint", recipe, teacher)
    if state is None:
        state = workloads.start(recipe, seed=seed, horizon=horizon, teacher=teacher)
        if recipe.start.kind != "scratch":
            workloads.begin_from(state, other)
        return state, log
    # a step whose numbers were not read yet is yielded again
    log.restore(state.pace.tokens_by_length(state.yielded_tokens))
    return state, log


def _counts(state: TrainState, horizon: float) -> dict[int, FlopCounts]:
    """FLOPs of one sequence of each length that occurs."""
    recipe, teacher = state.recipe, workloads.teacher_of(state)
    return {length: flops.count(state.model, recipe, length, teacher) for length in _lengths(recipe, horizon)}


def begin_log(log: TrainLog, state: TrainState, counts: Mapping[int, FlopCounts]) -> None:
    """Say how long the training is, and what a token costs in sequences of each length that was counted."""
    log.begin(
        total_tokens=state.pace.total_tokens,
        flops_per_token={length: count.train_flops_per_token for length, count in counts.items()},
        full_length=state.recipe.batching.length,
    )


def _lengths(recipe: Recipe, horizon: float) -> list[int]:
    """Lengths of sequences in a training, ascending; the full one among them."""
    return sorted({phase.length for phase in recipe.phases(horizon)} | {recipe.batching.length})


def _warm_up(recipe: Recipe, seed: int, data: Path) -> float:
    """A few steps of a throw-away model: first allocations, kernel choices, compilation. Returns compiling seconds."""
    state = workloads.start(recipe, seed=seed, horizon=WARMUP_STEPS * recipe.batching.tokens / recipe.tokens)
    steps = workloads.train(state, workloads.batches(recipe, data, seed=seed))
    compile_s = sum(step.notes.get("compile_time_s", 0.0) for step in steps)
    del state, steps
    gc.collect()  # the first optimizer of a process refers to itself, so its moments would stay for a while
    return compile_s


def pull(
    steps: Iterator[Step], state: TrainState, log: TrainLog, window: Window, checkpoint: Path | None,
    progress: Progress, done: int = 0,
) -> None:  # fmt: skip
    """Pull every step, timing each; saves a checkpoint now and then, and when asked to stop.

    Args:
        checkpoint: the folder that checkpoints go to; None saves none.
        done: steps of the case before these, for the progress.
    """
    before_s = saved_s = time.perf_counter()
    for step in steps:
        now_s = time.perf_counter()
        log.add(step, now_s - before_s)
        energy = window.energy_so_far()
        progress.show(
            done + step.index,
            loss=step.loss,
            tokens_per_s=step.tokens / (now_s - before_s),
            energy_j=energy.value,
            energy_grade=energy.grade,
            **_bound(state),
        )
        if checkpoint is None:
            interruption.stop_if_asked()
        elif interruption.requested.is_set() or now_s - saved_s > CHECKPOINT_EVERY_S:
            log.save()  # first: from an older checkpoint it can go on, from a newer one points would be missing
            workloads.save(state, checkpoint)
            saved_s = time.perf_counter()
            interruption.stop_if_asked()
        before_s = time.perf_counter()


def _bound(state: TrainState) -> dict[str, int]:
    """How many steps there will be at most, where batches grow as the training finds fit; else nothing."""
    pace = state.pace
    if not pace.may_grow and pace.most_steps == state.total_steps:
        return {}
    return {"total": pace.most_steps, "at_most": int(pace.may_grow)}


def drop(steps: Iterator[Step], count: int) -> float:
    """Pull steps that are not timed; returns the seconds of compiling among them."""
    return sum(next(steps).notes.get("compile_time_s", 0.0) for _ in range(count))


def _validation_metrics(job: Job, state: TrainState, folder: Path) -> dict[str, Reading]:
    """Loss on the held-out text: of the first validation set under the plain names, of the others under their own."""
    metrics: dict[str, Reading] = {}
    progress = Progress(folder, unit="validation sets")
    corpus = parents_of(job)[job.case.parents[-1]] / "data"
    for index, (name, found) in enumerate(workloads.validate(state, corpus)):
        progress.show(index + 1, phase=f"validating on {name}")
        metrics |= found if index == 0 else {f"{metric}/{name}": value for metric, value in found.items()}
    return metrics


# --- evaluate ------------------------------------------------------------------------------------


def evaluate(job: Job, folder: Path) -> Outcome:
    """Downstream tasks on the parent's model, item by item."""
    assert job.case.recipe is not None
    model_folder, corpus = (parents_of(job)[parent] for parent in job.case.parents)
    progress = Progress(folder, unit="batches")
    results = yield_progress(
        workloads.evaluate(job.case.recipe, model_folder / "model", corpus / "data", job.case.spec), progress
    )
    digest = items.write(folder / "items.parquet", results.rows)
    detail = {"tasks": results.detail(), "items_sha256": digest}
    return Outcome(status="ok", metrics=results.readings(), detail=detail)


def yield_progress(steps: Generator[Step, None, Found], progress: Progress) -> Found:
    """Pull a generator to its end, showing each step; returns what it returns."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            return end.value
        progress.show(step.index, phase="evaluating")
        interruption.stop_if_asked()
