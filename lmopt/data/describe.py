"""What a built corpus or its shards hold, as plain data for a person or a program to read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmopt.data import corpus as corpora
from lmopt.data import storage
from lmopt.data.storage import DataError

SAMPLES = 3
SAMPLE_CHARACTERS = 160


def describe(folder: Path, *, samples: int = SAMPLES) -> dict[str, Any]:
    """Facts of a corpus or shards folder.

    Returns:
        The manifest's facts, among them `domains` ({domain: documents, bytes, tokens where tokenised}), with `dropped`
        grown to {reason: {"documents": n, "samples": [{"id", "text", "kept", "detail"}]}}.

    Raises:
        DataError: the folder is not a finished build.
    """
    facts = storage.read_manifest(folder, _kind(folder))
    reasons = {reason: {"documents": count, "samples": []} for reason, count in facts["dropped"].items()}
    missing = sum(min(count, samples) for count in facts["dropped"].values())
    for row in storage.rows(folder / corpora.DROPPED):
        if not missing:
            break
        found = reasons[row["reason"]]["samples"]
        if len(found) < samples:
            missing -= 1
            text = row["text"][:SAMPLE_CHARACTERS]
            found.append({"id": row["id"], "text": text, "kept": row["kept"], "detail": row["detail"]})
    return {**facts, "dropped": reasons}


def documents(folder: Path, *, dropped: bool = False) -> Iterator[dict[str, Any]]:
    """Rows of a build: what it kept, or what it dropped with `reason`, `kept` (an id) and `detail`.

    Shards keep tokens, not texts: of them only the dropped documents can be shown.
    """
    kind = _kind(folder)
    storage.read_manifest(folder, kind)
    if not dropped and kind == "shards":
        raise DataError(
            f"{folder}: shards hold tokens, not documents\nhint: --dropped shows what the steps removed; "
            "the corpus folder holds the documents"
        )
    return storage.rows(folder / (corpora.DROPPED if dropped else corpora.DOCUMENTS))


def _kind(folder: Path) -> str:
    """`shards` or `corpus`, as its manifest says; `corpus` where there is none to say."""
    try:
        return json.loads((folder / storage.MANIFEST).read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        return "corpus"
