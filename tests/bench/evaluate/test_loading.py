"""From a source to items: an imported file, a member of a source archive, the small file that is kept."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from bench.evaluate import loading
from bench.evaluate.index import BIGBENCH
from bench.evaluate.sets import READERS
from lmopt.data import cache as store
from lmopt.data import sources
from lmopt.data.cache import Payload


def test_blimp_is_read_from_an_imported_file(tmp_path: Path) -> None:
    rows = [
        {"sentence_good": f"He is {n}.", "sentence_bad": f"He are {n}.", "UID": "agreement", "pairID": str(n)}
        for n in range(5)
    ]
    file = tmp_path / "mine.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    with pytest.raises(loading.NotAvailable, match="lmbench data import blimp FILE"):
        loading.items("blimp", cache=tmp_path / "cache")
    sources.import_file("blimp", file, tmp_path / "cache")
    found = loading.items("blimp", cache=tmp_path / "cache")
    assert {item.id for item in found} == {f"agreement/{n}" for n in range(5)}
    assert loading.items("blimp", cache=tmp_path / "cache", limit=2) == found[:2], "from the small file, in its order"


def _big_bench(cache: Path, files: dict[str, str]) -> None:
    def bring(work: Path) -> Payload:
        with tarfile.open(work / "bigbench-1.0.0.tar.gz", "w:gz") as archive:
            for name, text in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text.encode()))
        return Payload(work / "bigbench-1.0.0.tar.gz", "1.0.0", None)

    store.store("pypi", "bigbench==1.0.0", cache, bring, label=BIGBENCH)


def test_vitaminc_is_read_from_a_source_archive(tmp_path: Path) -> None:
    example = {"input": "Page: a quote\nClaim: c", "target_scores": {"True": 0, "False": 0, "Neither": 1}}
    member = READERS["vitaminc"].member
    assert member is not None
    _big_bench(tmp_path, {"bigbench-1.0.0/PKG-INFO": "", member: json.dumps({"examples": [example]})})
    (item,) = loading.items("vitaminc", cache=tmp_path)
    assert item.choices[item.target] == "Neither"


def test_an_archive_without_the_file_is_said(tmp_path: Path) -> None:
    _big_bench(tmp_path, {"bigbench-1.0.0/PKG-INFO": ""})
    with pytest.raises(loading.NotAvailable, match=r"has no file .*vitaminc"):
        loading.items("vitaminc", cache=tmp_path)
