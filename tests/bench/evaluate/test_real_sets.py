"""The index's counts and chances against the real files. Fetches packages (46 MB and 358 MB) where they are absent."""

from __future__ import annotations

from collections import Counter

import pytest

from bench.evaluate import loading
from bench.evaluate.index import DERIVED, TASKS

pytestmark = pytest.mark.slow
REAL = sorted(name for name, facts in TASKS.items() if facts.source != DERIVED)


@pytest.mark.parametrize("name", REAL)
def test_counts_and_chances(name):
    try:
        items = loading.items(name)
    except loading.NotAvailable as error:
        pytest.skip(str(error))
    facts = TASKS[name]
    assert len(items) == facts.items
    assert max(len(item.choices) for item in items) == facts.choices
    assert all(0 <= item.target < len(item.choices) for item in items)
    chance = sum(1 / len(item.choices) for item in items) / len(items)
    if len({frozenset(item.choices) for item in items}) == 1:
        commonest = Counter(item.choices[item.target] for item in items).most_common(1)[0][1]
        chance = max(chance, commonest / len(items))
    assert chance == pytest.approx(facts.chance)
    assert len({item.id for item in items}) == len(items)
    assert all(choice.strip() == choice != "" for item in items for choice in item.choices)
    assert all(item.context == item.context.rstrip() for item in items)


@pytest.mark.parametrize("name", ["quartz", "social_iqa", "logiqa", "hyperbaton", "squad_dev", "squad_amazon"])
def test_preferring_the_shorter_choice_does_not_pay(name):
    """A model that knows nothing prefers fewer tokens; were those right more often, it would look able."""
    try:
        items = loading.items(name)
    except loading.NotAvailable as error:
        pytest.skip(str(error))
    right = 0.0
    for item in items:
        shortest = min(map(len, item.choices))
        tied = [index for index, choice in enumerate(item.choices) if len(choice) == shortest]
        right += (item.target in tied) / len(tied)
    assert right / len(items) < TASKS[name].chance + 0.02
