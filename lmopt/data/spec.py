"""What a corpus is made of: its sources, its validation sets and its tokenizer, as plain frozen data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from lmopt.data.formats import READERS, WITHOUT_FIELDS, format_of
from lmopt.data.packages import PACKAGES
from lmopt.data.recipes import RECIPES
from lmopt.data.sources import Source, SourceError, parse
from lmopt.quantities import Bytes, Count, Share, Whole
from lmopt.recipe import Plain

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
MIN_VOCAB = 257
"""256 bytes and the end-of-text token."""
MAX_VOCAB = 1_000_000

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


def _checked_source(text: str) -> str:
    try:
        parse(text)
    except SourceError as error:
        raise ValueError(str(error)) from error
    return text


SourceText = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_checked_source)]


class SourceOptions(Plain):
    """A source of text and how to read it."""

    source: SourceText
    """`hf:OWNER/NAME`, `file:PATH`, `pypi:NAME==VERSION`, `npm:NAME@VERSION`, `deb:NAME`, `stdlib:` or `hub:NAME`."""
    reader: Literal["auto", "txt", "jsonl", "csv", "parquet", "html"] = "auto"
    """Format of the text; `auto` goes by the package's name or the file's ending."""
    field: Annotated[str, Field(min_length=1, max_length=200)] = "text"
    """Column or key that holds the text (jsonl, csv, parquet, hf)."""
    domain: Name | None = None
    """Label of all documents; default: what the reader knows, or the source's name."""
    domain_field: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Column or key that holds each document's label (jsonl, csv, parquet, hf); one without has `domain`."""
    limit: Bytes | None = None
    """Stop after this many bytes of text (required for `hf:`)."""

    @model_serializer(mode="wrap")
    def _as_before(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without labels from a field it is what it was before there could be any: so are its hashes."""
        return {key: value for key, value in whole(self).items() if key != "domain_field" or value is not None}

    def misfits(self) -> Iterator[str]:
        source = parse(self.source)
        if self.domain_field is not None and not _has_fields(source, self.reader):
            yield f"domain_field: the documents of {self.source} are read without columns or keys; use `domain`"
        if self.domain_field == self.field:
            yield f"domain_field ({self.domain_field}) must be another than the field of the text"
        if source.scheme == "hf" and self.limit is None:
            yield f"{self.source}: a hub data set needs a `limit`, for example `limit: 200MB`"
        if not _has_reader(source, self.reader):
            yield (
                f"{self.source}: no reader is known for this package; "
                f"known: {', '.join(sorted(PACKAGES))}. hint: name its format with `reader: {' | '.join(READERS)}`"
            )


def _has_reader(source: Source, reader: str) -> bool:
    return reader != "auto" or source.scheme in ("hf", "file") or source.label in PACKAGES


def _has_fields(source: Source, reader: str) -> bool:
    """Whether documents come as rows; true of what only opening it can tell."""
    if reader != "auto":
        return reader not in WITHOUT_FIELDS
    if source.scheme == "file":
        try:
            return format_of(source.name) not in WITHOUT_FIELDS
        except SourceError:  # a folder, or what another check refuses
            return True
    return source.scheme == "hf"


class CorpusSource(SourceOptions):
    """One part of the training text."""


def _from_string(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


class _OrString:
    """Tells the JSON Schema that a bare string is accepted too."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler(core)]}


def _from_name(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in RECIPES:
        raise ValueError(
            f"no corpus is known as {value!r}; known: {', '.join(RECIPES)}. hint: a source stands in a list"
        )
    return RECIPES[value]


class _OrName:
    """Tells the JSON Schema that the name of a known corpus is accepted too."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"enum": list(RECIPES)}, handler(core)]}


class Holdout(Plain):
    """Documents held out of the corpus itself, chosen by the hash of their text."""

    kind: Literal["holdout"] = "holdout"
    name: Name = "holdout"
    """Name of the validation set."""
    share: Annotated[Share, Field(gt=0, le=0.5)] = 0.02
    """Share of the distinct documents that are held out."""
    domains: dict[Name, Annotated[Share, Field(gt=0, le=0.5)]] = Field(default_factory=dict[str, float])
    """Other shares for some domains: a small one needs a larger share to be measured on."""

    @model_serializer(mode="wrap")
    def _as_written(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without shares of its own for any domain it is what it was before there could be any: so are its hashes."""
        return {key: value for key, value in whole(self).items() if key != "domains" or value}

    def share_of(self, domain: str) -> float:
        """The share of a domain's documents that is held out."""
        return self.domains.get(domain, self.share)


class ValidationSource(SourceOptions):
    """A validation set from a source of its own; all of it is held out."""

    kind: Literal["source"] = "source"
    name: Name
    """Name of the validation set."""


Validation = Annotated[Holdout | ValidationSource, Field(discriminator="kind")]


class Bpe(Plain):
    """Byte-level byte-pair encoding trained on the training text only (Sennrich et al., arXiv 1508.07909)."""

    kind: Literal["bpe"] = "bpe"
    vocab: Annotated[Whole, Field(ge=MIN_VOCAB, le=MAX_VOCAB)] = 2048
    """Size of the vocabulary: 256 bytes, the end-of-text token and merges."""
    sample: Bytes = 16_000_000
    """Bytes of training text, chosen by document hash, that the merges are learnt from."""


class GivenTokenizer(Plain):
    """A tokenizer that is there already: the one of the checkpoint that a suite takes its model from."""

    kind: Literal["given"] = "given"
    file: Annotated[str, Field(min_length=1, max_length=500)]
    """Its `tokenizer.json`."""
    vocab: Annotated[Whole, Field(ge=1, le=16_777_216)]
    """Size of the model's vocabulary, which may be larger than the tokenizer's."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the file."""


Tokenizer = Annotated[Bpe | GivenTokenizer, Field(discriminator="kind")]


def _trained_unless_given(value: Any) -> Any:
    return {"kind": "bpe", **value} if isinstance(value, Mapping) else value


class Decontaminate(Plain):
    """Cuts out what training text shares with other sets, by GPT-3's rule (arXiv 2005.14165, appendix C)."""

    ngram: Annotated[Whole, Field(gt=0, le=100)] = 13
    """Words that must agree (appendix C: 13)."""
    shortest: Annotated[Whole, Field(gt=0, le=100)] = 8
    """Texts of fewer words than `ngram` are protected whole from this many words on (appendix C: 8)."""
    side: Annotated[Count, Field(le=1_000_000)] = 200
    """Characters cut on either side of a match (appendix C: 200)."""
    shortest_piece: Annotated[Count, Field(le=1_000_000)] = 200
    """What is left between cuts goes too if it has fewer characters (appendix C: 200)."""
    most_cuts: Annotated[Count, Field(le=1_000_000)] = 10
    """A document with more cuts is dropped whole (appendix C: 10)."""


class Data(Plain):
    """A corpus: where its text comes from, what is held out, how it is cut into tokens."""

    corpus: Annotated[
        tuple[Annotated[CorpusSource, BeforeValidator(_from_string), _OrString()], ...],
        Field(min_length=1),
        BeforeValidator(_from_name),
        _OrName(),
    ]
    """Sources of the training text, in order; a bare string stands for a source with its defaults. Or the name of a
    list that is known here: `mixed`, `broad`."""
    validation: Annotated[tuple[Validation, ...], Field(min_length=1)] = (Holdout(),)
    """Validation sets. Training documents that duplicate one of their documents are always dropped."""
    tokenizer: Annotated[Tokenizer, BeforeValidator(_trained_unless_given)] = Bpe()
    """The tokenizer, trained on the training text."""
    decontaminate: Decontaminate | None = Decontaminate()
    """Cuts what training text shares with the validation sets and the suite's tasks; null leaves it in."""

    def misfits(self) -> Iterator[str]:
        names = [entry.name for entry in self.validation]
        if len(set(names)) < len(names):
            yield f"validation sets must have different names, got {', '.join(names)}"
        if sum(entry.kind == "holdout" for entry in self.validation) > 1:
            yield "at most one validation set of kind holdout"
