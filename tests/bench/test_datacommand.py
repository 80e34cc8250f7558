"""`lmbench data` as a person uses it: what is told while it works, what is shown afterwards."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench.cli import main

from ..lmopt.data.texts import edited, prose, write_jsonl

SUITE = """
suite: tiny
data:
  corpus: [{{source: "{source}", domain: notes}}]
  validation: [{{kind: holdout, share: 0.1}}]
  tokenizer: {{vocab: 300}}
baseline: {{name: raw}}
arms:
  - {{name: dedup, change: {{data: [{{kind: exact_dedup}}, {{kind: near_dedup}}]}}}}
  - {{name: moe, change: {{ffn: {{kind: moe}}}}}}
over:
  scale: [{{name: s, layers: 2, width: 64, heads: 2, tokens: 100k}}]
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite over 60 texts, 20 of them again with a word changed."""
    texts = [prose(seed) for seed in range(60)]
    source = write_jsonl(tmp_path / "a.jsonl", texts + [edited(text, 0.01) for text in texts[:20]])
    (tmp_path / "tiny.yaml").write_text(SUITE.format(source=source))
    return tmp_path / "tiny.yaml"


def test_a_build_tells_what_it_read_kept_and_dropped(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = suite.parent / "built"
    assert main(["data", "build", str(suite), "--out", str(out), "--memory", "1MB"]) == 0
    said = capsys.readouterr()
    assert said.out.split() == [str(out / name) for name in ("corpus", "raw", "dedup")], "equal steps are built once"
    assert re.search(r"corpus: \d+ documents held out\n", said.err)
    assert re.search(
        r"shards of dedup: \d+ documents, \d+(\.\d+)? KiB read, \d+ kept, 1\d dropped, [\d.]+ s\n", said.err
    )
    assert main(["data", "build", str(suite), "--out", str(out)]) == 0
    assert capsys.readouterr().err.count("finished before, left as it is") == 3


def test_what_a_step_dropped_is_shown(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = suite.parent / "built"
    main(["data", "build", str(suite), "--out", str(out)])
    capsys.readouterr()
    assert main(["data", "describe", str(out / "dedup")]) == 0
    table = capsys.readouterr().out
    assert re.search(r"^notes +\d+ .* 1\d$", table, re.MULTILINE)
    assert re.search(r"^all +\d+ .* 1\d$", table, re.MULTILINE)
    assert re.search(r"^near_dedup +\d+ +\d+ ", table, re.MULTILINE)
    assert re.search(r"^dropped, near_duplicate: 1\d$", table, re.MULTILINE)
    assert re.search(
        r"^  [0-9a-f]{16}: estimated Jaccard similarity .*; [0-9a-f]{16} stays\n    \w", table, re.MULTILINE
    )
    assert main(["data", "describe", str(out / "corpus")]) == 0
    table = capsys.readouterr().out
    assert re.search(r"^held out, holdout: \d+ documents, .* tokens$", table, re.MULTILINE)
    assert re.search(
        r"^decontaminated, validation: holdout: \d+ texts, 0 documents cut, 0 dropped$", table, re.MULTILINE
    )
    assert main(["data", "inspect", str(out / "dedup"), "--dropped", "--count", "2", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["reason"] for row in rows] == ["near_duplicate"] * 2
    assert "Jaccard similarity" in rows[0]["detail"]
    assert main(["data", "inspect", str(out / "dedup"), "--reason", "near_duplicate", "--domain", "notes"]) == 0
    assert capsys.readouterr().out.count("reason=near_duplicate") == 5
    assert main(["data", "inspect", str(out / "dedup"), "--reason", "too_loud", "--domain", "notes"]) == 0
    assert capsys.readouterr().err.startswith("no document of notes and too_loud\n  hint: lmbench data describe")


def test_a_size_that_is_none_is_refused(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["data", "build", str(suite), "--out", "x", "--memory", "3 parsecs"])
    assert "argument --memory: unknown unit 'parsecs'" in capsys.readouterr().err


def test_the_folder_of_all_builds_says_where_each_lies(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = suite.parent / "built"
    main(["data", "build", str(suite), "--out", str(out)])
    capsys.readouterr()
    assert main(["data", "describe", str(out)]) == 2
    assert f"hint: what was built lies in {out}/corpus, {out}/dedup, {out}/raw" in capsys.readouterr().err
    assert main(["data", "describe", str(suite)]) == 2
    assert f"{suite}: a file, not the folder of a corpus\n  hint: " in capsys.readouterr().err
    assert main(["data", "inspect", str(out / "none")]) == 2
    assert "hint: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["inspect", "x", "--count", "-3"], ["build", "x", "--out", "y", "--workers", "0"]]
)
def test_a_number_below_one_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", *arguments])
    assert "a whole number from 1 is needed, not " in capsys.readouterr().err


def test_files_that_were_not_read_are_shown(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = suite.parent / "texts"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", [prose(seed) for seed in range(60)])
    (folder / "b.pdf").write_text("x")
    suite.write_text(SUITE.format(source=f"file:{folder}"))
    main(["data", "build", str(suite), "--out", str(suite.parent / "built")])
    capsys.readouterr()
    assert main(["data", "describe", str(suite.parent / "built" / "corpus")]) == 0
    assert f"\nnot read, file:{folder}: 1 .pdf (no reader goes by that ending)" in capsys.readouterr().out
