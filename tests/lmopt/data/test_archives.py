"""A damaged archive is said to be one, whatever its bytes do to the decompressor."""

from __future__ import annotations

import io
import random
import tarfile
import zipfile
from pathlib import Path

import pytest

from lmopt.data.archives import members
from lmopt.data.cache import SourceError

CONTENT = {f"{number}.txt": random.Random(number).randbytes(3000).hex().encode() for number in range(3)}


def packed(path: Path) -> bytes:
    """The bytes of an archive of the kind that the path's ending names."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in CONTENT.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, f"w:{path.suffix[1:]}") as archive:  # pyright: ignore
            for name, content in CONTENT.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar.xz", "a.tar.bz2"])
def test_no_damage_ends_in_another_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    whole = packed(path)
    assert dict(members(path)) == CONTENT
    draw, refused = random.Random(0), 0
    for _ in range(60):
        harmed = bytearray(whole)
        for _ in range(3):
            harmed[draw.randrange(len(harmed))] ^= 1 << draw.randrange(8)
        path.write_bytes(harmed if draw.random() < 0.5 else harmed[: draw.randrange(1, len(harmed))])
        try:
            list(members(path))
        except SourceError as error:
            refused += "damaged archive" in str(error)
    assert refused > 20


def debian(data: bytes, ending: str, length: str | None = None) -> bytes:
    """A Debian package that holds one data archive."""
    head = f"{'data.tar.' + ending:<16}{'0':<12}{'0':<6}{'0':<6}{'644':<8}{length or len(data):<10}`\n"
    return b"!<arch>\n" + head.encode() + data


@pytest.mark.parametrize("what", ["length", "zstd", "password", "name", "place"])
def test_what_libraries_say_of_it_in_other_words_is_damage_too(what: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.deb" if what in ("length", "zstd") else "a.zip")
    if what == "length":
        path.write_bytes(debian(b"", "xz", "4 \u00f6"))
    elif what == "zstd":
        path.write_bytes(debian(b"\x28\xb5\x2f\xfd no zstd", "zst"))
    else:
        whole = bytearray(packed(path))
        entry = whole.rindex(b"PK\x01\x02")  # the last member's, in the directory at the end
        end = whole.rindex(b"PK\x05\x06")
        if what == "password":
            whole[entry + 8] |= 1
        elif what == "name":
            whole[entry + 9] |= 8  # UTF-8, which 0xff is not
            whole[entry + 46] = 0xFF
        else:
            whole[end + 16 : end + 20] = b"\xff\xff\xff\x7f"
        path.write_bytes(whole)
    with pytest.raises(SourceError, match="damaged archive"):
        list(members(path))
