"""What a model is fine-tuned on: the questions of a set that it is not tested on, freed of what the tested ones say.

A question that shares an n-gram of 13 words with a tested one (GPT-3's rule, Brown et al., arXiv 2005.14165, appendix
C) is left out whole. Some of the rest are kept back to choose a learning rate by.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.casefolder import write_atomically
from bench.evaluate import splits
from bench.evaluate.loading import NotAvailable, items
from bench.evaluate.sets import Item
from lmopt.data import cache as store
from lmopt.data.contamination import Protected
from lmopt.data.documents import Document
from lmopt.data.spec import Decontaminate

CHOOSING_ITEMS, CHOOSING_SHARE = 1_000, 0.2
"""Questions that choose between learning rates, at most a fifth of all: accuracy to 1.5 points."""
LEAST_TO_LEARN, LEAST_TO_CHOOSE = 100, 20
"""Fewer questions teach nothing, or choose by luck: what is left of a set whose passages all say the same."""
CLEAN_VERSION = 1
"""Raised whenever another rule says what a tested question shares, so that what the cache knows is not used."""


@dataclass(frozen=True, slots=True)
class Practice:
    """Questions to learn from and to choose by; none is tested."""

    learn: Sequence[Item]
    choose: Sequence[Item]
    facts: Mapping[str, Any]
    """How many there are, and how many were left out."""


def practice(task: str, others: Sequence[str], share: float, *, cache: Path | None = None) -> Practice:
    """What is learnt before a test on a share of a set's passages.

    Args:
        others: sets that are learnt from too, in full.
        share: of the set's own passages that are tested; the rest is learnt from.

    Raises:
        NotAvailable: a set cannot be had here and now, or leaves nothing to learn from or to test.
    """
    own = items(task, cache=cache)
    test = splits.tested(own, share)
    offered = splits.untested(own, share)
    for name in others:
        offered += items(name, cache=cache)
    clean = _clean(offered, test, (cache or store.folder()) / "evaluation")
    learn, choose = splits.kept_back(clean, min(CHOOSING_SHARE, CHOOSING_ITEMS / max(1, len(clean))))
    if len(learn) < LEAST_TO_LEARN or len(choose) < LEAST_TO_CHOOSE or not test:
        raise NotAvailable(
            f"{task}: {len(learn)} questions are left to learn from, {len(choose)} to choose by, {len(test)} to test; "
            f"at least {LEAST_TO_LEARN}, {LEAST_TO_CHOOSE} and 1 are needed\n"
            "hint: another share, or other sets to learn from"
        )
    facts = {
        "learnt_from": len(learn), "chosen_by": len(choose), "contaminated": len(offered) - len(clean),
        "tested": len(test),
    }  # fmt: skip
    return Practice(learn, choose, facts)


def _clean(offered: Sequence[Item], test: Sequence[Item], folder: Path) -> list[Item]:
    """Those of the offered that share nothing with the tested; found once, then known by the content of both."""
    content = "\n".join([*(_text(item) for item in offered), "tested", *(_text(item) for item in test)])
    digest = hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
    known = folder / f"practice-v{CLEAN_VERSION}-{digest}.json"
    if known.exists():
        kept: list[int] = json.loads(known.read_text())
    else:
        kept = _without_tested(offered, test)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(known, json.dumps(kept))
    return [offered[number] for number in kept]


def _without_tested(offered: Sequence[Item], test: Sequence[Item]) -> list[int]:
    protected = Protected(Decontaminate(), {"test": dict.fromkeys(map(_text, test))})
    documents = [Document(item.id, _text(item), "", "practice", item.id) for item in offered]
    cleaned = zip(documents, protected.clean(documents), strict=True)
    return [number for number, (document, found) in enumerate(cleaned) if found is document]


def _text(item: Item) -> str:
    return " ".join((item.context, *item.choices))
