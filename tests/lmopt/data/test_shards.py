"""Token files and batches: what is on disk, and which of it a step sees."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lmopt.data import batches, corpus, describe, shards, storage, tokenizer, validation
from lmopt.data.shards import Shards
from lmopt.data.spec import Data
from lmopt.data.storage import DataError
from lmopt.recipe import DataStep, ExactDedup, FixedBatch, NearDedup

from .texts import edited, prose, write_jsonl


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("corpus")
    texts = [prose(seed, 100) for seed in range(80)]
    texts += [text.upper() for text in texts[:20]] + [edited(text, 0.01) for text in texts[:20]] + ["a<|endoftext|>b"]
    source = write_jsonl(home / "a.jsonl", texts)
    data = Data.model_validate(
        {"corpus": [source], "validation": [{"kind": "holdout", "share": 0.1}], "tokenizer": {"vocab": 400}}
    )
    list(corpus.build(data, home / "c"))
    return home / "c"


def _build(built: Path, out: Path, *steps: DataStep) -> Shards:
    list(shards.build(built, steps, out))
    return shards.open_shards(out)


def test_tokens_decode_to_the_documents_in_order(built: Path, tmp_path: Path) -> None:
    found = _build(built, tmp_path / "s")
    words = tokenizer.load(built / corpus.TOKENIZER)
    end = found.manifest["end_of_text"]
    pieces = np.split(found.tokens, np.flatnonzero(found.tokens == end) + 1)
    assert len(pieces.pop()) == 0, "the last document ends with end-of-text too"
    texts = [words.decode(piece[:-1].tolist()) for piece in pieces]
    assert texts == [document.text for document in storage.documents(built / corpus.DOCUMENTS)]
    assert "a<|endoftext|>b" in texts, "spelt out in a text, it is text"


def test_the_manifest_counts_what_is_there(built: Path, tmp_path: Path) -> None:
    found = _build(built, tmp_path / "s", ExactDedup(), NearDedup())
    facts = found.manifest
    assert found.tokens.dtype == np.uint16
    assert len(found.tokens) == facts["tokens"] == sum(domain["tokens"] for domain in facts["domains"].values())
    assert set(facts["dropped"]) == {"exact_duplicate", "near_duplicate"}
    assert facts["documents_in"] == facts["documents_out"] + sum(facts["dropped"].values())
    assert facts["bytes_in"] > facts["bytes_out"]
    exact, near = facts["passed"]
    assert (exact["kind"], near["kind"]) == ("exact_dedup", "near_dedup")
    assert exact["documents_in"] == facts["documents_in"]
    assert exact["documents_out"] == near["documents_in"] == exact["documents_in"] - exact["dropped"]["exact_duplicate"]
    assert (near["documents_out"], near["bytes_out"]) == (facts["documents_out"], facts["bytes_out"])
    assert facts["flops"] == exact["flops"] == 0
    assert len(list(describe.documents(tmp_path / "s", dropped=True))) == sum(facts["dropped"].values())
    assert describe.describe(tmp_path / "s")["dropped"]["exact_duplicate"]["samples"][0]["kept"]


def test_steps_run_in_their_order(built: Path, tmp_path: Path) -> None:
    one = _build(built, tmp_path / "a", ExactDedup(), NearDedup()).manifest["dropped"]
    other = _build(built, tmp_path / "b", NearDedup(), ExactDedup()).manifest["dropped"]
    assert one["exact_duplicate"] > 0
    assert other == {"near_duplicate": one["exact_duplicate"] + one["near_duplicate"]}


def test_shards_are_the_same_wherever_they_are_built(built: Path, tmp_path: Path) -> None:
    _build(built, tmp_path / "a", NearDedup())
    _build(built, tmp_path / "b", NearDedup())
    for name in (shards.TOKENS, "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_finished_shards_are_kept_and_others_rebuilt(built: Path, tmp_path: Path) -> None:
    first = _build(built, tmp_path / "s")
    assert list(shards.build(built, (), tmp_path / "s")) == []
    second = _build(built, tmp_path / "s", ExactDedup())
    assert second.sha256 != first.sha256


def test_a_killed_build_starts_over(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ENCODE_DOCUMENTS", 10)
    running = shards.build(built, (), tmp_path / "s")
    next(running)
    with pytest.raises(DataError, match="not a finished shards"):
        shards.open_shards(tmp_path / "s")
    running.close()
    assert _build(built, tmp_path / "s").sha256 == _build(built, tmp_path / "t").sha256


def test_truncated_tokens_are_noticed(built: Path, tmp_path: Path) -> None:
    _build(built, tmp_path / "s")
    os.truncate(tmp_path / "s" / shards.TOKENS, 100)
    with pytest.raises(DataError, match=r"100 bytes, expected \d+ \(truncated"):
        shards.open_shards(tmp_path / "s")


def test_changed_tokens_are_noticed(built: Path, tmp_path: Path) -> None:
    _build(built, tmp_path / "s")
    data = bytearray((tmp_path / "s" / shards.TOKENS).read_bytes())
    data[7] ^= 1
    (tmp_path / "s" / shards.TOKENS).write_bytes(data)
    with pytest.raises(DataError, match="holds other tokens than were written"):
        shards.open_shards(tmp_path / "s")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"kind": "corpus", "schema": 1}', '{"kind": "shards", "schema": 99}'])
def test_a_manifest_that_is_none_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json"):
        shards.open_shards(tmp_path)


def test_shards_do_not_pretend_to_hold_documents(built: Path, tmp_path: Path) -> None:
    _build(built, tmp_path / "s")
    with pytest.raises(DataError, match="shards hold tokens, not documents"):
        describe.documents(tmp_path / "s")


def test_validation_tokens_decode_to_their_texts(built: Path) -> None:
    words = tokenizer.load(built / corpus.TOKENIZER)
    loaded = validation.load(built, "holdout")
    texts = list(validation.documents(built, "holdout"))
    assert [words.decode(document.tokens.tolist()) for document in loaded.documents] == [text.text for text in texts]
    assert [document.size_bytes for document in loaded.documents] == [len(text.text.encode()) for text in texts]
    assert loaded.end_of_text == 0


# --- batches -------------------------------------------------------------------------------------

CONFIG = FixedBatch(sequences=4, length=16)


def _counting(tokens: int) -> Shards:
    """Token i is i: a batch shows which tokens it holds."""
    return Shards(np.arange(tokens, dtype=np.uint16), {"sha256": "", "tokens": tokens})


def _take(count: int, tokens: int = 1000, *, seed: int = 0, start: int = 0) -> list[torch.Tensor]:
    return list(itertools.islice(batches.build(CONFIG, _counting(tokens), seed=seed, start=start), count))


def test_a_batch_is_windows_of_following_tokens() -> None:
    (batch,) = _take(1)
    assert batch.shape == (4, 17)
    assert batch.dtype == torch.int64
    assert (batch.diff(dim=1) == 1).all()


def test_any_step_can_be_the_first() -> None:
    whole = _take(40)
    for start in (0, 1, 7, 15, 39):
        (batch,) = _take(1, start=start)
        assert torch.equal(batch, whole[start])


def test_the_seed_changes_the_order() -> None:
    assert not torch.equal(_take(1, seed=0)[0], _take(1, seed=1)[0])
    assert torch.equal(_take(1, seed=1)[0], _take(1, seed=1)[0])


def test_an_epoch_sees_every_window_once_and_the_next_in_another_order() -> None:
    windows = batches.windows_per_epoch(1000, 16)
    assert windows == 61
    rows = torch.cat(_take(2 * windows // 4 + 1))
    first, second = rows[:windows, 0], rows[windows : 2 * windows, 0]
    for starts in (first, second):
        assert len(starts.unique()) == windows
        assert (starts.sort().values.diff() == 16).all()
    assert not torch.equal(first, second)
    assert not torch.equal(first.argsort(), second.argsort())


def test_the_last_window_ends_inside_the_corpus() -> None:
    for tokens in range(80, 120):
        assert torch.cat(_take(60, tokens, seed=tokens)).max() < tokens


def test_epochs_start_at_different_tokens() -> None:
    offsets = {int(_take(1, seed=seed)[0][0, 0]) % 16 for seed in range(200)}
    assert offsets == set(range(16))


def test_targets_cover_the_corpus_but_for_its_ends() -> None:
    rows = torch.cat(_take(16))[: batches.windows_per_epoch(1000, 16)]
    targets = rows[:, 1:].flatten()
    assert len(targets.unique()) == len(targets) == 61 * 16


def test_a_corpus_too_small_for_one_batch_is_said_before_the_first() -> None:
    with pytest.raises(DataError, match=r"has 79 tokens, and one batch of 4 sequences of 16 needs 80\nhint"):
        batches.build(CONFIG, _counting(79), seed=0)
    assert len(_take(3, 80)) == 3


def test_batches_do_not_need_the_tokens_in_memory(built: Path, tmp_path: Path) -> None:
    found = _build(built, tmp_path / "s")
    assert isinstance(found.tokens, np.memmap)
    assert not found.tokens.flags.writeable
    batch = next(batches.build(FixedBatch(sequences=2, length=8), found, seed=3))
    assert int(batch.max()) < json.loads((built / "manifest.json").read_text())["vocab"]
