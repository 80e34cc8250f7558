"""From a fetched source to documents."""

from __future__ import annotations

import io
import shlex
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lmopt.data import documents
from lmopt.data.archives import is_archive, members
from lmopt.data.cache import Fetched, SourceError, files_of
from lmopt.data.documents import Document
from lmopt.data.formats import ENDINGS, READERS, Passage, ending_of, format_of, opened, text_of
from lmopt.data.labels import Labels, as_name
from lmopt.data.packages import PACKAGES

if TYPE_CHECKING:
    from lmopt.data.spec import SourceOptions

LOOKED_AT_BYTES = 65_536
"""Of a file's beginning, to tell whether it is UTF-8."""
MAX_STRAY = 0.005
"""Share of characters that may be none: text in Latin-1 has more accents than this, damaged UTF-8 fewer."""
FEW_STRAY = 10
"""Characters that may be none in any file, however short."""


def read(fetched: Fetched, options: SourceOptions, labels: Labels | None = None) -> Iterator[Document]:
    """Documents of a source in the order it holds them, up to `limit` bytes of text; empty ones are left out.

    Args:
        labels: learns the labels of `domain_field`.

    Raises:
        SourceError: a file that cannot be read, or without a named field; labels that make no domains; a source
            without a single document.
    """
    taken = 0
    labels = labels or Labels(fetched.source, options.domain_field or "")
    for passage in _passages(fetched, options):
        if options.limit is not None and taken >= options.limit:
            return
        if not passage.text.strip():
            continue
        domain = labels.name(passage.label) or options.domain or passage.domain or _default_domain(fetched)
        document = documents.make(passage.text, domain=domain, source=fetched.source, provenance=passage.where)
        taken += len(document.text.encode())
        yield document
    if not taken:
        unread = ", ".join(f"{number} {ending}" for ending, number in left_out(fetched).items())
        hint = f"read are {', '.join(ENDINGS)}, .gz and .zst too" if unread else "is it empty, or of another format?"
        held = f", only files that are not read: {unread}" if unread else ""
        raise SourceError(f"{fetched.source}: no text was found in it{held}\nhint: {hint}")


def _passages(fetched: Fetched, options: SourceOptions) -> Iterator[Passage]:
    path = fetched.path
    if options.reader == "auto" and fetched.source in PACKAGES:
        yield from PACKAGES[fetched.source].read(path)
    elif is_archive(path) and not fetched.source.startswith("file:"):
        yield from _members(path, options)
    elif path.is_dir():
        for file in files_of(path, follow=True):
            if ending_of(file.name) in ENDINGS:
                yield from _file(file, str(file.relative_to(path)), options)
    else:
        yield from _file(path, path.name, options)


def _file(path: Path, name: str, options: SourceOptions) -> Iterator[Passage]:
    reader = format_of(name) if options.reader == "auto" else options.reader
    if reader != "parquet":
        _refuse_other_encodings(path, name)
    with opened(path) as stream:
        yield from READERS[reader](stream, name, options.field, options.domain_field)


def _refuse_other_encodings(path: Path, name: str) -> None:
    """A stray byte becomes U+FFFD; a file in another encoding than UTF-8 would become a corpus of nonsense.

    Raises:
        SourceError: more than `MAX_STRAY` of the file's beginning is no UTF-8, or null bytes, as in UTF-16.
    """
    with opened(path) as stream:
        start = stream.read(LOOKED_AT_BYTES)
    text, encoding = text_of(start), "UTF-16" if start.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "LATIN1"
    stray = text.count("\ufffd") + text.count("\0")
    if stray > max(FEW_STRAY, MAX_STRAY * len(text)):
        raise SourceError(
            f"{name}: not UTF-8: {stray:,} of the first {len(text):,} characters cannot be read\n"
            f"hint: iconv -f {encoding} -t UTF-8 {shlex.quote(name)} > utf8.txt, with the encoding that it has"
        )


def _members(path: Path, options: SourceOptions) -> Iterator[Passage]:
    """The files of a package that are in the named format."""
    endings = tuple(ending for ending, reader in ENDINGS.items() if reader == options.reader)
    found = False
    for name, content in members(path):
        if name.endswith(endings):
            found = True
            yield from READERS[options.reader](io.BytesIO(content), name, options.field, options.domain_field)
    if not found:
        raise SourceError(f"{path.name}: holds no file that ends in {', '.join(endings)}")


def left_out(fetched: Fetched) -> dict[str, int]:
    """Ending -> files of a folder that are not read, because no reader goes by their names."""
    if not fetched.source.startswith("file:") or not fetched.path.is_dir():
        return {}
    found = Counter(ending_of(file.name) or "no ending" for file in files_of(fetched.path, follow=True))
    return {ending: found[ending] for ending in sorted(found) if ending not in ENDINGS}


def _default_domain(fetched: Fetched) -> str:
    """The source's own name, as a domain label may be written."""
    name = fetched.path.stem if fetched.source.startswith("file:") else fetched.source.partition(":")[2]
    return as_name(name) or "text"
