"""The decoder: embedding, pre-norm blocks of attention and feed-forward, final norm, head.

Letters, used as suffixes of every tensor name in `lmopt/arch`:
    B sequences   T positions   D width of the residual stream   V vocabulary
    H query heads   K key (and value) heads   C width of one head   F inner width of the feed-forward
    E experts   S routed slots (tokens x experts per token)   N tokens of a batch, flattened (B x T)
Behind N, as in `expert_NK`, K is the number of experts that a token goes to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmopt.arch import matmul
from lmopt.arch.attention import Attention, Rotary
from lmopt.arch.initial import draw_parameters
from lmopt.arch.loss import cross_entropy
from lmopt.arch.norm import RmsNorm
from lmopt.arch.numbers import compute_dtype
from lmopt.arch.routing import LossFreeRouter
from lmopt.compute.activations import Run
from lmopt.recipe import Model, NextToken, Recipe, builder


@dataclass(frozen=True, slots=True)
class Losses:
    """What a batch costs, as scalars that carry gradients."""

    cross_entropy: Tensor
    """Mean negative log-likelihood in nats a token, float32."""
    auxiliary: Tensor
    """Weighted sum of the feed-forwards' own losses (router balance, z-loss), float32; 0 where there are none."""

    @property
    def total(self) -> Tensor:
        """What training descends."""
        return self.cross_entropy + self.auxiliary


class Block(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, model: Model, ffn: nn.Module, run: Run) -> None:
        super().__init__()
        self.attention_norm = RmsNorm(model.width, model.norm_eps)
        self.attention = Attention(model)
        self.ffn_norm = RmsNorm(model.width, model.norm_eps)
        self.ffn = ffn
        self.run = run

    def forward(
        self, x_BTD: Tensor, cos_TC: Tensor, sin_TC: Tensor, segments_BT: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        return self.run(self.compute, x_BTD, cos_TC, sin_TC, segments_BT)

    def compute(
        self, x_BTD: Tensor, cos_TC: Tensor, sin_TC: Tensor, segments_BT: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The block itself; `forward` decides what of it is kept for backward."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos_TC, sin_TC, segments_BT)
        y_BTD, auxiliary = self.ffn(self.ffn_norm(x_BTD))
        return x_BTD + y_BTD, auxiliary


class Transformer(nn.Module):
    """A causal language model. Parameters are float32; autocast decides what the products run in.

    The residual stream runs in the same type as the products: under bf16 autocast it is bfloat16.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        model = recipe.model
        if model.vocab is None:
            raise ValueError("recipe.model.vocab is not set; hint: a suite fills it in from its tokenizer")
        build_ffn, build_run = builder(recipe.ffn), builder(recipe.activations)
        self.model = model
        self.embedding = nn.Embedding(model.vocab, model.width)
        self.rotary = Rotary(model)
        self.blocks = nn.ModuleList(
            Block(model, build_ffn(recipe.ffn, model), build_run(recipe.activations, layer))
            for layer in range(model.layers)
        )
        self.norm = RmsNorm(model.width, model.norm_eps)
        self.head = None if model.tied_head else nn.Linear(model.width, model.vocab, bias=False)

    @property
    def head_weight_VD(self) -> nn.Parameter:
        """The output matrix: the embedding where the head is tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def hidden(self, tokens_BT: Tensor, segments_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalised output of the last block (B x T x D) and the sum of auxiliary losses (scalar, float32)."""
        length = tokens_BT.shape[1]
        if length > self.model.context:
            raise ValueError(f"sequences of {length} tokens do not fit the model's context of {self.model.context}")
        x_BTD = self.embedding(tokens_BT).to(compute_dtype(self.embedding.weight))
        cos_TC, sin_TC = self.rotary(length, x_BTD.dtype)
        auxiliary = torch.zeros((), device=x_BTD.device)
        for block in self.blocks:
            x_BTD, extra = block(x_BTD, cos_TC, sin_TC, segments_BT)
            if extra is not None:
                auxiliary = auxiliary + extra
        return self.norm(x_BTD), auxiliary

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits of the next token, B x T x V."""
        x_BTD, _ = self.hidden(tokens_BT)
        return matmul.linear(x_BTD, self.head_weight_VD)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, segments_BT: Tensor | None = None) -> Losses:
        """Cross-entropy of `targets_BT` after `tokens_BT`, without ever holding the logits of all tokens.

        Targets of -100 are left out of the mean. `segments_BT` numbers the documents of packed sequences.
        """
        x_BTD, auxiliary = self.hidden(tokens_BT, segments_BT)
        return Losses(cross_entropy(x_BTD.flatten(0, 1), self.head_weight_VD, targets_BT.flatten()), auxiliary)

    def settle(self, total: Callable[[Tensor], Tensor] | None = None) -> None:
        """After an optimizer step: what changes by rule and not by gradient, as a router's biases do.

        Args:
            total: sums over those that share the step's batch; None where nobody does.
        """
        for module in self.modules():
            if isinstance(module, LossFreeRouter):
                module.settle(total)

    def forget(self) -> None:
        """Take back what forward passes noted for `settle`: their step is not done."""
        for module in self.modules():
            if isinstance(module, LossFreeRouter):
                module.forget()

    def report(self) -> dict[str, float]:
        """Facts about the latest batch by name, for example the experts' load; empty for a dense model."""
        facts: dict[str, float] = {}
        for index, block in enumerate(self.blocks):
            layer_report = getattr(block.ffn, "report", None)
            if layer_report is not None:
                facts |= {f"layer{index}/{name}": value for name, value in layer_report().items()}
        return facts


def build(recipe: Recipe, *, seed: int, device: str | torch.device = "cpu") -> Transformer:
    """The model a recipe describes, with float32 parameters drawn by (seed, init_stream, parameter name).

    On the `meta` device nothing is drawn: shapes only.

    Raises:
        ValueError: the recipe has no vocabulary size yet.
        LookupError: the builder of its feed-forward cannot be loaded.
    """
    with torch.device("meta"):
        model = Transformer(recipe)
    if torch.device(device).type == "meta":
        return model
    model.to_empty(device=device)
    draw_parameters(model, seed=seed, stream=recipe.model.init_stream, layers=recipe.model.layers)
    for module in model.modules():
        if isinstance(module, Rotary | LossFreeRouter):
            module.fill()
    return model


def next_token(_config: NextToken, model: Transformer) -> Callable[..., Losses]:
    """What training descends by default: the model's own loss."""
    return model.loss
