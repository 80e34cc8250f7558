"""What a forward pass keeps for the backward pass, as plain data."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lmopt.techniques.technique import MAX_LAYERS, Positive, Technique


class KeepActivations(Technique):
    """Keep whatever backward needs."""

    builder: ClassVar[str] = "lmopt.compute.activations:keep"
    kind: Literal["keep"] = "keep"


class Recompute(Technique):
    """Keep a block's input only, and compute the block again when backward reaches it (Chen et al., 1604.06174).

    Memory for up to a third more FLOPs; the result is the same to the bit.
    """

    builder: ClassVar[str] = "lmopt.compute.activations:recompute"
    kind: Literal["recompute"] = "recompute"
    every: Annotated[Positive, Field(le=MAX_LAYERS)] = 1
    """One block in so many is computed again, from the first on; 1: all of them."""

    def layers_of(self, layers: int) -> int:
        """How many of a model's blocks are computed again."""
        return -(-layers // self.every)
