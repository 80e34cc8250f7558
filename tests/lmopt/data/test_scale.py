"""One description, wherever it runs: the same output for any number of workers and any memory, and memory bounded."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmopt.data import corpus, reading, shards, sources, stage, storage, workers
from lmopt.data.documents import Document, Dropped
from lmopt.data.keytable import KeyTable
from lmopt.data.scratch import Scratch, full_disk_said
from lmopt.data.sortedruns import SortedRuns
from lmopt.data.spec import CorpusSource, Data
from lmopt.data.stage import Mapper, Stage
from lmopt.data.storage import DataError
from lmopt.recipe import (
    C4,
    Classifier,
    ExactDedup,
    FineWeb,
    GopherQuality,
    GopherRepetition,
    Language,
    NearDedup,
    NgramOverlap,
    SubstringDedup,
    Technique,
    builder,
)

from .texts import edited, numbered, prose, write_jsonl

SMALL = Scratch(memory_bytes=1 << 12)
"""So small that the tables of any test lie in several runs on disk."""
STEPS: tuple[Technique, ...] = (
    ExactDedup(),
    NearDedup(),
    SubstringDedup(words=20),
    NgramOverlap(ngram=5, max_seen=0.5),
    GopherQuality(min_stop_words=None),
    GopherRepetition(),
    C4(min_sentences=1),
    FineWeb(),
    Language(),
)


def _texts() -> list[str]:
    texts = [prose(seed % 40, 60 + seed % 40) for seed in range(90)]
    return texts + [edited(text, 0.02, seed) for seed, text in enumerate(texts)] + ["", "x", prose(0, 60).upper()]


def _run(config: Technique, mapper: Mapper | None = None, scratch: Scratch | None = None) -> list[Document | Dropped]:
    step = builder(config)
    assert isinstance(step, Stage)
    return list(step(config, numbered(_texts()), mapper, scratch))


# --- tables --------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(st.integers(0, 12), max_size=30), max_size=12), st.sampled_from([64, 1 << 20]))
def test_a_key_table_is_a_dictionary_of_lists(parts: list[list[int]], memory_bytes: int) -> None:
    table, expected = KeyTable(Scratch(memory_bytes)), {}
    number = 0
    for part in parts:
        keys = np.array(part, np.uint64)
        table.add(keys, np.arange(number, number + len(part)))
        for key in part:
            expected.setdefault(key, set()).add(number)
            number += 1
        places, values = table.find(np.arange(14, dtype=np.uint64))
        found: dict[int, set[int]] = {}
        for place, value in zip(places.tolist(), values.tolist(), strict=True):
            found.setdefault(place, set()).add(value)
        assert found == expected
    assert memory_bytes > 64 or number < 3 or table.runs


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(st.integers(0, 50), max_size=30), max_size=8), st.sampled_from([1 << 12, 1 << 20]))
def test_sorted_runs_sort(parts: list[list[int]], memory_bytes: int) -> None:
    runs = SortedRuns(Scratch(memory_bytes), most=50)
    everything = []
    for part in parts:
        first = len(everything)
        runs.add(np.array(part, np.uint64), np.arange(first, first + len(part), dtype=np.uint64))
        everything += [(key, first + i) for i, key in enumerate(part)]
    pieces = list(runs.ranges())
    assert [tuple(pair) for piece in pieces for pair in piece.tolist()] == sorted(everything)
    for one, other in itertools.pairwise(pieces):
        assert not len(one) or not len(other) or one["key"][-1] < other["key"][0]


def test_more_than_fits_at_once_goes_to_several_runs() -> None:
    runs = SortedRuns(Scratch(1 << 12), most=999)
    runs.add(np.arange(1000, dtype=np.uint64)[::-1], np.arange(1000, dtype=np.uint64))
    assert max(np.diff(bounds).sum() for bounds in runs._bounds) <= (1 << 12) // 64
    assert np.concatenate(list(runs.ranges()))["key"].tolist() == list(range(1000))


def test_a_range_that_does_not_fit_is_said() -> None:
    runs = SortedRuns(Scratch(256), most=10)
    runs.add(np.full(1000, 5, np.uint64), np.arange(1000, dtype=np.uint64))
    with pytest.raises(DataError, match="hint: allow the step more memory"):
        list(runs.ranges())


# --- the same everywhere -------------------------------------------------------------------------


@pytest.mark.parametrize("config", STEPS[:4], ids=lambda config: config.kind)
def test_tables_on_disk_decide_the_same(config: Technique, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "BATCH_DOCUMENTS", 16)
    expected = _run(config)
    assert any(isinstance(item, Dropped) for item in expected)
    assert _run(config, scratch=SMALL) == expected


class _Scrambled:
    """A pool that finishes its work in the worst order."""

    def __init__(self) -> None:
        self.most = 0
        self._waiting: list[list[Any]] = []

    def submit(self, look: Any, batch: Any) -> list[Any]:
        self._waiting.append([look, batch])
        self.most = max(self.most, len(self._waiting))
        return self._waiting[-1]

    def result(self, pending: list[Any]) -> Any:
        for other in reversed(self._waiting):
            if len(other) == 2:
                other.append(other[0](other[1]))
        self._waiting.remove(pending)
        return pending[2]


@pytest.mark.parametrize("config", STEPS, ids=lambda config: config.kind)
def test_the_order_in_which_workers_finish_changes_nothing(config: Technique, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "BATCH_DOCUMENTS", 16)
    expected, pool = _run(config), _Scrambled()
    mapper = workers.partial(workers._in_order, pool.submit, pool.result, 3)
    assert _run(config, mapper) == expected
    assert pool.most == 3, "what is out is bounded"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("corpus")
    data = Data.model_validate(
        {"corpus": [write_jsonl(home / "a.jsonl", _texts())], "validation": [{"kind": "holdout", "share": 0.1}],
         "tokenizer": {"vocab": 300}}
    )  # fmt: skip
    list(corpus.build(data, home / "c"))
    return home / "c"


SHARDED = (ExactDedup(), NearDedup(), SubstringDedup(words=20), GopherRepetition())


def test_one_two_and_three_processes_write_the_same_bytes(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "BATCH_DOCUMENTS", 16)
    list(shards.build(built, SHARDED, tmp_path / "1"))
    for count in (2, 3):
        with workers.processes(count) as mapper:
            list(shards.build(built, SHARDED, tmp_path / str(count), mapper=mapper, scratch=SMALL))
        for name in (shards.TOKENS, "manifest.json"):
            assert (tmp_path / str(count) / name).read_bytes() == (tmp_path / "1" / name).read_bytes()
        assert _dropped(tmp_path / str(count)) == _dropped(tmp_path / "1")


def _dropped(folder: Path) -> list[tuple[str, ...]]:
    """What was dropped, whichever step came to it first."""
    return sorted(tuple(map(str, row.values())) for row in storage.rows(folder / shards.DROPPED))


@pytest.mark.slow
def test_a_ray_cluster_writes_the_same_bytes(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(stage, "BATCH_DOCUMENTS", 16)
    list(shards.build(built, SHARDED, tmp_path / "here"))
    with workers.ray_cluster(workers=2) as mapper:
        list(shards.build(built, SHARDED, tmp_path / "ray", mapper=mapper))
    for name in (shards.TOKENS, "manifest.json"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_ray_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=r"pip install 'lmbench-suite\[ray\]'"), workers.ray_cluster():
        pass


# --- what goes wrong -----------------------------------------------------------------------------


def killed(texts: list[str]) -> list[float]:
    """A classifier whose process is killed."""
    os.kill(os.getpid(), signal.SIGKILL)
    return [1.0 for _ in texts]


def test_a_worker_that_is_killed_is_said(built: Path, tmp_path: Path) -> None:
    steps = (Classifier(function=f"{__name__}:killed", min_score=0),)
    with pytest.raises(DataError, match="a worker process was killed"), workers.processes(1) as mapper:
        list(shards.build(built, steps, tmp_path / "s", mapper=mapper))
    assert not (tmp_path / "s" / "manifest.json").exists()
    assert not list((tmp_path / "s").glob("*.part"))
    assert list(shards.build(built, (), tmp_path / "s")), "it starts over"


def test_a_full_disk_is_said_and_leaves_nothing(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "_append", full)
    with pytest.raises(DataError, match=r"no space left on the disk(.|\n)*hint: free some"):
        list(shards.build(built, (), tmp_path / "s"))
    assert list((tmp_path / "s").iterdir()) == []
    with pytest.raises(PermissionError), full_disk_said(tmp_path):
        raise PermissionError(13, "not ours")


# --- memory --------------------------------------------------------------------------------------

BUILD_PROGRAM = """
import sys
from pathlib import Path
from lmopt.data import corpus, shards, workers
from lmopt.data.scratch import Scratch
from lmopt.data.spec import CorpusSource, Data
from lmopt.recipe import ExactDedup, GopherRepetition, NearDedup, NgramOverlap, SubstringDedup

if __name__ == "__main__":
    source, out, memory_bytes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    data = Data.model_validate({"corpus": [source], "validation": [{"kind": "holdout", "share": 0.0005}]})
    steps = (ExactDedup(), NearDedup(verify=0.8), SubstringDedup(), NgramOverlap(table=1 << 28), GopherRepetition())
    for _ in corpus.build(data, out / "corpus"):
        pass
    with workers.processes(2) as mapper:
        for _ in shards.build(out / "corpus", steps, out / "shards", mapper=mapper, scratch=Scratch(memory_bytes)):
            pass
"""


def _real_text(path: Path, size: int) -> str:
    """So many bytes of documents made of lines of Python's own source and its comments; the name of the source."""
    options = CorpusSource(source="stdlib:")
    texts = (document.text for document in reading.read(sources.fetch("stdlib:"), options))
    pool = [line for text in texts for line in text.splitlines() if len(line.split()) > 3]
    rng, done = np.random.default_rng(0), 0
    with path.open("w", encoding="utf-8") as file:
        while done < size:
            text = "\n".join(pool[i] for i in rng.integers(0, len(pool), 60).tolist())
            for copy in (text, text + "\nonce more") if rng.random() < 0.2 else (text,):
                file.write(json.dumps({"text": copy}) + "\n")
                done += len(copy.encode("utf-8", "replace"))
    return f"file:{path}"


def _peak_of_tree(program: list[str]) -> int:
    """Most bytes that a program and its children held in memory at once; pages that they share count several times."""
    peak = 0
    with subprocess.Popen(program) as child:
        root = psutil.Process(child.pid)
        while child.poll() is None:
            held = 0
            for process in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    held += process.memory_info().rss
            peak = max(peak, held)
            time.sleep(0.1)
    assert child.returncode == 0
    return peak


def _build_of(tmp_path: Path, size: int, memory_bytes: int) -> tuple[dict[str, Any], int]:
    """(manifest, peak memory) of a whole build of so much text: corpus, held-out text, five steps, tokens."""
    (tmp_path / "build.py").write_text(BUILD_PROGRAM)
    source = _real_text(tmp_path / "text.jsonl", size)
    peak_bytes = _peak_of_tree(
        [sys.executable, str(tmp_path / "build.py"), source, str(tmp_path / "out"), str(memory_bytes)]
    )
    return shards.open_shards(tmp_path / "out" / "shards").manifest, peak_bytes


@pytest.mark.slow
def test_a_gigabyte_of_text_is_built_in_less_than_two_of_memory(tmp_path: Path) -> None:
    facts, peak_bytes = _build_of(tmp_path, 10**9, 1 << 26)
    print(f"peak {peak_bytes / 2**20:.0f} MiB over all processes, {facts['tokens']} tokens")
    assert facts["bytes_in"] > 0.9 * 10**9
    assert facts["dropped"]["near_duplicate"] > 10_000
    assert peak_bytes < 2 * 2**30


@pytest.fixture(scope="module")
def hundred_megabytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "one.txt"
    path.write_text("\n".join(prose(seed, 2000) for seed in range(9000)))
    assert path.stat().st_size > 100_000_000
    return path


STEP_PROGRAM = """
import sys
from pathlib import Path
from lmopt.data import documents
from lmopt.data.documents import Dropped
from lmopt.recipe import *

def peak_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

text = Path(sys.argv[1]).read_text()
config, document = eval(sys.argv[2]), documents.make(text, domain="x", source="x", provenance="x")
step, before = builder(config), peak_bytes()
(item,) = step(config, iter([document]))
assert (item.document if isinstance(item, Dropped) else item).id == document.id
print(peak_bytes() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process from /proc")
@pytest.mark.parametrize("config", STEPS, ids=lambda config: config.kind)
def test_a_document_of_a_hundred_megabytes_takes_a_dozen_times_its_size_at_most(
    config: Technique, hundred_megabytes: Path
) -> None:
    program = [sys.executable, "-c", STEP_PROGRAM, str(hundred_megabytes), repr(config)]
    done = subprocess.run(program, check=True, capture_output=True, text=True)
    print(f"{config.kind}: {int(done.stdout) / 2**20:.0f} MiB beside the text")
    assert int(done.stdout) < 12 * hundred_megabytes.stat().st_size
