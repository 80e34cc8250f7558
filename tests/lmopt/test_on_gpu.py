"""What a CUDA device computes against what the CPU does: losses, gradients, generated text.

Nothing here runs without a device: `make test-gpu`. Products in float32 are compared tightly (torch multiplies float32
in full unless told otherwise); bfloat16 by the norm of the whole gradient, since a token may go to another expert.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lmopt.arch import attention
from lmopt.arch.experts import experts_grouped, experts_loop
from lmopt.arch.transformer import build
from lmopt.compute import int8
from lmopt.infer.decoder import Decoder
from lmopt.infer.drafts import ExitDraft
from lmopt.infer.early_exit import ExitRule, generate_early
from lmopt.infer.generate import generate, written
from lmopt.infer.lookup import LookupDraft
from lmopt.infer.speculative import speculate
from lmopt.recipe import Fp32, Int8, Recipe, builder
from lmopt.techniques.decoding import Sampling
from tests.bench.instruments.test_flops import KINDS
from tests.lmopt.infer import models

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
FLOAT32 = 1e-4
"""Relative norm of a gradient's difference: sums in another order, nothing else."""
BFLOAT16 = 0.1
"""Against float32. Eight bits are 0.4% a number; two layers of small width add some up."""
EXPERTS = 0.4
"""The same where tokens may go to other experts."""


@pytest.fixture(autouse=True)
def same_noise(monkeypatch) -> None:
    """Noise is drawn on the CPU, so that both devices see the same."""
    for name in ("randn_like", "rand_like"):
        monkeypatch.setattr(torch, name, _drawn_on_cpu(getattr(torch, name)))


def _drawn_on_cpu(draw):
    return lambda x, **options: draw(torch.empty(x.shape, dtype=x.dtype), **options).to(x.device)


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Norm of the difference over the norm."""
    ours, theirs = ours.detach().double().cpu(), theirs.detach().double().cpu()
    return ((ours - theirs).norm() / theirs.norm()).item()


def gradient(described: Recipe, device: str, sequences: int = 2) -> tuple[float, Tensor]:
    """Loss of a batch, and its gradient as one vector."""
    compute = builder(described.precision)(described.precision, device)
    model = build(described, seed=0, device=device)
    compute.prepare(model)
    length = described.batching.length
    tokens = torch.randint(24, (sequences, length + 1), generator=torch.Generator().manual_seed(1)).to(device)
    torch.manual_seed(0)
    with compute.forward():
        loss = model.loss(tokens[:, :-1], tokens[:, 1:]).total
    loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return loss.item(), torch.cat([one.flatten().float().cpu() for one in gradients])


def in_float32(described: Recipe) -> Recipe:
    return described.model_copy(update={"precision": Fp32()})


# --- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("fp32", "int8", "switchback", "bf16_sr")])
def test_a_loss_and_its_gradient_equal_the_cpu_s(kind):
    described = in_float32(KINDS[kind])
    (ours, gradient_ours), (theirs, gradient_theirs) = (gradient(described, device) for device in (DEVICE, "cpu"))
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert apart(gradient_ours, gradient_theirs) < FLOAT32


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fp32"])
def test_fewer_bits_stay_near_float32(kind):
    described = KINDS[kind]
    (ours, gradient_ours), (theirs, gradient_theirs) = (
        gradient(described, DEVICE),
        gradient(in_float32(described), "cpu"),
    )
    assert ours == pytest.approx(theirs, rel=0.02)
    assert apart(gradient_ours, gradient_theirs) < (EXPERTS if "moe" in kind else BFLOAT16)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("width", [4, 6, 20, 64])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_attention_of_any_width_equals_the_cpu_s(precision, width, kv_heads, packed):
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 24, width) for heads in (4, kv_heads, kv_heads))
    segments = torch.tensor([[1] * 10 + [2] * 14, [1] * 3 + [2] * 20 + [3]]) if packed else None
    found = []
    for device, kept in ((DEVICE, dtype), ("cpu", torch.float32)):
        tensors = [x.to(device, kept).requires_grad_() for x in (q, k, v)]
        out = attention.attend(*tensors, None if segments is None else segments.to(device))
        found.append((out, *torch.autograd.grad(out.float().square().sum(), tensors)))
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == dtype
        assert apart(ours, theirs) < (FLOAT32 if precision == "fp32" else 0.02)


@pytest.mark.parametrize("hidden", [8, 12, 15])
@pytest.mark.parametrize("width", [16, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("capacity", [None, 3])
def test_experts_of_any_width_equal_the_plain_loop(hidden, width, dtype, capacity):
    torch.manual_seed(0)
    x, up, down = torch.randn(10, width), torch.randn(5, 2 * hidden, width), torch.randn(5, width, hidden)
    gate, expert = torch.rand(10, 1), torch.tensor([[0], [0], [0], [0], [2], [2], [3], [4], [4], [4]])  # none to 1
    found = []
    for kernel, device in ((experts_grouped, DEVICE), (experts_loop, "cpu")):
        kept = dtype if device == DEVICE else torch.float32
        x_ND, gate_NK = (t.to(device, kept).requires_grad_() for t in (x, gate))
        weights = [t.to(device).requires_grad_() for t in (up, down)]
        y = kernel(x_ND, gate_NK, expert.to(device), *weights, "swiglu", capacity)
        found.append((y, *torch.autograd.grad(y.float().square().sum(), (x_ND, gate_NK, *weights))))
    for ours, theirs in zip(*found, strict=True):
        assert apart(ours, theirs) < (FLOAT32 if dtype == torch.float32 else 0.05)


# --- 8-bit products ------------------------------------------------------------------------------

ALL = Int8(forward=True, grad_input=True, grad_weight=True)


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(64, 32, 48), (17, 16, 8), (40, 24, 12), (33, 20, 16), (18, 6, 4), (1000, 72, 3)],
)
def test_8_bit_products_of_any_size_equal_the_cpu_s(rows, inputs, outputs, smooth):
    """Rows and sizes beside those that CUDA's product takes: more than 16 rows, multiples of 8."""
    torch.manual_seed(0)
    x, weight, grad = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs)
    found = []
    for device in (DEVICE, "cpu"):
        x_ND, weight_FD = (t.to(device).requires_grad_() for t in (x, weight))
        y = int8._Int8Product.apply(x_ND, weight_FD, ALL, smooth)
        found.append((y, *torch.autograd.grad(y, (x_ND, weight_FD), grad.to(device))))
    for ours, theirs in zip(*found, strict=True):
        assert apart(ours, theirs) < 1e-3  # a number between two levels may go either way


@pytest.mark.parametrize("rows", [1, 16, 17])
def test_an_8_bit_layer_takes_few_rows(rows):
    torch.manual_seed(0)
    model = build(KINDS["int8"], seed=0, device=DEVICE)
    int8.exchange_linears(model, ALL)
    layer, x = model.blocks[0].attention.qkv, torch.randn(rows, 16, device=DEVICE)
    assert apart(layer(x), x @ layer.weight.T) < 0.03


# --- generation ----------------------------------------------------------------------------------

PROMPTS = [models.tokens(length, seed=length).tolist() for length in (7, 12, 3, 12)]


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8", "int8_dynamic"])
@pytest.mark.parametrize("shape", models.SHAPES)
def test_greedy_text_equals_the_cpu_s(shape, format):
    model = models.tiny(**models.SHAPES[shape])
    texts = [written(generate(Decoder(model.to(device), format), PROMPTS, max_new=20)) for device in ("cpu", DEVICE)]
    if format == "fp32":
        assert texts[0] == texts[1]
    else:  # rounding may turn a text where two tokens all but tie
        same = sum(a == b for one, two in zip(*texts, strict=True) for a, b in zip(one, two, strict=True))
        assert same >= 0.5 * 4 * 20


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("shape", models.SHAPES)
def test_a_batch_of_unequal_prompts_writes_what_each_does_alone(shape, format):
    decoder = Decoder(models.tiny(**models.SHAPES[shape]).to(DEVICE), format)
    together = written(generate(decoder, PROMPTS, max_new=16))
    alone = [written(generate(decoder, [prompt], max_new=16))[0] for prompt in PROMPTS]
    agree = sum(one == two for one, two in zip(together, alone, strict=True))
    assert agree == 4 if format == "fp32" else agree >= 2


@pytest.mark.parametrize("shape", models.SHAPES)
def test_speculation_writes_the_same_text(shape):
    decoder = Decoder(models.tiny(**models.SHAPES[shape]).to(DEVICE), "fp32")
    for prompt in PROMPTS:
        plain = written(generate(decoder, [prompt], max_new=24))
        room = len(prompt) + 24
        for draft in (LookupDraft(decoder.vocab), ExitDraft(decoder, exit_layer=1, capacity=room)):
            assert written(speculate(decoder, draft, prompt, max_new=24)) == plain


@pytest.mark.parametrize("measure", ["gap", "confidence", "similarity"])
def test_early_exits_leave_as_on_the_cpu(measure):
    model = models.tiny()
    rule = ExitRule((1, 2), 0.5, measure)
    texts = [
        written(generate_early(Decoder(model.to(device)), PROMPTS, rule, max_new=16)) for device in ("cpu", DEVICE)
    ]
    assert texts[0] == texts[1]
    full = ExitRule((1, 2), 1.0, measure)
    decoder = Decoder(model.to(DEVICE))
    assert written(generate_early(decoder, PROMPTS, full, max_new=16)) == written(
        generate(decoder, PROMPTS, max_new=16)
    )


def test_a_seed_s_sample_is_the_cpu_s():
    model, sampling = models.tiny(), Sampling(temperature=0.8, top_k=20, top_p=0.9)
    texts = [
        written(generate(Decoder(model.to(device)), PROMPTS, max_new=12, sampling=sampling, seed=seed))
        for device, seed in ((DEVICE, 5), (DEVICE, 5), ("cpu", 5), (DEVICE, 6))
    ]
    assert texts[0] == texts[1] == texts[2]
    assert texts[0] != texts[3]
