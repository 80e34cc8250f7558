"""Norms, activations, heads, attention's softmax and the loss by kernels: no worse rounded than torch's operations
against float64, bit for bit with themselves, and where they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lmopt.arch import activation, attention, causal, fused, loss, norm, rows_fused, transformer
from lmopt.recipe import Model, Recipe
from tests.lmopt.arch.kernels import assert_no_bit_depends_on_threads, needs_kernel

pytestmark = needs_kernel


def draw(*shape, seed=0):
    """Numbers that bfloat16 holds."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def norm_passes(dtype, tokens, width):
    layer = norm.RmsNorm(width, 1e-5).to(torch.promote_types(dtype, torch.float32))
    with torch.no_grad():
        layer.weight.copy_(draw(width, seed=1))
    x = draw(2, tokens, width, seed=2).to(dtype).requires_grad_()
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, [x, layer.weight], draw(*x.shape, seed=3).to(dtype))]


def activation_passes(dtype, kind, tokens, width):
    parts, function = (2, activation.swiglu) if kind == "swiglu" else (1, activation.relu2)
    x = draw(2, tokens, parts * width, seed=2).to(dtype).requires_grad_()
    y = function(x)
    return [y.detach(), *torch.autograd.grad(y, [x], draw(*y.shape, seed=3).to(dtype))]


def heads_passes(dtype, heads, key_heads, length, width):
    model = Model(layers=1, width=heads * width, heads=heads, kv_heads=key_heads, vocab=16, context=length)
    layer, rotary = attention.Attention(model), attention.Rotary(model)
    rotary.fill()
    with torch.no_grad():
        layer.qkv.weight.copy_(0.1 * draw(*layer.qkv.weight.shape, seed=1).float())
        rotary.cos_TC.copy_(rotary.cos_TC.bfloat16())
        rotary.sin_TC.copy_(rotary.sin_TC.bfloat16())
    layer.to(dtype)
    x = draw(3, length, model.width, seed=2).to(dtype).requires_grad_()
    made = layer.project(x, *rotary(length, dtype))
    grads = [draw(*part.shape, seed=3).to(dtype) for part in made]
    return [*(part.detach() for part in made), *torch.autograd.grad(made, [x, layer.qkv.weight], grads)]


def attention_passes(dtype, heads, key_heads, length, width):
    q, k, v = (
        draw(2, count, length, width, seed=seed).to(dtype).requires_grad_()
        for seed, count in enumerate((heads, key_heads, key_heads))
    )
    y = causal.causal_attention(q, k, v, True)[0]
    return [y.detach(), *torch.autograd.grad(y, [q, k, v], draw(*y.shape, seed=4).to(dtype))]


def loss_passes(dtype, tokens, width, vocab):
    x = draw(tokens, width, seed=1).to(dtype).requires_grad_()
    head = (0.3 * draw(vocab, width, seed=2)).bfloat16().to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    targets = torch.randint(0, vocab, (tokens,), generator=torch.Generator().manual_seed(3))
    targets[tokens // 2] = loss.IGNORED
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        total = loss.cross_entropy(x, head, targets)
    return [total.detach(), *torch.autograd.grad(total, [x, head])]


CASES = {
    "norm": (norm_passes, 150, 192),
    "norm-of-one-register": (norm_passes, 1, 16),
    "swiglu": (activation_passes, "swiglu", 150, 176),
    "relu2": (activation_passes, "relu2", 150, 176),
    "heads": (heads_passes, 4, 4, 50, 64),
    "heads-that-share": (heads_passes, 6, 2, 33, 32),
    "attention": (attention_passes, 4, 4, 304, 64),
    "attention-that-shares": (attention_passes, 6, 2, 144, 32),
    "attention-of-few-tokens": (attention_passes, 2, 2, 16, 16),
    "loss": (loss_passes, 300, 64, 4096),
    "loss-of-few-words": (loss_passes, 3, 32, 16),
}


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    """Attention has no kernel where there are fewer key heads than threads."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@pytest.fixture
def calls(monkeypatch):
    found = []
    call = fused.call
    monkeypatch.setattr(fused, "call", lambda name, *given: found.append(name) or call(name, *given))
    return found


def error(found, expected):
    return ((found.double() - expected).norm() / expected.norm().clamp(min=1e-30)).item()


in_both_formats = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
of_each_kernel = pytest.mark.parametrize(
    ("passes", "shape"), [(case[0], case[1:]) for case in CASES.values()], ids=CASES
)


@of_each_kernel
@in_both_formats
def test_no_worse_rounded_than_torchs_operations(passes, shape, dtype, calls, monkeypatch):
    exact = passes(torch.float64, *shape)
    assert calls == []
    ours = passes(dtype, *shape)
    assert calls
    assert {name.endswith("_float") for name in calls} == {dtype == torch.float32}
    monkeypatch.setattr(fused, "_obstacle", lambda: "left out")
    theirs = passes(dtype, *shape)
    for found, other, expected in zip(ours, theirs, exact, strict=True):
        assert found.dtype == other.dtype
        assert found.shape == expected.shape
        assert error(found, expected) <= max(1.1 * error(other, expected), 2e-6)


@of_each_kernel
@in_both_formats
def test_bits_do_not_depend_on_threads(passes, shape, dtype, monkeypatch):
    """Of the kernels alone: the products between them are always one thread's here."""
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(passes(dtype, *shape))
    for other in found[1:]:
        assert all(torch.equal(ours, first) for ours, first in zip(other, found[0], strict=True))


def test_which_widths_and_formats_go_without(calls):
    for dtype in (torch.bfloat16, torch.float32):
        norm_passes(dtype, 5, 24)
        activation_passes(dtype, "swiglu", 5, 24)
        heads_passes(dtype, 2, 2, 5, 16)
        loss_passes(dtype, 5, 32, 40)
        attention_passes(dtype, 2, 2, 31, 32)
    norm_passes(torch.float64, 5, 32)
    activation_passes(torch.float64, "relu2", 5, 32)
    attention_passes(torch.float64, 2, 2, 32, 32)
    q = draw(2, 2, 32, 32).float()
    with torch.no_grad():
        norm.RmsNorm(24, 1e-5)(draw(5, 24))
        norm.RmsNorm(32, 1e-5).double()(draw(5, 32).double())
        causal.causal_attention(q[:, :, :31], q[:, :, :31], q[:, :, :31], False)
    assert calls == []


def forward(dtype):
    """Everything that goes forward by itself, without gradients."""
    layer = norm.RmsNorm(96, 1e-5).to(torch.promote_types(dtype, torch.float32))
    layer.weight.copy_(draw(96, seed=1))
    model = Model(layers=1, width=192, heads=6, kv_heads=2, vocab=16, context=48)
    heads, rotary = attention.Attention(model), attention.Rotary(model)
    heads.qkv.weight.copy_(0.1 * draw(*heads.qkv.weight.shape, seed=1).float())
    heads.to(dtype)
    rotary.fill()
    rotary.cos_TC.copy_(rotary.cos_TC.bfloat16())
    rotary.sin_TC.copy_(rotary.sin_TC.bfloat16())
    q, k, v = (draw(2, count, 272, 32, seed=seed).to(dtype) for seed, count in enumerate((6, 2, 2)))
    return [
        layer(draw(3, 50, 96).to(dtype)),
        activation.swiglu(draw(3, 50, 96).to(dtype)),
        activation.relu2(draw(3, 50, 96).to(dtype)),
        *heads.project(draw(3, 48, 192, seed=2).to(dtype), *rotary(48, dtype)),
        causal.causal_attention(q, k, v, False)[0],
    ]


@in_both_formats
@torch.no_grad()
def test_a_forward_pass_by_itself_is_no_worse_rounded_either(dtype, calls, monkeypatch):
    exact = forward(torch.float64)
    assert calls == []
    ours = forward(dtype)
    named = ["norm_forward", "activation_forward", "activation_forward", "heads_forward", "attention_forward"]
    assert calls == [f"{name}_float" for name in named] if dtype == torch.float32 else named
    assert_no_bit_depends_on_threads(lambda: forward(dtype))
    monkeypatch.setattr(fused, "_obstacle", lambda: "left out")
    for found, other, expected in zip(ours, forward(dtype), exact, strict=True):
        assert found.dtype == dtype
        assert found.shape == expected.shape
        assert error(found, expected) <= max(1.1 * error(other, expected), 1e-6)


@in_both_formats
@torch.no_grad()
def test_a_norm_s_gains_need_not_lie_side_by_side(dtype, calls):
    layer = norm.RmsNorm(32, 1e-5)
    layer.weight = torch.nn.Parameter(draw(32, 2).float()[:, 0])
    x = draw(5, 32).to(dtype)
    exact = torch.nn.functional.rms_norm(x.double(), (32,), layer.weight.double(), layer.eps)
    assert error(layer(x), exact) < (1e-6 if dtype == torch.float32 else 2**-7)
    assert len(calls) == 1


@in_both_formats
def test_a_packed_batch_goes_forward_by_torchs_operations_and_back_by_the_kernel(dtype, calls):
    q, k, v = (draw(2, 2, 48, 32, seed=seed).to(dtype).requires_grad_() for seed in range(3))
    segments = torch.arange(48).div(16, rounding_mode="floor").expand(2, -1)
    grad = draw(2, 48, 2, 32, seed=4).to(dtype)
    together, _ = causal.causal_attention(q, k, v, True, segments)
    assert calls == []
    found = [together, *torch.autograd.grad(together, [q, k, v], grad)]
    assert calls == [fused.made_for("attention_backward", q)]
    parts = [[each.detach()[:, :, i : i + 16].requires_grad_() for each in (q, k, v)] for i in (0, 16, 32)]
    alone = [causal.causal_attention(*part, True)[0] for part in parts]
    assert error(together, torch.cat(alone, 1).double()) < 0.01
    apart = [
        torch.autograd.grad(y, part, grad[:, i : i + 16]) for y, part, i in zip(alone, parts, (0, 16, 32), strict=True)
    ]
    for ours, theirs in zip(found[1:], zip(*apart, strict=True), strict=True):
        assert error(ours, torch.cat(theirs, 2).double()) < 0.02


def test_operands_may_lie_in_memory_as_they_like():
    layer, x = norm.RmsNorm(32, 1e-5), draw(20, 32).requires_grad_()
    plain, odd = layer(x), layer(x.t().contiguous().t())
    assert torch.equal(plain, odd)
    grad = draw(1, 32).expand(20, 32)
    assert torch.equal(torch.autograd.grad(plain, x, grad)[0], torch.autograd.grad(odd, x, grad.contiguous())[0])
    gates = draw(20, 64).requires_grad_()
    assert torch.equal(activation.swiglu(gates), activation.swiglu(gates.t().contiguous().t()))


@pytest.mark.parametrize("targets", [[0, 32, 1], [0, -5, 1]], ids=str)
def test_a_target_that_is_no_word_is_refused(targets):
    with pytest.raises(IndexError, match=f"target {targets[1]} of a vocabulary of 32"):
        rows_fused.softmax_minus_target(draw(3, 32), torch.tensor(targets), loss.IGNORED)


def test_targets_are_one_integer_a_token():
    for wrong in (torch.zeros(4, dtype=torch.int64), torch.zeros(3)):
        with pytest.raises(ValueError, match="targets must be 3 integers"):
            rows_fused.softmax_minus_target(draw(3, 32), wrong, loss.IGNORED)
    targets = torch.tensor([3, 30, -100])
    ours, other = (
        rows_fused.softmax_minus_target(draw(3, 32), each, loss.IGNORED) for each in (targets, targets.int())
    )
    assert torch.equal(ours, other)


def test_logits_are_summarised_as_torch_does():
    logits = 5 * draw(50, 320).float()
    logits[3, 100:] = logits[4] = -float("inf")
    logits[7, [40, 200]] = logits[7].max() + 1  # the first of them counts
    log_sum, best = rows_fused.summarised(logits)
    torch.testing.assert_close(log_sum, logits.logsumexp(-1), rtol=1e-6, atol=1e-6)
    assert best[7] == 40
    others = torch.arange(50) != 4
    assert torch.equal(best[others], logits.argmax(-1)[others])
    for number, place in ((float("nan"), 17), (float("inf"), 250)):
        logits[5] = draw(320)
        logits[5, place] = number
        log_sum, best = rows_fused.summarised(logits)
        torch.testing.assert_close(log_sum, logits.logsumexp(-1), rtol=1e-6, atol=1e-6, equal_nan=True)
        assert best[5] == place
    assert_no_bit_depends_on_threads(lambda: rows_fused.summarised(logits[:4]))


def test_what_torch_refuses_is_refused():
    with pytest.raises(RuntimeError, match="must match"):
        norm.RmsNorm(16, 1e-5)(draw(3, 32).requires_grad_())
    with pytest.raises(RuntimeError):
        activation.swiglu(draw(3, 33).requires_grad_())
    model = Model(layers=1, width=64, heads=2, vocab=16, context=8)
    layer, rotary = attention.Attention(model).bfloat16(), attention.Rotary(model)
    rotary.fill()
    with pytest.raises(RuntimeError, match="must match"):
        layer.project(draw(1, 8, 64), *rotary(4, torch.bfloat16))


def shaped(*shape, dtype=torch.bfloat16):
    return draw(*shape).to(dtype)


@pytest.mark.parametrize(
    "kv",
    [
        (shaped(2, 2, 16, 16), shaped(2, 2, 16, 16)),
        (shaped(2, 2, 32, 16), shaped(2, 2, 32, 16, dtype=torch.float32)),
        (shaped(2, 2, 32, 16), shaped(2, 1, 32, 16)),
        (shaped(2, 3, 32, 16), shaped(2, 3, 32, 16)),
        (shaped(1, 2, 32, 16), shaped(1, 2, 32, 16)),
    ],
    ids=["shorter", "float32", "fewer-values", "heads-that-do-not-divide", "smaller-batch"],
)
def test_attention_of_operands_that_do_not_fit_is_torchs_error(kv, calls):
    with pytest.raises(RuntimeError):
        causal.causal_attention(shaped(2, 2, 32, 16), *kv, True)
    assert calls == []


def test_attention_s_gradient_of_another_shape_or_type_is_torchs_error(calls):
    q = shaped(2, 2, 32, 16)
    _, kept = causal.causal_attention(q, q, q, True)
    for grad, probabilities in (
        (shaped(2, 2, 32, 16), kept),
        (shaped(2, 32, 2, 16, dtype=torch.float32), kept),
        (q, kept[:0]),
    ):
        with pytest.raises(RuntimeError):
            causal.causal_attention_backward(grad, q, q, q, probabilities)
    assert calls == ["attention_forward"]


def test_few_key_heads_for_many_threads_go_to_torch(calls, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    attention_passes(torch.bfloat16, 4, 2, 32, 16)
    assert calls == []


def test_a_gradient_of_a_gradient_is_refused():
    x, weight = draw(3, 64).requires_grad_(), draw(3, 32).requires_grad_()
    (grad,) = torch.autograd.grad(activation.swiglu(x), x, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad.sum().backward()


def test_a_norm_keeps_a_view_as_a_view():
    kept = []
    layer, x = norm.RmsNorm(32, 1e-5), draw(20, 96).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        layer(x[:, 32:64])
    assert any(each.data_ptr() == x[:, 32:64].data_ptr() for each in kept)


@in_both_formats
def test_a_loss_beyond_where_a_probability_has_room(dtype):
    logits = torch.zeros(2, 32, dtype=dtype)
    logits[:, 0] = 300
    nats = rows_fused.softmax_minus_target(logits, torch.tensor([5, 0]), loss.IGNORED)
    assert nats.tolist() == [300, 0]
    assert logits[0, 0] == 1
    assert logits[0, 5] == -1
    assert not logits[1].any()


@pytest.mark.parametrize("number", [float("nan"), float("inf")], ids=str)
@in_both_formats
def test_what_is_no_number_stays_none_and_in_its_row(dtype, number):
    for place in range(32):
        x = draw(4, 32).to(dtype)
        x[1, place] = number
        nats = rows_fused.softmax_minus_target(x, torch.tensor([1, 2, 3, 4]), loss.IGNORED)
        assert nats.isnan().tolist() == [False, True, False, False]
        assert x.isnan().all(-1).tolist() == [False, True, False, False]
        assert x.isnan().any(-1).tolist() == [False, True, False, False]
    for place in range(32):
        q, k, v = (draw(2, 1, 32, 32, seed=seed).to(dtype) for seed in range(3))
        k[0, 0, place] = float("nan")
        y, _ = causal.causal_attention(q, k, v, False)
        assert y[0, :, 0].isnan().all(-1).tolist() == [False] * place + [True] * (32 - place)
        assert y[0, :, 0].isnan().any(-1).tolist() == [False] * place + [True] * (32 - place)
        assert y[1].isfinite().all()


@in_both_formats
def test_a_whole_model_descends_the_same_gradient(dtype, calls, monkeypatch):
    model = Model(layers=2, width=64, heads=2, vocab=96, context=32)
    tokens = torch.randint(0, 96, (2, 33), generator=torch.Generator().manual_seed(0))

    def gradients():
        built = transformer.build(Recipe(model=model, batching={"sequences": 2, "length": 32}, tokens=1_000), seed=0)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            total = built.loss(tokens[:, :-1], tokens[:, 1:]).total
        return [total.detach(), *torch.autograd.grad(total, list(built.parameters()))]

    ours = gradients()
    passes = (
        f"{name}_{way}" for name in ("norm", "activation", "heads", "attention") for way in ("forward", "backward")
    )
    assert set(calls) == {
        fused.made_for(name, torch.empty(0, dtype=dtype)) for name in (*passes, "softmax_minus_target")
    }
    monkeypatch.setattr(fused, "_obstacle", lambda: "left out")
    for found, expected in zip(ours, gradients(), strict=True):
        assert error(found, expected.double()) < (0.02 if dtype == torch.bfloat16 else 1e-5)


def test_no_memory_for_attention_is_an_error_like_any_other():
    """In a process of its own, whose address space ends a little above what it has."""
    script = """
import resource, torch
from lmopt.arch import causal, fused
assert fused.obstacle() is None
q = torch.ones(2, 2, 1024, 128).bfloat16()
torch.set_num_threads(2)
torch.mm(q[0, 0], q[0, 0].t())  # its threads are there
most = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (24 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    causal.causal_attention(q, q, q, False)
except MemoryError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "not enough memory for attention_forward" in done.stdout


@pytest.mark.filterwarnings("ignore")  # a tracer's remarks, and one that it is old
@torch.no_grad()
def test_a_trace_sees_torchs_operations(calls):
    model = transformer.build(
        Recipe(model=Model(layers=1, width=64, heads=2, vocab=96, context=32), batching={"length": 32}, tokens=10_000),
        seed=0,
    )
    tokens = torch.zeros(1, 32, dtype=torch.int64)
    traced = torch.jit.trace(model, tokens, check_trace=False)
    assert calls == ["attention_forward_float"]  # in an operator, which is what a trace sees
    model(tokens)
    assert "norm_forward_float" in calls
    torch.testing.assert_close(traced(tokens), model(tokens), rtol=1e-5, atol=1e-5)


def test_a_number_may_be_a_tensor():
    """What a tracer makes of sizes: taken for an address it would end the process."""
    x, weight = draw(3, 32), torch.ones(32)
    found = []
    for tokens in (3, torch.tensor(3)):
        y, scale = torch.empty_like(x), torch.empty(3)
        fused.run("norm_forward", tokens, 32, 1e-5, 1, x, weight, y, scale)
        found.append(y)
    assert torch.equal(*found)
