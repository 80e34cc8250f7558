"""The working parts of `lmopt`, as the harness uses them: each a source of `Step` values that is pulled.

Of all that runs inside a case, only this module and bench.writers build models, batches and corpora.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from bench.evaluate import answers as answering
from bench.evaluate import perplexity, protected
from bench.evaluate import practice as questions
from bench.evaluate.answers import Answered
from bench.evaluate.harness import TaskResults, evaluate_steps
from bench.evaluate.language_model import DecoderLM
from bench.evaluate.practice import Practice
from bench.evaluate.sets import Item
from bench.record import Reading
from lmopt.arch import transformer
from lmopt.arch.transformer import Transformer
from lmopt.compute import numa, topology
from lmopt.compute.memory import tune_allocator
from lmopt.data import corpus, packing, shards, tokenizer, validation
from lmopt.data.packing import Example
from lmopt.data.spec import Data
from lmopt.recipe import DataStep, Recipe, Technique, builder
from lmopt.step import Step
from lmopt.train import checkpoint, loop
from lmopt.train.checkpoint import CheckpointError
from lmopt.train.distillation import DistillationLoss
from lmopt.train.loop import TrainState

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DATA_STEPS: TypeAdapter[tuple[Technique, ...]] = TypeAdapter(tuple[DataStep, ...])  # pyright: ignore[reportInvalidTypeForm]


def device() -> torch.device:
    """Where cases of this process run: the first CUDA device if there is one."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def prepare(spec: Mapping[str, Any], parents: Mapping[str, Path], out: Path) -> Iterator[Step]:
    """Build the corpus (`stage: corpus`) or the training shards of one chain of data steps (`stage: shards`)."""
    if spec["stage"] == "corpus":
        texts, missing = protected.texts(spec.get("protect", ()))
        yield from corpus.build(Data.model_validate(spec["data"]), out, protected=texts, unprotected=missing)
        return
    steps = DATA_STEPS.validate_python(spec["steps"])
    (source,) = parents.values()
    yield from shards.build(source / "data", steps, out)


def prepared(out: Path) -> dict[str, Any]:
    """What was built in a data folder: the facts of its manifest that a record keeps."""
    text = (out / "manifest.json").read_text()
    facts: dict[str, Any] = json.loads(text)
    kept = (
        "documents_in", "documents_out", "dropped", "bytes_in", "bytes_out", "tokens", "sources", "domains",
        "synthetic", "flops", "earlier_s", "decontamination",
    )  # fmt: skip
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {name: facts[name] for name in kept if name in facts} | {"manifest_sha256": digest}


def start(recipe: Recipe, *, seed: int, horizon: float, teacher: Path | None = None) -> TrainState:
    """A model, its optimizer and schedule at step 0.

    Args:
        teacher: folder of the trained model that the recipe learns from, if it does. Default: one of the same shape as
            it was drawn, where steps are only timed or counted.
    """
    state = loop.start(recipe, seed=seed, horizon=horizon, device=device())
    teach(state, teacher)
    return state


def teach(state: TrainState, folder: Path | None) -> None:
    """Give a training the teacher that its recipe learns from, if it does: a trained one, or one as it was drawn."""
    shape, loss = state.recipe.teacher, state.loss
    if shape is None:
        return
    assert isinstance(loss, DistillationLoss)
    drawn = folder is None
    loss.learn_from(
        transformer.build(shape, seed=0, device=device()) if drawn else checkpoint.load_model(folder, device())
    )


def teacher_of(state: TrainState) -> Transformer | None:
    """The model that a training learns from, if it does."""
    return getattr(state.loss, "teacher", None)


def begin_from(state: TrainState, model_folder: Path) -> None:
    """Weights of another training in the place of drawn ones, as the recipe's `start` says."""
    start = state.recipe.start
    builder(start)(start, state.model, checkpoint.load_model(model_folder, device()))


def batches(recipe: Recipe, data: Path, *, seed: int, start: int = 0, horizon: float = 1.0) -> Iterator[Tensor]:
    """Portions of training text from number `start` on: a function of the seed, the number and the run's length."""
    found, batching = shards.open_shards(data), recipe.batching
    if recipe.order.kind == "shuffled":
        return builder(batching)(batching, found, seed=seed, start=start)
    windows = round(horizon * recipe.tokens / batching.length)
    order = builder(recipe.order)(recipe.order, found, length=batching.length, run_windows=windows)
    return builder(batching)(batching, found, seed=seed, start=start, order=order)


def train(state: TrainState, batches: Iterator[Tensor]) -> Iterator[Step]:
    """Optimizer steps until the horizon."""
    return loop.train(state, batches)


@contextmanager
def placed(recipe: Recipe) -> Generator[dict[str, Any]]:
    """Threads and memory where the recipe wants them; afterwards the mapping says where they were.

    Raises:
        NotApplicable: this machine has one NUMA node.
        NoSuchNode: the recipe names a node that is not there.
    """
    found: dict[str, Any] = {}
    before = numa.allocation_counts()
    with builder(recipe.placement)(recipe.placement) as where:
        yield found
        if not where.nodes:
            return
        by_node, after = numa.bytes_by_node(), numa.allocation_counts()
        found |= {"kind": where.kind, "nodes": where.nodes, "cpus": where.cpus, "bytes_by_node": by_node}
        cpus = where.cpus or os.sched_getaffinity(0)
        near = (one.node for one in topology.nodes() if not one.cpu_numbers.isdisjoint(cpus))
        found["remote_bytes"] = numa.remote_bytes(by_node, near)
        found["allocations"] = {
            node: {name: count - before.get(node, {}).get(name, 0) for name, count in counts.items()}
            for node, counts in after.items()
        }


def timed(recipe: Recipe, data: Path, *, seed: int, steps: int) -> Iterator[Step]:
    """So many full training steps for the stopwatch; what they learn is thrown away.

    Where batches or sequences grow, only what they grow to is timed: how many steps have which size is no question of
    time.
    """
    recipe = recipe.model_copy(update={"batching": recipe.batching.full})
    state = start(recipe, seed=seed, horizon=steps * recipe.batching.tokens / recipe.tokens)
    return train(state, batches(recipe, data, seed=seed))


def timed_in_place(recipe: Recipe, data: Path, *, seed: int, steps: int) -> Iterator[Step]:
    """`timed` in the recipe's placement, which holds until the last step was pulled."""
    with placed(recipe):
        yield from timed(recipe, data, seed=seed, steps=steps)


def save(state: TrainState, folder: Path) -> None:
    """A checkpoint to continue from."""
    checkpoint.save(state, folder)


def resume(folder: Path, recipe: Recipe, teacher: Path | None = None) -> TrainState | None:
    """The state of the newest sound checkpoint; None where there is none, and training starts over."""
    if not checkpoint.exists(folder):
        return None
    try:
        state = checkpoint.load(folder, recipe, device())
    except CheckpointError as error:
        print(f"starting over: {error}")
        return None
    teach(state, teacher)
    return state


def save_model(state: TrainState, folder: Path) -> None:
    """The trained weights alone."""
    checkpoint.save_model(state.model, state.recipe, folder)


def validate(state: TrainState, corpus_folder: Path) -> Iterator[tuple[str, dict[str, Reading]]]:
    """Loss, perplexity and bits per byte on each validation set of the corpus, in the precision of training."""
    for name in validation.names(corpus_folder):
        found = perplexity.validate(state.model, validation.load(corpus_folder, name), forward=state.compute.forward)
        yield name, found


# --- fine-tuning ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lesson:
    """Questions as one model's tokenizer and context cut them."""

    examples: Sequence[Example]
    """To learn from."""
    choose: Sequence[Item]
    """To choose a learning rate by."""
    tokenizer: Tokenizer

    @property
    def tokens(self) -> int:
        """Of all examples, once."""
        return sum(len(example.tokens) for example in self.examples)


def practice(spec: Mapping[str, Any]) -> Practice:
    """The questions that a fine-tuning learns from and chooses by.

    Raises:
        NotAvailable: a set cannot be had here and now.
    """
    return questions.practice(spec["task"], spec["learn"], spec["test_share"])


def lesson(recipe: Recipe, corpus_folder: Path, found: Practice) -> Lesson:
    """The questions in the tokens of a recipe's model."""
    tokens = tokenizer.load(corpus_folder / "tokenizer.json")
    lm = DecoderLM(transformer.build(recipe, seed=0, device="meta"), tokens, forward=nullcontext)
    return Lesson(answering.examples(lm, found.learn), found.choose, tokens)


def answers(recipe: Recipe, taught: Lesson, *, seed: int, start: int) -> Iterator[Tensor]:
    """Packed questions from portion number `start` on, of which the answers are learnt."""
    return packing.answers(recipe.batching, taught.examples, seed=seed, start=start)


def begin_with(state: TrainState, model_folder: Path) -> None:
    """The weights that another training ended with."""
    checkpoint.begin_with(state.model, model_folder)


def choose(state: TrainState, taught: Lesson) -> Generator[Step, None, Answered]:
    """How well a model answers the questions that choose between learning rates."""
    state.model.eval()
    return answering.answer_steps(
        DecoderLM(state.model, taught.tokenizer, forward=state.compute.forward), taught.choose
    )


def evaluate_finetuned(
    recipe: Recipe, model_folder: Path, corpus_folder: Path, spec: Mapping[str, Any]
) -> Generator[Step, None, TaskResults]:
    """The tested questions of a set on a fine-tuned model."""
    wanted = {"tasks": [spec["task"]], "limit": spec["limit"], "test_share": spec["test_share"]}
    return evaluate(recipe, model_folder, corpus_folder, wanted)


# --- evaluation ----------------------------------------------------------------------------------


def evaluate(
    recipe: Recipe, model_folder: Path, corpus_folder: Path, spec: Mapping[str, Any]
) -> Generator[Step, None, TaskResults]:
    """Downstream tasks on a trained model, in the precision of its training."""
    tune_allocator()
    compute = builder(recipe.precision)(recipe.precision, device())
    model = checkpoint.load_model(model_folder, device())
    compute.prepare(model)
    return evaluate_steps(
        model,
        tokenizer.load(corpus_folder / "tokenizer.json"),
        spec["tasks"],
        limit=spec["limit"],
        corpus=corpus_folder,
        forward=compute.forward,
        test_share=spec.get("test_share"),
    )
