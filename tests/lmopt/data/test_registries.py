"""Packages of npm and Debian, and data sets of the hub: continued where they were cut, by whatever the client named."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmopt.data import download, hubtext, sources
from lmopt.data.cache import SourceError

from .webserver import Files, serving


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAUSE_S", "SHORT_PAUSE_S"):
        monkeypatch.setattr(download, name, 0.0)


def _tarball() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in (("package/package.json", b'{"license": "CC0-1.0"}'), ("package/a", os.urandom(50_000))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


BODY = _tarball()


def _program(folder: Path, name: str, answers: dict[str, str]) -> Path:
    """A program that prints what goes with its first known argument, and notes what it was asked."""
    folder.mkdir(exist_ok=True)
    log = folder / f"{name}.log"
    text = (
        f"#!{sys.executable}\nimport json, pathlib, sys\n"
        f"with open({str(log)!r}, 'a') as log:\n    log.write(' '.join(sys.argv[1:]) + '\\n')\n"
        f"for word, answer in {answers!r}.items():\n    if word in sys.argv:\n        exec(answer)\n        break\n"
    )
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
    log.touch()
    return log


def _brings(name: str, content: bytes) -> str:
    """Code of a program that fetches by itself."""
    return f"pathlib.Path({name!r}).write_bytes({content!r})"


@contextmanager
def _registry(scheme: str, files: Files, folder: Path, monkeypatch: pytest.MonkeyPatch, **said: Any) -> Iterator[Path]:
    """npm or apt-get that name a server of ours; the log of what they were asked."""
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    with serving(files) as address:
        if scheme == "npm":
            coded = base64.b64encode(hashlib.sha512(BODY).digest()).decode()
            dist = {"tarball": f"{address}/x-1.0.0.tgz", "integrity": f"sha512-{coded}", "shasum": "0" * 40, **said}
            by_itself = _brings("x-1.0.0.tgz", b"by npm" if said.get("fails") else BODY)
            yield _program(folder, "npm", {"view": f"print({json.dumps(dist)!r})", "pack": by_itself})
        else:
            line = f"'{address}/x_1.0_all.deb' x_1.0_all.deb {len(BODY)} SHA256:{hashlib.sha256(BODY).hexdigest()}"
            by_itself = _brings("x_1.0_all.deb", BODY)
            yield _program(
                folder, "apt-get", {"--print-uris": f"print({said.get('line', line)!r})", "download": by_itself}
            )


LABELS = {"npm": ("npm:x@1.0.0", "/x-1.0.0.tgz", "CC0-1.0"), "deb": ("deb:xx", "/x_1.0_all.deb", None)}


@pytest.mark.parametrize("scheme", ["npm", "deb"])
def test_a_package_that_is_cut_twice_comes_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    label, path, licence = LABELS[scheme]
    files = Files({path: BODY}, breaks=[20_000, 1])
    with _registry(scheme, files, tmp_path / "bin", monkeypatch) as log:
        found = sources.fetch(label, tmp_path / "cache")
    assert found.path.read_bytes() == BODY
    assert found.licence == licence
    assert [asked for _, asked in files.asked] == [None, "bytes=20000-", "bytes=20001-"]
    assert len(log.read_text().splitlines()) == 1, "nothing was fetched by the client itself"
    assert [entry.name for entry in (tmp_path / "cache" / scheme).iterdir() if entry.is_dir()] == [
        found.path.parent.name
    ]


@pytest.mark.parametrize("scheme", ["npm", "deb"])
def test_a_fetch_that_gave_up_is_continued_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    label, path, _ = LABELS[scheme]
    files = Files({path: BODY}, breaks=[30_000, *[0] * 5])
    with _registry(scheme, files, tmp_path / "bin", monkeypatch):
        with pytest.raises(SourceError, match=r"stopped at 30,000 bytes(.|\n)*hint: .*continues at 0 MB"):
            sources.fetch(label, tmp_path / "cache")
        files.asked.clear()
        assert sources.fetch(label, tmp_path / "cache").path.read_bytes() == BODY
    assert files.asked == [(path, "bytes=30000-")]


@pytest.mark.parametrize("scheme", ["npm", "deb"])
def test_a_package_that_changed_since_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    label, path, _ = LABELS[scheme]
    files = Files({path: bytes(reversed(BODY))}, breaks=[30_000])
    files.after = lambda: files.content.update({path: BODY})
    with _registry(scheme, files, tmp_path / "bin", monkeypatch):
        assert sources.fetch(label, tmp_path / "cache").path.read_bytes() == BODY


@pytest.mark.parametrize("scheme", ["npm", "deb"])
@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_asks_who_one_is_is_left_to_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, status: int
) -> None:
    label, path, _ = LABELS[scheme]
    with _registry(scheme, Files({path: BODY}, status=status), tmp_path / "bin", monkeypatch) as log:
        assert sources.fetch(label, tmp_path / "cache").path.read_bytes() == BODY
    assert len(log.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "said",
    [
        {"tarball": "file:///etc/passwd"},
        {"tarball": "http://127.0.0.1/..", "integrity": "sha512-AAAA"},
        {"integrity": "md5-AAAA"},
        {"integrity": "sha512-%%"},
        {"integrity": None, "shasum": None},
    ],
)
def test_what_npm_names_without_an_address_or_a_hash_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, Any]
) -> None:
    files = Files({"/x-1.0.0.tgz": BODY})
    with _registry("npm", files, tmp_path / "bin", monkeypatch, **said) as log:
        assert sources.fetch("npm:x@1.0.0", tmp_path / "cache").path.read_bytes() == BODY
    assert "pack" in log.read_text()
    assert not files.asked


def test_an_apt_source_that_is_no_http_is_left_to_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"'file:/srv/x_1.0_all.deb' x_1.0_all.deb 3 SHA256:{'0' * 64}"
    with _registry("deb", Files({}), tmp_path / "bin", monkeypatch, line=line) as log:
        found = sources.fetch("deb:xx", tmp_path / "cache")
    assert (found.version, found.path.read_bytes()) == ("1.0", BODY)
    assert len(log.read_text().splitlines()) == 2


def test_the_weaker_hash_serves_where_npm_states_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files({"/x-1.0.0.tgz": BODY}, breaks=[5])
    said = {"integrity": None, "shasum": hashlib.sha1(BODY).hexdigest()}
    with _registry("npm", files, tmp_path / "bin", monkeypatch, **said):
        assert sources.fetch("npm:x@1.0.0", tmp_path / "cache").path.read_bytes() == BODY
    assert len(files.asked) == 2


# --- the Hugging Face hub ------------------------------------------------------------------------


class Stream:
    """Rows that break off at a row, once a number; it can say where it stands, or skip."""

    def __init__(self, rows: list[dict[str, Any]], breaks: list[int], *, states: bool, log: list[str]) -> None:
        self.rows, self.breaks, self.log, self.at = rows, breaks, log, 0
        if states:
            self.state_dict = lambda: {"at": self.at}
            self.load_state_dict = self._load

    def _load(self, state: dict[str, int]) -> None:
        self.at = state["at"]
        self.log.append(f"load {self.at}")

    def skip(self, count: int) -> Stream:
        self.at = count
        self.log.append(f"skip {count}")
        return self

    def __iter__(self) -> Iterator[dict[str, Any]]:
        until = self.breaks.pop(0) if self.breaks else len(self.rows)
        while self.at < len(self.rows):
            if self.at == until:
                raise RuntimeError("the connection was reset")
            self.at += 1
            yield self.rows[self.at - 1]


ROWS = [{"body": f"text {number} of the body"} for number in range(500)]


def _hub(
    monkeypatch: pytest.MonkeyPatch, breaks: list[int], *, states: bool = True, revision: str = "abc"
) -> list[str]:
    log: list[str] = []
    monkeypatch.setattr(hubtext, "CHECKPOINT_BYTES", 1000)
    info = SimpleNamespace(sha=revision, card_data=None)
    api = SimpleNamespace(HfApi=lambda: SimpleNamespace(dataset_info=lambda *_, **__: info))
    made = SimpleNamespace(load_dataset=lambda *_, **__: Stream(ROWS, breaks, states=states, log=log))
    monkeypatch.setitem(sys.modules, "datasets", made)
    monkeypatch.setitem(sys.modules, "huggingface_hub", api)
    return log


def _fetch(cache: Path) -> bytes:
    return sources.fetch("hf:a/b", cache, field="body", limit_bytes=8000).path.read_bytes()


@pytest.mark.parametrize(("states", "word"), [(True, "load"), (False, "skip")])
def test_a_hub_set_is_continued_near_where_it_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: bool, word: str
) -> None:
    _hub(monkeypatch, [])
    whole = _fetch(tmp_path / "undisturbed")
    log = _hub(monkeypatch, [200, 330], states=states)
    for _ in range(2):
        with pytest.raises(SourceError, match=r"connection was reset\nhint: .*same command continues"):
            _fetch(tmp_path / "cache")
    assert _fetch(tmp_path / "cache") == whole, "the same bytes in one part as in three"
    first, second = (int(line.removeprefix(word)) for line in log)
    assert 100 < first <= 200 < second <= 330
    rows = [json.loads(line) for line in gzip.decompress(whole).splitlines()]
    assert rows == ROWS[: len(rows)]


def test_a_hub_set_of_another_revision_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _hub(monkeypatch, [200])
    with pytest.raises(SourceError):
        _fetch(tmp_path / "cache")
    log = _hub(monkeypatch, [], revision="new")
    assert json.loads(gzip.decompress(_fetch(tmp_path / "cache")).splitlines()[0]) == ROWS[0]
    assert not log


@pytest.mark.parametrize("damage", [b"", b"{", b'{"revision": "abc", "rows": 9}', b"[]"])
def test_a_damaged_record_of_how_far_it_was_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    _hub(monkeypatch, [200])
    with pytest.raises(SourceError):
        _fetch(tmp_path / "cache")
    next((tmp_path / "cache").rglob(hubtext.STATE)).write_bytes(damage)
    _hub(monkeypatch, [])
    whole = _fetch(tmp_path / "cache")
    assert whole == _fetch(tmp_path / "other")


def test_damaged_rows_start_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _hub(monkeypatch, [200])
    with pytest.raises(SourceError):
        _fetch(tmp_path / "cache")
    rows = next((tmp_path / "cache").rglob(hubtext.ROWS))
    rows.write_bytes(rows.read_bytes().replace(b"text 7 of", b"text 8 of"))
    log = _hub(monkeypatch, [])
    assert _fetch(tmp_path / "cache") == _fetch(tmp_path / "other")
    assert not log
