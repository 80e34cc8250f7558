"""Feed-forward layers, dense and sparse, as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lmopt.quantities import Count
from lmopt.techniques.routing import Dropless, LossFree, NoisyTopK, Routing, Switch, Weight
from lmopt.techniques.technique import MAX_WIDTH, Positive, Technique


class SwiGlu(Technique):
    """Gated feed-forward, silu(x W_gate) * (x W_up) W_down (Shazeer, arXiv 2002.05202)."""

    builder: ClassVar[str] = "lmopt.arch.ffn:build"
    kind: Literal["swiglu"] = "swiglu"
    hidden: Annotated[Positive, Field(le=4 * MAX_WIDTH)] | None = None
    """Inner width. Default: 8/3 of the model's width, rounded up to a multiple of 32."""

    def hidden_for(self, width: int) -> int:
        """Inner width in a model of this width."""
        return self.hidden or -(-8 * width // (3 * 32)) * 32


class Relu2(Technique):
    """Squared-ReLU feed-forward, relu(x W_up)^2 W_down (So et al., arXiv 2109.08668)."""

    builder: ClassVar[str] = "lmopt.arch.ffn:build"
    kind: Literal["relu2"] = "relu2"
    hidden: Annotated[Positive, Field(le=4 * MAX_WIDTH)] | None = None
    """Inner width. Default: 4 x the model's width."""

    def hidden_for(self, width: int) -> int:
        """Inner width in a model of this width."""
        return self.hidden or 4 * width


class Moe(Technique):
    """Sparsely-gated Mixture-of-Experts (Shazeer et al., arXiv 1701.06538): each token goes to its `top_k` experts.

    Balance loss (E/k) sum_e (n_e/T) mean_t p_te, which is 1 when the load is uniform (Switch, 2101.03961, eq. 4);
    router z-loss as in ST-MoE (2202.08906, eq. 5); many small experts and shared ones as in DeepSeekMoE (2401.06066).
    """

    builder: ClassVar[str] = "lmopt.arch.moe:build"
    shown: ClassVar[tuple[str, ...]] = ("experts", "top_k")
    kind: Literal["moe"] = "moe"
    experts: Annotated[Positive, Field(le=4096)] = 8
    """Number of experts that tokens are sent to."""
    top_k: Annotated[Positive, Field(le=4096)] = 2
    """Experts each token is sent to."""
    shared: Annotated[Count, Field(le=4096)] = 0
    """Experts that every token visits besides (DeepSeekMoE, section 3.2)."""
    hidden: Annotated[Positive, Field(le=4 * MAX_WIDTH)] | None = None
    """Inner width of one expert. Default: the dense default / `split`."""
    split: Annotated[Positive, Field(le=4096)] | None = None
    """Experts that are as wide together as a dense layer by default. Default: `top_k` + `shared`, so that active
    parameters match the dense layer's; the number of `experts` makes the total match, 1 makes each a dense layer."""
    activation: Literal["swiglu", "relu2"] = "swiglu"
    """Shape of an expert."""
    routing: Routing = Dropless()
    """How experts are chosen and their load kept even."""
    normalise: bool | None = None
    """Whether a token's gates are made to sum to 1. Default: where there are several, as in Mixtral (2401.04088)."""
    balance_loss: Weight | None = None
    """Weight of the load-balance loss. Default: 0.01, and 0 where `routing` has means of its own."""
    z_loss: Weight | None = None
    """Weight of mean(logsumexp(router logits)^2). Default: 0.001, and 0 where `routing` has means of its own."""
    kernel: Literal["auto", "grouped", "loop"] = "auto"
    """`grouped`: products over rows sorted by expert; `loop`: one expert after the other (the reference); `auto`: a
    kernel in C++ where bfloat16 trains on a CPU that can compile and run it, `grouped` elsewhere."""

    def hidden_for(self, width: int) -> int:
        """Inner width of one expert in a model of this width, rounded up to a multiple of 8 (grouped products)."""
        dense = (SwiGlu() if self.activation == "swiglu" else Relu2()).hidden_for(width)
        return self.hidden or -(-dense // (8 * (self.split or self.top_k + self.shared))) * 8

    @property
    def gates_sum_to_one(self) -> bool:
        """`normalise`, with the default filled in."""
        return self.top_k > 1 if self.normalise is None else self.normalise

    @property
    def balance_weight(self) -> float:
        """`balance_loss`, with the default filled in."""
        return self._default(0.01) if self.balance_loss is None else self.balance_loss

    @property
    def z_weight(self) -> float:
        """`z_loss`, with the default filled in."""
        return self._default(0.001) if self.z_loss is None else self.z_loss

    def _default(self, weight: float) -> float:
        return 0.0 if isinstance(self.routing, NoisyTopK | LossFree) else weight

    def misfits(self) -> Iterator[str]:
        if self.top_k > self.experts:
            yield f"top_k ({self.top_k}) must not exceed experts ({self.experts})"
        if self.hidden and self.split:
            yield f"split ({self.split}) and hidden ({self.hidden}) both set the width of an expert: give one"
        if isinstance(self.routing, Switch):
            if self.top_k > 1:
                yield f"top_k ({self.top_k}) must be 1 with switch routing"
            if self.kernel == "loop":
                yield "kernel (loop) computes no empty rows, which a capacity has: switch routing needs grouped or auto"


class Wasteful(Technique):
    """SwiGLU beside a dead branch, whose output is computed and thrown away. For self-tests of the harness only.

    The branch costs FLOPs and time and changes neither the loss nor any gradient: an arm without it saves a share that
    is known in advance.
    """

    builder: ClassVar[str] = "lmopt.arch.wasteful:build"
    kind: Literal["wasteful"] = "wasteful"
    hidden: Annotated[Positive, Field(le=4 * MAX_WIDTH)] | None = None
    """Inner width of the living branch. Default: as `swiglu`."""
    dead: Annotated[Positive, Field(le=4 * MAX_WIDTH)]
    """Inner width of the dead branch."""

    def hidden_for(self, width: int) -> int:
        """Inner width of the living branch in a model of this width."""
        return SwiGlu(hidden=self.hidden).hidden_for(width)
