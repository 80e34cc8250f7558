"""N-gram speculation on real text against our own plain decoding, at about 80M parameters.

    python benchmarks/lookup.py --threads 1

A model of random weights does all the work of decoding, and its choices are replaced by the words of a real text: what
is timed is a model that would write exactly that text. How often a looked-up draft is kept is then a property of the
text alone. Texts: modules of the Python standard library (code), and the reference manual that pydoc shows (prose).
Each is continued from its first tokens: plain, with drafts looked up in the text itself, and with drafts looked up in
a store of the other texts of its kind, too (for code all modules of the library, tests excluded), in turn, A B C C B A;
with one thread the clock is processor time.

Printed, by kind of text: the ratio of seconds a token (plain over speculative) with a 95% t interval over texts, the
share of drafts that was kept, tokens a call, and how large the store is.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.stats.effect import mean_of
from lmopt.arch import transformer
from lmopt.compute.memory import tune_allocator
from lmopt.data import tokenizer
from lmopt.data.spec import Bpe
from lmopt.infer.decoder import Decoder
from lmopt.infer.generate import generate
from lmopt.infer.lookup import LookupDraft
from lmopt.infer.ngramstore import NgramStore
from lmopt.infer.sampling import seeded
from lmopt.infer.sequence import Text
from lmopt.infer.speculative import CachedTarget, DraftLength, rounds
from lmopt.recipe import FixedBatch, Model, Recipe, SwiGlu
from lmopt.techniques.decoding import Sampling

Clock = Callable[[], float]
ALPHA = 0.025


class Scripted:
    """A target that does the work of its decoder, and then chooses the words of a script."""

    def __init__(self, decoder: Decoder, script: Sequence[int]) -> None:
        self.inner, self.script = CachedTarget(decoder, capacity=len(script)), script

    @torch.inference_mode()
    def check(self, tokens: Sequence[int], drafted: Sequence[int]) -> Tensor:
        """As `lmopt.infer.speculative.Target`."""
        logits_GV = self.inner.check(tokens, drafted)
        chosen = self.script[len(tokens) : len(tokens) + len(drafted) + 1]
        chosen += [0] * (len(drafted) + 1 - len(chosen))
        return logits_GV.zero_().scatter_(1, torch.tensor(chosen)[:, None], 1.0)


def plain_s(decoder: Decoder, script: Sequence[int], prompt: int, clock: Clock) -> float:
    """Seconds a token behind the first."""
    steps = generate(decoder, [script[:prompt]], max_new=len(script) - prompt)
    next(steps)
    start_s = clock()
    count = sum(step.tokens for step in steps)
    return (clock() - start_s) / count


def lookup_s(
    decoder: Decoder, script: list[int], args: argparse.Namespace, store: NgramStore | None, clock: Clock
) -> tuple[float, int, int, int]:
    """Seconds a token behind the first; tokens drafted, kept, and calls."""
    text = Text(script[: args.prompt], args.prompt, len(script), (), seeded(0))
    draft = LookupDraft(decoder.vocab, store=store, row_cost=decoder.row_cost)
    steps = rounds(Scripted(decoder, script), draft, text, DraftLength(args.draft_tokens, 0.0, False), Sampling())
    next(steps)
    start_s = clock()
    done = list(steps)
    taken_s = clock() - start_s
    assert text.tokens == script, "it must write the script"
    drafted, kept = (sum(getattr(one, name) for one in done) for name in ("drafted", "kept"))
    return taken_s / (len(script) - args.prompt - 1), drafted, kept, len(done)


@dataclass(frozen=True)
class Texts:
    """Texts of one kind, in tokens."""

    scripts: list[list[int]]
    """The first tokens of those that are written."""
    others: list[list[int]]
    """All others, whole."""


def texts(kind: str, length: int, count: int, words: Any) -> Texts:
    """The first texts that are long enough are written, none of them is in the store."""
    scripts: list[list[int]] = []
    others: list[list[int]] = []
    for text in _library() if kind == "code" else _prose():
        tokens = words.encode(text).ids
        if len(tokens) >= length and len(scripts) < count:
            scripts.append(tokens[:length])
        else:
            others.append([*tokens, 0])
    if len(scripts) < count:
        raise SystemExit(
            f"only {len(scripts)} texts of {length} tokens ({kind}); hint: lower --texts, --prompt or --new"
        )
    return Texts(scripts, others)


def _library() -> list[str]:
    """Modules of the standard library, those at the top first."""
    folder = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "pydoc_data"}
    found = [path for path in folder.rglob("*.py") if not skipped & set(path.relative_to(folder).parts)]
    found.sort(key=lambda path: (len(path.parts), path))
    return [path.read_text(encoding="utf-8", errors="ignore") for path in found]


def _prose() -> list[str]:
    return [topics[name] for name in sorted(topics)]


def compare(decoder: Decoder, found: Texts, args: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """Ratios of plain over each way of looking up, text by text."""
    begin_s = time.perf_counter()
    store = NgramStore(np.concatenate([np.array(text, np.uint32) for text in found.others]), 4)
    result: dict[str, Any] = {
        "texts": len(found.scripts),
        "store": {"tokens": store.tokens, "MB": store.nbytes // 10**6, "s": round(time.perf_counter() - begin_s, 1)},
    }
    stores = {"text": None, "text and store": store}
    ratios: dict[str, list[float]] = {name: [] for name in stores}
    totals = {name: [0, 0, 0] for name in stores}
    for script in found.scripts:
        sums = dict.fromkeys(["plain", *stores], 0.0)
        for side in [*sums, *reversed(sums)]:
            if side == "plain":
                sums[side] += plain_s(decoder, script, args.prompt, clock)
                continue
            taken_s, *counts = lookup_s(decoder, script, args, stores[side], clock)
            sums[side] += taken_s
            totals[side] = [total + one for total, one in zip(totals[side], counts, strict=True)]
        for name, values in ratios.items():
            values.append(sums["plain"] / sums[name])
    for name, values in ratios.items():
        effect = mean_of([math.log(ratio) for ratio in values])
        drafted, kept, calls = totals[name]
        result[name] = {
            "ratio": round(math.exp(effect.low), 3),
            "interval": [round(math.exp(bound), 3) for bound in (effect.lower(ALPHA), effect.upper(ALPHA))],
            "median": round(statistics.median(values), 3), "kept_share": round(kept / drafted, 3) if drafted else None,
            "tokens_per_call": round(2 * len(found.scripts) * (args.new - 1) / calls, 3),
        }  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=704)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--prompt", type=int, default=1024, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens decoded a time")
    parser.add_argument("--texts", type=int, default=4, help="texts of each kind")
    parser.add_argument("--draft-tokens", type=int, default=8)
    parser.add_argument("--format", choices=["bf16", "int8", "int8_dynamic"], default="bf16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tune_allocator()
    clock = time.process_time if args.threads == 1 else time.perf_counter
    words = tokenizer.train([*_library()[::9], *_prose()], Bpe(vocab=args.vocab))
    length = args.prompt + args.new
    shape = Model(
        layers=args.layers, width=args.width, heads=args.width // 64, vocab=words.get_vocab_size(), context=length
    )
    recipe = Recipe(model=shape, ffn=SwiGlu(), batching=FixedBatch(length=length), tokens=10**9)
    decoder = Decoder(transformer.build(recipe, seed=0).eval(), args.format)
    result: dict[str, Any] = {"format": args.format, "threads": args.threads, "draft_tokens": args.draft_tokens}
    for kind in ("code", "prose"):
        found = texts(kind, length, args.texts, words)
        plain_s(decoder, found.scripts[0], args.prompt, clock)  # warm-up
        result[kind] = compare(decoder, found, args, clock)
        print(json.dumps({kind: result[kind]}), file=sys.stderr)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
