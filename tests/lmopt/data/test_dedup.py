"""Exact and near deduplication, against the slow obvious versions."""

from __future__ import annotations

import numpy as np
import pytest

from lmopt.data import minhash, shingles, stage
from lmopt.data.documents import Document, Dropped
from lmopt.data.hashing import mix
from lmopt.data.minhash import MinHash, collision_probability
from lmopt.data.shingles import WordHashes, jaccard, shingle
from lmopt.recipe import ExactDedup, NearDedup, builder

from .texts import edited, numbered, prose


def _slow_ngrams(text: str, n: int) -> set[tuple[bytes, ...]]:
    words = shingles.words(text)
    if not words:
        return set()
    return {tuple(words[i : i + n]) for i in range(max(len(words) - n + 1, 1))}


def _slow_jaccard(left: str, right: str, n: int = 5) -> float:
    a, b = _slow_ngrams(left, n), _slow_ngrams(right, n)
    return len(a & b) / max(len(a | b), 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat, the CAT!", [b"the", b"cat", b"the", b"cat"]),
        ("naïve—Straße 3x_y", ["naïve".encode(), b"strasse", b"3x_y"]),
        ("", []),
        ("... \n\t", []),
        ("\N{SNOWMAN}", []),
    ],
)
def test_words(text: str, expected: list[bytes]) -> None:
    assert shingles.words(text) == expected


def test_ascii_and_other_texts_are_cut_by_the_same_rule() -> None:
    every = "".join(f"a{chr(c)}" for c in range(128))
    assert shingles.words(every) == shingles.words(every + " é")[:-1]


@pytest.mark.parametrize("ngram", [1, 2, 5])
def test_shingles_are_the_distinct_ngrams_of_each_text(ngram: int) -> None:
    texts = [prose(0), "", "one two", "one two three four five", "a b a b a b a b", "...", prose(1, 300)]
    found = shingle(texts, ngram, WordHashes())
    for number, text in enumerate(texts):
        assert len(np.unique(found.of(number))) == len(_slow_ngrams(text, ngram)), text[:30]
    assert found.offsets[-1] == len(found.hashes_S)


def test_shingles_do_not_depend_on_the_batch() -> None:
    texts = [prose(seed, 40) for seed in range(5)]
    together = shingle(texts, 5, WordHashes())
    for number, text in enumerate(texts):
        np.testing.assert_array_equal(together.of(number), shingle([text], 5, WordHashes()).of(0))


def test_the_order_of_words_counts() -> None:
    found = shingle(["a b c d e", "e d c b a"], 5, WordHashes())
    assert found.of(0)[0] != found.of(1)[0]


def test_the_word_table_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    before = shingle([prose(0)], 5, WordHashes()).hashes_S
    monkeypatch.setattr(shingles, "MAX_KNOWN_WORDS", 3)
    table = WordHashes()
    np.testing.assert_array_equal(shingle([prose(0)], 5, table).hashes_S, before)
    assert len(table) <= 4


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.5, 1.0])
def test_jaccard_of_hashes_is_jaccard_of_ngrams(share: float) -> None:
    left = prose(3)
    right = edited(left, share)
    found = shingle([left, right], 5, WordHashes())
    assert jaccard(found.of(0), found.of(1)) == pytest.approx(_slow_jaccard(left, right), abs=1e-12)


def _slow_signature(hashing: MinHash, shingles: np.ndarray) -> list[int]:
    """A place holds the shingle that came first, by numbers of any size: all visits of all shingles are made."""
    size, bits = hashing.places, 32 - hashing.places.bit_length()
    first = [2**32 - 1] * size
    for order in mix(shingles.astype(np.uint64) ^ hashing.seed).tolist():
        place, step = (order >> 32) * size >> 32, ((order % 2**32) * (size - 1) >> 32) + 1
        chance = (order * int(hashing.chance) % 2**64) >> 32
        for visit, factor in enumerate(hashing.chance_M.tolist()):
            low = (chance * factor % 2**32) >> (32 - bits)
            first[place] = min(first[place], visit << bits | low)
            place = (place + step) % size
    return [first[place] for place in hashing.taken_P.tolist()]


@pytest.mark.parametrize(("bands", "rows"), [(3, 2), (14, 8), (1, 1)])
def test_places_hold_the_shingle_that_came_first(bands: int, rows: int) -> None:
    found = shingle([prose(0), "", "two words", prose(1, 60), "one", "a b c d e f"], 5, WordHashes())
    hashing = MinHash(bands, rows)
    signature_DP = hashing.signatures(found)
    assert signature_DP.shape == (6, bands * rows)
    for number in (0, 2, 3, 4, 5):
        assert signature_DP[number].tolist() == _slow_signature(hashing, found.of(number))
    assert (signature_DP[1] == minhash.EMPTY).all()


def test_every_shingle_visits_every_place() -> None:
    """The steps are smaller than their modulus, and this is a prime."""
    for places in (1, 3, 112, 127, 128, 1000):
        size = MinHash(1, places).places
        assert size >= places
        assert all({visit * step % size for visit in range(size)} == set(range(size)) for step in (1, 2, size - 1))


def test_signatures_do_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    found = shingle(["", *(prose(seed, 30 + seed) for seed in range(20)), ""], 5, WordHashes())
    whole = MinHash(14, 8).signatures(found)
    for size in (1, 7, 64):  # most documents then lie across blocks
        monkeypatch.setattr(minhash, "BLOCK_SHINGLES", size)
        np.testing.assert_array_equal(MinHash(14, 8).signatures(found), whole)


def test_signatures_estimate_jaccard_without_bias_and_err_less_than_minhash() -> None:
    """The share of equal places has mean J, MinHash's variance J (1 - J) / P; 400 pairs of 96 shingles a level."""
    hashing = MinHash(14, 8)
    for share in (0.01, 0.05, 0.15):
        texts = [text for seed in range(400) for text in (prose(seed, 100), edited(prose(seed, 100), share, seed))]
        found = shingle(texts, 5, WordHashes())
        signature_DP = hashing.signatures(found)
        exact = np.array([jaccard(found.of(i), found.of(i + 1)) for i in range(0, 800, 2)])
        error = (signature_DP[::2] == signature_DP[1::2]).mean(axis=1) - exact
        sd = np.sqrt(np.mean(exact * (1 - exact)) / 112)
        assert abs(error.mean()) < 4 * sd / np.sqrt(400)
        assert 0.5 * sd < error.std() < 0.85 * sd


def test_bands_collide_as_often_as_the_formula_says() -> None:
    """FineWeb's 14 x 8 finds pairs of similarity .70 / .75 / .80 / .85 with probability .57 / .77 / .92 / .99."""
    expected = {0.70: 0.565, 0.75: 0.772, 0.80: 0.924, 0.85: 0.988}
    for similarity, probability in expected.items():
        assert collision_probability(similarity, 14, 8) == pytest.approx(probability, abs=1e-3)
    hashing = MinHash(14, 8)
    texts = [text for seed in range(500) for text in (prose(seed, 100), edited(prose(seed, 100), 0.05, seed))]
    found = shingle(texts, 5, WordHashes())
    key_DB = hashing.keys(hashing.signatures(found))
    collided = (key_DB[::2] == key_DB[1::2]).any(axis=1).mean()
    exact = [jaccard(found.of(i), found.of(i + 1)) for i in range(0, 1000, 2)]
    theory = np.mean([collision_probability(s, 14, 8) for s in exact])
    assert 0.2 < theory < 0.95
    assert abs(collided - theory) < 4 * np.sqrt(theory * (1 - theory) / 500)


def test_other_bands_draw_other_orders() -> None:
    assert MinHash(14, 8).seed != MinHash(8, 14).seed
    assert (MinHash(14, 8).chance_M % 2 == 1).all(), "an even multiplier would lose bits"


def _run(config: ExactDedup | NearDedup, texts: list[str]) -> tuple[list[Document], list[Dropped]]:
    items = list(builder(config)(config, iter(numbered(texts))))
    return [i for i in items if isinstance(i, Document)], [i for i in items if isinstance(i, Dropped)]


def test_exact_keeps_the_first_and_names_it() -> None:
    kept, dropped = _run(ExactDedup(), ["One  two", "one two\n", "ﬁne", "fine", "one two three"])
    assert [d.text for d in kept] == ["One  two", "ﬁne", "one two three"]
    assert [(d.document.text, d.reason, d.kept) for d in dropped] == [
        ("one two\n", "exact_duplicate", kept[0].id),
        ("fine", "exact_duplicate", kept[1].id),
    ]


def test_near_drops_small_edits_and_keeps_other_texts() -> None:
    originals = [prose(seed, 200) for seed in range(30)]
    copies = [edited(text, 0.01, seed) for seed, text in enumerate(originals)]
    rewritten = [edited(text, 0.5, seed) for seed, text in enumerate(originals)]
    kept, dropped = _run(NearDedup(), originals + copies + rewritten)
    ids = [document.id for document in numbered(originals)]
    assert [d.text for d in kept] == originals + rewritten
    assert [(d.document.text, d.kept) for d in dropped] == list(zip(copies, ids, strict=True))
    assert {d.reason for d in dropped} == {"near_duplicate"}
    assert "estimated Jaccard similarity 0." in dropped[0].detail


def test_near_names_the_most_similar_kept_document() -> None:
    text = prose(0, 300)
    kept, dropped = _run(NearDedup(bands=56, rows=2, verify=0.9), [edited(text, 0.03, 1), edited(text, 0.003, 2), text])
    assert len(kept) == 2
    assert [(d.document.text, d.kept) for d in dropped] == [(text, kept[1].id)]


def test_verification_asks_for_the_similarity_too() -> None:
    text = prose(0, 300)
    assert len(_run(NearDedup(bands=56, rows=2), [text, edited(text, 0.1)])[1]) == 1
    assert len(_run(NearDedup(bands=56, rows=2, verify=0.9), [text, edited(text, 0.1)])[1]) == 0


def test_a_named_duplicate_is_always_kept() -> None:
    chain = [prose(0, 150)]
    for seed in range(12):
        chain.append(edited(chain[-1], 0.03, seed))
    kept, dropped = _run(NearDedup(), chain)
    assert {d.kept for d in dropped} <= {d.id for d in kept}
    assert len(kept) > 1, "the end of the chain is far from its beginning"


def test_texts_without_words_are_no_duplicates() -> None:
    kept, dropped = _run(NearDedup(), ["...", "!!!", "\N{SNOWMAN}", "..."])
    assert (len(kept), len(dropped)) == (4, 0)


@pytest.mark.parametrize("config", [ExactDedup(), NearDedup()])
def test_batches_do_not_change_decisions(config: ExactDedup | NearDedup, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [edited(prose(seed % 7, 60), 0.02 * (seed % 3), seed) for seed in range(60)]
    whole = _run(config, texts)
    monkeypatch.setattr(stage, "BATCH_DOCUMENTS", 7)
    assert _run(config, texts) == whole
    assert whole[1], "there is something to drop"


def test_verified_removals_are_those_of_the_slow_exact_comparison() -> None:
    texts = [edited(prose(seed % 9, 120), 0.012 * (seed % 5), seed) for seed in range(90)]
    config = NearDedup(verify=0.8)
    hashing = MinHash(config.bands, config.rows)
    keys = [set(row) for row in hashing.keys(hashing.signatures(shingle(texts, 5, WordHashes()))).tolist()]
    stay: list[int] = []
    removed: dict[int, int] = {}
    for number, text in enumerate(texts):
        similar = {other: _slow_jaccard(text, texts[other]) for other in stay if keys[other] & keys[number]}
        best = min(similar, key=lambda other: (-similar[other], other), default=None)
        if best is not None and similar[best] >= 0.8:
            removed[number] = best
        else:
            stay.append(number)
    kept, dropped = _run(config, texts)
    documents = numbered(texts)
    assert kept == [documents[number] for number in stay]
    assert [(d.document, d.kept) for d in dropped] == [(documents[i], documents[j].id) for i, j in removed.items()]
    assert len(_run(NearDedup(), texts)[1]) > len(dropped) > 0, "the bands alone drop some that are not so similar"
    assert dropped[0].detail.startswith("Jaccard similarity 0.")


def test_other_draws_are_other_permutations_of_the_same_kind() -> None:
    assert MinHash(14, 8).seed == MinHash(14, 8, 0).seed != MinHash(14, 8, 1).seed
