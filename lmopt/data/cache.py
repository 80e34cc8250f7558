"""Where fetched packages and imported files are kept: verified on every use, complete or absent.

<cache>/<scheme>/<name>/payload...      what was fetched
<cache>/<scheme>/<name>/entry.json      file, version, size, SHA-256, licence
<cache>/<scheme>/.<name>.partial/       the beginning of what is being fetched, for the next attempt
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

CHUNK_BYTES = 1 << 20
ENTRY = "entry.json"


class SourceError(Exception):
    """Text cannot be had: what was asked for, what went wrong, and a hint."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A source on this machine."""

    path: Path
    """The package's archive, or the file or folder itself."""
    source: str
    version: str
    size_bytes: int
    sha256: str
    """Of the file; of the sorted names and contents for a folder."""
    licence: str | None
    """Of the text where it is known, else what the package says; None where it says nothing."""


@dataclass(frozen=True, slots=True)
class Payload:
    """What a client brought: a file inside the folder it was given."""

    path: Path
    version: str
    licence: str | None


def folder() -> Path:
    """LMBENCH_CACHE, else `lmbench` under XDG_CACHE_HOME, else `~/.cache/lmbench`."""
    if chosen := os.environ.get("LMBENCH_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmbench"


def offline() -> bool:
    """Whether fetching is forbidden: LMBENCH_OFFLINE or HF_HUB_OFFLINE is set to something but 0."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in ("LMBENCH_OFFLINE", "HF_HUB_OFFLINE"))


def sha256(path: Path, pattern: str = "*", *, follow: bool = False) -> tuple[str, int]:
    """(SHA-256, bytes) of a file, or of a folder's files that match `pattern`, in the order of their names."""
    digest, size = hashlib.sha256(), 0
    for file in [path] if path.is_file() else files_of(path, pattern, follow=follow):
        if file != path:
            digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
    return digest.hexdigest(), size


def files_of(root: Path, pattern: str = "*", *, follow: bool = False) -> list[Path]:
    """Files below a folder, sorted by name; installed packages and byte code are left out.

    Args:
        follow: links to folders elsewhere too, each folder once.

    Raises:
        OSError: a folder below it may not be read.
    """
    skipped = {"site-packages", "dist-packages", "__pycache__"}
    found: list[Path] = []
    seen = {os.path.realpath(root)}
    for folder, folders, files in os.walk(root, onerror=_raised, followlinks=follow):
        here = Path(folder)
        folders[:] = [name for name in sorted(folders) if name not in skipped and _is_new(here / name, root, seen)]
        found += (here / name for name in files if fnmatch.fnmatch(name, pattern) and (here / name).is_file())
    return sorted(found)


def _raised(error: OSError) -> None:
    raise error


def _is_new(folder: Path, root: Path, seen: set[str]) -> bool:
    """Whether a link leads to a folder that is not met anyway; any other folder is new."""
    if not folder.is_symlink():
        return True
    real, inside = os.path.realpath(folder), os.path.realpath(root) + os.sep
    if real in seen or real.startswith(inside):
        return False
    seen.add(real)
    return True


def lookup(scheme: str, name: str, cache: Path) -> Fetched | None:
    """The entry if it is there and whole; None if it is absent.

    Raises:
        SourceError: the entry is damaged (another size or hash than recorded, an unreadable record).
    """
    home = _home(scheme, name, cache)
    if not (home / ENTRY).exists():
        return None
    try:
        fields = json.loads((home / ENTRY).read_text())
        entry = Fetched(**{**fields, "path": home / fields["path"]})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SourceError(f"{home / ENTRY}: unreadable cache entry ({error})\nhint: delete {home}") from error
    if not entry.path.is_file():
        raise SourceError(f"{entry.path}: missing from the cache\nhint: delete {home}")
    found, size = sha256(entry.path)
    if size != entry.size_bytes:
        raise SourceError(
            f"{entry.path}: {size} bytes, but {entry.size_bytes} were recorded (truncated?)\nhint: delete {home}"
        )
    if found != entry.sha256:
        raise SourceError(f"{entry.path}: its SHA-256 is not the recorded one\nhint: delete {home}")
    return entry


def has(scheme: str, name: str, cache: Path) -> bool:
    """Whether there is an entry, whole or not: nothing of it is read."""
    return (_home(scheme, name, cache) / ENTRY).exists()


def store(
    scheme: str, name: str, cache: Path, bring: Callable[[Path], Payload], *, label: str, replace: bool = False
) -> Fetched:
    """Let `bring` fill a temporary folder, record what came, and move the folder into place in one step.

    A fetch that dies leaves nothing behind that could be taken for an entry. A second one at the same time waits and
    takes the first one's entry, unless it is to `replace` it.
    """
    home = _home(scheme, name, cache)
    home.parent.mkdir(parents=True, exist_ok=True)
    with _locked(home.parent / f".{home.name}.lock"):
        if not replace:
            with contextlib.suppress(SourceError):
                if entry := lookup(scheme, name, cache):
                    return entry
        for stale in home.parent.glob(f".{home.name}.part-*"):
            shutil.rmtree(stale, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{home.name}.part-", dir=home.parent))
        try:
            payload = bring(work)
            digest, size = sha256(payload.path)
            entry = Fetched(payload.path.relative_to(work), label, payload.version, size, digest, payload.licence)
            (work / ENTRY).write_text(json.dumps({**asdict(entry), "path": str(entry.path)}, indent=1) + "\n")
            shutil.rmtree(home, ignore_errors=True)
            work.rename(home)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return Fetched(home / entry.path, label, entry.version, size, digest, entry.licence)


def partial_of(work: Path) -> Path:
    """Beside the folder that `store` gives a client: where beginnings of files lie until they are whole."""
    return work.with_name(work.name.rpartition(".part-")[0] + ".partial")


def _home(scheme: str, name: str, cache: Path) -> Path:
    return cache / scheme / re.sub(r"[^A-Za-z0-9._+=-]", "_", name)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
