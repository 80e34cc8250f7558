"""Trainings on a CUDA device against the same on the CPU: every way to fill a step, to keep numbers, to go on."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lmopt.arch.transformer import build
from lmopt.compute import memory
from lmopt.recipe import Recipe
from lmopt.train import checkpoint, loop
from tests.lmopt.test_on_gpu import DEVICE, apart, same_noise

__all__ = ["same_noise"]  # a fixture that every test here uses

pytestmark = pytest.mark.gpu

LENGTH, STEPS = 16, 8


def described(**changes) -> Recipe:
    plain = {
        "model": {"layers": 2, "width": 32, "heads": 2, "vocab": 64, "context": LENGTH},
        "batching": {"sequences": 4, "length": LENGTH},
        "precision": {"kind": "fp32"},
        "optimizer": {"lr": 1e-2},
        "tokens": 4 * LENGTH * STEPS,
    }
    return Recipe.model_validate(plain | changes)


def portions(recipe: Recipe, start: int = 0):
    """Portions of a noisy counting sequence, by number; of packed ones with their segments."""
    for number in itertools.count(start):
        first = torch.randint(0, 64, (recipe.batching.portion, 1), generator=torch.Generator().manual_seed(number))
        tokens = (first + torch.arange(LENGTH + 1)) % 64
        if recipe.batching.kind != "packed":
            yield tokens
            continue
        cut = 1 + number % (LENGTH - 2)
        segments = torch.ones_like(tokens)
        segments[:, cut:] = 2
        segments[0, -3:] = 0  # padding
        yield torch.stack([tokens, segments])


def begin(recipe: Recipe, device: str) -> loop.TrainState:
    state = loop.start(recipe, seed=3, device=device)
    if recipe.objective.kind == "distillation":
        state.loss.learn_from(build(recipe.teacher, seed=9, device=device))
    return state


def trained(recipe: Recipe, device: str) -> tuple[list[float], Tensor]:
    """Loss of every step, and all weights in the end as one vector."""
    state = begin(recipe, device)
    losses = [step.loss for step in loop.train(state, portions(recipe))]
    return losses, torch.cat([p.detach().flatten().float().cpu() for p in state.model.parameters()])


SHAPE = {"model": {"layers": 1, "width": 32, "heads": 2, "vocab": 64, "context": LENGTH}, "ffn": {"kind": "swiglu"}}
TRAININGS = {
    "plain": {},
    "micro": {"batching": {"sequences": 4, "length": LENGTH, "micro_sequences": 2}},
    "clipped": {"optimizer": {"lr": 1e-2, "clip": 0.05}},
    "unclipped": {"optimizer": {"lr": 1e-2, "clip": None}},
    "adamw_8bit": {"optimizer": {"kind": "adamw_8bit", "lr": 1e-2, "block": 16}},
    "recompute": {"activations": {"kind": "recompute"}},
    "recompute moe": {"activations": {"kind": "recompute"}, "ffn": {"kind": "moe", "experts": 4}},
    "layer_skip": {"objective": {"kind": "layer_skip", "dropout": 0.4, "exits": [1]}},
    "distillation": {"objective": {"kind": "distillation", "teacher": "large", "shape": SHAPE}},
    "packed": {"batching": {"kind": "packed", "sequences": 4, "length": LENGTH}},
    "packed grouped heads": {
        "model": {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "vocab": 64, "context": LENGTH},
        "batching": {"kind": "packed", "sequences": 4, "length": LENGTH},
    },
    "packed micro": {"batching": {"kind": "packed", "sequences": 4, "length": LENGTH, "micro_sequences": 1}},
    "length_warmup": {"batching": {"kind": "length_warmup", "sequences": 4, "length": LENGTH, "start": 8}},
    "batch_ramp": {"batching": {"kind": "batch_ramp", "sequences": 4, "length": LENGTH, "start": 2}},
    "noise_ramp": {
        "batching": {
            "kind": "noise_ramp", "sequences": 4, "length": LENGTH, "start": 2, "micro_sequences": 1, "every": 2
        }
    },
    "adaptive": {"batching": {"kind": "adaptive", "sequences": 4, "length": LENGTH, "micro_sequences": 2}},
    "moe": {"ffn": {"kind": "moe", "experts": 4, "top_k": 2}},
    "moe loss_free": {"ffn": {"kind": "moe", "experts": 4, "top_k": 2, "routing": {"kind": "loss_free"}}},
    "moe switch": {"ffn": {"kind": "moe", "experts": 4, "top_k": 1, "routing": {"kind": "switch"}}},
}  # fmt: skip
FEWER_BITS = {
    "bf16": {"precision": {"kind": "bf16"}},
    "bf16_sr": {"precision": {"kind": "bf16_sr"}},
    "bf16_sr adamw_8bit": {"precision": {"kind": "bf16_sr"}, "optimizer": {"kind": "adamw_8bit", "block": 16}},
    "int8": {"precision": {"kind": "int8", "grad_weight": True, "rounding": "stochastic", "outliers": "smooth"}},
}


@pytest.mark.parametrize("kind", TRAININGS)
def test_a_training_equals_the_cpu_s(kind):
    recipe = described(**TRAININGS[kind])
    (ours, weights_ours), (theirs, weights_theirs) = (trained(recipe, device) for device in (DEVICE, "cpu"))
    assert ours == pytest.approx(theirs, rel=2e-3)
    assert apart(weights_ours, weights_theirs) < 0.02  # Adam's first steps make a whole step of the smallest gradient


@pytest.mark.parametrize("base", ["plain", "packed", "layer_skip", "distillation", "recompute moe"])
@pytest.mark.parametrize("kind", FEWER_BITS)
def test_a_training_in_fewer_bits_learns_as_the_cpu_s_in_float32(kind, base):
    ours = trained(described(**TRAININGS[base] | FEWER_BITS[kind]), DEVICE)[0]
    theirs = trained(described(**TRAININGS[base]), "cpu")[0]
    assert ours[0] == pytest.approx(theirs[0], rel=0.02)
    if kind != "bf16_sr adamw_8bit":  # its learning rate is the default
        assert ours == pytest.approx(theirs, rel=0.1)


@pytest.mark.parametrize("kind", ["plain", "adamw_8bit", "layer_skip", "packed", "moe loss_free", *FEWER_BITS])
def test_a_resumed_training_goes_on_where_it_stopped(kind, tmp_path):
    """To the same bits where no kernel adds in another order each time, as none of this size does."""
    recipe = described(**(TRAININGS | FEWER_BITS)[kind])
    whole = begin(recipe, DEVICE)
    steps = list(loop.train(whole, portions(recipe)))
    stopped = begin(recipe, DEVICE)
    first = []
    for step in loop.train(stopped, portions(recipe)):
        first.append(step)
        if stopped.step == 5:
            break
    checkpoint.save(stopped, tmp_path)
    del stopped
    torch.manual_seed(12345)
    resumed = checkpoint.load(tmp_path, recipe, DEVICE)
    assert all(p.is_cuda for p in resumed.model.parameters())
    second = list(loop.train(resumed, portions(recipe, resumed.pace.portions)))
    assert [step.loss for step in first + second] == pytest.approx([step.loss for step in steps], rel=1e-6)
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


class Asked(TorchDispatchMode):
    """Notes every operation that makes the program wait for a number from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.__name__.partition(".")[0]
        moved = name in ("_to_copy", "copy_") and any(
            isinstance(x, Tensor) and x.is_cuda and isinstance(out, Tensor) and not out.is_cuda for x in args
        )
        on_device = any(isinstance(x, Tensor) and x.is_cuda for x in args)
        if moved or (on_device and name in ("_local_scalar_dense", "nonzero", "masked_select", "equal")):
            self.found.append(str(func))
        return out


@pytest.mark.parametrize("kind", TRAININGS | FEWER_BITS)
def test_no_step_waits_for_a_number_of_the_device(kind):
    """Between two readings of the loss. (The noise ramp decides by norms, and reads them every other step.)"""
    recipe = described(**(TRAININGS | FEWER_BITS)[kind])
    state = begin(recipe, DEVICE)
    text = portions(recipe)
    for number in range(4):
        update = state.pace.next()
        batch = loop._next_batch(state, update, text)
        with Asked() as asked:
            loop._update(state, batch, update, 1.0)
        decides = kind == "noise_ramp" and state.pace.step % 2 == 0
        assert not asked.found or number == 0 or decides, asked.found


def test_a_step_that_runs_out_of_memory_is_done_in_smaller_parts():
    recipe = described(**TRAININGS["adaptive"])
    state = begin(recipe, DEVICE)
    plain = state.loss

    def short(inputs, targets):
        if len(inputs) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(inputs, targets)

    state.loss = short
    losses = [step.loss for step in loop.train(state, portions(recipe))]
    assert state.pace.micro == 1
    assert losses == pytest.approx(trained(described(), "cpu")[0], rel=2e-3)


def test_the_device_s_own_error_counts_as_running_out_of_memory():
    free = memory.available_bytes()
    assert free is not None
    assert free > 0
    with pytest.raises(torch.OutOfMemoryError) as raised:
        torch.empty(2**50, dtype=torch.uint8, device=DEVICE)
    assert memory.ran_out(raised.value)


@pytest.mark.filterwarnings("ignore")  # of the compiler's own imports
def test_a_compiled_step_equals_the_plain_one():
    triton = pytest.importorskip("triton", reason="torch.compile needs triton on CUDA")
    del triton
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=DEVICE)).sum().item()
    except Exception as error:  # noqa: BLE001 - whatever stops the compiler here is the reason
        pytest.skip(f"triton cannot compile here: {type(error).__name__}: {str(error).splitlines()[0]}")
    losses, _ = trained(described(compile=True), DEVICE)
    assert losses == pytest.approx(trained(described(), DEVICE)[0], rel=2e-3)
