"""A compiled step descends the same gradient as the code it was made of.

Traced and differentiated as a compiler does it, without generating code: what is lost on the way is lost silently. Seen
with torch 2.11: an output written in place in an autograd function had no gradient any more.
"""

from __future__ import annotations

import pytest
import torch

from lmopt.arch.transformer import build
from lmopt.recipe import Fp32, Int8, Model, Moe, Recipe, Relu2, SwiGlu, builder

pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracer
VOCAB = 24
KINDS = {
    "swiglu": (SwiGlu(), {}),
    "relu2": (Relu2(), {}),
    "gqa": (SwiGlu(), {"kv_heads": 1, "qk_norm": True, "tied_head": False}),
    "moe": (Moe(experts=4, top_k=2, hidden=8), {}),
    "moe-top1": (Moe(experts=4, top_k=1, hidden=8, activation="relu2"), {}),
    "moe-shared": (Moe(experts=8, top_k=3, shared=1, hidden=8, normalise=False), {}),
    "moe-noisy": (Moe(experts=4, top_k=2, hidden=8, routing={"kind": "noisy"}), {}),
    "moe-switch": (Moe(experts=4, top_k=1, hidden=8, routing={"kind": "switch"}), {}),
    "moe-loss-free": (Moe(experts=4, top_k=2, hidden=8, routing={"kind": "loss_free"}), {}),
}


CASES = [(kind, Fp32()) for kind in KINDS] + [(kind, Int8(grad_weight=True)) for kind in ("swiglu", "moe")]


@pytest.mark.parametrize(("kind", "precision"), CASES, ids=[f"{kind}-{one.kind}" for kind, one in CASES])
def test_no_gradient_is_lost(kind, precision) -> None:
    ffn, shape = KINDS[kind]
    shape = {"layers": 1, "width": 32, "heads": 2, "vocab": VOCAB, "context": 32} | shape
    described = Recipe(
        model=Model(**shape), ffn=ffn, batching={"length": 32, "sequences": 2}, tokens=10**4, precision=precision
    )
    model = build(described, seed=0)
    compute = builder(precision)(precision, torch.device("cpu"))
    compute.prepare(model)
    tokens_BT = torch.randint(VOCAB, (2, 32), generator=torch.Generator().manual_seed(1))

    def gradients(loss) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model.zero_grad(set_to_none=True)
        with compute.forward():
            found = loss(tokens_BT, tokens_BT)
        (found.cross_entropy + found.auxiliary).backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    eager = gradients(model.loss)
    torch.compiler.reset()
    traced = gradients(torch.compile(model.loss, dynamic=False, backend="aot_eager", fullgraph=True))
    within = 1e-4 if isinstance(precision, Fp32) else 0.2  # rounded to 8 bits, a last bit before it is a step
    for name, gradient in eager.items():
        assert torch.linalg.vector_norm(traced[name] - gradient) <= within * torch.linalg.vector_norm(gradient), name
