"""Checkpoints: the same bits after an interruption, and damage that is noticed and named."""

import json
import logging
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmopt.train import checkpoint, loop
from lmopt.train.checkpoint import CheckpointError

KINDS = {
    "fp32": {},
    "bf16": {"precision": {"kind": "bf16"}},
    "bf16_sr": {"precision": {"kind": "bf16_sr"}},
    "int8": {"precision": {"kind": "int8", "grad_weight": True, "rounding": "stochastic", "outliers": "smooth"}},
    "adamw_8bit": {"optimizer": {"kind": "adamw_8bit", "lr": 1e-2, "block": 16}},
    "moe": {"ffn": {"kind": "moe", "experts": 4, "top_k": 2}},
    "moe bf16": {"ffn": {"kind": "moe", "experts": 4, "top_k": 2}, "precision": {"kind": "bf16"}},
    "untied": {"model": {"layers": 1, "width": 32, "heads": 2, "vocab": 64, "context": 16, "tied_head": False}},
}


def weights(state):
    return {name: p.detach().clone() for name, p in state.model.named_parameters()}


def train_until(state, batches, step, lag=0):
    """Pull steps until the weights have seen `step` of them; returns what was yielded."""
    steps = []
    for one in loop.train(state, batches, lag=lag):
        steps.append(one)
        if state.step == step:
            break
    return steps


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("change", KINDS.values(), ids=KINDS.keys())
def test_resumed_training_has_the_same_bits(recipe, batches, tmp_path, change, lag):
    whole = loop.start(recipe(**change), seed=3)
    steps = list(loop.train(whole, batches(), lag=lag))

    stopped = loop.start(recipe(**change), seed=3)
    first = train_until(stopped, batches(), 5, lag)
    checkpoint.save(stopped, tmp_path)
    del stopped
    torch.manual_seed(12345)
    resumed = checkpoint.load(tmp_path, recipe(**change))
    assert resumed.step == 5
    second = list(loop.train(resumed, batches(start_step=5), lag=lag))

    assert first + second == steps
    expected = weights(whole)
    assert all(torch.equal(w, expected[name]) for name, w in weights(resumed).items())
    for name, moment in whole.optimizer.state().items():
        assert torch.equal(resumed.optimizer.state()[name], moment), name


def test_random_state_goes_on(recipe, tmp_path):
    state = loop.start(recipe(), seed=3)
    torch.rand(5)
    checkpoint.save(state, tmp_path)
    expected = torch.rand(4)
    torch.manual_seed(99)
    checkpoint.load(tmp_path)
    assert torch.equal(torch.rand(4), expected)


def test_only_the_last_two_are_kept_and_no_debris(recipe, batches, tmp_path):
    state = loop.start(recipe(), seed=0)
    for _ in loop.train(state, batches()):
        checkpoint.save(state, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000011", "step-00000012"]


def test_saving_the_same_step_twice_is_fine(recipe, tmp_path):
    state = loop.start(recipe(), seed=0)
    checkpoint.save(state, tmp_path)
    checkpoint.save(state, tmp_path)
    assert checkpoint.load(tmp_path).step == 0


@pytest.fixture
def two(recipe, batches, tmp_path):
    """A folder with checkpoints of steps 2 and 4."""
    state = loop.start(recipe(), seed=0)
    train_until(state, batches(), 2)
    checkpoint.save(state, tmp_path)
    train_until(state, batches(start_step=2), 4)
    checkpoint.save(state, tmp_path)
    return tmp_path


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def edit(path, pattern, replacement):
    text, times = re.subn(pattern, replacement, path.read_text(), count=1)
    assert times
    path.write_text(text)


DAMAGE = {
    "flipped bit": (lambda place: flip_a_byte(place / "model.safetensors"), r"model\.safetensors: damaged"),
    "optimizer cut short": (
        lambda place: (place / "optimizer.safetensors").write_bytes(b"\0" * 100),
        r"optimizer\.safetensors: damaged",
    ),
    "file gone": (lambda place: (place / "model.safetensors").unlink(), r"model\.safetensors: cannot be read"),
    "half a description": (
        lambda place: (place / "checkpoint.json").write_text('{"schema": 1, "fil'),
        r"checkpoint\.json: not a whole description",
    ),
    "no description": (lambda place: (place / "checkpoint.json").unlink(), r"checkpoint\.json: cannot be read"),
    "another learning rate": (
        lambda place: edit(place / "checkpoint.json", r'"lr": [^,\n]+', '"lr": 0.5'),
        r"checkpoint\.json: damaged \(its SHA-256",
    ),
    "another step": (
        lambda place: edit(place / "checkpoint.json", r'"step": \d+', '"step": 3'),
        r"checkpoint\.json: damaged \(its SHA-256",
    ),
    "nested without end": (
        lambda place: (place / "checkpoint.json").write_text("[" * 100_000),
        r"checkpoint\.json: not a whole description",
    ),
    "a list": (
        lambda place: (place / "checkpoint.json").write_text("[]"),
        r"checkpoint\.json: not a whole description",
    ),
}


@pytest.mark.parametrize(("harm", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_named_and_the_last_good_one_used(two, caplog, harm, message):
    harm(two / "step-00000004")
    with caplog.at_level(logging.WARNING):
        assert checkpoint.load(two).step == 2
    assert caplog.records
    assert re.search("step-00000004/" + message, caplog.text)
    harm(two / "step-00000002")
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(two)


def test_half_written_folders_are_passed_over(two):
    shutil.copytree(two / "step-00000004", two / ".step-00000006.partial-1")
    assert checkpoint.load(two).step == 4


def test_a_full_disk_leaves_the_old_one(two, monkeypatch):
    state = checkpoint.load(two)
    state.step = 5

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(state, two)
    assert sorted(p.name for p in two.iterdir()) == ["step-00000002", "step-00000004"]
    assert checkpoint.load(two).step == 4


def rewrite(place, change):
    """Edit the model file and make the description agree, so that only keys and shapes can tell."""
    path = place / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    description = json.loads((place / "checkpoint.json").read_text())
    description["files"]["model.safetensors"]["sha256"] = checkpoint.sha256(path)
    del description["schema"], description["sha256"]
    checkpoint.describe(place, description)


def test_wrong_keys_and_shapes_are_named(two):
    rewrite(two / "step-00000004", lambda t: t.update({"norm.weight": torch.ones(3)}))
    with pytest.raises(CheckpointError, match=r"norm\.weight has shape \(3,\), the model's is \(32,\)"):
        checkpoint.load(two)
    rewrite(two / "step-00000004", lambda t: t.update({"stray": t.pop("norm.weight")}))
    with pytest.raises(CheckpointError, match=r"missing \['norm\.weight'\], not in the model \['stray'\]"):
        checkpoint.load(two)


def test_another_recipe_is_refused(two, recipe):
    with pytest.raises(CheckpointError, match="of another recipe: optimizer differ"):
        checkpoint.load(two, recipe(optimizer={"lr": 1e-3}))


def test_another_schema_is_refused(two):
    path = two / "step-00000004" / "checkpoint.json"
    path.write_text(path.read_text().replace('"schema": 3', '"schema": 9'))
    shutil.rmtree(two / "step-00000002")
    with pytest.raises(CheckpointError, match="schema 9, this version reads 3"):
        checkpoint.load(two)


def test_nothing_there(tmp_path):
    assert not checkpoint.exists(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        checkpoint.load(tmp_path)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json: cannot be read"):
        checkpoint.load_model(tmp_path)


@pytest.mark.parametrize("change", KINDS.values(), ids=KINDS.keys())
def test_a_model_alone_comes_back_exactly(recipe, batches, tmp_path, change):
    state = loop.start(recipe(**change), seed=0)
    train_until(state, batches(), 2)
    checkpoint.save_model(state.model, state.recipe, tmp_path / "model")
    checkpoint.save_model(state.model, state.recipe, tmp_path / "model")  # replaces
    model = checkpoint.load_model(tmp_path / "model")
    tokens = next(batches())[:, :-1]
    assert not model.training
    state.compute.prepare(model)
    with state.compute.forward():
        assert torch.equal(model(tokens), state.model.eval()(tokens))
