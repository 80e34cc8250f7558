"""When the records of a run were judged: `looks.jsonl`, a line a look, only ever appended to."""

from __future__ import annotations

import json
from pathlib import Path

from bench.plainjson import parse


def read(path: Path) -> tuple[frozenset[str], ...]:
    """The records of each look, by hash; empty where nobody looked yet.

    Raises:
        ValueError: a line that is no look.
    """
    if not path.exists():
        return ()
    found: list[frozenset[str]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
        try:
            found.append(frozenset(str(digest) for digest in parse(line)["records"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}:{number}: not a look ({error}); hint: the file is only ever appended to"
            ) from error
    return tuple(found)


def first(path: Path) -> str | None:
    """When the records were first judged; None where they never were, or the line does not say."""
    if not path.exists():
        return None
    line, ended, _ = path.read_text(encoding="utf-8").partition("\n")
    when = json.loads(line).get("time") if ended else None
    return when if isinstance(when, str) else None
