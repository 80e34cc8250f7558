"""Filtering by a function that scores texts: a model of your own, or one that another package offers."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lmopt.data import documents, needs
from lmopt.data.documents import Document
from lmopt.data.stage import Batch, Stage, Verdict, settle_verdicts
from lmopt.data.storage import DataError
from lmopt.techniques.filters import CLASSIFIERS, Classifier

CONTRACT = "hint: it takes a list of texts and must return one finite number a text, in their order"
SHOWN_CHARACTERS = 60
"""Of a text, in a message."""

Scorer = Callable[[Sequence[str]], Sequence[float]]
"""Texts -> one score a text."""

_TRIED = (
    "The river rises in the hills north of the town and reaches the sea after ninety miles. In spring it carries the "
    "snow of three valleys, and the meadows along its lower course are under water for a week or two.",
    "To change the oil, let the engine run until it is warm, then switch it off and wait five minutes. Put a bowl "
    "under the drain plug before you open it.",
)
REHEARSAL: Batch = [
    documents.make(text, domain="rehearsal", source="rehearsal:", provenance=f"text {number} that it is tried with")
    for number, text in enumerate(_TRIED, start=1)
]
"""Ordinary prose that a function is tried with before there are documents: what it cannot score then it never can."""


def look(config: Classifier, batch: Batch) -> list[Verdict]:
    """A verdict a document.

    Raises:
        DataError: the function cannot be had, raises, or does not give one finite number a text.
    """
    return [
        None if score >= config.min_score else ("low_score", f"{config.function} gave {score:.4g}")
        for score in _scores(config.function, scorer(config.function), batch)
    ]


def _scores(name: str, function: Scorer, batch: Batch) -> list[float]:
    try:
        given: Any = function([document.text for document in batch])
        # What it returns may be a generator, of which the body runs only now.
        found = None if isinstance(given, str | bytes) or not isinstance(given, Iterable) else list(given)
    except (Exception, SystemExit) as error:
        raise _raised(name, function, batch, error) from error
    if found is None:
        raise DataError(f"{_step(name)} gave {_shown(given)} for {len(batch)} texts\n{CONTRACT}")
    if len(found) != len(batch):
        counted = f"got {len(batch)} texts, gave {len(found)} scores (the first text: document {batch[0].id})"
        raise DataError(f"{_step(name)} {counted}\n{CONTRACT}")
    return [_number(name, score, document) for score, document in zip(found, batch, strict=True)]


def _number(name: str, score: Any, document: Document) -> float:
    """A score as a float: numbers of Python, numpy and torch are; text is not, even where it spells one."""
    try:
        number = math.nan if isinstance(score, str | bytes) else float(score)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{_step(name)} gave {_shown(score)} for {_which(document)}\n{CONTRACT}")
    return number


def _raised(name: str, function: Scorer, batch: Batch, error: BaseException) -> DataError:
    """What the function raised, with the first document that it raises for, called with that text alone."""
    for document in batch if len(batch) > 1 else ():
        try:
            list(function([document.text]))
        except (Exception, SystemExit) as alone:  # noqa: BLE001 - whatever it is, it is told
            return DataError(_saying(name, _which(document), alone))
    which = f"{len(batch)} texts together, the first of document {batch[0].id}" if len(batch) > 1 else _which(batch[0])
    return DataError(_saying(name, which, error))


def _saying(name: str, which: str, error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" ({Path(last[0].filename).name}, line {last[0].lineno})" if last else ""
    return (
        f"{_step(name)} raised {type(error).__name__}{place}{': ' if lines else ''}{lines[0] if lines else ''}\n"
        f"for {which}\nhint: mend the function, or let it give such a text a score"
    )


def _step(name: str) -> str:
    return f"data step classifier: the function {name}"


def _which(document: Document) -> str:
    text = " ".join(document.text[: 4 * SHOWN_CHARACTERS].split())[:SHOWN_CHARACTERS]
    return f"document {document.id} ({document.source}, {document.provenance}), which begins {text!r}"


def _shown(value: Any) -> str:
    return f"{repr(value)[:SHOWN_CHARACTERS]} ({type(value).__name__})"


@functools.cache
def scorer(name: str) -> Scorer:
    """The function of that name: `module:function`, or an entry point in the group `lmbench.classifiers`.

    A module is looked for among what is installed, then in the current folder, wherever the program itself lies. Only
    where one is found there does the folder join the module path, at its end, for what that module imports.

    Raises:
        DataError: it is not there, cannot be imported, or is no function.
    """
    found: Any = _imported(*name.split(":")) if ":" in name else _entry_point(name)
    if not callable(found):
        raise DataError(f"{_step(name)} is no function, but {_shown(found)}\n{CONTRACT}")
    return found


def _imported(module: str, function: str) -> Any:
    if needs.lies_here(module):
        sys.path.append(os.getcwd())
    name = f"{module}:{function}"
    try:
        loaded = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise _not_loaded(name, error) from error
    if not hasattr(loaded, function):
        raise DataError(f"{_step(name)} is not in {loaded.__file__}\nhint: is its name right?")
    return getattr(loaded, function)


def _entry_point(name: str) -> Any:
    entries = importlib.metadata.entry_points(group=CLASSIFIERS, name=name)
    if not entries:
        known = ", ".join(sorted(importlib.metadata.entry_points(group=CLASSIFIERS).names)) or "none"
        raise DataError(
            f"{_step(name)} is not offered by any installed package; offered: {known}\n"
            "hint: write it as module:function, importable from where you run"
        )
    try:
        return next(iter(entries)).load()
    except (Exception, SystemExit) as error:
        raise _not_loaded(name, error) from error


def _not_loaded(name: str, error: BaseException) -> DataError:
    said = str(error).strip().splitlines()
    hint = "hint: write it as module:function, importable from where you run"
    if not isinstance(error, ModuleNotFoundError) or error.name not in (name.partition(":")[0], name.partition(".")[0]):
        hint = "hint: it has to be imported without an error: python -c 'import ...' shows where it fails"
    return DataError(f"{_step(name)} cannot be imported: {type(error).__name__}: {said[0] if said else ''}\n{hint}")


classifier = Stage(look, settle_verdicts, REHEARSAL)
