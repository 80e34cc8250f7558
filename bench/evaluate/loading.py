"""From a task's name to its items: fetched once, read once, kept as one small file in the cache.

`dataset` is what the task YAMLs name as their `custom_dataset`: lm-evaluation-harness calls it, and nothing of it
touches the network beyond the package client that fetches the source.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.casefolder import write_atomically
from bench.evaluate import cloze, splits
from bench.evaluate.index import DERIVED, TASKS, TaskFacts
from bench.evaluate.sets import READERS, BadSet, Item, Reader
from lmopt.data import archives, sources
from lmopt.data import cache as store

if TYPE_CHECKING:
    import datasets

READ_VERSION = 1
"""Raised whenever a reader changes what it makes of a file, so that older files in the cache are not used."""


class NotAvailable(Exception):
    """A set's text cannot be had here and now; the message says why and what would help."""


def items(
    name: str,
    *,
    cache: Path | None = None,
    corpus: Path | None = None,
    seed: int = 0,
    limit: int | None = None,
) -> list[Item]:
    """The items of a set in their fixed order, all or the first `limit`.

    Args:
        name: a name of `index.TASKS`.
        cache: where fetched sources lie; default: the user's cache folder.
        corpus: folder of a built corpus, for a set derived from held-out text.
        seed: of a derived set.

    Raises:
        NotAvailable: its source is not here and cannot be fetched, or holds something unexpected.
    """
    facts = TASKS[name]
    if facts.source == DERIVED:
        return _derived(facts, corpus, seed, limit)
    kept = (cache or store.folder()) / "evaluation" / f"{name}-v{READ_VERSION}-{_slug(facts.source)}.jsonl"
    try:
        if kept.exists():
            return _read(kept, limit)
        fetched = sources.fetch(facts.source, cache)
        found = READERS[name].items(_text(fetched.path, READERS[name]))
    except (sources.SourceError, BadSet, OSError) as error:
        raise NotAvailable(str(error)) from error
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in found))
    return found[:limit]


def _derived(facts: TaskFacts, corpus: Path | None, seed: int, limit: int | None) -> list[Item]:
    if corpus is None:
        raise NotAvailable(f"{facts.name} is derived from a corpus, and no corpus was given")
    found = cloze.generate(_held_out(corpus), seed=seed, items=min(facts.items, limit or facts.items))
    if not found:
        raise NotAvailable(f"{facts.name}: the held-out text of {corpus} is too small for a single item")
    return found


def _held_out(corpus: Path) -> Iterable[tuple[str, str]]:
    """(id, text) of the documents of the corpus's first validation set."""
    from lmopt.data import validation

    first = validation.names(corpus)[0]
    return [(document.id, document.text) for document in validation.documents(corpus, first)]


def _text(path: Path, reader: Reader) -> str:
    if reader.member is None:
        return (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
    for _, content in archives.members(path, prefix=reader.member):
        return content.decode()
    raise BadSet(f"{path}: has no file {reader.member}")


def _slug(source: str) -> str:
    return source.replace(":", "-").replace("==", "-")


def _read(path: Path, limit: int | None) -> list[Item]:
    with path.open(encoding="utf-8") as lines:
        rows: list[dict[str, Any]] = [json.loads(line) for line in itertools.islice(lines, limit)]
    for row in rows:
        row["choices"] = tuple(row["choices"])
    return [Item(**row) for row in rows]


def dataset(
    name: str,
    cache: str | None = None,
    corpus: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    test_share: float | None = None,
    **_metadata: Any,
) -> dict[str, datasets.Dataset]:
    """A set in the form that lm-evaluation-harness asks for: one split, `test`.

    Args:
        test_share: of the passages that fine-tuned models are tested on; None takes all.
    """
    import datasets

    folders = {"cache": Path(cache) if cache else None, "corpus": Path(corpus) if corpus else None}
    if test_share is None:
        found = items(name, **folders, seed=seed, limit=limit)
    else:
        found = splits.tested(items(name, cache=folders["cache"], seed=seed), test_share)[:limit]
    columns = {field.name: [getattr(item, field.name) for item in found] for field in fields(Item)}
    return {"test": datasets.Dataset.from_dict(columns)}
