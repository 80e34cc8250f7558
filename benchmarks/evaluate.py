"""Our adapter for lm-evaluation-harness against the harness's own Hugging Face backend: same weights, same requests.

    python benchmarks/evaluate.py --tasks quartz,social_iqa,corr2cause --limit 200
    python benchmarks/evaluate.py --ask sentences

`--ask` makes other kinds of requests of the tasks' contexts: `sentences` (each alone), `pairs` (each twice, with
another word in the middle, as BLiMP asks), `last_words` (one continuation a context, as LAMBADA), `rolling` (whole
texts of about 600 words) and `generation` (64 tokens a context).

A Llama of random weights is written by `save_hf` and read by transformers; both sides get the requests that the harness
builds for the tasks, and answer them in turn, A B B A, in one process. The backend runs at the best of several batch
sizes. Printed: seconds and their ratio (median over rounds), the largest difference between two log-likelihoods, and
whether every item is judged the same (of generation: the share of texts that are); GFLOP/s of our side, and of a large
product. Differences: rounding alone in
float32; with --bf16 both compute in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer
from torch.utils.flop_counter import FlopCounterMode

from bench.evaluate.asking import TASK_FILES
from bench.evaluate.language_model import DecoderLM
from lmopt.arch import matmul
from lmopt.arch.interchange import save_hf
from lmopt.arch.transformer import build
from lmopt.compute.memory import tune_allocator
from lmopt.data import tokenizer as bpe
from lmopt.data.spec import Bpe
from lmopt.recipe import Model, Recipe, SwiGlu

SIZES = {"3m": (4, 192, 6), "10m": (6, 384, 6), "30m": (8, 512, 8)}
"""name -> layers, width, heads."""
BATCH_SIZES = (8, 32, 64)
"""Sequences a forward pass that the backend is tried with."""
KINDS = {
    "choices": "loglikelihood", "sentences": "loglikelihood", "pairs": "loglikelihood",
    "last_words": "loglikelihood", "rolling": "loglikelihood_rolling",
    "generation": "generate_until",
}  # fmt: skip
"""What is asked -> kind of request."""
FEW = {"loglikelihood": 200, "loglikelihood_rolling": 20, "generate_until": 64}
"""Requests that the batch sizes are tried with."""
SENTENCE_WORDS, TEXT_WORDS, NEW_TOKENS = 8, 600, 64


def requests_of(names: Sequence[str], limit: int) -> list[Any]:
    """The harness's log-likelihood requests for some items of each task."""
    manager = TaskManager(include_defaults=False, metadata={"cache": None, "corpus": None, "seed": 0, "limit": limit})
    found: list[Any] = []
    for name in names:
        for task in manager.load(str(TASK_FILES / f"{name}.yaml"))["tasks"].values():
            task.build_all_requests(limit=limit)
            found += [request for request in task.instances if request.request_type == "loglikelihood"]
    return found


def asked(requests: Sequence[Any], kind: str) -> list[Any]:
    """Requests of another kind about the same contexts, each context once."""
    if kind == "choices":
        return list(requests)
    contexts = list(dict.fromkeys(request.args[0] for request in requests))
    sentences = [context.split()[-SENTENCE_WORDS:] for context in contexts]
    match kind:
        case "sentences":
            found = [("", " ".join(words)) for words in sentences]
        case "pairs":
            middle = SENTENCE_WORDS // 2
            found = [
                ("", " ".join([*words[:middle], word, *words[middle + 1 :]]))
                for words, others in zip(sentences, [*sentences[1:], sentences[0]], strict=True)
                if len(words) == len(others) == SENTENCE_WORDS
                for word in (words[middle], others[middle])
            ]
        case "last_words":
            found = [(before, f" {last}") for before, _, last in (text.rpartition(" ") for text in contexts) if before]
        case "rolling":
            words = " ".join(contexts).split()
            found = [(" ".join(words[start : start + TEXT_WORDS]),) for start in range(0, len(words), TEXT_WORDS)]
        case _:
            settings = {"until": ["\n\n"], "max_gen_toks": NEW_TOKENS}
            found = [(context, settings) for context in contexts]
    choices = 2 if kind == "pairs" else 1
    return [Instance(KINDS[kind], {}, arguments, 0, (kind, n // choices, 1)) for n, arguments in enumerate(found)]


def both_sides(
    size: str, context: int, words: Tokenizer, *, bf16: bool, batch_tokens: int | None = None
) -> tuple[DecoderLM, dict[int, Any]]:
    """Our side, and the backend at each batch size, all with the same weights."""
    import transformers
    from lm_eval.models.huggingface import HFLM

    layers, width, heads = SIZES[size]
    shape = Model(layers=layers, width=width, heads=heads, vocab=words.get_vocab_size(), context=context)
    recipe = Recipe(model=shape, ffn=SwiGlu(), batching={"length": context}, tokens=10**6)
    model = build(recipe, seed=0).eval()
    with tempfile.TemporaryDirectory() as folder:
        save_hf(model, recipe, folder)
        dtype = torch.bfloat16 if bf16 else torch.float32
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    theirs.generation_config.eos_token_id = bpe.end_of_text(words)  # else ended texts go on while others do
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token=bpe.END_OF_TEXT)
    forward = (lambda: torch.autocast("cpu", torch.bfloat16)) if bf16 else nullcontext
    backends = {
        batch: HFLM(pretrained=theirs, tokenizer=fast, batch_size=batch, max_length=context, device="cpu")
        for batch in BATCH_SIZES
    }
    return DecoderLM(model, words, forward=forward, batch_tokens=batch_tokens), backends


def timed(side: Any, requests: Sequence[Any]) -> tuple[float, list[Any]]:
    """Seconds and answers."""
    start_s = time.perf_counter()
    answers = getattr(side, requests[0].request_type)(requests, disable_tqdm=True)
    return time.perf_counter() - start_s, answers


def agreement(requests: Sequence[Any], ours: Sequence[Any], theirs: Sequence[Any]) -> dict[str, Any]:
    """How far the answers of both sides agree."""
    pairs = list(zip(ours, theirs, strict=True))
    match requests[0].request_type:
        case "generate_until":
            return {"same_texts": sum(one == other for one, other in pairs) / len(pairs)}
        case "loglikelihood_rolling":
            return {"largest_difference_nats": max(abs(one - other) for one, other in pairs)}
        case _:
            return {
                "largest_difference_nats": max(abs(one[0] - other[0]) for one, other in pairs),
                "same_choices": same_choices(requests, ours, theirs),
                "same_greedy": sum(one[1] == other[1] for one, other in pairs) / len(pairs),
            }


def work(ours: DecoderLM, requests: Sequence[Any]) -> dict[str, int]:
    """Tokens of log-likelihood requests, and of those how many are computed."""
    if requests[0].request_type != "loglikelihood":
        return {}
    rows = ours.requests([request.args for request in requests])
    computed = sum(step.tokens for step in ours.score_steps(rows))
    return {"tokens": sum(min(len(row.tokens) - 1, ours.max_length) for row in rows), "tokens_computed": computed}


def rate(ours: DecoderLM, requests: Sequence[Any], ours_s: float, bf16: bool) -> dict[str, float]:
    """GFLOP/s that our side computes at, and that a product of 2,048 x 2,048 matrices does: what is left to gain."""
    with FlopCounterMode(display=False) as counter:
        timed(ours, requests)
    x = torch.randn(2048, 2048, dtype=torch.bfloat16 if bf16 else torch.float32)
    seconds: list[float] = []
    for _ in range(7):
        start_s = time.perf_counter()
        matmul.mm(x, x)
        seconds.append(time.perf_counter() - start_s)
    found = {"ours": counter.get_total_flops() / ours_s, "large_product": 2 * 2048**3 / min(seconds)}
    return {name: round(flops / 1e9, 1) for name, flops in found.items()}


def same_choices(requests: Sequence[Any], one: Sequence[tuple[float, bool]], two: Sequence[tuple[float, bool]]) -> bool:
    """Whether every item's most likely choice is the same, near ties aside."""
    items: dict[tuple[str, int], list[int]] = {}
    for index, request in enumerate(requests):
        items.setdefault((request.task_name, request.doc_id), []).append(index)
    for members in items.values():
        best = max(members, key=lambda index: one[index][0])
        if two[best][0] < max(two[index][0] for index in members) - 1e-4:
            return False
    return True


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turn, and what they disagree on."""
    torch.set_num_threads(arguments.threads)
    if arguments.torch_products:
        matmul.mkl_is_slow = lambda: False
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # the backend warns of each context that it cuts
    tune_allocator()
    requests = requests_of(arguments.tasks.split(","), arguments.limit)
    words = bpe.train(["".join(request.args) for request in requests], Bpe(vocab=arguments.vocab))
    requests = asked(requests, arguments.ask)
    ours, backends = both_sides(
        arguments.size, arguments.context, words, bf16=arguments.bf16, batch_tokens=arguments.batch_tokens
    )
    few = requests[:: max(1, len(requests) // FEW[KINDS[arguments.ask]])]
    timed(ours, few)
    tried = {batch: min(timed(backend, few)[0] for _ in range(2)) for batch, backend in backends.items()}
    batch = min(tried, key=lambda size: tried[size])
    print(f"backend's best batch size: {batch} of {tried}", file=sys.stderr)
    theirs = backends[batch]
    rounds: list[tuple[float, float]] = []
    for _ in range(arguments.rounds):
        (a_s, a), (b_s, b), (c_s, _), (d_s, _) = (timed(side, requests) for side in (ours, theirs, theirs, ours))
        rounds.append((a_s + d_s, b_s + c_s))
    ours_s = statistics.median(one for one, _ in rounds) / 2
    return {
        "requests": len(requests),
        **work(ours, requests),
        "ours_s": ours_s,
        "backend_s": statistics.median(other for _, other in rounds) / 2,
        "times_faster": statistics.median(other / one for one, other in rounds),
        "rounds": [other / one for one, other in rounds],
        **agreement(requests, a, b),
        "gflop_per_s": rate(ours, requests, ours_s, arguments.bf16),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default="quartz,social_iqa,corr2cause", help="of bench/evaluate/tasks")
    parser.add_argument("--ask", default="choices", choices=KINDS, help="kind of requests")
    parser.add_argument("--limit", type=int, default=200, help="items a task")
    parser.add_argument("--size", default="10m", choices=SIZES)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--batch-tokens", type=int, help="our tokens a forward pass (default: as evaluation takes them)"
    )
    parser.add_argument("--torch-products", action="store_true", help="float32 products are torch's on our side, too")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 on both sides")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        print(json.dumps(measure(parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()
