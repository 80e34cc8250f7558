"""What training text goes through before it is tokenised, as plain data."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lmopt.quantities import Share
from lmopt.techniques.technique import Positive, Technique


class ExactDedup(Technique):
    """Drop every document whose normalised text was seen before, across sources."""

    builder: ClassVar[str] = "lmopt.data.dedup:exact"
    kind: Literal["exact_dedup"] = "exact_dedup"


class NearDedup(Technique):
    """Drop near-duplicates: MinHash over word n-grams, banded (Broder 1997; FineWeb's 14 x 8, arXiv 2406.17557)."""

    builder: ClassVar[str] = "lmopt.data.dedup:near"
    kind: Literal["near_dedup"] = "near_dedup"
    ngram: Annotated[Positive, Field(le=100)] = 5
    """Words a shingle."""
    bands: Annotated[Positive, Field(le=1000)] = 14
    """Bands of the locality-sensitive hash."""
    rows: Annotated[Positive, Field(le=100)] = 8
    """Hashes a band."""
    verify: Share | None = None
    """Also require this estimated Jaccard similarity before a document is dropped; null trusts the bands."""
