"""Readers of formats that text stands in inside Debian packages: SWORD modules, R data, WordNet's files, Perl's POD."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from lmopt.data.archives import deb_members
from lmopt.data.cache import SourceError
from lmopt.data.formats import Passage, text_of
from lmopt.data.html import PARAGRAPH_CHARACTERS

SWORD_ENTRY = struct.Struct("<III")
"""Where a block begins in the text file, its compressed size, its size (zVerse driver, `.bzs` and the like)."""
R_STRINGS, R_STRING = 16, 9
"""Type codes of a character vector and of a string in R's serialisation (R Internals, 1.8)."""
LEAST_LINES = 100
"""A shorter character vector of a data set is a title or a column's name."""
GLOSSES = 25
"""Synsets a document: one alone is a line."""
_POD_ESCAPE = re.compile(r"E<(lt|gt|verbar|sol)>")
_POD_ESCAPES = {"lt": "\ue000", "gt": "\ue001", "verbar": "|", "sol": "/"}
"""Brackets that are text are out of the way while codes are looked for."""
_POD_WIDE = re.compile(r"([A-Z])<<+\s+(.*?)\s+>>+", re.DOTALL)
_POD_CODE = re.compile(r"([A-Z])<([^<>]*)>")
_SHIELD, _SHIELDED = str.maketrans("<>", "\ue000\ue001"), str.maketrans("\ue000\ue001", "<>")


def sword(path: Path) -> Iterator[Passage]:
    """The compressed blocks (books or chapters) of a SWORD module, as a document each, without their mark-up."""
    members = dict(deb_members(path, "usr/share/sword/modules/"))
    for name in sorted(members):
        if found := re.fullmatch(r"(.*\.[bcv]z)s", name):
            text = members.get(f"{found[1]}z", b"")
            for number, (start, size, _) in enumerate(SWORD_ENTRY.iter_unpack(members[name])):
                block = _inflated(text[start : start + size], f"{path.name}:{name}:{number}")
                yield Passage(f"{name}:{number}", _without_markup(text_of(block)), "religion")


def _without_markup(text: str) -> str:
    text = re.sub(r"<(note|title)\b.*?</\1>", " ", text, flags=re.DOTALL)
    text = re.sub(r"<(?:p|br|lb|verse|chapter)\b[^>]*>", "\n", text)
    lines = (re.sub(r"\s+", " ", line).strip() for line in re.sub(r"<[^>]*>", "", text).split("\n"))
    return "\n".join(line for line in lines if line)


def _inflated(data: bytes, where: str) -> bytes:
    try:
        return zlib.decompress(data) if data else b""
    except zlib.error as error:
        raise SourceError(f"{where}: damaged ({error})\nhint: delete the package from the cache") from error


def r_texts(path: Path) -> Iterator[Passage]:
    """Long character vectors of an R package's data sets (lines of books), a document each."""
    for name, data in deb_members(path, "usr/lib/R/", "/Rdata.rdb"):
        start, number = 0, 0
        while start + 4 < len(data):
            stream = zlib.decompressobj()  # behind four bytes that say how long it will be
            content = stream.decompress(data[start + 4 :])
            start, number = len(data) - len(stream.unused_data), number + 1
            lines = _longest_vector(content)
            if len(lines) >= LEAST_LINES:
                yield Passage(f"{name}:{number}", "\n".join(lines), "fiction")


def _longest_vector(content: bytes) -> list[str]:
    """The longest character vector in R's big-endian serialisation of an object."""
    best: list[str] = []
    for found in re.finditer(re.escape(R_STRINGS.to_bytes(4, "big")), content):
        (count,) = struct.unpack_from(">i", content, found.end()) if found.end() + 4 <= len(content) else (0,)
        if count > len(best):
            lines = _strings(content, found.end() + 4, count)
            best = lines if len(lines) == count else best
    return best


def _strings(content: bytes, at: int, count: int) -> list[str]:
    lines: list[str] = []
    while len(lines) < count and at + 8 <= len(content):
        flags, size = struct.unpack_from(">Ii", content, at)
        if flags & 0xFF != R_STRING or size < -1:
            break
        lines.append(text_of(content[at + 8 : at + 8 + max(size, 0)]))
        at += 8 + max(size, 0)
    return lines


def wordnet(path: Path) -> Iterator[Passage]:
    """WordNet's glosses: the words of a synset and what they mean, some synsets a document."""
    for name, content in deb_members(path, "usr/share/wordnet/data."):
        glosses: list[str] = []
        for line in text_of(content).split("\n"):
            facts, bar, gloss = line.partition(" | ")
            fields = facts.split(" ")
            if bar and fields[0].isdigit():
                words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
                glosses.append(f"{', '.join(words).replace('_', ' ')}: {gloss.strip()}")
        for start in range(0, len(glosses), GLOSSES):
            yield Passage(f"{name}:{start}", "\n".join(glosses[start : start + GLOSSES]), "dictionary")


def pod(path: Path) -> Iterator[Passage]:
    """Perl's documentation: its ordinary paragraphs of 80 characters and more, without formatting codes (perlpod)."""
    for name, content in deb_members(path, "usr/share/perl/", ".pod"):
        blocks = re.split(r"\n\s*?\n", text_of(content))
        paragraphs = (_plain_pod(block) for block in blocks if not block.startswith((" ", "\t", "=", "\n")))
        text = "\n\n".join(found for found in paragraphs if len(found) >= PARAGRAPH_CHARACTERS)
        yield Passage(name, text, "technical")


def _plain_pod(block: str) -> str:
    """A paragraph without its formatting codes: B<bold>, L<text|page>, E<lt>; the innermost are taken away first."""
    block = _POD_ESCAPE.sub(lambda code: _POD_ESCAPES[code[1]], block)
    found = 1
    while found:
        block, wide = _POD_WIDE.subn(_meant, block)
        block, narrow = _POD_CODE.subn(_meant, block)
        found = wide + narrow
    return " ".join(block.translate(_SHIELDED).split())


def _meant(code: re.Match[str]) -> str:
    """What a formatting code stands for; index entries and null codes stand for nothing."""
    kind, inside = code.groups()
    if kind in "XZ":
        return ""
    return (inside.partition("|")[0] if kind == "L" else inside).translate(_SHIELD)
