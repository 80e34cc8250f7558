"""The decoder against the obvious slow version, its shapes, its starting point and its bad inputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from lmopt.arch import attention, causal, loss, norm
from lmopt.arch.activation import relu2, swiglu
from lmopt.arch.attention import Rotary, rotate
from lmopt.arch.transformer import Transformer, build
from lmopt.recipe import Model, Recipe, Relu2, SwiGlu

VOCAB = 61


def recipe(ffn=None, **shape) -> Recipe:
    shape = {"layers": 2, "width": 32, "heads": 4, "vocab": VOCAB, "context": 40} | shape
    return Recipe(model=Model(**shape), ffn=ffn or SwiGlu(), batching={"length": 16, "sequences": 2}, tokens=10_000)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(1))


VARIANTS = [
    recipe(),
    recipe(Relu2(), kv_heads=2),
    recipe(kv_heads=1, qk_norm=True, tied_head=False),
]


def slow_logits(model: Transformer, tokens_BT: torch.Tensor) -> torch.Tensor:
    """The same network, one obvious operation at a time, in the parameters' type."""
    p, m = dict(model.named_parameters()), model.model

    def normed(x, name):
        return x / (x.square().mean(-1, keepdim=True) + m.norm_eps).sqrt() * p[name]

    def turned(x_BTHC):
        half = m.head_width // 2
        first, second = x_BTHC[..., :half], x_BTHC[..., half:]
        frequency = m.rope_base ** (-torch.arange(half, dtype=x_BTHC.dtype) / half)
        angle = torch.outer(torch.arange(x_BTHC.shape[1], dtype=x_BTHC.dtype), frequency)[:, None]
        c, s = angle.cos(), angle.sin()
        return torch.cat([first * c - second * s, second * c + first * s], dim=-1)

    x = p["embedding.weight"][tokens_BT]
    for i in range(m.layers):
        b = f"blocks.{i}."
        qkv = normed(x, b + "attention_norm.weight") @ p[b + "attention.qkv.weight"].T
        q, k, v = qkv.unflatten(-1, (-1, m.head_width)).split([m.heads, m.key_heads, m.key_heads], dim=2)
        if m.qk_norm:
            q, k = normed(q, b + "attention.query_norm.weight"), normed(k, b + "attention.key_norm.weight")
        q, k = turned(q), turned(k)
        k, v = (part.repeat_interleave(m.heads // m.key_heads, dim=2) for part in (k, v))
        scores = torch.einsum("bthc,bshc->bhts", q, k) / math.sqrt(m.head_width)
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        y = torch.einsum("bhts,bshc->bthc", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)
        x = x + y.flatten(2) @ p[b + "attention.output.weight"].T
        h = normed(x, b + "ffn_norm.weight")
        if b + "ffn.gate_up.weight" in p:
            gate, up = (h @ p[b + "ffn.gate_up.weight"].T).chunk(2, dim=-1)
            h = gate * torch.sigmoid(gate) * up
        else:
            h = (h @ p[b + "ffn.up.weight"].T).clamp(min=0) ** 2
        x = x + h @ p[b + "ffn.down.weight"].T
    return normed(x, "norm.weight") @ p["embedding.weight" if m.tied_head else "head.weight"].T


@pytest.mark.parametrize("described", VARIANTS, ids=["swiglu", "relu2-gqa", "mqa-qknorm-untied"])
def test_logits_loss_and_gradients_equal_the_slow_version(described, monkeypatch):
    monkeypatch.setattr(causal, "BLOCK", 7)  # several blocks and a last one that is not full
    model = build(described, seed=0).double()
    for module in model.modules():
        if isinstance(module, Rotary):
            module.fill()  # again, now in float64
    batch_BT = tokens(2, 17)
    inputs, targets = batch_BT[:, :-1], batch_BT[:, 1:]
    slow = slow_logits(model, inputs)
    torch.testing.assert_close(model(inputs), slow, rtol=1e-10, atol=1e-10)
    expected = functional.cross_entropy(slow.flatten(0, 1), targets.flatten())
    losses = model.loss(inputs, targets)
    torch.testing.assert_close(losses.cross_entropy, expected, rtol=1e-10, atol=1e-10)
    parameters = list(model.parameters())
    for ours, reference in zip(
        torch.autograd.grad(losses.total, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, reference, rtol=1e-8, atol=1e-10)


def test_no_position_sees_a_later_token():
    model = build(recipe(), seed=0)
    first = tokens(1, 16)
    second = first.clone()
    second[0, 9] = (second[0, 9] + 1) % VOCAB
    with torch.no_grad():
        difference = (model(first) - model(second)).abs().amax(-1)[0]
    assert difference[:9].max() == 0
    assert difference[9:].min() > 0


def test_fused_and_own_attention_agree(monkeypatch):
    model = build(recipe(kv_heads=2), seed=0)
    own = model(tokens(2, 16))
    monkeypatch.setattr("lmopt.arch.attention.keeps_probabilities", lambda *_: False)
    torch.testing.assert_close(own, model(tokens(2, 16)), rtol=1e-4, atol=1e-5)


def test_bfloat16_runs_the_stream_in_bfloat16_and_keeps_float32_gradients():
    model = build(recipe(), seed=0)
    batch_BT = tokens(2, 17)
    exact = model.loss(batch_BT[:, :-1], batch_BT[:, 1:]).cross_entropy.item()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.hidden(batch_BT)[0].dtype == torch.bfloat16
        losses = model.loss(batch_BT[:, :-1], batch_BT[:, 1:])
    losses.total.backward()
    assert losses.cross_entropy.dtype == torch.float32
    assert losses.cross_entropy.item() == pytest.approx(exact, rel=5e-3)
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("target", [-1, 61])
def test_a_target_that_is_no_token_is_an_error(target):
    """A program that means -1 by "ignored" would be told a loss of token 0."""
    x, weight = torch.randn(4, 16, requires_grad=True), torch.randn(61, 16)
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        loss.cross_entropy(x, weight, torch.tensor([1, 2, target, loss.IGNORED]))


@pytest.mark.parametrize("chunk_bytes", [1, 4 * VOCAB * 5, 2**24])
def test_chunked_loss_is_the_same_at_any_chunk_and_leaves_ignored_targets_out(chunk_bytes, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_BYTES", chunk_bytes)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(13, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(VOCAB, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = tokens(13)
    targets[3:6] = loss.IGNORED
    ours = loss.cross_entropy(x, weight, targets)
    expected = functional.cross_entropy(x @ weight.T, targets)
    torch.testing.assert_close(ours, expected)
    for a, b in zip(
        torch.autograd.grad(3 * ours, (x, weight)), torch.autograd.grad(3 * expected, (x, weight)), strict=True
    ):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(loss.cross_entropy(x, weight, targets), expected)


@pytest.mark.parametrize("rows", [40, 200])  # the gradient of the head the other way round from 128 rows on
def test_loss_in_bfloat16_has_the_float32_gradients_to_its_rounding(rows, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_BYTES", 150 * 300 * 4)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, 32, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(300, 32, generator=generator).mul_(0.2).requires_grad_()
    targets = torch.randint(300, (rows,), generator=generator)
    targets[::7] = loss.IGNORED
    exact_x, exact_weight = (t.detach().float().bfloat16().float().requires_grad_() for t in (x, weight))
    functional.cross_entropy(exact_x @ exact_weight.T, targets).backward()
    with torch.autocast("cpu", torch.bfloat16):
        loss.cross_entropy(x, weight, targets).backward()
    for ours, exact in ((x.grad, exact_x.grad), (weight.grad, exact_weight.grad)):
        torch.testing.assert_close(ours.float(), exact, rtol=0.05, atol=0.02 * exact.abs().max().item())


def test_loss_never_holds_the_logits_of_all_tokens():
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    x, weight = torch.randn(4096, 4, requires_grad=True), torch.randn(8192, 4, requires_grad=True)
    with Watch():
        loss.cross_entropy(x, weight, torch.zeros(4096, dtype=torch.int64)).backward()
    assert largest * 4 <= loss.CHUNK_BYTES < 4096 * 8192 * 4


@pytest.mark.parametrize(
    ("ours", "plain"),
    [
        (swiglu, lambda x: functional.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1]),
        (relu2, lambda x: functional.relu(x).square()),
    ],
)
def test_activation_gradients(ours, plain):
    x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(ours(x), plain(x))
    assert torch.autograd.gradcheck(ours, (x,))


def test_norm_gradients():
    module = norm.RmsNorm(6, 1e-5).double()
    torch.nn.init.normal_(module.weight)
    x = torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(module(x), functional.rms_norm(x, (6,), module.weight, 1e-5))
    assert torch.autograd.gradcheck(lambda x, w: norm._EagerRmsNorm.apply(x, w, 1e-5), (x, module.weight))


def test_rotation_keeps_length_and_depends_on_distance_alone():
    table = Rotary(Model(layers=1, width=16, heads=2, context=64))
    table.fill()
    cos, sin = table(64, torch.float32)
    q, k = torch.randn(2, 8)
    turned_q, turned_k = (rotate(v.expand(1, 1, 64, 8), cos, sin)[0, 0] for v in (q, k))
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(64))
    scores = turned_q @ turned_k.T
    torch.testing.assert_close(scores[10, 3], scores[50, 43])
    assert abs(scores[10, 3] - scores[10, 4]) > 1e-4


def test_rotation_and_its_gradient_are_those_of_complex_numbers():
    table = Rotary(Model(layers=1, width=16, heads=2, context=64))
    table.fill()
    cos, sin = table(64, torch.float64)
    x = torch.randn(3, 2, 64, 8, dtype=torch.float64, requires_grad=True)
    pairs = torch.complex(x[..., :4], x[..., 4:]) * torch.complex(cos[:, :4], -sin[:, :4])
    expected = torch.cat([pairs.real, pairs.imag], dim=-1)
    turned, weight = rotate(x, cos, sin), torch.randn(3, 2, 64, 8, dtype=torch.float64)
    torch.testing.assert_close(turned, expected)
    with torch.no_grad():
        assert torch.equal(rotate(x, cos, sin), turned)
    wanted, got = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (expected, turned))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("width", [8, 32, 64])
def test_positions_in_bfloat16_are_turned_without_slow_halves_to_the_same_bits(width):
    torch.manual_seed(0)
    x = torch.randn(2, 16, 3, width).bfloat16().transpose(1, 2)  # as queries lie in the product
    cos, sin = torch.randn(16, width).bfloat16(), torch.randn(16, width).bfloat16()
    halves = x * cos
    halves[..., : width // 2].addcmul_(x[..., width // 2 :], sin[..., : width // 2])
    halves[..., width // 2 :].addcmul_(x[..., : width // 2], sin[..., width // 2 :])
    with torch.profiler.profile(acc_events=True) as seen, torch.no_grad():
        turned = rotate(x, cos, sin)
    assert torch.equal(turned, halves)
    assert [event.count for event in seen.key_averages() if event.key == "aten::addcmul_"] == [1]


def test_compiled_attention_traces_without_running():
    with torch._subclasses.FakeTensorMode():
        q, k = torch.empty(2, 4, 9, 8, requires_grad=True), torch.empty(2, 2, 9, 8)
        out, kept = torch.ops.lmopt.causal_attention(q, k, k, True)
    assert out.shape == (2, 9, 4, 8)
    assert kept.numel() == 2 * 4 * causal._kept(9)


class TestStart:
    def test_each_parameter_depends_on_seed_stream_and_name_alone(self):
        def drawn(seed=3, ffn=None, **shape):
            return dict(build(recipe(ffn, **shape), seed=seed).named_parameters())

        name, first = "blocks.1.attention.qkv.weight", drawn()
        assert all(torch.equal(first[other], again) for other, again in drawn().items())
        assert torch.equal(first[name], drawn(ffn=Relu2())[name])
        assert torch.equal(first[name], drawn(layers=5)[name])
        assert not torch.equal(first[name], drawn(seed=4)[name])
        assert not torch.equal(first[name], drawn(init_stream=1)[name])
        assert not torch.equal(first[name], first["blocks.0.attention.qkv.weight"])

    def test_first_loss_is_that_of_a_uniform_guess(self):
        model = build(recipe(width=64), seed=0)
        batch_BT = tokens(4, 17)
        assert model.loss(batch_BT[:, :-1], batch_BT[:, 1:]).cross_entropy.item() == pytest.approx(
            math.log(VOCAB), abs=0.1
        )

    def test_meta_draws_nothing(self):
        assert all(parameter.is_meta for parameter in build(recipe(), seed=0, device="meta").parameters())


class TestBadInput:
    def test_no_vocabulary(self):
        with pytest.raises(ValueError, match="vocab is not set"):
            build(recipe(vocab=None), seed=0)

    def test_too_long(self):
        with pytest.raises(ValueError, match="41 tokens do not fit the model's context of 40"):
            build(recipe(), seed=0)(tokens(1, 41))

    def test_gradient_without_kept_probabilities(self):
        q = torch.randn(1, 2, 4, 8, requires_grad=True)
        with pytest.raises(ValueError, match="needs keep=True"):
            torch.ops.lmopt.causal_attention(q, q, q, False)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_cuda_s_fused_kernels_are_given_means_the_same(masked, dtype):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 6, 10, dtype=dtype) for heads in (4, 2, 2))
    mask = torch.ones(6, 6, dtype=torch.bool).tril() if masked else None
    plain = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=not masked, enable_gqa=True)
    wide = attention._for_fused_kernels(q, k, v, masked)
    assert {x.shape[-1] for x in wide} == {16}
    grouped = not masked and dtype == torch.bfloat16
    assert wide[1].shape[1] == (2 if grouped else 4)
    given = functional.scaled_dot_product_attention(
        *wide, mask, is_causal=not masked, scale=10**-0.5, enable_gqa=grouped
    )
    torch.testing.assert_close(given[..., :10], plain)
    assert not given[..., 10:].any()
