"""The working parts of `lmopt`, as the harness uses them: each a source of `Step` values that is pulled.

The only module of `bench` that builds models, batches and corpora.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from bench.evaluate import perplexity
from bench.evaluate.harness import TaskResults, evaluate_steps
from bench.record import Reading
from lmopt.compute.memory import tune_allocator
from lmopt.data import corpus, shards, tokenizer, validation
from lmopt.data.spec import Data
from lmopt.recipe import DataStep, Recipe, Technique, builder
from lmopt.step import Step
from lmopt.train import checkpoint, loop
from lmopt.train.checkpoint import CheckpointError
from lmopt.train.loop import TrainState

DATA_STEPS: TypeAdapter[tuple[Technique, ...]] = TypeAdapter(tuple[DataStep, ...])  # pyright: ignore[reportInvalidTypeForm]


def device() -> torch.device:
    """Where cases of this process run: the first CUDA device if there is one."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def prepare(spec: Mapping[str, Any], parents: Mapping[str, Path], out: Path) -> Iterator[Step]:
    """Build the corpus (`stage: corpus`) or the training shards of one chain of data steps (`stage: shards`)."""
    if spec["stage"] == "corpus":
        yield from corpus.build(Data.model_validate(spec["data"]), out)
        return
    steps = DATA_STEPS.validate_python(spec["steps"])
    (source,) = parents.values()
    yield from shards.build(source / "data", steps, out)


def prepared(out: Path) -> dict[str, Any]:
    """What was built in a data folder: the facts of its manifest that a record keeps."""
    text = (out / "manifest.json").read_text()
    facts: dict[str, Any] = json.loads(text)
    kept = ("documents_in", "documents_out", "dropped", "bytes_in", "bytes_out", "tokens", "sources", "domains")
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {name: facts[name] for name in kept if name in facts} | {"manifest_sha256": digest}


def start(recipe: Recipe, *, seed: int, horizon: float) -> TrainState:
    """A model, its optimizer and schedule at step 0."""
    return loop.start(recipe, seed=seed, horizon=horizon, device=device())


def batches(recipe: Recipe, data: Path, *, seed: int, start_step: int = 0) -> Iterator[Tensor]:
    """Training batches from `start_step` on: a pure function of the seed and the step."""
    return builder(recipe.batching)(recipe.batching, shards.open_shards(data), seed=seed, start_step=start_step)


def train(state: TrainState, batches: Iterator[Tensor]) -> Iterator[Step]:
    """Optimizer steps until the horizon."""
    return loop.train(state, batches)


def timed(recipe: Recipe, data: Path, *, seed: int, steps: int) -> Iterator[Step]:
    """So many training steps for the stopwatch; what they learn is thrown away."""
    state = start(recipe, seed=seed, horizon=steps * recipe.batching.tokens / recipe.tokens)
    return train(state, batches(recipe, data, seed=seed))


def save(state: TrainState, folder: Path) -> None:
    """A checkpoint to continue from."""
    checkpoint.save(state, folder)


def resume(folder: Path, recipe: Recipe) -> TrainState | None:
    """The state of the newest sound checkpoint; None where there is none, and training starts over."""
    if not checkpoint.exists(folder):
        return None
    try:
        return checkpoint.load(folder, recipe, device())
    except CheckpointError as error:
        print(f"starting over: {error}")
        return None


def save_model(state: TrainState, folder: Path) -> None:
    """The trained weights alone."""
    checkpoint.save_model(state.model, state.recipe, folder)


def validate(state: TrainState, corpus_folder: Path) -> Iterator[tuple[str, dict[str, Reading]]]:
    """Loss, perplexity and bits per byte on each validation set of the corpus, in the precision of training."""
    for name in validation.names(corpus_folder):
        found = perplexity.validate(state.model, validation.load(corpus_folder, name), forward=state.compute.forward)
        yield name, found


def evaluate(
    recipe: Recipe, model_folder: Path, corpus_folder: Path, spec: Mapping[str, Any]
) -> Generator[Step, None, TaskResults]:
    """Downstream tasks on a trained model, in the precision of its training."""
    tune_allocator()
    forward = builder(recipe.precision)(recipe.precision, device()).forward
    return evaluate_steps(
        checkpoint.load_model(model_folder, device()),
        tokenizer.load(corpus_folder / "tokenizer.json"),
        spec["tasks"],
        limit=spec["limit"],
        corpus=corpus_folder,
        forward=forward,
    )
