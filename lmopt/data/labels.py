"""Labels that a column gives to documents, as names of domains: a label has one name, and no name two labels."""

from __future__ import annotations

import unicodedata
from typing import Any

from lmopt.data.cache import SourceError

MAX_DOMAINS = 200
"""Different labels of a source: losses are reported for each, and a column with more is an id or a title."""
SHOWN = 5
MAX_CHARACTERS = 64


def as_name(text: str) -> str:
    """Text as a domain is named: small letters, digits, `.`, `_` and `-`, up to 64; empty where nothing is left."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text.lower())
    return name.strip("._-")[:MAX_CHARACTERS]


class Labels:
    """The labels of one source, as they come."""

    def __init__(self, source: str, column: str) -> None:
        self._where = f"{source}: domain_field {column!r}"
        self.names: dict[str, str] = {}
        """Label as it is written -> name of the domain."""
        self._meant: dict[str, str] = {}
        """Name -> the label that had it first."""

    def name(self, label: Any) -> str | None:
        """The domain's name; None where there is no label (null, or white space alone).

        Raises:
            SourceError: what is no label, one of which no name can be made, two that would share one, or too many.
        """
        if label is None or not (text := _text(label)).strip():
            return None
        if (known := self.names.get(text)) is not None:
            return known
        name = as_name(_without_accents(" ".join(text.split())))
        if not name:
            raise SourceError(
                f"{self._where}: no name can be made of the label {text[:MAX_CHARACTERS]!r}\n"
                "hint: names are letters of ASCII, digits, `.`, `_` and `-`; write such a column"
            )
        first = self._meant.setdefault(name, text)
        if _folded(first) != _folded(text):
            raise SourceError(
                f"{self._where}: the labels {first[:MAX_CHARACTERS]!r} and {text[:MAX_CHARACTERS]!r} would both be the "
                f"domain {name!r}\nhint: write a column in which they differ in more than accents and signs"
            )
        self.names[text] = name
        if len(self._meant) > MAX_DOMAINS:
            some = ", ".join(repr(label[:20]) for label in list(self.names)[:SHOWN])
            raise SourceError(
                f"{self._where}: more than {MAX_DOMAINS} different labels ({some}, ...)\n"
                "hint: it looks like an id or a title; name a column with few values, or leave `domain_field` out"
            )
        return name

    def changed(self) -> dict[str, str]:
        """Labels that are not written as the domain's name is."""
        return {label: name for label, name in sorted(self.names.items()) if label != name}


def _text(label: Any) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label)


def _folded(label: str) -> str:
    return " ".join(label.casefold().split())


def _without_accents(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
