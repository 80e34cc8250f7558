"""The registries' own clients say where a package lies and what it must be; nothing is installed, no code of it is run.

What they name is streamed by `download.py`, which continues where a connection broke or a process was killed. A client
fetches by itself what cannot be streamed: from an index that is no HTTP, or asks for who one is.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import email
import io
import json
import os
import re
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lmopt import children
from lmopt.data import download, sdist
from lmopt.data.archives import deb_members, members
from lmopt.data.cache import Payload, SourceError, partial_of
from lmopt.data.download import Failed, Refused, Remote
from lmopt.data.formats import text_of
from lmopt.data.hubtext import first_line

TIMEOUT_S = 1800
ERROR_LINES = 3
TOLD_EVERY_S = 1.0
FILENAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~%:-]*")

Tell = Callable[[str], None]
"""Is told in a line how far a long fetch is."""


def pip_download(name: str, version: str | None, work: Path, tell: Tell) -> Payload:
    """A wheel for this Python, or the source archive (which `pip download` would run) of a version that has none."""
    label = f"pypi:{name}=={version}"
    archive = _by_pip(name, version or "", work, tell)
    if archive is None:
        pip = children.command("pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check", "-q")
        command = [*pip, "--only-binary", ":all:", "-d", str(work), f"{name}=={version}"]
        _run(command, work, label, "is pip installed (python -m ensurepip), is there a network?")
        archive = _brought(work, label)
    return Payload(archive, version or "", _python_licence(archive))


def _by_pip(name: str, version: str, work: Path, tell: Tell) -> Path | None:
    """What `sdist.py` brought, a process of its own; None where this pip has other insides than that expects.

    Raises:
        SourceError: it failed, or the index has no such version.
    """
    label, partial = f"pypi:{name}=={version}", partial_of(work)
    partial.mkdir(exist_ok=True)
    command = children.command(sdist.__name__, name, version, str(partial))
    environment = _quiet() | children.environment()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        said: dict[str, Any] = {}
        for line in child.stdout or ():
            said = json.loads(line)
            if "bytes" in said:
                tell(f"{label}: {_megabytes(said['bytes'])} of {_megabytes(said['total'])}")
        code, output = child.wait(), child.stderr.read() if child.stderr else ""
    if code == sdist.OTHER_PIP:
        return None
    _check(code, output, label, f"are name and version right, is there a network?{_continues(partial)}")
    return _moved(partial / said["file"], work)


def _moved(file: Path, work: Path) -> Path:
    """What is whole, out of the folder of beginnings, which goes."""
    file.rename(work / file.name)
    shutil.rmtree(file.parent)
    return work / file.name


def _continues(partial: Path) -> str:
    """For a hint: how much of a file is there already."""
    have = max((part.stat().st_size for part in partial.glob("*.part")), default=0)
    return f" The same command continues at {_megabytes(have)}" if have else ""


def _streamed(remote: Remote | None, work: Path, label: str, tell: Tell) -> Path | None:
    """The file; None where the client has to fetch it by itself: nothing of it can be had by plain HTTP.

    Raises:
        SourceError: the connection kept breaking, or what came is not what the registry states.
    """
    if remote is None:
        return None
    partial = partial_of(work)
    partial.mkdir(exist_ok=True)
    part = partial / f"{remote.filename}.part"
    try:
        download.bring(download.Session(), remote, part, _teller(label, tell))
    except Refused:
        return None
    except Failed as error:
        if not part.exists():
            return None
        hint = f"hint: is there a network?{_continues(partial)}"
        raise SourceError(f"{label}: cannot be fetched\n{error}\n{hint}") from error
    part.replace(partial / remote.filename)
    return _moved(partial / remote.filename, work)


def _teller(label: str, tell: Tell) -> download.Told:
    last_s = time.monotonic()

    def told(have: int, total: int | None) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= TOLD_EVERY_S:
            last_s = time.monotonic()
            tell(f"{label}: {_megabytes(have)} of {_megabytes(total)}")

    return told


def _megabytes(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e6:.0f} MB"


def npm_pack(name: str, version: str | None, work: Path, tell: Tell) -> Payload:
    """A tarball from where `npm view` says that it lies, else by `npm pack`."""
    label, hint = f"npm:{name}@{version}", "is the name and the version right?"
    if shutil.which("npm") is None:
        raise SourceError(f"{label}: npm is not installed\nhint: install Node.js, or use a pypi: source")
    told = _run(["npm", "view", "--loglevel=error", "--json", f"{name}@{version}", "dist"], work, label, hint)
    archive = _streamed(_npm_remote(told), work, label, tell)
    if archive is None:
        _run(["npm", "pack", "--loglevel=error", f"{name}@{version}"], work, label, hint)
        archive = _brought(work, label)
    return Payload(archive, version or "", _npm_licence(archive))


def _npm_remote(told: str) -> Remote | None:
    """What `npm view NAME@VERSION dist` told; None where it is not one file with a hash."""
    with contextlib.suppress(ValueError, KeyError, TypeError, IndexError, AttributeError, binascii.Error):
        dist: Any = json.loads(told)
        dist = dist.get("dist", dist)
        name, hash_ = "sha1", dist.get("shasum")
        if dist.get("integrity"):
            strongest = max(dist["integrity"].split(), key=lambda text: int(text.partition("-")[0].removeprefix("sha")))
            name, _, coded = strongest.partition("-")
            hash_ = base64.b64decode(coded.partition("?")[0], validate=True).hex()
        return _remote(dist["tarball"], Path(urllib.parse.urlsplit(dist["tarball"]).path).name, name, hash_)
    return None


def _npm_licence(archive: Path) -> str | None:
    described = next((content for _, content in members(archive, "package/package.json")), b"{}")
    try:
        licence = json.loads(text_of(described)).get("license")
    except (ValueError, AttributeError):
        return None
    return licence if isinstance(licence, str) else None


def apt_download(name: str, version: str | None, work: Path, tell: Tell) -> Payload:
    """A package from where apt's index says that it lies, else by `apt-get download`.

    The version is whatever the distribution carries, and is recorded.
    """
    label, hint = f"deb:{name}", "run `apt-get update` first"
    if shutil.which("apt-get") is None:
        raise SourceError(f"{label}: apt-get is not installed\nhint: deb: sources need Debian or Ubuntu")
    told = _run(["apt-get", "download", "-q", "--print-uris", name], work, label, hint)
    archive = _streamed(_apt_remote(told), work, label, tell)
    if archive is None:
        _run(["apt-get", "download", "-q", name], work, label, hint)
        archive = _brought(work, label)
    found = urllib.parse.unquote(archive.name.split("_")[1])
    return Payload(archive, found if version is None else version, _deb_licence(archive))


def _apt_remote(told: str) -> Remote | None:
    """What `apt-get download --print-uris` told: 'URL' FILE BYTES SHA256:HASH."""
    for line in told.splitlines():
        if found := re.fullmatch(r"'([^']+)' (\S+_\S+_\S+\.deb) \d+ (SHA\d+):([0-9a-f]+)", line.strip()):
            return _remote(found[1], found[2], found[3].lower(), found[4])
    return None


def _remote(url: str, filename: str, hash_name: str, hash_: str | None) -> Remote | None:
    """A file at an HTTP address with a name that is one and a hash; else None."""
    known = isinstance(hash_, str) and hash_name in ("sha1", "sha256", "sha384", "sha512")
    usable = urllib.parse.urlsplit(url).scheme in ("http", "https") and FILENAME.fullmatch(filename)
    return Remote(url, filename, hash_name, hash_) if known and usable else None


CLIENTS: dict[str, Callable[[str, str | None, Path, Tell], Payload]] = {
    "pypi": pip_download,
    "npm": npm_pack,
    "deb": apt_download,
}
"""Scheme -> client."""


def _run(command: Sequence[str], work: Path, label: str, hint: str) -> str:
    """What the client said on stdout."""
    try:
        done = subprocess.run(command, cwd=work, env=_quiet(), capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"{label}: {command[0]} did not finish in {TIMEOUT_S} s") from error
    _check(done.returncode, done.stderr or done.stdout, label, hint)
    return done.stdout


def _quiet() -> dict[str, str]:
    return {**os.environ, "NO_COLOR": "1", "PIP_NO_COLOR": "1", "LC_ALL": "C.UTF-8"}


def _check(code: int, output: str, label: str, hint: str) -> None:
    """Raise what a client that failed said last."""
    if code:
        said = [line for line in output.splitlines() if line.strip()]
        wrong = [line for line in said if re.match(r"(ERROR|E:|npm ERR|npm error)", line)] or said
        shown = wrong[:ERROR_LINES] if wrong and wrong[0].startswith("npm") else wrong[-ERROR_LINES:]  # npm adds advice
        raise SourceError(f"{label}: cannot be fetched\n" + "\n".join(shown) + f"\nhint: {hint}")


def _brought(work: Path, label: str) -> Path:
    files = sorted(path for path in work.iterdir() if path.is_file())
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "nothing"
        raise SourceError(f"{label}: expected one file from the client, got {names}")
    return files[0]


def _python_licence(archive: Path) -> str | None:
    """Licence-Expression, Licence or the classifier of a wheel's METADATA or a source archive's PKG-INFO."""
    ending = ".dist-info/METADATA" if archive.suffix == ".whl" else "/PKG-INFO"
    about = email.message_from_string(next((text_of(c) for _, c in members(archive, suffix=ending)), ""))
    classified = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier", []) if c.startswith("License")]
    stated = about["License-Expression"] or about["License"] or ", ".join(classified)
    return None if stated in ("", "UNKNOWN") else first_line(stated)


def _deb_licence(package: Path) -> str | None:
    """The first `License:` line of a Debian package's copyright file."""
    with contextlib.suppress(SourceError):
        for path, content in deb_members(package):
            if path.endswith("/copyright"):
                for line in io.TextIOWrapper(io.BytesIO(content), "utf-8", "replace"):
                    if line.startswith("License:"):
                        return line.partition(":")[2].strip()
    return None
