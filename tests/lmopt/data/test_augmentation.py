"""Filling up small domains: how much, of what, and that what was made is found again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lmopt.data import acceptance, augmentation, journal
from lmopt.data.augmentation import augment, shortfall
from lmopt.data.documents import Document, Dropped, Spent, is_synthetic
from lmopt.data.sentences import LONGEST_SENTENCE, excerpt, join, split
from lmopt.data.storage import DataError
from lmopt.techniques.augmentation import Augmentation, BackTranslation

from .texts import document, edited, prose

CONFIG = BackTranslation(below=0.2, target=0.3, shortest=50, copy_above=0.95)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(augmentation, "BATCH_CHARACTERS", 2000)


class Fake:
    """Replaces a fifth of the words; says what it was asked for."""

    name = "fake"

    def __init__(
        self, share: float = 0.2, price: float = 7.0, fails_at: int | None = None, *, learns: bool = False
    ) -> None:
        self.settings = {"share": share}
        self.learns = learns
        self.share, self.price, self.fails_at = share, price, fails_at
        self.asked: list[str] = []
        self.prepared = 0

    def prepare(self, documents: Iterator[Document]) -> float:
        self.prepared += 1
        return 100.0

    def make(self, texts: list[str]) -> list[tuple[str, float]]:
        if self.fails_at is not None and len(self.asked) >= self.fails_at:
            raise KeyboardInterrupt
        self.asked += texts
        return [(edited(text, self.share), self.price) for text in texts]


def _corpus(small: int = 40, large: int = 160) -> list[Document]:
    big = [document(prose(seed, 80), f"b{seed}", "web") for seed in range(large)]
    return big + [document(prose(1000 + seed, 80), f"s{seed}", "letters") for seed in range(small)]


def _parts(
    items: list[Document | Dropped | Spent],
) -> tuple[list[Document], list[Document], list[Dropped], list[Spent]]:
    documents = [item for item in items if isinstance(item, Document)]
    return (
        [d for d in documents if not is_synthetic(d)],
        [d for d in documents if is_synthetic(d)],
        [item for item in items if isinstance(item, Dropped)],
        [item for item in items if isinstance(item, Spent)],
    )


def _bytes(documents: list[Document]) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for d in documents:
        sizes[d.domain] += len(d.text.encode())
    return sizes


@pytest.mark.parametrize("learns", [False, True])
def test_what_a_model_made_that_learnt_from_other_documents_is_made_again(learns: bool) -> None:
    """Else what an arm trains on would depend on which arm was prepared before it."""
    whole, fewer = _corpus(), _corpus(large=150)
    first, again, other = (Fake(learns=learns) for _ in range(3))
    config = BackTranslation(below=0.3, cap=0.5)
    list(augment(config, iter(whole), first))
    list(augment(config, iter(whole), again))
    list(augment(config, iter(fewer), other))
    assert first.asked
    assert not again.asked
    assert bool(other.asked) is learns


def test_a_small_domain_reaches_its_target() -> None:
    corpus = _corpus()
    before = _bytes(corpus)
    assert before["letters"] / before.total() == pytest.approx(0.2, abs=0.01)
    config = CONFIG.model_copy(update={"below": 0.25})
    fake = Fake()
    real, synthetic, dropped, spent = _parts(list(augment(config, corpus, fake)))
    assert real == corpus, "real documents pass through, in order"
    assert {d.domain for d in synthetic} == {"letters"}
    after = _bytes(real + synthetic)
    assert after["letters"] / after.total() == pytest.approx(0.3, abs=0.01)
    assert not dropped
    assert len(synthetic) <= len(fake.asked) < len(synthetic) + 5
    assert sum(item.flops for item in spent) == 100 + 7 * len(fake.asked)
    assert all(item.earlier_s == 0 for item in spent)


def test_every_synthetic_document_says_so_and_is_made_of_another() -> None:
    corpus = _corpus()
    _, synthetic, _, _ = _parts(list(augment(CONFIG.model_copy(update={"below": 0.25}), corpus, Fake())))
    ids = {d.id for d in corpus}
    assert all(d.provenance.startswith("synthetic:fake of ") for d in synthetic)
    made_of = [d.provenance.rpartition(" ")[2] for d in synthetic]
    assert set(made_of) <= ids
    assert len(set(made_of)) == len(made_of)
    assert not {d.id for d in synthetic} & ids
    assert {d.source for d in synthetic} == {"file:test"}


def test_the_cap_holds() -> None:
    config = CONFIG.model_copy(update={"below": 0.3, "target": 0.6, "cap": 0.25})
    real, synthetic, _, _ = _parts(list(augment(config, _corpus(), Fake())))
    made = _bytes(synthetic)["letters"]
    assert made / (made + _bytes(real)["letters"]) <= 0.25
    assert made / (made + _bytes(real)["letters"]) == pytest.approx(0.25, abs=0.02)


def test_the_limit_holds_and_no_domain_below_means_nothing_is_made() -> None:
    config = CONFIG.model_copy(update={"below": 0.25, "limit": 2000})
    _, synthetic, _, _ = _parts(list(augment(config, _corpus(), Fake())))
    assert 2000 - 700 < _bytes(synthetic).total() <= 2000, "all but a part of a document"
    fake = Fake()
    assert list(augment(CONFIG.model_copy(update={"below": 0.1}), _corpus(), fake)) == _corpus()
    assert not fake.asked
    assert not fake.prepared


def test_a_domain_that_is_not_there_is_said() -> None:
    fake = Fake()
    with pytest.raises(DataError, match=r"no document of domain lettres came(.|\n)*hint: its domains are letters, "):
        list(augment(CONFIG.model_copy(update={"below": 0.25, "domains": ("letters", "lettres")}), _corpus(), fake))
    assert not fake.asked


def test_a_killed_build_finds_what_was_made_and_is_charged_for_it() -> None:
    config = CONFIG.model_copy(update={"below": 0.25})
    whole = Fake()
    expected = [d for d in augment(config, _corpus(), whole) if isinstance(d, Document)]
    journal.path_of(config.kind, {"share": 0.2}).unlink()
    killed = Fake(fails_at=10)
    with pytest.raises(KeyboardInterrupt):
        list(augment(config, _corpus(), killed))
    again = Fake()
    items = list(augment(config, _corpus(), again))
    assert [d for d in items if isinstance(d, Document)] == expected, "the same as in one go"
    assert len(killed.asked) + len(again.asked) == len(whole.asked), "nothing is made twice"
    spent = [item for item in items if isinstance(item, Spent)]
    assert sum(item.flops for item in spent) == 100 + 7 * len(whole.asked)
    assert sum(item.earlier_s > 0 for item in spent) == len(killed.asked) + 1, "and for the generator itself"


def test_another_arm_with_the_same_generator_pays_without_working() -> None:
    config = CONFIG.model_copy(update={"below": 0.25})
    working, idle = Fake(), Fake()
    list(augment(config, _corpus(), working))
    _, _, _, spent = _parts(list(augment(config, _corpus(), idle)))
    assert not idle.asked
    assert not idle.prepared
    assert sum(item.flops for item in spent) == 100 + 7 * len(working.asked)
    assert all(item.earlier_s > 0 for item in spent)


def test_a_seed_chooses_other_documents() -> None:
    def chosen(seed: int) -> set[str]:
        config = CONFIG.model_copy(update={"below": 0.25, "limit": 4000, "seed": seed})
        return {d.provenance for d in _parts(list(augment(config, _corpus(), Fake())))[1]}

    assert chosen(0) == chosen(0)
    assert chosen(0) != chosen(1)


def test_rejected_texts_are_dropped_with_a_reason_in_favour_of_their_originals() -> None:
    config = CONFIG.model_copy(update={"below": 0.25, "copy_above": 0.8})
    for share, reason in ((0.0, "synthetic_near_copy"), (0.9, "synthetic_drift")):
        _, synthetic, dropped, _ = _parts(list(augment(config, _corpus(), Fake(share))))
        assert not synthetic
        assert {item.reason for item in dropped} == {reason}
        assert len(dropped) == 40, "every document was tried"
        assert all(item.kept == item.document.provenance.rpartition(" ")[2] for item in dropped)


def test_copies_of_a_text_are_remade_once() -> None:
    twice = _corpus(20) + [document(prose(1000 + seed, 80), f"t{seed}", "letters") for seed in range(20)]
    config = CONFIG.model_copy(update={"below": 0.25, "target": 0.6, "cap": 0.9})
    fake = Fake()
    list(augment(config, twice, fake))
    assert len(fake.asked) == 20


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ("", "synthetic_empty"),
        ("...", "synthetic_empty"),
        ("one two", "synthetic_length"),
        ("one two three four five six seven eight nine ten " * 2, "synthetic_length"),
        ("one two three four five six seven eight nine ten", "synthetic_near_copy"),
        ("a b c d e f g h one two", "synthetic_drift"),
    ],
)
def test_reasons(made: str, reason: str) -> None:
    found = acceptance.rejection("one two three four five six seven eight nine ten", made, Augmentation(copy_above=0.8))
    assert found is not None
    assert found[0] == reason


def test_a_paraphrase_is_accepted() -> None:
    original = "The old man went down to the sea in the morning, and he had not eaten for two days."
    made = "The old man came down to the sea in the morning, and had not eaten in two days."
    assert acceptance.rejection(original, made, Augmentation()) is None


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    sizes=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 10**9), min_size=1),
    below=st.floats(0.01, 0.9),
    cap=st.floats(0.05, 0.95),
)
def test_what_is_wanted_never_breaks_the_cap_or_the_share(sizes: dict[str, int], below: float, cap: float) -> None:
    wanted = shortfall(sizes, Augmentation(below=below, cap=cap))
    total = sum(sizes.values())
    for domain, extra in wanted.items():
        assert extra > 0
        assert sizes[domain] < below * total
        assert extra / (extra + sizes[domain]) <= cap + 1e-9
    grown = total + sum(wanted.values())
    for domain in wanted:
        assert (sizes[domain] + wanted[domain]) / grown <= 2 * below + 1e-9, "where the others of them cannot grow"


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.text())
def test_a_text_is_its_sentences_and_what_stands_between_them(text: str) -> None:
    sentences, gaps = split(text)
    assert join(sentences, gaps) == text
    assert all(sentence == sentence.strip() != "" and len(sentence) <= LONGEST_SENTENCE for sentence in sentences)


def test_an_excerpt_ends_with_a_sentence() -> None:
    text = "The first one. The second one. The third one goes on."
    assert excerpt(text, 35) == "The first one. The second one."
    assert excerpt(text, 1000) == text
    assert excerpt("x" * 50, 10) == "x" * 10


def test_a_line_cut_short_by_a_kill_is_as_if_never_written(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with journal.Journal(path) as first:
        first.add({"a": journal.Made("ä\n", 1.0, 2.0)})
        first.add({"b": journal.Made("b", 1.0, 2.0)})
    path.write_bytes(path.read_bytes()[:-7])
    with journal.Journal(path) as second:
        assert second.get("a") == journal.Made("ä\n", 1.0, 2.0)
        assert second.get("b") is None
        second.add({"b": journal.Made("B", 3.0, 4.0)})
    with journal.Journal(path) as third:
        assert third.get("b") == journal.Made("B", 3.0, 4.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"below": 0.3, "target": 0.2},
        {"shortest": 300, "longest": 200},
        {"length_from": 2.0, "length_to": 1.0},
        {"cap": 1.0},
        {"translator": "hub"},
        {"models": ["a", "b"]},
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        BackTranslation.model_validate(wrong)


class Copies:
    """Gives every text back: what is added then shows which part of it was taken."""

    name, learns = "copies", False
    settings: ClassVar[dict[str, str]] = {"kind": "copies"}

    def prepare(self, documents: Iterator[Document]) -> float:
        return 0.0

    def make(self, texts: list[str]) -> list[tuple[str, float]]:
        return [(text, 1.0) for text in texts]


@given(
    limit=st.integers(1, 6000), cap=st.floats(0.05, 0.9), shortest=st.integers(1, 300), letter=st.sampled_from("aé語😀")
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_neither_cap_nor_target_nor_limit_is_passed_by_a_byte(
    limit: int, cap: float, shortest: int, letter: str
) -> None:
    def text(seed: int) -> str:
        return " ".join(f"The {letter * 3} of day {seed} was number {n}." for n in range(12))

    corpus = [document(prose(seed, 200), f"b{seed}", "web") for seed in range(20)]
    corpus += [document(text(seed), f"s{seed}", "letters") for seed in range(8)]
    config = BackTranslation(below=0.6, target=0.7, cap=cap, limit=limit, shortest=shortest, copy_above=1)
    real, synthetic, _, _ = _parts(list(augment(config, corpus, Copies())))
    made, whole = _bytes(synthetic)["letters"], {d.text for d in corpus}
    assert made <= limit
    assert made <= cap / (1 - cap) * _bytes(real)["letters"]
    assert made + _bytes(real)["letters"] <= 0.7 * (made + _bytes(real).total())
    cut = [d.text for d in synthetic if d.text not in whole]
    assert len(cut) <= 1
    for part in cut:
        assert part.endswith(".")
        assert len(part) >= shortest
        assert any(text.startswith(part) for text in whole)


def test_a_text_without_the_end_of_a_sentence_is_left_out() -> None:
    corpus = [document(prose(seed, 200), f"b{seed}", "web") for seed in range(20)]
    corpus += [document(f"{seed} and " * 60 + "on", f"s{seed}", "letters") for seed in range(8)]
    config = BackTranslation(below=0.6, target=0.7, limit=600, copy_above=1)
    _, synthetic, _, _ = _parts(list(augment(config, corpus, Copies())))
    assert len(synthetic) == 1
    assert _bytes(synthetic).total() <= 600


def test_a_text_that_shrank_is_kept_whole() -> None:
    class Shorter(Copies):
        def make(self, texts: list[str]) -> list[tuple[str, float]]:
            return [(text[: int(0.8 * len(text))], 1.0) for text in texts]

    corpus = [document(prose(seed, 200), f"b{seed}", "web") for seed in range(20)]
    corpus += [document(prose(100 + seed, 40), f"s{seed}", "letters") for seed in range(8)]
    shortest = min(len(d.text) for d in corpus)
    config = BackTranslation(below=0.6, target=0.7, cap=0.4, shortest=shortest, copy_above=1)
    _, synthetic, _, _ = _parts(list(augment(config, corpus, Shorter())))
    assert any(len(d.text) < shortest for d in synthetic)
