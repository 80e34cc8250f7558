"""Log-likelihoods of continuations, many at once, with as little computing as gives the same numbers.

A request is a token sequence whose last tokens are scored.
- Requests with a common beginning share its computation (`tree`): the choices of a question, questions on one passage.
- Trees are sorted by length and batched by a budget of padded tokens; padding lies to the right, where nothing sees it.
- The last block's feed-forward, the output head and the softmax run only at the scored positions, once a position.
  Logits and softmax are float32.
- In bfloat16 on a CPU matrices are cast and laid out once, not for every batch, where there is a kernel for them; the
  operands of the head's product are bfloat16 then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.evaluate.tree import Place, Tree, grow, states
from lmopt.arch import rows_fused
from lmopt.arch.laidout import laid_out
from lmopt.arch.matmul import mm
from lmopt.arch.numbers import compute_dtype
from lmopt.arch.transformer import Transformer
from lmopt.step import Step

Forward = Callable[[], AbstractContextManager[object]]
"""A fresh context for one forward pass: the precision the model was trained in."""

THREAD_TOKENS = 512
"""Padded tokens a forward pass for each thread of a CPU: small batches stay in its caches, with trees of like length.
On one core (10M and 30M parameters, float32 and bfloat16) 1,024 took 1.0 to 1.2 times as long, 256 up to 1.1 times."""
DEVICE_TOKENS = 65_536
"""The same for any other device."""
HEAD_BYTES = 32 * 2**20
"""Float32 logits held at once."""


@dataclass(frozen=True, slots=True)
class Request:
    """A sequence of tokens whose last `scored` ones are scored, each given all before it."""

    tokens: Sequence[int]
    scored: int

    def __post_init__(self) -> None:
        if not 0 < self.scored < len(self.tokens):
            raise ValueError(f"cannot score {self.scored} of {len(self.tokens)} tokens: one must come before them")


@dataclass(frozen=True, slots=True)
class Score:
    """What the model says about the scored tokens."""

    log_likelihood: float
    """Sum of their log-probabilities, in nats."""
    greedy: bool
    """Whether each is the most probable one."""


@dataclass(frozen=True, slots=True)
class Head:
    """What is behind the last norm."""

    vocab: int
    logits: Callable[[Tensor], Tensor]
    """Float32 logits P x V of states P x D."""


def window(request: Request, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Input and target ids of a request; tokens that do not fit the model's context are cut off the front.

    Raises:
        ValueError: more tokens are scored than the context holds; such text is scored in windows.
    """
    if request.scored > context:
        raise ValueError(f"{request.scored} scored tokens do not fit a context of {context}")
    kept = np.asarray(request.tokens[-(context + 1) :], dtype=np.int64)
    return kept[:-1], kept[-request.scored :]


def batches(trees: Sequence[Tree], batch_tokens: int) -> Iterator[list[int]]:
    """Trees of like length together, longest first, within a budget of padded tokens (one tree at least).

    Plain sequences come apart from branching trees, which need a mask.
    """
    for chain in (True, False):
        order = [index for index, tree in enumerate(trees) if tree.is_chain == chain]
        order.sort(key=lambda index: (-len(trees[index]), index))
        start = 0
        while start < len(order):
            size = max(1, batch_tokens // len(trees[order[start]]))
            yield order[start : start + size]
            start += size


@torch.inference_mode()
def score(
    model: Transformer,
    requests: Sequence[Request],
    *,
    forward: Forward = nullcontext,
    batch_tokens: int | None = None,
) -> Generator[Step, None, list[Score]]:
    """Score every request; yields a step after each batch and returns the scores in the order of the requests.

    The steps' notes say `requests` done and `requests_total`; their tokens are those that were computed.
    """
    batch_tokens = batch_tokens or _tokens_at_once(model.embedding.weight.device)
    windows = [window(request, model.model.context) for request in requests]
    trees, places = grow([inputs for inputs, _ in windows], model.model.width)
    asked: dict[int, list[int]] = defaultdict(list)
    for request, place in enumerate(places):
        asked[place.tree].append(request)
    scores: dict[int, Score] = {}
    with _ready(model, forward) as head:
        for number, batch in enumerate(batches(trees, batch_tokens), 1):
            wanted_B = [
                _wanted([(places[request], len(windows[request][1])) for request in asked[tree]]) for tree in batch
            ]
            with forward():
                states_WD = states(model, [trees[tree] for tree in batch], wanted_B)
            read: list[tuple[int, np.ndarray, np.ndarray]] = []
            first = 0
            for tree, wanted in zip(batch, wanted_B, strict=True):
                for request in asked[tree]:
                    targets = windows[request][1]
                    where = np.searchsorted(wanted, places[request].path[-len(targets) :])
                    read.append((request, first + where, targets))
                first += len(wanted)
            scores.update(_read(head, states_WD, read))
            tokens = sum(len(trees[tree]) for tree in batch)
            yield Step(number, tokens, notes={"requests": len(scores), "requests_total": len(requests)})
    return [scores[request] for request in range(len(requests))]


@contextmanager
def _ready(model: Transformer, forward: Forward) -> Generator[Head]:
    """Within it the model's matrices lie as its products read them; yields what makes logits of states."""
    with forward():
        in_bfloat16 = compute_dtype(model.embedding.weight) == torch.bfloat16
    with laid_out(model) if in_bfloat16 else nullcontext() as panels:
        if panels is not None:
            yield Head(panels.outputs, lambda states_PD: panels.multiply_to_float(states_PD.bfloat16().contiguous()))
        else:
            weight_VD = model.head_weight_VD.float()
            yield Head(len(weight_VD), lambda states_PD: mm(states_PD.float(), weight_VD.T))


def _tokens_at_once(device: torch.device) -> int:
    return THREAD_TOKENS * torch.get_num_threads() if device.type == "cpu" else DEVICE_TOKENS


def _wanted(scored: Sequence[tuple[Place, int]]) -> np.ndarray:
    """Places in a tree's line whose next token some request asks for: ascending, each once."""
    return np.unique(np.concatenate([place.path[-count:] for place, count in scored]))


def _read(
    head: Head, states_WD: Tensor, wanted: Sequence[tuple[int, np.ndarray, np.ndarray]]
) -> Iterator[tuple[int, Score]]:
    """Scores of (request, rows of the states, targets)."""
    positions_W = np.concatenate([positions for _, positions, _ in wanted])
    targets_W = np.concatenate([targets for _, _, targets in wanted])
    log_p_W, best_W = _head(head, states_WD, positions_W, targets_W)
    start = 0
    for request, _, targets in wanted:
        part = slice(start, start + len(targets))
        start = part.stop
        yield request, Score(float(log_p_W[part].sum()), bool(best_W[part].all()))


def _head(
    head: Head, states_WD: Tensor, positions_W: np.ndarray, targets_W: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(log-probability, whether it is the most probable) of each wanted target; logits once a position, in float32."""
    log_p_W, best_W = np.empty(len(targets_W)), np.empty(len(targets_W), dtype=bool)
    chunk = max(1, HEAD_BYTES // (4 * head.vocab))
    order_W = np.argsort(positions_W, kind="stable")
    distinct_P, first_P = np.unique(positions_W[order_W], return_index=True)
    ends_P = np.append(first_P[1:], len(order_W))
    for start in range(0, len(distinct_P), chunk):
        stop = min(start + chunk, len(distinct_P))
        rows_P = torch.from_numpy(distinct_P[start:stop]).to(states_WD.device)
        logits_PV = head.logits(states_WD[rows_P])
        log_z_P, best_P = _summarised(logits_PV)
        wanted = order_W[first_P[start] : ends_P[stop - 1]]
        place = torch.from_numpy(np.searchsorted(distinct_P[start:stop], positions_W[wanted])).to(states_WD.device)
        target = torch.from_numpy(targets_W[wanted]).to(states_WD.device)
        log_p_W[wanted] = (logits_PV[place, target] - log_z_P[place]).cpu().numpy()
        best_W[wanted] = (best_P[place] == target).cpu().numpy()
    return log_p_W, best_W


def _summarised(logits_PV: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of the sum of exponentials, and the most probable token, of each row."""
    if rows_fused.suits(logits_PV, logits_PV.shape[1]):
        return rows_fused.summarised(logits_PV)
    return logits_PV.logsumexp(dim=-1), logits_PV.argmax(dim=-1)
