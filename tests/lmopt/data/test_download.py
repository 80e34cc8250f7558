"""A file over HTTP: continued where it was cut, never taken for whole too early, never put together from two files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmopt.data import download
from lmopt.data.download import Failed, Refused, Remote

from .webserver import Files, serving

CONTENT = bytes(range(256)) * 40
ARCHIVE = Remote("u", "x-1.0.tar.gz", "sha256", hashlib.sha256(CONTENT).hexdigest())


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

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAUSE_S", "SHORT_PAUSE_S"):
        monkeypatch.setattr(download, name, 0.0)


def _bring(server: Server, part: Path) -> bytes:
    size = download.bring(server, ARCHIVE, part, lambda have, total: None)
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
    other = Remote("u", "x-1.0.tar.gz", "sha256", "0" * 64)
    with pytest.raises(Failed, match="sha256 is not the one that the index states"):
        download.bring(Server(), other, tmp_path / "part", lambda have, total: None)
    assert not (tmp_path / "part").exists()


def test_without_a_hash_the_length_decides(tmp_path: Path) -> None:
    unknown = Remote("u", "x-1.0.tar.gz", None, None)
    assert download.bring(Server(700), unknown, tmp_path / "part", lambda have, total: None) == len(CONTENT)


def test_it_gives_up_when_nothing_more_comes(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"stopped at 0 bytes, 5 attempts .*answered 503"):
        _bring(Server(status=503), tmp_path / "part")
    with pytest.raises(Failed, match=r"stopped at 100 bytes, 5 attempts .*reset by peer"):
        _bring(Server(100, 0, 0, 0, 0, 0), tmp_path / "part")


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    download.bring(Server(1000), ARCHIVE, tmp_path / "part", lambda have, total: told.append((have, total)))
    assert told == [(1000, len(CONTENT)), (len(CONTENT), len(CONTENT))]
    told.clear()
    (tmp_path / "part").unlink()
    download.bring(Server(silent=True), ARCHIVE, tmp_path / "part", lambda have, total: told.append((have, total)))
    assert told == [(len(CONTENT), None)]


# --- over a real connection ----------------------------------------------------------------------


def _over_http(files: Files, part: Path, hash_: str | None, left: bytes = b"", etag: str | None = None) -> bytes:
    with serving(files) as address:
        remote = Remote(f"{address}/x", "x", "sha256" if hash_ else None, hash_)
        if left:
            part.write_bytes(left)
            download._remember(remote, part, {"ETag": etag or ""})
        download.bring(download.Session(), remote, part, lambda have, total: None)
    assert not download._about(part).exists()
    return part.read_bytes()


SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = bytes(reversed(CONTENT))
"""Of the same length: nothing but what it holds tells it apart."""


@pytest.mark.parametrize("hash_", [SHA256, None])
@pytest.mark.parametrize("breaks", [[1], [len(CONTENT) - 1], [5000, 1], [0, 4000, 0, 10]])
def test_a_connection_cut_anywhere_is_continued(tmp_path: Path, breaks: list[int], hash_: str | None) -> None:
    files = Files({"/x": CONTENT}, breaks=list(breaks), etag='"v1"')
    assert _over_http(files, tmp_path / "part", hash_) == CONTENT
    assert len(files.asked) == 1 + len(breaks)
    assert files.asked[-1][1] == (f"bytes={sum(breaks)}-" if sum(breaks) else None)


def test_a_file_that_changed_meanwhile_starts_over(tmp_path: Path) -> None:
    files = Files({"/x": OTHER}, breaks=[5000], etag='"v1"')

    def change() -> None:
        files.content["/x"], files.etag = CONTENT, '"v2"'

    files.after = change
    assert _over_http(files, tmp_path / "part", None) == CONTENT
    assert [asked for _, asked in files.asked] == [None, "bytes=5000-"]


def test_a_file_that_changed_meanwhile_starts_over_for_its_hash_too(tmp_path: Path) -> None:
    files = Files({"/x": OTHER}, breaks=[5000])
    files.after = lambda: files.content.update({"/x": CONTENT})
    assert _over_http(files, tmp_path / "part", SHA256) == CONTENT


def test_a_file_that_changed_between_two_processes_starts_over(tmp_path: Path) -> None:
    files = Files({"/x": CONTENT}, etag='"v2"')
    assert _over_http(files, tmp_path / "part", None, OTHER[:5000], '"v1"') == CONTENT


@pytest.mark.parametrize("etag", [None, 'W/"v1"'])
def test_without_a_hash_a_beginning_of_which_nobody_knows_is_not_continued(tmp_path: Path, etag: str | None) -> None:
    files = Files({"/x": CONTENT}, etag=etag)
    assert _over_http(files, tmp_path / "part", None, OTHER[:5000], etag) == CONTENT
    assert files.asked == [("/x", None)]


@pytest.mark.parametrize("hash_", [SHA256, None])
def test_a_server_that_ignores_ranges_sends_it_all_again(tmp_path: Path, hash_: str | None) -> None:
    files = Files({"/x": CONTENT}, ranges=False, etag='"v1"', breaks=[4000])
    assert _over_http(files, tmp_path / "part", hash_, CONTENT[:3000], '"v1"') == CONTENT


def test_a_server_that_ignores_ranges_and_always_breaks_is_given_up(tmp_path: Path) -> None:
    files = Files({"/x": CONTENT}, ranges=False, breaks=[4000, 100] * 50)
    with pytest.raises(Failed, match="5 attempts brought no more"):
        _over_http(files, tmp_path / "part", SHA256)
    assert len(files.asked) < 10


def test_what_lacks_its_name_only_is_not_fetched_again(tmp_path: Path) -> None:
    files = Files({"/x": CONTENT}, etag='"v1"')
    assert _over_http(files, tmp_path / "part", SHA256, CONTENT, '"v1"') == CONTENT
    assert files.asked == [("/x", f"bytes={len(CONTENT)}-")]


@pytest.mark.parametrize("left", [CONTENT + b"more", OTHER])
def test_a_range_past_the_end_starts_over(tmp_path: Path, left: bytes) -> None:
    files = Files({"/x": CONTENT}, etag='"v1"')
    assert _over_http(files, tmp_path / "part", SHA256, left, '"v1"') == CONTENT


@pytest.mark.parametrize("lies", ["bytes 9000-10239/10240", "bytes 3000-/*", "nonsense"])
@pytest.mark.parametrize("hash_", [SHA256, None])
def test_a_part_that_is_not_the_one_asked_for_starts_over(tmp_path: Path, lies: str, hash_: str | None) -> None:
    files = Files({"/x": CONTENT}, etag='"v1"', lies=lies)
    assert _over_http(files, tmp_path / "part", hash_, CONTENT[:3000], '"v1"') == CONTENT


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_not_asked_five_times(tmp_path: Path, status: int) -> None:
    files = Files({"/x": CONTENT}, status=status)
    with pytest.raises(Refused, match=f"answered {status}"):
        _over_http(files, tmp_path / "part", SHA256)
    assert len(files.asked) == 1


def test_nobody_listening_is_a_failure(tmp_path: Path) -> None:
    with serving(Files({})) as address:
        pass
    with pytest.raises(Failed, match="refused"):
        download.bring(download.Session(), Remote(f"{address}/x", "x", None, None), tmp_path / "p", lambda *_: None)
