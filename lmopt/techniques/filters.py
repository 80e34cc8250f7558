"""Filters of training text by rule and by classifier, as plain data; every threshold is a knob, null switches it off.

Defaults are the papers' and, where code and paper differ, those of datatrove 0.10, whose decisions these filters give.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lmopt.quantities import Count, Share
from lmopt.techniques.technique import Positive, Technique

CLASSIFIERS = "lmbench.classifiers"
"""The group of entry points by which an installed package offers classifiers."""

Amount = Annotated[float, Field(ge=0, le=1e6)]
Ngram = Annotated[Positive, Field(le=100)]


class GopherQuality(Technique):
    """Gopher's quality rules (Rae et al., arXiv 2112.11446, appendix A.1.1)."""

    builder: ClassVar[str] = "lmopt.data.gopher:quality"
    kind: Literal["gopher_quality"] = "gopher_quality"
    min_words: Count | None = 50
    """Least words that are not mere punctuation (A.1.1: 50)."""
    max_words: Count | None = 100_000
    """Most words (A.1.1: 100,000)."""
    min_word_length: Amount | None = 3
    """Least mean length of a word in characters (A.1.1: 3)."""
    max_word_length: Amount | None = 10
    """Largest mean length of a word in characters (A.1.1: 10)."""
    max_symbols: Amount | None = 0.1
    """Most hash signs, and most ellipses, a word (A.1.1: 0.1)."""
    max_bullets: Share | None = 0.9
    """Largest share of lines that start with a bullet (A.1.1: 90%)."""
    max_ellipses: Share | None = 0.3
    """Largest share of lines that end with an ellipsis (A.1.1: 30%)."""
    min_alphabetic: Share | None = 0.8
    """Least share of words with a letter (A.1.1: 80%)."""
    min_stop_words: Count | None = 2
    """Least number of different stop words (A.1.1: two)."""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """The stop words, matched as written (A.1.1)."""


class GopherRepetition(Technique):
    """Gopher's rules against repetition within a document (Rae et al., arXiv 2112.11446, Table A1)."""

    builder: ClassVar[str] = "lmopt.data.repetition:repetition"
    kind: Literal["gopher_repetition"] = "gopher_repetition"
    lines: Share | None = 0.3
    """Largest share of lines that repeat an earlier one (Table A1: 0.30)."""
    paragraphs: Share | None = 0.3
    """Largest share of paragraphs that repeat an earlier one (Table A1: 0.30)."""
    line_characters: Share | None = 0.2
    """Largest share of characters in such lines (Table A1: 0.20)."""
    paragraph_characters: Share | None = 0.2
    """Largest share of characters in such paragraphs (Table A1: 0.20)."""
    top_ngrams: tuple[tuple[Ngram, Share], ...] = ((2, 0.2), (3, 0.18), (4, 0.16))
    """(n, largest share of characters in the commonest n-gram) (Table A1: 0.20, 0.18, 0.16)."""
    duplicate_ngrams: tuple[tuple[Ngram, Share], ...] = (
        (5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1),
    )  # fmt: skip
    """(n, largest share of characters in n-grams that repeat an earlier one) (Table A1: 0.15 down to 0.10)."""


class C4(Technique):
    """The rules of C4 (Raffel et al., JMLR 21:140, section 2.2): lines are cut out, pages dropped.

    Without the paper's list of bad words. A page that stays has lost the lines that break a rule.
    """

    builder: ClassVar[str] = "lmopt.data.c4:c4"
    kind: Literal["c4"] = "c4"
    terminal_punctuation: bool = True
    """Keep only lines that end in a full stop, question or exclamation mark or a quotation mark (section 2.2)."""
    min_words_per_line: Count = 3
    """Least words of a line (section 2.2: 3); 0 keeps all."""
    min_sentences: Count = 5
    """Least sentences of what is left of a page (section 2.2: 5); 0 keeps all."""
    max_word_length: Positive | None = 1000
    """Lines with a longer word are cut out (c4_utils.py of tensorflow_datasets: 1000)."""
    lorem_ipsum: bool = True
    """Drop pages with "lorem ipsum" (section 2.2)."""
    curly_bracket: bool = True
    """Drop pages with a curly bracket (section 2.2)."""
    javascript: bool = True
    """Cut out lines with the word Javascript (section 2.2)."""
    policy: bool = True
    """Cut out lines of terms of use and cookie notices (section 2.2)."""
    citations: bool = True
    """Take citation marks such as [1] or [edit] out of lines (section 2.2)."""


class FineWeb(Technique):
    """FineWeb's own rules (Penedo et al., arXiv 2406.17557, section 3.6), thresholds as in datatrove."""

    builder: ClassVar[str] = "lmopt.data.fineweb:fineweb"
    kind: Literal["fineweb"] = "fineweb"
    min_punctuated_lines: Share | None = 0.12
    """Least share of lines that end in terminal punctuation (section 3.6: 0.12)."""
    max_short_lines: Share | None = 0.67
    """Largest share of short lines (section 3.6: 0.67)."""
    short_line: Count = 30
    """Characters of a line that counts as short (section 3.6: 30)."""
    max_duplicate_characters: Share | None = 0.01
    """Largest share of characters in repeated lines (datatrove: 0.01; section 3.6 says 0.1)."""
    max_newlines: Amount | None = 0.3
    """Most line feeds a word (datatrove: 0.3; not in the paper)."""


class Language(Technique):
    """Text in one language, told by its commonest function words: crude, needs no model, for texts of 20 words or more.

    The share of a language is that of its words in `lmopt.data.language.FUNCTION_WORDS` among all words. For anything
    finer name a model by `classifier`.
    """

    builder: ClassVar[str] = "lmopt.data.language:language"
    kind: Literal["language"] = "language"
    language: Literal["de", "en", "es", "fr", "it", "nl", "pt"] = "en"
    """The language that is kept (ISO 639-1)."""
    min_share: Share = 0.15
    """Least share of words that are function words of it; no other language may have a larger one."""


class Classifier(Technique):
    """Drop texts that a function scores below a threshold: for quality, language or whatever it measures."""

    builder: ClassVar[str] = "lmopt.data.classifier:classifier"
    kind: Literal["classifier"] = "classifier"
    function: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$|^[a-z0-9][a-z0-9._-]*$")]
    """`module:function`, or an entry point in the group `lmbench.classifiers`: texts -> one score a text."""
    min_score: Annotated[float, Field(ge=-1e9, le=1e9)]
    """Texts with a lower score are dropped."""
