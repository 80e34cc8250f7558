"""What training text goes through before it is tokenised, as plain data."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lmopt.quantities import Bytes, Count, Share
from lmopt.techniques.technique import Positive, Technique


class ExactDedup(Technique):
    """Drop every document whose normalised text was seen before, across sources."""

    builder: ClassVar[str] = "lmopt.data.dedup:exact"
    kind: Literal["exact_dedup"] = "exact_dedup"


class NearDedup(Technique):
    """Drop near-duplicates: SuperMinHash over word n-grams, banded (arXiv 1706.05698; FineWeb's 14 x 8, 2406.17557)."""

    builder: ClassVar[str] = "lmopt.data.dedup:near"
    kind: Literal["near_dedup"] = "near_dedup"
    ngram: Annotated[Positive, Field(le=100)] = 5
    """Words a shingle."""
    bands: Annotated[Positive, Field(le=1000)] = 14
    """Bands of the locality-sensitive hash."""
    rows: Annotated[Positive, Field(le=100)] = 8
    """Hashes a band."""
    verify: Share | None = None
    """Also require this Jaccard similarity of the n-grams themselves, compared exactly; null trusts the bands."""


class SubstringDedup(Technique):
    """Cut out spans that occurred before in the corpus, word for word (Lee et al., arXiv 2107.06499, section 4.1)."""

    builder: ClassVar[str] = "lmopt.data.substring:substring"
    kind: Literal["substring_dedup"] = "substring_dedup"
    words: Annotated[Positive, Field(le=10_000)] = 50
    """Shortest span that is cut, in words (section 4.1: 50 tokens)."""
    min_words: Count = 1
    """A document with fewer words left is dropped."""


class NgramOverlap(Technique):
    """Drop documents whose n-grams were mostly seen before, in documents that were kept or in themselves."""

    builder: ClassVar[str] = "lmopt.data.overlap:overlap"
    kind: Literal["ngram_overlap"] = "ngram_overlap"
    ngram: Annotated[Positive, Field(le=100)] = 13
    """Words an n-gram (DataComp-LM, arXiv 2406.11794, appendix L: 13)."""
    max_seen: Share | None = 0.8
    """Largest share of a document's distinct n-grams that kept documents have (DataComp-LM, appendix L: 0.8)."""
    max_repeated: Share | None = 0.1
    """Largest share of its n-grams that repeat one of its own (Gopher, arXiv 2112.11446, Table A1: 0.10)."""
    table: Bytes = 64 * 2**20
    """Bytes of the table of n-grams, rounded down to a power of two; 11 bits are needed for each n-gram kept."""
