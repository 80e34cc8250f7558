"""The registries' own clients, asked for one package by name: nothing is installed, no package code is run."""

from __future__ import annotations

import contextlib
import email
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmopt.data import sdist
from lmopt.data.archives import deb_members, members
from lmopt.data.cache import Payload, SourceError
from lmopt.data.formats import text_of

TIMEOUT_S = 1800
ERROR_LINES = 3
NO_WHEEL = "No matching distribution found"
"""What pip says when a version has no wheel for this Python (or when there is no such version)."""
CUT_SHORT = re.compile(
    r"DO NOT MATCH THE HASHES|IncompleteRead|Connection broken|ConnectionReset|Read timed out|not enough bytes"
)
"""What pip says of a wheel that did not come whole; 23 and 24 take it for one that was tampered with."""

Tell = Callable[[str], None]
"""Is told in a line how far a long fetch is."""


class NoWheel(SourceError):
    """pip found no wheel."""


class CutShort(SourceError):
    """The connection broke before pip had the wheel."""


def pip_download(name: str, version: str | None, work: Path, tell: Tell) -> Payload:
    """A wheel by `pip download --no-deps`, or the source archive of a version that has none for this Python."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check", "-q"]
    command = [*pip, "--only-binary", ":all:", "-d", str(work), f"{name}=={version}"]
    label = f"pypi:{name}=={version}"
    try:
        _run(command, work, label, "is pip installed (python -m ensurepip), is there a network?")
        archive = _brought(work, label)
    except NoWheel:
        archive = _streamed(name, version or "", work, tell, "archive")
    except CutShort:
        archive = _streamed(name, version or "", work, tell, "wheel")
    return Payload(archive, version or "", _python_licence(archive))


def _streamed(name: str, version: str, work: Path, tell: Tell, what: str) -> Path:
    """Fetched by `sdist.py`, which continues what broke off: a source archive, whose code `pip download` would run, or
    a `wheel` that `pip download` could not bring whole.
    """
    label, partial = f"pypi:{name}=={version}", work.parent / f".{name}=={version}.partial"
    partial.mkdir(exist_ok=True)
    command = [sys.executable, "-P", sdist.__file__, name, version, str(partial), what]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_quiet()) as child:
        said: dict[str, Any] = {}
        for line in child.stdout or ():
            said = json.loads(line)
            if "bytes" in said:
                tell(f"{label}: {_megabytes(said['bytes'])} of {_megabytes(said['total'])}")
        _check(child.wait(), child.stderr.read() if child.stderr else "", label, "is the name and the version right?")
    archive = work / said["file"]
    (partial / said["file"]).rename(archive)
    shutil.rmtree(partial)
    return archive


def _megabytes(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e6:.0f} MB"


def npm_pack(name: str, version: str | None, work: Path, tell: Tell) -> Payload:  # noqa: ARG001 - all clients are called alike
    """A tarball by `npm pack`."""
    label = f"npm:{name}@{version}"
    if shutil.which("npm") is None:
        raise SourceError(f"{label}: npm is not installed\nhint: install Node.js, or use a pypi: source")
    _run(["npm", "pack", "--loglevel=error", f"{name}@{version}"], work, label, "is the name and the version right?")
    archive = _brought(work, label)
    with tarfile.open(archive) as tar:
        described = tar.extractfile("package/package.json")
        licence = json.load(described).get("license") if described else None
    return Payload(archive, version or "", licence if isinstance(licence, str) else None)


def apt_download(name: str, version: str | None, work: Path, tell: Tell) -> Payload:  # noqa: ARG001 - as above
    """A package by `apt-get download`; the version is whatever the distribution carries, and is recorded."""
    label = f"deb:{name}"
    if shutil.which("apt-get") is None:
        raise SourceError(f"{label}: apt-get is not installed\nhint: deb: sources need Debian or Ubuntu")
    _run(["apt-get", "download", "-q", name], work, label, "run `apt-get update` first")
    archive = _brought(work, label)
    found = urllib.parse.unquote(archive.name.split("_")[1])
    return Payload(archive, found if version is None else version, _deb_licence(archive))


CLIENTS: dict[str, Callable[[str, str | None, Path, Tell], Payload]] = {
    "pypi": pip_download,
    "npm": npm_pack,
    "deb": apt_download,
}
"""Scheme -> client."""


@dataclass(frozen=True, slots=True)
class HubText:
    """What to take of a data set on the Hugging Face hub."""

    name: str
    """OWNER/NAME or OWNER/NAME:CONFIG."""
    revision: str | None
    field: str
    limit_bytes: int | None


def hub_text(wanted: HubText, work: Path) -> Payload:
    """The first `limit_bytes` of text of a hub data set's training split, streamed, as jsonl.gz under `field`."""
    import gzip

    try:
        import datasets
        import huggingface_hub
    except ImportError as error:
        raise SourceError(f"hf:{wanted.name}: {error}\nhint: pip install 'lmbench-suite[hf]'") from error
    repository, _, config = wanted.name.partition(":")
    taken, target = 0, work / "text.jsonl.gz"
    with _hub_said(wanted):
        about = huggingface_hub.HfApi().dataset_info(repository, revision=wanted.revision)
        stream = datasets.load_dataset(repository, config or None, revision=about.sha, split="train", streaming=True)
        rows = iter(stream)
    with gzip.open(target, "wt", encoding="utf-8") as out:
        while wanted.limit_bytes is None or taken < wanted.limit_bytes:
            with _hub_said(wanted):
                row = next(rows, None)
            if row is None:
                break
            text = _hub_field(row, wanted)
            out.write(json.dumps({wanted.field: text}) + "\n")
            taken += len(text.encode("utf-8", "replace"))
    licence = about.card_data.get("license") if about.card_data else None
    return Payload(target, about.sha or "", str(licence) if licence else None)


@contextlib.contextmanager
def _hub_said(wanted: HubText) -> Iterator[None]:
    """Whatever the hub's libraries raise, in a line: they have no error in common, nor has what they fetch with."""
    try:
        yield
    except Exception as error:
        said = _first_line(str(error)) or type(error).__name__
        hint = "is there a network, and is the name right?"
        raise SourceError(f"hf:{wanted.name}: cannot be fetched\n{said}\nhint: {hint}") from error


def _hub_field(row: Mapping[str, Any], wanted: HubText) -> str:
    if wanted.field not in row:
        raise SourceError(f"hf:{wanted.name}: no field {wanted.field!r}; allowed: {', '.join(row)}\nhint: set `field:`")
    text = row[wanted.field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise SourceError(f"hf:{wanted.name}: the field {wanted.field!r} holds {type(text).__name__}, not text")
    return text


def _run(command: Sequence[str], work: Path, label: str, hint: str) -> None:
    try:
        done = subprocess.run(command, cwd=work, env=_quiet(), capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"{label}: {command[0]} did not finish in {TIMEOUT_S} s") from error
    _check(done.returncode, done.stderr or done.stdout, label, hint)


def _quiet() -> dict[str, str]:
    return {**os.environ, "NO_COLOR": "1", "PIP_NO_COLOR": "1", "LC_ALL": "C.UTF-8"}


def _check(code: int, output: str, label: str, hint: str) -> None:
    """Raise what a client that failed said last."""
    if code:
        said = [line for line in output.splitlines() if line.strip()]
        wrong = [line for line in said if re.match(r"(ERROR|E:|npm ERR|npm error)", line)] or said
        shown = wrong[:ERROR_LINES] if wrong and wrong[0].startswith("npm") else wrong[-ERROR_LINES:]  # npm adds advice
        kind = NoWheel if NO_WHEEL in output else CutShort if CUT_SHORT.search(output) else SourceError
        raise kind(f"{label}: cannot be fetched\n" + "\n".join(shown) + f"\nhint: {hint}")


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
    return None if stated in ("", "UNKNOWN") else _first_line(stated)


def _deb_licence(package: Path) -> str | None:
    """The first `License:` line of a Debian package's copyright file."""
    with contextlib.suppress(SourceError):
        for path, content in deb_members(package):
            if path.endswith("/copyright"):
                for line in io.TextIOWrapper(io.BytesIO(content), "utf-8", "replace"):
                    if line.startswith("License:"):
                        return line.partition(":")[2].strip()
    return None


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:200] if text.strip() else ""
