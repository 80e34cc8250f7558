"""A small valid suite, and edits of it."""

from __future__ import annotations

from pathlib import Path

from bench.suite import Suite, load_suite

ROOT = Path(__file__).parents[2]
SUITES = sorted((ROOT / "suites").glob("*.yaml"))

VALID = """\
suite: small
about: A test.
data:
  corpus: ["pypi:evals==3.0.1.post1"]
  tokenizer: {vocab: 512}
baseline:
  name: dense
  recipe:
    batching: {sequences: 8, length: 64}
arms:
  - name: moe
    role: component
    change: {ffn: {kind: moe, experts: 8, top_k: 2}}
  - name: fp32
    role: timing
    change:
      precision: {kind: fp32}
  - name: all
    role: claim
    change:
      ffn: {kind: moe, experts: 4}
      data: [{kind: exact_dedup}]
over:
  scale:
    - {name: s, layers: 2, width: 64, heads: 2, tokens: 100k}
    - {name: m, layers: 4, width: 128, heads: 4, tokens: 1M}
  seed: [0, 1]
  horizon: [0.5, 1.0]
evaluate: {tasks: [quartz]}
gate:
  - {metric: val_loss, arm: moe}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "s.yaml"
    path.write_text(text)
    return path


def loaded(folder: Path, *changes: tuple[str, str]) -> Suite:
    return load_suite(written(folder, edited(*changes)))


def edited(*changes: tuple[str, str]) -> str:
    text = VALID
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in the suite"
        text = text.replace(old, new)
    return text


MOE = "change: {ffn: {kind: moe, experts: 8, top_k: 2}}"
SCALE_S = "    - {name: s, layers: 2, width: 64, heads: 2, tokens: 100k}\n"
SCALE_M = "    - {name: m, layers: 4, width: 128, heads: 4, tokens: 1M}\n"
