"""Which texts of a suite's tasks its training text must not repeat."""

from __future__ import annotations

import pytest

from bench.evaluate import protected
from bench.evaluate.loading import NotAvailable
from bench.evaluate.sets import Item


def test_each_question_is_protected_with_each_of_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def items(name: str) -> list[Item]:
        if name == "vitaminc":
            raise NotAvailable("no network")
        return [Item("1", None, "Is it?", ("Yes", "No"), 0), Item("2", None, "Is it?", ("No", "Perhaps"), 1)]

    monkeypatch.setattr(protected, "items", items)
    monkeypatch.setenv("LMBENCH_OFFLINE", "1")
    found, missing = protected.texts(["quartz", "heldout_cloze", "vitaminc", "hub:piqa"])
    assert found == {"quartz": ["Is it? Yes", "Is it? No", "Is it? Perhaps"]}
    assert missing["vitaminc"] == "no network"
    assert "hub:piqa" in missing["hub:piqa"]
    assert "heldout_cloze" not in missing, "protected with the validation set it is made of"
