"""docs/evaluation.md says what is so."""

from __future__ import annotations

import json
import re
from pathlib import Path

from bench.evaluate import loading
from bench.evaluate.index import DERIVED, TASKS

PAGE = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()


def test_the_table_is_that_of_the_index():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.MULTILINE))
    assert set(rows) == set(TASKS)
    for name, facts in TASKS.items():
        source = DERIVED if facts.source == DERIVED else f"`{facts.source}`"
        expected = [facts.family, f"{facts.items:,}", str(facts.choices), f"{facts.chance:.1%}", source]
        assert rows[name].split(" | ")[:5] == expected


def test_the_example_runs(model, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LMBENCH_CACHE", str(tmp_path))
    item = {"id": "1", "passage": None, "context": "The old", "choices": ["man", "sea"], "target": 0}
    for name in ("quartz", "corr2cause"):
        source = TASKS[name].source.replace(":", "-").replace("==", "-")
        path = tmp_path / "evaluation" / f"{name}-v{loading.READ_VERSION}-{source}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(item) + "\n")
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(example, {"model": model, "tokenizer": tokenizer})
    assert "corr2cause nli" in capsys.readouterr().out
