"""An archive of a package on PyPI: found by pip, streamed to a file, resumed where it broke off, hash checked.

`pip download` runs an archive's build code to learn its metadata, with `--no-deps` too. Here no code of the package is
run: a process of its own (`python -P sdist.py NAME VERSION FOLDER archive|wheel`) asks pip's finder where the source
archive or the wheel lies, with the user's index, mirrors, proxies and certificates, and reads it through pip's session.
Both are internals of pip; one that has moved them is named in the error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 20
TRIES = 5
"""Attempts in a row that may bring nothing new before the fetch gives up."""
PAUSE_S = 2.0
TOLD_EVERY_S = 1.0
OK, PARTIAL, PAST_THE_END = 200, 206, 416


class Failed(Exception):
    """The archive cannot be had: one line that says why."""


@dataclass(frozen=True, slots=True)
class Archive:
    """Where a source archive or a wheel lies."""

    url: str
    filename: str
    hash_name: str | None
    """`sha256` and the like; None where the index states no hash."""
    hash: str | None


@contextlib.contextmanager
def located(name: str, version: str, what: str = "archive") -> Iterator[tuple[Any, Archive]]:
    """(pip's session, the source archive of a version, or its `wheel` for this Python).

    Raises:
        Failed: the index has none of that version, or this pip has other insides.
    """
    try:
        import pip
        from pip._internal.commands import create_command
    except ImportError as error:
        raise Failed(f"pip is absent, or its finder is not where it was ({error})") from error
    command: Any = create_command("download")
    options, _ = command.parse_args(["--only-binary" if what == "wheel" else "--no-binary", ":all:", "--quiet", name])
    with command.main_context():
        try:
            session, link = _link(command, options, name, version)
        except (AttributeError, TypeError) as error:
            raise Failed(f"pip {pip.__version__} has other insides than this was written for ({error})") from error
        if link is None:
            raise Failed(f"the index has neither a wheel for this Python nor a source archive of {name}=={version}")
        yield session, Archive(link.url_without_fragment, link.filename, link.hash_name, link.hash)


def _link(command: Any, options: Any, name: str, version: str) -> tuple[Any, Any]:
    """pip's session, and its link to the archive (None where there is none)."""
    from pip._vendor.packaging.specifiers import InvalidSpecifier, SpecifierSet

    session = command.get_default_session(options)
    finder = command._build_package_finder(
        options, session, ignore_requires_python=not options.format_control.only_binary
    )
    try:
        best = finder.find_best_candidate(name, SpecifierSet(f"=={version}")).best_candidate
    except InvalidSpecifier as error:
        raise Failed(f"{name}=={version}: not a version ({error})") from error
    return session, None if best is None else best.link


def bring(session: Any, archive: Archive, part: Path, told: Callable[[int, int | None], None]) -> int:
    """Stream the archive into `part`, from where that file ends; its size in bytes.

    Args:
        session: what `requests` calls a session; only `get` is used.
        told: called now and then with the bytes there and the bytes in all (None where the server does not say).

    Raises:
        Failed: the connection keeps breaking, the server refuses, or the content has another hash than the index says.
        OSError: `part` cannot be written, for example on a full disk.
    """
    for _ in range(2):  # what an earlier fetch left may be damaged: once more from the beginning
        if _complete(session, archive, part, told):
            return part.stat().st_size
        part.unlink()
    raise Failed(f"{archive.filename}: its {archive.hash_name} is not the one that the index states")


def _complete(session: Any, archive: Archive, part: Path, told: Callable[[int, int | None], None]) -> bool:
    """Stream until nothing is missing, however often the connection breaks; whether the hash is the stated one."""
    tries = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        done, reason = _continue(session, archive, part, before, told)
        if done:
            return archive.hash_name is None or _hash(part, archive.hash_name) == archive.hash
        size = part.stat().st_size if part.exists() else 0
        tries = tries + 1 if size <= before else 0
        if tries >= TRIES:
            raise Failed(f"{archive.filename}: stopped at {size:,} bytes, {TRIES} attempts brought no more ({reason})")
        time.sleep(PAUSE_S)


def _continue(
    session: Any, archive: Archive, part: Path, have: int, told: Callable[[int, int | None], None]
) -> tuple[bool, str]:
    """One request for what is missing: (whether the archive is whole now, else why not)."""
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        response = session.get(archive.url, headers=headers, stream=True)
        if response.status_code == PAST_THE_END:
            part.unlink()
            return False, "the server says that nothing is left to send"
        if response.status_code not in (OK, PARTIAL):
            return False, f"the server answered {response.status_code}"
        have, total = _extent(response)
        chunks = response.iter_content(CHUNK_BYTES)
    except OSError as error:  # the network: requests' exceptions are OSErrors
        return False, f"{type(error).__name__}: {error}"
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


def _extent(response: Any) -> tuple[int, int | None]:
    """(first byte of the answer, bytes of the whole archive); a server that cannot send a part begins at 0."""
    if ranged := re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", "")):
        return int(ranged[1]), int(ranged[2])
    length = str(response.headers.get("Content-Length", ""))
    return 0, int(length) if length.isdigit() else None


def _hash(path: Path, name: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, name).hexdigest()


def _teller() -> Callable[[int, int | None], None]:
    """Writes {"bytes": ..., "total": ...} to stdout, once a second at most."""
    last_s = 0.0

    def told(have: int, total: int | None) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= TOLD_EVERY_S:
            last_s = time.monotonic()
            print(json.dumps({"bytes": have, "total": total}), flush=True)

    return told


def main(name: str, version: str, folder: Path, what: str = "archive") -> int:
    """Bring the source archive, or the `wheel`, into the folder; the last line of stdout names the file."""
    try:
        with located(name, version, what) as (session, archive):
            part = folder / f"{archive.filename}.part"
            bring(session, archive, part, _teller())
            part.replace(folder / archive.filename)
    except (Failed, OSError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"file": archive.filename}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:]))
