"""How text is generated, as plain data."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lmopt.quantities import Share
from lmopt.techniques.technique import Plain, Positive

Temperature = Annotated[float, Field(ge=0, le=100)]


class Sampling(Plain):
    """How a token is drawn from logits: temperature first, then `top_k`, then `top_p` (Hugging Face's order)."""

    temperature: Temperature = 0.0
    """Logits are divided by it; 0 takes the likeliest token (the lowest id among equals)."""
    top_k: Annotated[Positive, Field(le=16_777_216)] | None = None
    """Only this many likeliest tokens stay, and those that tie with the last of them; null keeps all."""
    top_p: Annotated[Share, Field(gt=0)] | None = None
    """Only the fewest likeliest tokens whose probabilities reach this sum stay (Holtzman et al., 1904.09751)."""

    @property
    def greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature == 0
