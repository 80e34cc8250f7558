"""Checkpoints: safetensors and JSON with hashes, written so that a kill at any moment leaves a good one behind.

    FOLDER/step-00000120/model.safetensors      parameters and persistent buffers, by name
                         optimizer.safetensors  moment/NAME, and generator/DEVICE: random state as bytes
                         checkpoint.json        what trained, how far, the SHA-256 of the other two and its own

A checkpoint is written beside its place and renamed into it; the one before is kept until the next. Nothing is ever
unpickled. Training that continues from a checkpoint gives the same bits as training that was never interrupted (on a
GPU as far as its kernels add in the same order: docs/training.md).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmopt.arch import transformer
from lmopt.recipe import Recipe
from lmopt.train import chance, loop
from lmopt.train.loop import Dispatched, TrainState

SCHEMA = 3
KEPT = 2
"""Checkpoints kept in a folder: the newest, and the one before in case the newest turns out damaged."""
DESCRIPTION = "checkpoint.json"
MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"

log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another run: names the file, the key and the shape concerned."""


def save(state: TrainState, folder: Path) -> Path:
    """Write all that `load` needs to go on from here; returns the checkpoint's own folder inside `folder`.

    Raises:
        OSError: the disk is full or not writable; checkpoints already there are untouched.
    """
    generators = {f"generator/{name}": bits for name, bits in chance.states(state.device).items()}
    tensors = {MODEL: _tensors(state.model), OPTIMIZER: state.optimizer.state() | generators}
    place = folder / f"step-{state.step:08d}"
    _write(place, progress(state), tensors)
    remove_old(folder)
    return place


def progress(state: TrainState) -> dict[str, Any]:
    """What is trained and how far it is, as plain data: all of a state but its tensors."""
    return {
        "recipe": state.recipe.model_dump(mode="json"),
        "seed": state.seed,
        "horizon": state.horizon,
        "step": state.step,
        "pace": state.pace.state(),
        "unread": [
            {"step": d.step, "numbers": d.numbers.tolist(), "notes": d.notes, "tokens": d.tokens} for d in state.unread
        ],
    }


def go_on(state: TrainState, description: Mapping[str, Any]) -> None:
    """Take over how far a training is from what `progress` returned."""
    state.step = description["step"]
    state.pace.restore(description["pace"])
    state.unread = deque(
        Dispatched(d["step"], torch.tensor(d["numbers"]), d["notes"], d["tokens"])
        for d in description.get("unread", ())
    )


def load(folder: Path, recipe: Recipe | None = None, device: torch.device | str = "cpu") -> TrainState:
    """The state of the newest sound checkpoint in `folder`; a damaged one is named in a warning and passed over.

    Args:
        recipe: what the caller believes was trained; None takes the checkpoint's word.

    Raises:
        CheckpointError: no sound checkpoint there, or it belongs to another recipe.
    """
    place, description = newest_sound(folder)
    return _resume(place, description, recipe, torch.device(device))


def exists(folder: Path) -> bool:
    """Whether `folder` holds a finished checkpoint (sound or not)."""
    return bool(checkpoints(folder))


def save_model(model: nn.Module, recipe: Recipe, folder: Path) -> None:
    """Write a model alone, for evaluation or further training. An existing folder is replaced."""
    _write(folder, {"recipe": recipe.model_dump(mode="json")}, {MODEL: _tensors(model)})


def load_model(folder: Path, device: torch.device | str = "cpu") -> transformer.Transformer:
    """The model that `save_model` wrote, float32, in evaluation mode.

    Raises:
        CheckpointError: missing or damaged; says which file, key or shape.
    """
    recipe = recipe_of(folder, verified(folder))
    model = transformer.build(recipe, seed=0, device=device)
    _fill(model, folder / MODEL)
    return model.eval()


def begin_with(model: nn.Module, folder: Path) -> None:
    """Fill a model with the weights that `save_model` wrote of one like it.

    Raises:
        CheckpointError: missing or damaged, or of another shape.
    """
    verified(folder)
    _fill(model, folder / MODEL)


# --- writing -------------------------------------------------------------------------------------


def _write(place: Path, description: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write beside `place`, flush to disk, then rename: `place` holds the whole checkpoint or does not exist."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        for name, content in tensors.items():
            save_file({key: t.detach().cpu().contiguous() for key, t in content.items()}, partial / name)
        files = {name: {"sha256": sha256(partial / name)} for name in tensors}
        describe(partial, {**description, "files": files})
        for path in [*partial.iterdir(), partial]:
            flush(path)
        if place.exists():  # the same step again: rename cannot replace a full folder
            shutil.rmtree(place)
        partial.rename(place)
        flush(place.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def describe(place: Path, facts: Mapping[str, Any]) -> None:
    """Write a checkpoint's description, with a hash of itself: a number changed in it is damage like any other."""
    description = {"schema": SCHEMA, **facts}
    text = json.dumps(description | {"sha256": _own_sha256(description)}, indent=1)
    (place / DESCRIPTION).write_text(text, encoding="utf-8")


def _own_sha256(description: Mapping[str, Any]) -> str:
    facts = {key: value for key, value in description.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def remove_old(folder: Path) -> None:
    """Leave the newest `KEPT` checkpoints in a folder."""
    for old in checkpoints(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by name, each once (a tied head is the embedding), and the buffers a state dict would hold."""
    parameters = dict(model.named_parameters())
    persistent = model.state_dict().keys()
    return parameters | {name: buffer for name, buffer in model.named_buffers() if name in persistent}


def sha256(path: Path) -> str:
    """Of a file's content, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- reading -------------------------------------------------------------------------------------


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, newest first. Half-written ones begin with a dot and are not among them."""
    return sorted(folder.glob("step-*"), reverse=True)


def newest_sound(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint that is whole, and its description; a damaged one is named in a warning and passed over.

    Raises:
        CheckpointError: there is none.
    """
    found = checkpoints(folder)
    if not found:
        raise CheckpointError(f"{folder}: no checkpoint there")
    for place in found:
        try:
            return place, verified(place)
        except CheckpointError as error:
            log.warning("%s\nhint: trying the checkpoint before it", error)
            damage = error
    raise CheckpointError(f"{folder}: none of {len(found)} checkpoints is sound; the oldest: {damage}")


def verified(place: Path) -> dict[str, Any]:
    """The description of a checkpoint whose files all hash to what was written.

    Raises:
        CheckpointError: they do not, or one of them cannot be read.
    """
    path = place / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        files = description["files"].items()
        schema = description["schema"]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a whole description of a checkpoint ({error})") from error
    if schema != SCHEMA:
        raise CheckpointError(f"{path}: schema {schema}, this version reads {SCHEMA}")
    if description.get("sha256") != _own_sha256(description):
        raise CheckpointError(f"{path}: damaged (its SHA-256 is not the one written in it)")
    for name, facts in files:
        try:
            found = sha256(place / name)
        except OSError as error:
            raise CheckpointError(f"{place / name}: cannot be read ({error.strerror})") from error
        if found != facts["sha256"]:
            raise CheckpointError(f"{place / name}: damaged (SHA-256 {found[:12]}, written as {facts['sha256'][:12]})")
    return description


def recipe_of(place: Path, description: Mapping[str, Any], believed: Recipe | None = None) -> Recipe:
    """What a checkpoint's description says was trained.

    Args:
        believed: what the caller believes was trained; None takes the checkpoint's word.

    Raises:
        CheckpointError: it says no recipe, or another one.
    """
    try:
        saved = Recipe.model_validate(description["recipe"])
    except (KeyError, ValidationError) as error:
        raise CheckpointError(f"{place / DESCRIPTION}: its recipe is not understood: {error}") from error
    if believed is not None and believed != saved:
        fields = [name for name in Recipe.model_fields if getattr(believed, name) != getattr(saved, name)]
        raise CheckpointError(
            f"{place}: of another recipe: {', '.join(fields)} differ\n"
            "hint: remove the folder to train from the beginning"
        )
    return saved


def _resume(place: Path, description: Mapping[str, Any], recipe: Recipe | None, device: torch.device) -> TrainState:
    """A fresh state, then everything in it overwritten by what was saved."""
    saved = recipe_of(place, description, recipe)
    state = loop.start(saved, seed=description["seed"], horizon=description["horizon"], device=device)
    _fill(state.model, place / MODEL)
    try:
        tensors = load_file(place / OPTIMIZER, device=str(device))
    except SafetensorError as error:
        raise CheckpointError(f"{place / OPTIMIZER}: not a safetensors file ({error})") from error
    generators = {key: tensors.pop(key) for key in list(tensors) if key.startswith("generator/")}
    state.optimizer.restore(tensors)
    chance.restore(device, {key.partition("/")[2]: bits.cpu() for key, bits in generators.items()})
    go_on(state, description)
    return state


@torch.no_grad()
def _fill(model: nn.Module, path: Path) -> None:
    """Copy a file's tensors into a model; the two must hold the same keys and shapes."""
    targets = _tensors(model)
    try:
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
            missing, unknown = sorted(targets.keys() - keys), sorted(keys - targets.keys())
            if missing or unknown:
                raise CheckpointError(f"{path}: keys missing {missing}, not in the model {unknown}")
            for key, target in targets.items():
                shape = tuple(file.get_slice(key).get_shape())
                if shape != tuple(target.shape):
                    raise CheckpointError(f"{path}: {key} has shape {shape}, the model's is {tuple(target.shape)}")
                target.copy_(file.get_tensor(key))
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from error
