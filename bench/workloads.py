"""The working parts of `lmopt`, as the harness uses them: each a source of `Step` values that is pulled.

The only module of `bench` that builds models, batches and corpora.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from lmopt.arch.transformer import Transformer
from lmopt.compute import memory
from lmopt.data import corpus, shards, validation
from lmopt.data.spec import Data
from lmopt.data.validation import ValidationSet
from lmopt.recipe import DataStep, Recipe, builder
from lmopt.step import Step
from lmopt.train import checkpoint, loop
from lmopt.train.loop import TrainState


def device() -> torch.device:
    """Where cases of this process run: the first CUDA device if there is one."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def prepare(spec: Mapping[str, Any], parents: Mapping[str, Path], out: Path) -> Iterator[Step]:
    """Build the corpus (`stage: corpus`) or the training shards of one chain of data steps (`stage: shards`)."""
    if spec["stage"] == "corpus":
        yield from corpus.build(Data.model_validate(spec["data"]), out)
        return
    steps = TypeAdapter(tuple[DataStep, ...]).validate_python(spec["steps"])
    (source,) = parents.values()
    yield from shards.build(source / "data", steps, out)


def manifest(out: Path) -> dict[str, Any]:
    """What was built in a data folder."""
    import json

    return json.loads((out / "manifest.json").read_text())


def start(recipe: Recipe, *, seed: int, horizon: float) -> TrainState:
    """A model, its optimizer and schedule at step 0."""
    memory.tune_allocator()
    return loop.start(recipe, seed=seed, horizon=horizon, device=device())


def batches(recipe: Recipe, data: Path, *, seed: int, start_step: int = 0) -> Iterator[Tensor]:
    """Training batches from `start_step` on: a pure function of the seed and the step."""
    return builder(recipe.batching)(recipe.batching, shards.open_shards(data), seed=seed, start_step=start_step)


def train(state: TrainState, batches: Iterator[Tensor]) -> Iterator[Step]:
    """Optimizer steps until the horizon."""
    return loop.train(state, batches)


def endless(recipe: Recipe, data: Path, *, seed: int) -> Iterator[Step]:
    """Training steps for timing only: the schedule never ends, nothing is kept."""
    steps = itertools.count()
    while True:
        state = start(recipe, seed=seed + next(steps), horizon=1.0)
        yield from train(state, batches(recipe, data, seed=seed))


def save(state: TrainState, folder: Path) -> None:
    """A checkpoint to continue from."""
    checkpoint.save(state, folder)


def resume(folder: Path, recipe: Recipe) -> TrainState:
    """The state of a checkpoint."""
    memory.tune_allocator()
    return checkpoint.load(folder, recipe, device())


def save_model(state: TrainState, folder: Path) -> None:
    """The trained weights alone."""
    checkpoint.save_model(state.model, state.recipe, folder)


def load_model(folder: Path) -> Transformer:
    """Trained weights for evaluation."""
    memory.tune_allocator()
    return checkpoint.load_model(folder, device())


def validation_sets(corpus_folder: Path) -> dict[str, ValidationSet]:
    """Every validation set of a corpus, by name."""
    return {name: validation.load(corpus_folder, name) for name in validation.names(corpus_folder)}
