"""A feed-forward that wastes a known amount of work (letters: see transformer.py). For self-tests of the harness."""

from __future__ import annotations

from torch import Tensor, nn

from lmopt.arch.ffn import SwiGluFfn
from lmopt.recipe import Model, Wasteful


class WastefulFfn(SwiGluFfn):
    """SwiGLU plus 0 x (a second SwiGLU): every product of the second is made, forward and backward, for nothing."""

    def __init__(self, width: int, hidden: int, dead: int) -> None:
        super().__init__(width, hidden)
        self.dead = SwiGluFfn(width, dead)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, None]:
        living_BTD, _ = super().forward(x_BTD)
        dead_BTD, _ = self.dead(x_BTD)
        return living_BTD + 0 * dead_BTD, None


def build(config: Wasteful, model: Model) -> nn.Module:
    """The feed-forward of one block."""
    return WastefulFfn(model.width, config.hidden_for(model.width), config.dead)
