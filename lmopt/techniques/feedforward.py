"""Feed-forward layers, dense and sparse, as plain data."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

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
    """Sparsely-gated Mixture-of-Experts: each token goes to its `top_k` experts, none is dropped.

    Shazeer et al. (arXiv 1701.06538), dropless as in MegaBlocks (2211.15841); balance loss
    (E/k) sum_e (n_e/T) mean_t p_te, which is 1 when the load is uniform; router z-loss as in ST-MoE (2202.08906).
    """

    builder: ClassVar[str] = "lmopt.arch.moe:build"
    kind: Literal["moe"] = "moe"
    experts: Annotated[Positive, Field(le=4096)] = 8
    """Number of experts."""
    top_k: Annotated[Positive, Field(le=4096)] = 2
    """Experts each token is sent to."""
    hidden: Annotated[Positive, Field(le=4 * MAX_WIDTH)] | None = None
    """Inner width of one expert. Default: the dense default / `top_k`, so that active parameters match."""
    activation: Literal["swiglu", "relu2"] = "swiglu"
    """Shape of an expert."""
    balance_loss: Annotated[float, Field(ge=0, le=10)] = 0.01
    """Weight of the load-balance loss."""
    z_loss: Annotated[float, Field(ge=0, le=10)] = 0.001
    """Weight of the router z-loss, mean(logsumexp(router logits)^2)."""
    kernel: Literal["auto", "grouped", "loop"] = "auto"
    """`grouped`: one grouped matrix product; `loop`: one product an expert (the reference); `auto`: the faster here."""

    def hidden_for(self, width: int) -> int:
        """Inner width of one expert in a model of this width, rounded up to a multiple of 8 (grouped products)."""
        dense = (SwiGlu() if self.activation == "swiglu" else Relu2()).hidden_for(width)
        return self.hidden or -(-dense // (8 * self.top_k)) * 8

    @model_validator(mode="after")
    def _top_k_fits(self) -> Self:
        if self.top_k > self.experts:
            raise ValueError(f"top_k ({self.top_k}) must not exceed experts ({self.experts})")
        return self


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
