"""Packages on PyPI: found by pip and brought without running them, continued where a fetch broke off."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from lmopt.data import clients, sources
from lmopt.data.cache import SourceError
from lmopt.data.download import CHUNK_BYTES

from .webserver import Files, serving


def _local_index(folder: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that pip takes for its only index, with a source archive whose build code leaves a mark."""
    build = f"import pathlib; pathlib.Path({str(marker)!r}).write_text('ran'); from setuptools import setup; setup()\n"
    about = "Metadata-Version: 2.1\nName: texts\nVersion: 1.0\nLicense: CC0-1.0\n"
    files = {"PKG-INFO": about, "setup.py": build, "texts/a.txt": os.urandom(200_000).hex()}
    with tarfile.open(folder / "texts-1.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"texts-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)


def test_pip_finds_a_source_archive_and_nothing_of_it_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "index").mkdir()
    marker = tmp_path / "marker"
    _local_index(tmp_path / "index", marker, monkeypatch)
    found = sources.fetch("pypi:texts==1.0", tmp_path / "cache")
    assert (found.path.name, found.licence) == ("texts-1.0.tar.gz", "CC0-1.0")
    assert found.path.read_bytes() == (tmp_path / "index" / "texts-1.0.tar.gz").read_bytes()
    assert not marker.exists()
    assert not list((tmp_path / "cache" / "pypi").glob("*.partial"))


def _wheel(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("texts/a.txt", os.urandom(400_000))
        about = "Metadata-Version: 2.1\nName: texts\nVersion: 1.0\nLicense: MIT\n"
        archive.writestr("texts-1.0.dist-info/METADATA", about)
    return path.read_bytes()


def _index(files: Files, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server has becomes pip's only index."""
    links = (
        f'<a href="{path}#sha256={hashlib.sha256(body).hexdigest()}">{path[1:]}</a>'
        for path, body in files.content.items()
    )
    files.content["/simple/texts/"] = f"<!DOCTYPE html><html><body>{' '.join(links)}</body></html>".encode()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple/")
    for name in ("PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["texts-1.0-py3-none-any.whl", "texts-1.0.tar.gz"])
def test_a_package_that_is_cut_twice_comes_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if name.endswith(".whl"):
        body = _wheel(tmp_path / name)
    else:
        (tmp_path / "index").mkdir()
        _local_index(tmp_path / "index", tmp_path / "marker", monkeypatch)
        body = (tmp_path / "index" / name).read_bytes()
    files = Files({f"/{name}": body}, breaks=[len(body) // 2, len(body) // 4])
    with serving(files) as address:
        _index(files, address, monkeypatch)
        found = sources.fetch("pypi:texts==1.0", tmp_path / "cache")
    assert found.path.read_bytes() == body
    first, *rest = [asked for path, asked in files.asked if path == f"/{name}"]
    second, third = (int(asked.removeprefix("bytes=").rstrip("-")) for asked in rest if asked)
    assert first is None
    assert 0 <= len(body) // 2 - second < CHUNK_BYTES
    assert 0 <= second + len(body) // 4 - third < CHUNK_BYTES
    assert not list((tmp_path / "cache" / "pypi").glob(".*.partial"))


def test_a_wheel_that_a_killed_fetch_left_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "texts-1.0-py3-none-any.whl"
    body = _wheel(tmp_path / name)
    partial = tmp_path / "cache" / "pypi" / ".texts==1.0.partial"
    partial.mkdir(parents=True)
    (partial / f"{name}.part").write_bytes(body[:30_000])
    files = Files({f"/{name}": body})
    with serving(files) as address:
        _index(files, address, monkeypatch)
        assert sources.fetch("pypi:texts==1.0", tmp_path / "cache").path.read_bytes() == body
    assert (f"/{name}", "bytes=30000-") in files.asked


def test_a_pip_with_other_insides_downloads_the_wheel_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], *, cwd: Path, **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        _wheel(cwd / "texts-1.0-py3-none-any.whl")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(clients, "_by_pip", lambda *_: None)
    monkeypatch.setattr(clients.subprocess, "run", run)
    assert sources.fetch("pypi:texts==1.0", tmp_path).licence == "MIT"
    assert asked[0][1:6] == ["-P", "-m", "pip", "download", "--no-deps"]
    assert asked[0][-1] == "texts==1.0"


def test_a_version_that_is_nowhere_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "index").mkdir()
    _local_index(tmp_path / "index", tmp_path / "marker", monkeypatch)
    with pytest.raises(SourceError, match=r"pypi:texts==2.0(.|\n)*neither a wheel .* nor a source archive(.|\n)*hint:"):
        sources.fetch("pypi:texts==2.0", tmp_path / "cache")
