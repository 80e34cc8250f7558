"""Training a model to be left early: layer dropout and losses at exits (LayerSkip, arXiv 2404.16710).

    recipe = recipe.model_copy(update={"objective": LayerSkip(dropout=0.2, exits=(4, 6))})
    for step in loop.train(loop.start(recipe, seed=0), batches): ...

Letters: see lmopt/arch/transformer.py; L layers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lmopt.arch.loss import cross_entropy
from lmopt.arch.numbers import compute_dtype
from lmopt.arch.transformer import Losses, Transformer
from lmopt.quantities import possible
from lmopt.techniques.objective import LayerSkip


def build(config: LayerSkip, model: Transformer) -> Callable[..., Losses]:
    """What training descends (see `LayerSkipLoss`)."""
    return LayerSkipLoss(model, config)


class LayerSkipLoss:
    """A model's loss with layers left out for some sequences, and exits on the way; in the place of `model.loss`.

    Which layers and exits is drawn from torch's own generator on the CPU, which a checkpoint keeps. In evaluation mode
    nothing is left out.
    """

    def __init__(self, model: Transformer, config: LayerSkip) -> None:
        layers = len(model.blocks)
        beyond = [layer for layer in config.exits if layer >= layers]
        if beyond:
            raise ValueError(f"exits {beyond} of a model of {layers} layers: {possible(1, layers - 1)}")
        self.model, self.config = model, config
        self.dropout_L = torch.tensor(config.layer_dropout(layers))
        self.full = 0
        """Sequences times layers that there were since the beginning."""
        self.executed = 0
        """Those that were computed."""

    @property
    def executed_share(self) -> float:
        """Share of the layers' work that was done; 1 before the first batch."""
        return self.executed / self.full if self.full else 1.0

    def __call__(self, tokens_BT: Tensor, targets_BT: Tensor, segments_BT: Tensor | None = None) -> Losses:
        """`cross_entropy` is the last layer's; `auxiliary` makes the sum the normalised loss over all exits drawn.

        `segments_BT` numbers the documents of packed sequences.
        """
        exits = self._draw_exits()
        states, auxiliary = self.states(tokens_BT, exits, segments_BT)
        targets_N = targets_BT.flatten()
        found = [self._cross_entropy(x_BTD, targets_N) for x_BTD in states]
        layers = len(self.model.blocks)
        weights = [self.config.exit_weight(layer, layers) for layer in (*exits, layers)]
        scaled = [weight / sum(weights) if sum(weights) else 1.0 for weight in weights]
        mixed = torch.stack([weight * loss for weight, loss in zip(scaled, found, strict=True)]).sum()
        return Losses(found[-1], auxiliary + (mixed - found[-1]))

    def states(
        self, tokens_BT: Tensor, exits: tuple[int, ...], segments_BT: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """States behind each of `exits` and behind the last layer, and the feed-forwards' auxiliary losses."""
        model, length = self.model, tokens_BT.shape[1]
        if length > model.model.context:
            raise ValueError(f"sequences of {length} tokens do not fit the model's context of {model.model.context}")
        x_BTD = model.embedding(tokens_BT).to(compute_dtype(model.embedding.weight))
        cos_TC, sin_TC = model.rotary(length, x_BTD.dtype)
        total = torch.zeros((), device=x_BTD.device)
        found: list[Tensor] = []
        for layer, (block, rows) in enumerate(zip(model.blocks, self._draw_rows(len(tokens_BT)), strict=True), 1):
            self.full += len(tokens_BT)
            self.executed += len(rows)
            if len(rows) == len(tokens_BT):
                x_BTD, auxiliary = block(x_BTD, cos_TC, sin_TC, segments_BT)
            elif len(rows):
                rows = rows.to(x_BTD.device)
                own = None if segments_BT is None else segments_BT.index_select(0, rows)
                y_BTD, auxiliary = block(x_BTD.index_select(0, rows), cos_TC, sin_TC, own)
                x_BTD = x_BTD.index_copy(0, rows, y_BTD)
            else:
                auxiliary = None
            if auxiliary is not None:
                total = total + auxiliary
            if layer in exits:
                found.append(x_BTD)
        return [*found, x_BTD], total

    def _draw_rows(self, batch: int) -> list[Tensor]:
        """For each layer the sequences that go through it."""
        if not self.model.training or self.config.dropout == 0:
            return [torch.arange(batch)] * len(self.dropout_L)
        stays_LB = torch.rand(len(self.dropout_L), batch) >= self.dropout_L[:, None]
        return [stays_B.nonzero()[:, 0] for stays_B in stays_LB]

    def _draw_exits(self) -> tuple[int, ...]:
        """The exits of this step, ascending."""
        exits = self.config.exits
        if not self.model.training or len(exits) <= self.config.exits_a_step:
            return exits
        chosen = torch.randperm(len(exits))[: self.config.exits_a_step].tolist()
        return tuple(sorted(exits[number] for number in chosen))

    def _cross_entropy(self, x_BTD: Tensor, targets_N: Tensor) -> Tensor:
        return cross_entropy(self.model.norm(x_BTD).flatten(0, 1), self.model.head_weight_VD, targets_N)
