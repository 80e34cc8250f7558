"""The fine-tuning of a trained model, inside the child: one trial a learning rate, the choice of one, the test.

What a killed process needs to go on lies under `checkpoint`: `trials.json` (those that are done, and the processes that
it took), `model-N` (what they made), `trial-N` (the one under way).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench import trials, workloads
from bench.casefolder import Job, Outcome, Progress, write_atomically
from bench.evaluate import items
from bench.evaluate.answers import Answered
from bench.evaluate.loading import NotAvailable
from bench.evaluate.splits import finetuned_name
from bench.instruments import flops
from bench.instruments.flops import FlopCounts
from bench.instruments.table import Window
from bench.measure import begin_log, parents_of, pull, yield_progress
from bench.record import Reading, missing, reading
from bench.trainlog import TrainLog
from lmopt.recipe import Recipe
from lmopt.train.loop import Diverged


@dataclass(frozen=True, slots=True)
class Trial:
    """One learning rate, tried in full."""

    lr: float
    accuracy: float | None
    """On the questions kept back; None: it diverged."""
    nats: float | None
    """Mean -log of the right choice's share there."""
    loss: float | None
    """Mean cross-entropy of the answers over the last part of the trial, in nats a token."""
    tokens: int
    steps: int
    time_s: float
    energy: Mapping[str, Any]
    peak_memory_bytes: float | None


@dataclass
class History:
    """What earlier processes of this case did, kept on disk."""

    path: Path
    segments: int = 0
    trials: list[Trial] = field(default_factory=list[Trial])

    @classmethod
    def begin(cls, path: Path) -> History:
        """Read it, and count this process in."""
        history = cls(path)
        if path.exists():
            kept = json.loads(path.read_text())
            history.segments, history.trials = kept["segments"], [Trial(**one) for one in kept["trials"]]
        history.segments += 1
        history.save()
        return history

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = {"segments": self.segments, "trials": [asdict(one) for one in self.trials]}
        write_atomically(self.path, json.dumps(kept))


def best(trials: Iterable[Trial]) -> int | None:
    """Number of the trial with the highest accuracy, of equal ones the surest; None where all diverged."""
    keys = [
        (-one.accuracy, one.nats if one.nats is not None else math.inf, number)
        for number, one in enumerate(trials)
        if one.accuracy is not None
    ]
    return min(keys)[2] if keys else None


def finetune(job: Job, folder: Path) -> Outcome:
    """Learn at each rate, choose, and test on questions that neither saw; continues where a process was stopped."""
    recipe, spec = _recipe(job), job.case.spec
    name = finetuned_name(spec["task"])
    history = History.begin(folder / "checkpoint" / "trials.json")
    try:
        practice = workloads.practice(spec)
    except NotAvailable as error:
        return Outcome(status="ok", metrics={f"accuracy/{name}": missing("1", str(error))}, detail={"tasks": {}})
    model_folder, corpus = (parents_of(job)[parent] for parent in job.case.parents)
    with workloads.placed(recipe) as where:
        counts = flops.count(workloads.start(recipe, seed=0, horizon=1.0).model, recipe, recipe.batching.length)
        lesson = workloads.lesson(recipe, corpus / "data", practice)
        progress = Progress(folder, total=len(spec["rates"]) * recipe.steps(1.0))
        for number in range(len(history.trials), len(spec["rates"])):
            history.trials.append(_trial(job, folder, number, lesson, counts, progress))
            history.save()
            shutil.rmtree(_under_way(folder, number), ignore_errors=True)
    chosen = best(history.trials)
    # Where every trial diverged, the model is tested as it was: a result, never dropped.
    place = model_folder / "model" if chosen is None else folder / "checkpoint" / f"model-{chosen}"
    results = yield_progress(workloads.evaluate_finetuned(recipe, place, corpus / "data", spec), Progress(folder))
    results = results.named(finetuned_name)
    detail = {
        "tasks": results.detail(),
        "items_sha256": items.write(folder / "items.parquet", results.rows),
        "finetune": _described(history, chosen, practice.facts, lesson.tokens, recipe),
        "tokens": sum(one.tokens for one in history.trials),
        "counts": counts.to_dict(),
    }
    metrics = _costs(history.trials, counts) | results.readings()
    detail |= {"placement": where} if where else {}
    return Outcome(status="ok", segments=history.segments, metrics=metrics, detail=detail)


def _recipe(job: Job) -> Recipe:
    assert job.case.recipe is not None
    return job.case.recipe


def _under_way(folder: Path, number: int) -> Path:
    return folder / "checkpoint" / f"trial-{number}"


def _trial(
    job: Job, folder: Path, number: int, lesson: workloads.Lesson, counts: FlopCounts, progress: Progress
) -> Trial:
    """Learn at one rate, from the trained weights or from a checkpoint of this trial, and answer what was kept back."""
    recipe = trials.at(_recipe(job), {"lr": job.case.spec["rates"][number]})
    place = _under_way(folder, number)
    log = TrainLog(place)
    window = Window(device=str(workloads.device()), idle_power_w=job.idle_power_w)
    window.before_model()
    state = workloads.resume(place, recipe)
    if state is None:
        state = workloads.start(recipe, seed=job.case.seed or 0, horizon=1.0)
        workloads.begin_with(state, parents_of(job)[job.case.parents[0]] / "model")
    else:
        log.restore(state.pace.tokens_by_length(state.yielded_tokens))
    begin_log(log, state, {recipe.batching.length: counts})
    batches = workloads.answers(recipe, lesson, seed=job.case.seed or 0, start=state.pace.portions)
    window.start()
    answered: Answered | None = None
    try:
        pull(workloads.train(state, batches), state, log, window, place, progress, number * state.total_steps)
    except Diverged:
        seen = window.stop()
    else:
        seen = window.stop()
        answered = yield_progress(workloads.choose(state, lesson), progress)
        workloads.save_model(state, folder / "checkpoint" / f"model-{number}")
    return Trial(
        lr=recipe.optimizer.lr,
        accuracy=answered.accuracy if answered else None,
        nats=answered.nats if answered else None,
        loss=log.points[-1]["loss"] if log.points else None,
        tokens=log.tokens,
        steps=state.step,
        time_s=log.elapsed_s,
        energy=seen["energy_j"].model_dump(),
        peak_memory_bytes=seen["peak_memory_bytes"].value,
    )


def _costs(tried: list[Trial], counts: FlopCounts) -> dict[str, Reading]:
    """Of all trials together; answering questions is evaluation and costs no training FLOPs."""
    tokens = sum(one.tokens for one in tried)
    memory = [one.peak_memory_bytes for one in tried if one.peak_memory_bytes is not None]
    return {
        "train_flops": reading(tokens * counts.train_flops_per_token, "FLOP", "counted"),
        "train_model_flops": reading(tokens * counts.train_model_flops_per_token, "FLOP", "counted"),
        "train_time_s": reading(sum(one.time_s for one in tried), "s", "timed", "host"),
        "energy_j": _sum([Reading.model_validate(one.energy) for one in tried]),
        "peak_memory_bytes": reading(max(memory), "B", "counted") if memory else missing("B", "no sensor"),
    }


def _sum(parts: list[Reading]) -> Reading:
    """Joules of all trials, where each has a value of the same grade and scope."""
    first = parts[0]
    absent = next((part for part in parts if part.value is None), None)
    if absent is not None:
        return absent
    if any((part.grade, part.scope) != (first.grade, first.scope) for part in parts) or first.grade is None:
        return missing("J", "the trials were measured by different sensors", first.scope)
    return reading(math.fsum(part.value or 0.0 for part in parts), "J", first.grade, first.scope)


def _described(
    history: History, chosen: int | None, facts: Mapping[str, Any], tokens: int, recipe: Recipe
) -> dict[str, Any]:
    """What the record keeps: the grid, the choice, the questions, and how often each was seen."""
    shown = ("lr", "accuracy", "nats", "loss", "tokens", "steps")
    return {
        "chosen": None if chosen is None else history.trials[chosen].lr,
        "trials": [{name: getattr(one, name) for name in shown} for one in history.trials],
        "questions": dict(facts),
        "passes": recipe.trained_tokens(1.0) / tokens,
    }
