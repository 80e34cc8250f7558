"""A data step in two parts, so that one description runs in one process, in many, or on a cluster.

`look` is a pure function of a batch of documents and may run anywhere; `settle` sees what was found, batch after batch
in the order of the corpus, in one process. The output is the same wherever the looking was done.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lmopt.data.documents import Document, Dropped
from lmopt.data.scratch import Scratch

BATCH_DOCUMENTS = 512
BATCH_CHARACTERS = 2_000_000
"""A batch ends at this many documents or characters, whichever comes first; a larger document is a batch by itself."""

Batch = list[Document]
Look = Callable[[Batch], Any]
Mapper = Callable[[Look, Iterable[Batch]], Iterator[tuple[Batch, Any]]]
"""Applies a look to every batch; yields (batch, what was found) in the order of the batches."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A verdict: the document stays with this text."""

    text: str


@dataclass(frozen=True, slots=True)
class Stage:
    """A data step: called with its configuration and documents, it yields them in order, or their removals."""

    look: Callable[[Any, Batch], Any]
    settle: Callable[[Any, Iterator[tuple[Batch, Any]], Scratch], Iterator[Document | Dropped]]
    rehearsal: Batch | None = None
    """Documents that the looking is tried with before long work, where it calls what others wrote."""

    def __call__(
        self,
        config: Any,
        documents: Iterable[Document],
        mapper: Mapper | None = None,
        scratch: Scratch | None = None,
    ) -> Iterator[Document | Dropped]:
        """The step over a stream; `mapper` says where the looking is done (default: here)."""
        found = (mapper or serially)(functools.partial(self.look, config), batches(documents))
        return self.settle(config, found, scratch or Scratch())

    def rehearse(self, config: Any, mapper: Mapper | None = None) -> None:
        """Look at the rehearsal, where the looking will be done; raises what it raises."""
        if self.rehearsal is not None:
            for _ in (mapper or serially)(functools.partial(self.look, config), [self.rehearsal]):
                pass


def serially(look: Look, work: Iterable[Batch]) -> Iterator[tuple[Batch, Any]]:
    """Look at one batch after the other in this process."""
    for batch in work:
        yield batch, look(batch)


def batches(documents: Iterable[Document], most: int | None = None) -> Iterator[Batch]:
    """Documents in lists of up to `most` (default: BATCH_DOCUMENTS) and BATCH_CHARACTERS, in order."""
    most = most or BATCH_DOCUMENTS
    batch: Batch = []
    characters = 0
    for document in documents:
        if batch and (len(batch) >= most or characters + len(document.text) > BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(document)
        characters += len(document.text)
    if batch:
        yield batch


Verdict = tuple[str, str] | Cut | None
"""(reason, what was measured) of a removal; a text to put in the document's place; None: it stays as it is."""


def filter_stage(judge: Callable[[Any, Sequence[str]], Sequence[Verdict]]) -> Stage:
    """A step that decides about each text by itself: `judge(config, texts)` gives a verdict a text."""
    return Stage(functools.partial(_judge_texts, judge), settle_verdicts)


def _judge_texts(judge: Callable[[Any, Sequence[str]], Sequence[Verdict]], config: Any, batch: Batch) -> Any:
    return judge(config, [document.text for document in batch])


def settle_verdicts(
    config: Any,  # noqa: ARG001 - the verdicts are final
    found: Iterator[tuple[Batch, Any]],
    scratch: Scratch,  # noqa: ARG001 - nothing is remembered
) -> Iterator[Document | Dropped]:
    """Documents as the verdicts about them say, batch after batch."""
    for batch, verdicts in found:
        for document, verdict in zip(batch, verdicts, strict=True):
            if verdict is None:
                yield document
            elif isinstance(verdict, Cut):
                yield replace(document, text=verdict.text)
            else:
                reason, detail = verdict
                yield Dropped(document, reason, None, detail)
