"""Our MinHash signatures, filters and tokenising against peers', on the same documents, a core.

    python benchmarks/data.py                       # 1,500 passages of the default corpus, 4 rounds, about a minute
    python benchmarks/data.py --source file:mine.jsonl --documents 5000 --json out.json

Contenders work in turn on the same block of documents, forwards and backwards (A B C D D C B A), and are timed by the
CPU time of this process, threads included: a busy machine slows all alike. A ratio compares turns of one round; the
median over rounds is printed with the smallest and the largest. Peers get their own normalisation where they have one
(datatrove), else our words (datasketch, rensa), which only helps them.

Agreement: over pairs of documents, the estimate's error against the exact Jaccard similarity of word 5-grams (the
binomial bound is sqrt(J (1 - J) / 112)), and how many pairs at .80 or more share a band of the 14 x 8, and how many
below .60 do (recall and precision of what would be dropped). Filters: how many of the documents get the same decision,
reason and remaining text as from datatrove. Needs the extra `bench`: pip install 'lmbench-suite[bench]'.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
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
SIMILAR, DIFFERENT = 0.8, 0.6
PAIRS = 4000

Signer = Callable[[Sequence[str]], NDArray[Any]]
"""Texts -> one signature of 112 numbers a text."""


def ours() -> Signer:
    """This package."""
    hashing, table = MinHash(BANDS, ROWS), WordHashes()
    return lambda texts: hashing.signatures(shingle(texts, NGRAM, table))


def datatrove() -> Signer:
    """datatrove's stage 1, without its writing of files."""
    dedup = importlib.import_module("datatrove.pipeline.dedup.minhash")
    step = dedup.MinhashDedupSignature(
        "/tmp", dedup.MinhashConfig(n_grams=NGRAM, num_buckets=BANDS, hashes_per_bucket=ROWS)
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


def datasketch() -> Signer:
    """datasketch's MinHash, updated in bulk."""
    module = importlib.import_module("datasketch")

    def sign(texts: Sequence[str]) -> NDArray[Any]:
        hashes = module.MinHash.bulk([_ngrams(text) for text in texts], num_perm=PERMUTATIONS)
        return np.array([found.hashvalues for found in hashes])

    return sign


def rensa() -> Signer:
    """rensa's RMinHash (Rust)."""
    module = importlib.import_module("rensa")

    def sign(texts: Sequence[str]) -> NDArray[Any]:
        rows = []
        for text in texts:
            found = module.RMinHash(PERMUTATIONS, 1)
            found.update(_ngrams(text))
            rows.append(found.digest())
        return np.array(rows)

    return sign


SIGNERS: dict[str, Callable[[], Signer]] = {
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


def filters(texts: Sequence[str], rounds: int, megabytes: float) -> dict[str, dict[str, float]]:
    """MB/s of ours and datatrove's, the ratio, and the share of documents on which they agree."""
    table = {}
    for name in FILTERS:
        mine, theirs = our_filter(name), datatrove_filter(name)
        row = speeds(interleaved({"lmopt": mine, "datatrove": theirs}, texts, rounds), megabytes)
        same = [one == other for one, other in zip(mine(texts), theirs(texts), strict=True)]
        table[name] = {
            "lmopt_mb_per_s": row["lmopt"]["mb_per_s"],
            "datatrove_mb_per_s": row["datatrove"]["mb_per_s"],
            "ours_is_faster_by": row["datatrove"]["ours_is_faster_by"],
            "least": row["datatrove"]["least"],
            "most": row["datatrove"]["most"],
            "agreement": sum(same) / len(same),
        }
    return table


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


def agreement(signers: dict[str, Signer], texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Errors and shared bands of each contender over pairs: neighbours in the corpus, up to ten documents apart."""
    rng = np.random.default_rng(0)
    left = rng.integers(0, len(texts) - 10, PAIRS)
    right = left + rng.integers(1, 11, PAIRS)
    found = shingle(texts, NGRAM, WordHashes())
    exact = np.array([jaccard(found.of(i), found.of(j)) for i, j in zip(left, right, strict=True)])
    similar, different = exact >= SIMILAR, exact < DIFFERENT
    table = {}
    for name, sign in signers.items():
        signature = sign(texts)
        equal = signature[left] == signature[right]
        error = equal.mean(axis=1) - exact
        banded = equal.reshape(PAIRS, BANDS, ROWS).all(axis=2).any(axis=1)
        table[name] = {
            "bias": float(error.mean()),
            "rms_error": float(np.sqrt((error**2).mean())),
            "found_similar": float(banded[similar].mean()) if similar.any() else float("nan"),
            "found_different": float(banded[different].mean()) if different.any() else float("nan"),
            "precision": float(similar[banded].mean()) if banded.any() else float("nan"),
        }
    expected = np.array([collision_probability(value, BANDS, ROWS) for value in exact])
    table["theory"] = {
        "bias": 0.0,
        "rms_error": float(np.sqrt(np.mean(exact * (1 - exact) / PERMUTATIONS))),
        "found_similar": float(expected[similar].mean()) if similar.any() else float("nan"),
        "found_different": float(expected[different].mean()) if different.any() else float("nan"),
        "precision": float((expected * similar).sum() / expected.sum()),
    }
    return table


def show(title: str, table: dict[str, dict[str, float]]) -> None:
    """A table on standard output."""
    columns = list(next(iter(table.values())))
    print(f"\n{title}\n{'':18}" + "".join(f"{column:>19}" for column in columns))
    for name, row in table.items():
        print(f"{name:18}" + "".join(f"{row[column]:19.4g}" for column in columns))


def main() -> None:
    """Time, compare, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--source", default="pypi:evals==3.0.1.post1")
    parser.add_argument("--documents", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    options = CorpusSource(source=arguments.source)
    documents = list(reading.read(sources.fetch(arguments.source), options))
    stride = max(len(documents) // arguments.documents // 11, 1) * 11
    blocks = range(0, len(documents), stride)
    texts = [d.text for first in blocks for d in documents[first : first + 11]][: arguments.documents]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    signers = {name: make() for name, make in SIGNERS.items()}
    found = {
        "minhash": speeds(interleaved(signers, texts, arguments.rounds), megabytes),
        "tokenising": speeds(interleaved(encoders(texts), texts, arguments.rounds), megabytes),
        "agreement": agreement(signers, texts),
        "filters": filters(texts, arguments.rounds, megabytes),
    }
    print(f"{len(texts)} documents, {megabytes:.2f} MB of {arguments.source}")
    show("MinHash signatures, 112 permutations of word 5-grams, CPU time", found["minhash"])
    show("Tokenising, vocabulary of 2,000, CPU time", found["tokenising"])
    show(f"Agreement with exact Jaccard over {PAIRS} pairs", found["agreement"])
    show("Filters, CPU time; agreement on decision, reason and remaining text", found["filters"])
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
