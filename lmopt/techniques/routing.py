"""How tokens are sent to experts, as plain data: a choice inside the `moe` feed-forward."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lmopt.techniques.technique import Technique

Weight = Annotated[float, Field(ge=0, le=10)]
"""Of a loss that is added to the cross-entropy."""


class Dropless(Technique):
    """The top-k by softmax, none dropped (MegaBlocks, arXiv 2211.15841); even load comes from the balance loss."""

    builder: ClassVar[str] = "lmopt.arch.routing:DroplessRouter"
    kind: Literal["dropless"] = "dropless"


class NoisyTopK(Technique):
    """The top-k of scores with learned Gaussian noise while training (Shazeer et al., arXiv 1701.06538, eq. 3 to 5).

    Even load comes from two losses, the squared coefficients of variation of importance and load (eq. 7 and 11).
    """

    builder: ClassVar[str] = "lmopt.arch.routing:NoisyRouter"
    kind: Literal["noisy"] = "noisy"
    importance_loss: Weight = 0.1
    """Weight of CV(importance)^2, where importance is an expert's sum of gates (0.1: appendix C.1 of the paper)."""
    load_loss: Weight = 0.1
    """Weight of CV(load)^2, where load is the number of tokens an expert can expect, the noise being drawn anew."""


class Switch(Technique):
    """One expert a token and a capacity an expert (Fedus et al., arXiv 2101.03961): what does not fit is dropped.

    A dropped token passes on the residual alone. The capacity holds in training; in evaluation no token is dropped.
    """

    builder: ClassVar[str] = "lmopt.arch.routing:SwitchRouter"
    kind: Literal["switch"] = "switch"
    capacity_factor: Annotated[float, Field(ge=1, le=64)] = 1.25
    """Rows of an expert over its share of an even load (eq. 3); each row is computed, filled or not."""

    def capacity(self, tokens: int, experts: int) -> int:
        """Rows of one expert in a forward pass over so many tokens."""
        return min(tokens, -int(-self.capacity_factor * tokens // experts))


class LossFree(Technique):
    """Even load without a loss (Wang et al., arXiv 2408.15664): a bias an expert joins its score for the choice alone.

    After each step, bias += rate x sign(mean load - load). The biases are part of a checkpoint.
    """

    builder: ClassVar[str] = "lmopt.arch.routing:LossFreeRouter"
    kind: Literal["loss_free"] = "loss_free"
    rate: Annotated[float, Field(ge=0, le=1)] = 1e-3
    """Change of a bias a step (section 4.3: 0.001)."""
    score: Literal["softmax", "sigmoid"] = "softmax"
    """What the bias is added to and the gates are made from; the paper's is the sigmoid."""


Routing = Annotated[Dropless | NoisyTopK | Switch | LossFree, Field(discriminator="kind")]
