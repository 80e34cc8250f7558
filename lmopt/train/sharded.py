"""Checkpoints of a training on many devices: every rank writes its own shards, any number of ranks reads them.

    FOLDER/step-00000120/shard-*.safetensors   model and optimizer state, by torch.distributed.checkpoint
                         checkpoint.json       what trained, how far, the SHA-256 of every file and its own

Written in safetensors (torch's Hugging Face storage), so that nothing is ever unpickled; beside its place first and
renamed by rank 0, as lmopt.train.checkpoint does. A training with another number of ranks goes on from the same numbers
and so with the same losses, to the order of summation. Random generators start anew: what draws noise
in training continues with other noise.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from lmopt.recipe import Recipe
from lmopt.train.checkpoint import describe, flush, go_on, newest_sound, progress, recipe_of, remove_old, sha256
from lmopt.train.distributed import Sharding, World, start
from lmopt.train.loop import TrainState


def save(state: TrainState, folder: Path, world: World) -> Path:
    """Write all that `load` needs; every rank calls it. Returns the checkpoint's own folder inside `folder`.

    Raises:
        OSError: the disk is full or not writable; checkpoints already there are untouched.
    """
    place = folder / f"step-{state.step:08d}"
    partial = place.with_name(f".{place.name}.partial")
    if world.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    dcp.save(_tensors(state), storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True))
    dist.barrier()
    if world.rank == 0:
        _finish(state, partial, place, world)
        remove_old(folder)
    dist.barrier()
    return place


def _finish(state: TrainState, partial: Path, place: Path, world: World) -> None:
    """Describe the files, flush everything, and move the folder to its place."""
    facts = {
        **progress(state),
        "ranks": world.size,
        "files": {path.name: {"sha256": sha256(path)} for path in sorted(partial.iterdir())},
    }
    describe(partial, facts)
    for path in [*partial.iterdir(), partial]:
        flush(path)
    shutil.rmtree(place, ignore_errors=True)  # the same step again: rename cannot replace a full folder
    partial.rename(place)
    flush(place.parent)


def load(folder: Path, world: World, recipe: Recipe | None = None, sharding: Sharding = "copies") -> TrainState:
    """The state of the newest sound checkpoint, laid out over this number of ranks; every rank calls it.

    Args:
        recipe: what the caller believes was trained; None takes the checkpoint's word.
        sharding: how the parameters lie now, which may differ from how they lay when they were saved.

    Raises:
        CheckpointError: no sound checkpoint there, or it belongs to another recipe.
    """
    place, description = newest_sound(folder)
    saved = recipe_of(place, description, recipe)
    state = start(saved, seed=description["seed"], horizon=description["horizon"], world=world, sharding=sharding)
    if description["step"]:
        state.optimizer.allocate()
    dcp.load(_tensors(state), storage_reader=HuggingFaceStorageReader(str(place)))
    go_on(state, description)
    state.optimizer.set_steps(state.step)
    return state


def _tensors(state: TrainState) -> dict[str, Tensor]:
    """Parameters, other saved states of the model (a router's biases) and moments by name; how many updates were done
    stands in the description."""
    moments = {name: tensor for name, tensor in state.optimizer.state().items() if not name.startswith("step/")}
    return {f"model/{name}": tensor.detach() for name, tensor in _named(state.model)} | {
        f"optimizer/{name}": tensor for name, tensor in moments.items()
    }


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and the buffers that are part of a checkpoint."""
    saved = model.state_dict().keys()
    yield from model.named_parameters()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in saved)
