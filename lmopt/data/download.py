"""A file over HTTP: streamed to disk, continued where a connection broke off or a process was killed, then verified.

Nothing but the standard library is imported: `sdist.py` runs this in a process of its own, with pip's session.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 16
"""Written at a time, and the most that a broken answer loses: newer pips' urllib3 hands out whole chunks only."""
TRIES = 5
"""Attempts in a row that may bring nothing new before the fetch gives up."""
PAUSE_S = 2.0
"""Before the next attempt, where the last one brought nothing new."""
SHORT_PAUSE_S = 0.1
TIMEOUT_S = 30.0
"""Without a byte, after which a connection counts as broken."""
OK, PARTIAL, PAST_THE_END = 200, 206, 416
PASSING = frozenset({408, 421, 423, 425, 429})
"""Answers of the 400s that another attempt may change."""

Told = Callable[[int, int | None], None]
"""Is told the bytes there and the bytes in all (None where the server does not say)."""


class Failed(Exception):
    """The file cannot be had: one line that says why."""


class Refused(Failed):
    """The server does not give it, and another attempt would not change that."""


@dataclass(frozen=True, slots=True)
class Remote:
    """Where a file lies, and what it must be."""

    url: str
    filename: str
    hash_name: str | None
    """`sha256` and the like; None where no hash is stated."""
    hash: str | None
    """In hexadecimal digits."""


def bring(session: Any, remote: Remote, part: Path, told: Told) -> int:
    """Stream the file into `part`, from where that ends; its size in bytes.

    Where a hash is stated it decides whether the parts belong together. Where none is, a beginning is only continued
    from a server that says by a validator (RFC 9110, 13.1.5) that it still has the same file; else it starts over.

    Args:
        session: what `requests` calls a session, or `Session`; only `get` is used.

    Raises:
        Refused: the server has no such file, or does not give it.
        Failed: the connection keeps breaking, or the content has another hash than was stated.
        OSError: `part` cannot be written, for example on a full disk.
    """
    for _ in range(2):  # what an earlier fetch left may be damaged: once more from the beginning
        if _complete(session, remote, part, told):
            _about(part).unlink(missing_ok=True)
            return part.stat().st_size
        part.unlink()
    raise Failed(f"{remote.filename}: its {remote.hash_name} is not the one that the index states")


def _complete(session: Any, remote: Remote, part: Path, told: Told) -> bool:
    """Stream until nothing is missing, however often the connection breaks; whether the hash is the stated one."""
    tries, most = 0, _size(part)
    while True:
        done, reason = _continue(session, remote, part, told)
        if done:
            return remote.hash_name is None or _hash(part, remote.hash_name) == remote.hash
        tries = 0 if _size(part) > most else tries + 1
        most = max(most, _size(part))
        if tries >= TRIES:
            stopped = f"stopped at {_size(part):,} bytes, {TRIES} attempts brought no more"
            raise Failed(f"{remote.filename}: {stopped} ({reason})")
        time.sleep(PAUSE_S if tries else SHORT_PAUSE_S)


def _continue(session: Any, remote: Remote, part: Path, told: Told) -> tuple[bool, str]:
    """One request for what is missing: (whether the file is whole now, else why not)."""
    have, validator = _size(part), _validator(remote, part)
    if have and remote.hash_name is None and validator is None:
        have = 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if remote.hash_name is None and validator is not None:
            headers["If-Range"] = validator
    try:
        response = session.get(remote.url, headers=headers, stream=True)
    except OSError as error:  # the network: exceptions of requests and of urllib are OSErrors
        return False, f"{type(error).__name__}: {error}"
    with closing(response):
        return _receive(response, remote, part, have, told)


def _receive(response: Any, remote: Remote, part: Path, have: int, told: Told) -> tuple[bool, str]:
    """What an answer brings, behind the `have` bytes that are there: (whether the file is whole now, else why not)."""
    status, said = response.status_code, response.headers
    if status == PAST_THE_END:
        if said.get("Content-Range", "") == f"bytes */{have}":
            return True, ""  # nothing is missing: it was cut off between its last byte and its name
        part.unlink(missing_ok=True)
        return False, "the server says that nothing is left to send"
    if 400 <= status < 500 and status not in PASSING:
        raise Refused(f"{remote.filename}: the server answered {status}")
    if status not in (OK, PARTIAL):
        return False, f"the server answered {status}"
    first, total = _extent(status, said)
    if first is None or first > have:
        part.unlink(missing_ok=True)  # asked for a part it answers with who knows which: ask for the whole
        return False, "the server did not say which part it sent, or sent another"
    if first == 0:
        _remember(remote, part, said)
    return _write(response.iter_content(CHUNK_BYTES), part, first, total, told)


def _write(chunks: Iterator[bytes], part: Path, have: int, total: int | None, told: Told) -> tuple[bool, str]:
    """What comes, from byte `have` of the file on: (whether the file is whole now, else why not)."""
    with part.open("r+b" if part.exists() else "wb") as file:
        file.truncate(have)
        file.seek(have)
        while True:
            try:
                chunk = next(chunks, None)
            except OSError as error:
                return False, f"{type(error).__name__}: {error}"
            if chunk is None:
                break
            file.write(chunk)
            have += len(chunk)
            told(have, total)
    return total is None or have == total, f"the connection ended at {have:,} of {total or 0:,} bytes"


def _extent(status: int, headers: Mapping[str, str]) -> tuple[int | None, int | None]:
    """(first byte of the answer, bytes of the whole file); an answer that is no part begins at 0.

    The first byte is None where a part does not say which it is, or of how much.
    """
    if status == PARTIAL:
        ranged = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
        return (int(ranged[1]), int(ranged[2])) if ranged else (None, None)
    length = str(headers.get("Content-Length", ""))
    return 0, int(length) if length.isdigit() else None


def _about(part: Path) -> Path:
    """Beside a beginning: what it is the beginning of."""
    return part.with_name(part.name + ".of")


def _remember(remote: Remote, part: Path, headers: Mapping[str, str]) -> None:
    """Write down by what the server knows this state of the file; a weak ETag does not tell bytes apart."""
    etag = str(headers.get("ETag") or "")
    validator = etag if etag.startswith('"') else headers.get("Last-Modified")
    _about(part).write_text(json.dumps({"url": remote.url, "validator": validator}))


def _validator(remote: Remote, part: Path) -> str | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(_about(part).read_text())
        return known["validator"] if known["url"] == remote.url else None
    return None


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _hash(path: Path, name: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, name).hexdigest()


class Session:
    """What `bring` asks of a session, by the standard library: proxies and certificates of the environment apply."""

    def get(self, url: str, *, headers: Mapping[str, str], stream: bool) -> _Answer:
        """The answer, whatever its status; its body is read piece by piece.

        Raises:
            OSError: there is no connection.
        """
        assert stream
        request = urllib.request.Request(url, headers={"User-Agent": "lmbench", **headers})
        try:
            return _Answer(urllib.request.urlopen(request, timeout=TIMEOUT_S))
        except urllib.error.HTTPError as error:
            return _Answer(error)
        except http.client.HTTPException as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from error


class _Answer:
    """An answer by the standard library, in the words of `requests`."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self.status_code: int = response.status
        self.headers: Mapping[str, str] = response.headers

    def iter_content(self, size: int) -> Iterator[bytes]:
        """The body as it comes, pieces of `size` bytes at the most.

        Raises:
            OSError: the connection broke.
        """
        try:
            while piece := self._response.read1(size):
                yield piece
        except http.client.HTTPException as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Let the connection go."""
        self._response.close()
