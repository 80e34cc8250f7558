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
