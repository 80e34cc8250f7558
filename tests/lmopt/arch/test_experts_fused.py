"""The fused kernel of a CPU: against the plain loop in float64, bit for bit with itself, and where it steps aside."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from lmopt import native
from lmopt.arch import experts_fused, fused
from lmopt.arch.experts import ROW_BLOCK, experts_auto, experts_grouped, experts_loop, place_slots, sort_slots
from lmopt.arch.moe import KERNELS, MoeFfn, kernel_in_use
from lmopt.recipe import Moe
from tests.lmopt.arch.kernels import assert_no_bit_depends_on_threads, needs_kernel

CPU = torch.device("cpu")
SHAPES = {  # tokens, width, inner width, experts, top-k, capacity
    "usual": (700, 192, 256, 8, 2, None),
    "one-register": (50, 16, 16, 4, 1, None),
    "odd-blocks": (700, 80, 176, 8, 2, None),
    "empty-experts": (40, 32, 48, 64, 3, None),
    "one-row": (1, 32, 32, 4, 2, None),
    "many-rows": (1_500, 48, 80, 2, 1, None),
    "capacity": (700, 96, 160, 8, 1, 70),
    "room-to-spare": (100, 32, 64, 4, 1, 60),
    "one-expert": (600, 48, 80, 1, 1, None),
}


def operands(shape, kind, dtype=torch.float32, seed=0):
    """Numbers that bfloat16 holds, so that the reference starts from the same."""
    tokens, width, hidden, experts, top_k, capacity = shape
    draw = torch.Generator().manual_seed(seed)
    parts = 2 if kind == "swiglu" else 1
    x = torch.randn(tokens, width, generator=draw).bfloat16()
    gate = torch.rand(tokens, top_k, generator=draw).bfloat16().float()
    chosen = torch.rand(tokens, experts, generator=draw).topk(top_k, 1).indices
    up = (torch.randn(experts, parts * hidden, width, generator=draw) * width**-0.5).bfloat16().to(dtype)
    down = (torch.randn(experts, width, hidden, generator=draw) * hidden**-0.5).bfloat16().to(dtype)
    grad = torch.randn(tokens, width, generator=draw).bfloat16()
    return x, gate, chosen, up, down, grad, kind, capacity


def passes(kernel, x, gate, chosen, up, down, grad, kind, capacity):
    """Result and gradients of x, gates and both stacks."""
    inputs = [tensor.clone().requires_grad_() for tensor in (x, gate, up, down)]
    y = kernel(inputs[0], inputs[1], chosen, *inputs[2:], kind, capacity)
    return [y.detach(), *torch.autograd.grad(y, inputs, grad.to(y.dtype))]


def exact(x, gate, chosen, up, down, grad, kind, capacity):
    floats = (x.double(), gate.double(), chosen, up.double(), down.double(), grad.double())
    return passes(experts_loop, *floats, kind, capacity)


def error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["swiglu", "relu2"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_rounds_no_more_than_the_grouped_products(shape, kind, dtype):
    given = operands(shape, kind, dtype)
    expected, fused, grouped = exact(*given), passes(experts_auto, *given), passes(experts_grouped, *given)
    names = "y", "x", "gate", "up", "down"
    for name, ours, theirs, reference in zip(names, fused, grouped, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert error(ours, reference) < max(1.1 * error(theirs, reference), 0.005), name
    without = sorted(set(range(shape[3])) - set(given[2].flatten().tolist()))
    assert not fused[3][without].any()
    assert not fused[4][without].any()


@needs_kernel
def test_it_is_what_trains_and_the_grouped_products_are_what_evaluates(monkeypatch):
    x, gate, chosen, up, down, _, kind, _ = operands(SHAPES["usual"], "swiglu")
    calls = []
    monkeypatch.setattr(experts_fused, "_call", lambda name, *_: calls.append(name))
    with torch.no_grad():
        experts_auto(x, gate, chosen, up, down, kind)
    assert calls == []
    experts_auto(x, gate, chosen, up.requires_grad_(), down, kind).sum().backward()
    assert calls == ["forward", "backward"]


@needs_kernel
@pytest.mark.parametrize("kind", ["swiglu", "relu2"])
@pytest.mark.parametrize("shape", ["usual", "odd-blocks", "empty-experts", "capacity", "one-expert"])
def test_bits_do_not_depend_on_threads(shape, kind):
    """Nor on whether threads share the tiles of an expert, as they do of one, or each has experts of its own."""
    given = operands(SHAPES[shape], kind)
    assert_no_bit_depends_on_threads(lambda: passes(experts_auto, *given))


@needs_kernel
def test_operands_may_lie_in_memory_as_they_like():
    x, gate, chosen, up, down, grad, kind, capacity = operands(SHAPES["usual"], "swiglu")
    strided = (each.transpose(-1, -2).contiguous().transpose(-1, -2) for each in (x, up, down, grad))
    x_s, up_s, down_s, grad_s = strided
    plain = passes(experts_auto, x, gate, chosen, up, down, grad, kind, capacity)
    odd = passes(experts_auto, x_s, gate, chosen, up_s, down_s, grad_s, kind, capacity)
    assert all(torch.equal(ours, other) for ours, other in zip(plain, odd, strict=True))


@needs_kernel
def test_what_is_no_number_stays_none():
    x, gate, chosen, up, down, grad, kind, capacity = operands(SHAPES["usual"], "swiglu")
    x[7] = float("nan")
    y, grad_x, grad_gate, grad_up, _ = passes(experts_auto, x, gate, chosen, up, down, grad, kind, capacity)
    others = torch.arange(len(x)) != 7
    assert y[7].isnan().all()
    assert not y[others].isnan().any()
    assert grad_x[7].isnan().all()
    assert grad_gate[7].isnan().all()
    assert grad_up[chosen[7]].isnan().any()
    large = [each.clone() for each in (x, gate)]
    large[0][:] = 3e4  # gates of the activation far beyond where an exponential has room
    assert torch.isfinite(passes(experts_auto, *large, chosen, up, down, grad, kind, capacity)[0]).all()


@needs_kernel
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracer
def test_a_compiled_layer_descends_the_same_gradient():
    torch.manual_seed(0)
    layer = MoeFfn(Moe(experts=4, top_k=2, hidden=32), 64)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(2, 64, 64, requires_grad=True)

    def gradients(module):
        with torch.autocast("cpu", torch.bfloat16):
            y, auxiliary = module(x)
        return torch.autograd.grad(y.float().sin().sum() + auxiliary, [x, *layer.parameters()])

    torch.compiler.reset()
    eager, traced = gradients(layer), gradients(torch.compile(layer, backend="aot_eager", fullgraph=True))
    for ours, other in zip(eager, traced, strict=True):
        assert error(other, ours.double()) < 0.01


@needs_kernel
def test_shapes_without_data():
    x, grad = torch.empty(10, 32, dtype=torch.bfloat16), torch.empty(10, 32, dtype=torch.bfloat16)
    up, down, gate = torch.empty(3, 96, 32), torch.empty(3, 32, 48), torch.ones(10, 2)

    def shapes(device, capacity):
        chosen = torch.tensor([[0, 2]] * 10, device=device)
        x_, grad_, up_, down_, gate_ = (each.to(device) for each in (x, grad, up, down, gate))
        token, ends, slot, kept = experts_fused.placed(chosen, 3, capacity)
        place = "swiglu", token, ends, len(token), gate_, slot, kept if capacity > 0 else None
        y, inner = experts_fused.fused_forward(x_, up_, down_, *place)
        made = experts_fused.fused_backward(grad_, x_, inner, up_, down_, *place)
        return [(each.shape, each.dtype) for each in (token, ends, slot, kept, y, inner, *made)]

    assert shapes("meta", -1) == shapes("cpu", -1)
    assert shapes("meta", 4) == shapes("cpu", 4)


@needs_kernel
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_rows_are_those_of_the_grouped_products(shape):
    _, _, chosen, *_, capacity = operands(shape, "swiglu")
    reference = sort_slots(chosen, shape[3]) if capacity is None else place_slots(chosen, shape[3], capacity)
    token_S, ends_E, slot_NK, kept_NK = experts_fused.rows_of(chosen, shape[3], capacity)
    assert torch.equal(token_S, reference.token_S[:-ROW_BLOCK])
    assert torch.equal(ends_E, reference.ends_E)
    assert torch.equal(slot_NK, reference.slot_NK)
    assert (kept_NK is None) == (capacity is None)
    assert capacity is None or torch.equal(kept_NK, reference.kept_NK)


@needs_kernel
def test_experts_may_be_named_in_any_order_and_type():
    chosen = torch.tensor([[0, 2, 1], [1, 0, 2]])
    plain = experts_fused.rows_of(chosen.t().contiguous(), 3, None)
    for other in (chosen.t(), chosen.t().int()):
        found = experts_fused.rows_of(other, 3, None)
        assert all(torch.equal(ours, first) for ours, first in zip(found[:3], plain[:3], strict=True))
    torch.library.opcheck(experts_fused.placed, (chosen.t(), 3, -1))


@needs_kernel
@pytest.mark.parametrize("chosen", [[[0, 3]], [[-1, 0]]], ids=str)
def test_an_expert_that_there_is_not(chosen):
    with pytest.raises(IndexError, match="experts are 0 to 2, tokens go to"):
        experts_fused.rows_of(torch.tensor(chosen), 3, None)


@needs_kernel
def test_a_dropped_slot_adds_nothing_even_to_what_is_no_number():
    x, gate, chosen, up, down, grad, kind, _ = operands(SHAPES["usual"], "swiglu")
    x[0] = float("nan")
    chosen[:, 0], chosen[:, 1] = 0, 1
    y, grad_x, grad_gate, *_ = passes(experts_auto, x, gate, chosen, up, down, grad, kind, 300)
    assert y[0].isnan().all()
    assert torch.isfinite(y[1:]).all()
    for dropped in (y[300:], grad_x[300:], grad_gate[300:]):
        assert not dropped.any()


@needs_kernel
@pytest.mark.parametrize("sizes", [(512, 4096, 8), (336, 176, 8), (336, 176, 64)], ids=str)
def test_no_memory_is_an_error_like_any_other(sizes):
    """In a process of its own, whose address space ends a little above what it has: too little for the kernel's own
    memory, or for what oneDNN compiles, which would crash."""
    script = """
import resource, torch
from lmopt.arch import experts_fused, fused
assert fused.obstacle() is None
torch.set_num_threads(1)
width, hidden, mebibytes = SIZES
up, down = torch.ones(1, 2 * hidden, width), torch.ones(1, width, hidden)
x, token = torch.ones(64, width).bfloat16(), torch.zeros(64, dtype=torch.int64)
slots = torch.ones(64, 1), torch.arange(64)[:, None], None
ends = torch.tensor([64], dtype=torch.int32)
most = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (mebibytes << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    experts_fused.fused_forward(x, up, down, "swiglu", token, ends, 64, *slots)
except MemoryError as error:
    print(error)
"""
    script = script.replace("SIZES", str(sizes))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "not enough memory for the forward pass of 1 experts (64 rows)" in done.stdout


@needs_kernel
@pytest.mark.parametrize("level", ["AVX2", "AVX512_CORE"])
def test_onednn_may_be_told_to_do_without(level):
    """In a process of its own: oneDNN reads it once."""
    script = """
import torch
from lmopt.arch import fused
from lmopt.arch.moe import MoeFfn
from lmopt.recipe import Moe
print(fused.obstacle())
layer = MoeFfn(Moe(experts=2, top_k=1, hidden=32), 32)
for parameter in layer.parameters():
    torch.nn.init.normal_(parameter)
with torch.autocast("cpu", torch.bfloat16):
    y, _ = layer(torch.randn(1, 20, 32))
y.float().sum().backward()
"""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": level}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "oneDNN multiplies no bfloat16 here" in done.stdout


@needs_kernel
def test_onednn_may_be_switched_off(monkeypatch):
    assert kernel_in_use(Moe(), 64, torch.bfloat16, CPU) == ("fused", None)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert "switched off" in kernel_in_use(Moe(), 64, torch.bfloat16, CPU)[1]


# --- where it is not used ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "width", "hidden", "words"),
    [
        (torch.float32, 64, 64, "made for bfloat16"),
        (torch.bfloat16, 40, 64, "no multiple of 16"),
        (torch.bfloat16, 64, 24, "no multiple of 16"),
    ],
)
def test_why_a_layer_goes_without(dtype, width, hidden, words):
    kernel, reason = kernel_in_use(Moe(hidden=hidden), width, dtype, CPU)
    assert kernel == "grouped"
    assert words in reason
    x, gate, chosen = torch.randn(6, width, dtype=dtype), torch.rand(6, 2), torch.tensor([[0, 1]] * 6)
    up, down = torch.randn(2, 2 * hidden, width, requires_grad=True), torch.randn(2, width, hidden)
    ours, theirs = (KERNELS[name](x, gate, chosen, up, down, "swiglu") for name in ("auto", "grouped"))
    assert torch.equal(ours, theirs)


def test_a_recipe_may_name_another_kernel():
    assert kernel_in_use(Moe(kernel="loop"), 64, torch.bfloat16, CPU) == ("loop", "the recipe names another")


def test_a_machine_that_cannot_compile_trains_by_grouped_products(monkeypatch):
    def fails():
        raise native.BuildError("g++: no such option")

    monkeypatch.setattr(fused, "_kernels", fails)
    monkeypatch.setattr(fused, "_obstacle", fused._obstacle.__wrapped__)
    assert kernel_in_use(Moe(), 64, torch.bfloat16, CPU) == ("grouped", "g++: no such option")
    given = operands(SHAPES["usual"], "swiglu")
    ours, theirs = passes(experts_auto, *given), passes(experts_grouped, *given)
    assert all(torch.equal(found, expected) for found, expected in zip(ours, theirs, strict=True))
