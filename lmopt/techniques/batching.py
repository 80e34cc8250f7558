"""How steps are filled with tokens, as plain data."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from lmopt.techniques.technique import MAX_CONTEXT, Positive, Technique


class FixedBatch(Technique):
    """The same number of sequences of the same length at every step."""

    builder: ClassVar[str] = "lmopt.data.batches:build"
    kind: Literal["fixed"] = "fixed"
    sequences: Annotated[Positive, Field(le=2**24)] = 16
    """Sequences a step (the global batch)."""
    length: Annotated[Positive, Field(le=MAX_CONTEXT)] = 256
    """Tokens a sequence."""
    micro_sequences: Annotated[Positive, Field(le=2**24)] | None = None
    """Sequences a forward pass; gradients accumulate over sequences / micro_sequences passes. Default: all at once."""

    @model_validator(mode="after")
    def _micro_divides(self) -> Self:
        if self.micro_sequences and self.sequences % self.micro_sequences:
            raise ValueError(f"micro_sequences ({self.micro_sequences}) must divide sequences ({self.sequences})")
        return self

    @property
    def tokens(self) -> int:
        """Tokens a step."""
        return self.sequences * self.length
