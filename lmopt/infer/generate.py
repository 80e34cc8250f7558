"""Text behind prompts, one token a step: a generator of small steps that the caller times, meters and stops.

    decoder = Decoder(model, "bf16")
    for step in generate(decoder, [prompt], max_new=100):
        print(step.added)

The first step reads the prompts (prefill) and yields each text's first token; every further one reads one token of
each text that goes on. Letters: see lmopt/arch/transformer.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lmopt import native
from lmopt.infer.cache import KvCache
from lmopt.infer.decoder import Decoder
from lmopt.infer.sampling import largest, probabilities
from lmopt.infer.sequence import Decoded, Stops, Text, begin
from lmopt.techniques.decoding import Sampling

FILLED_UP = 32
"""Tokens that a prompt is filled up by to be read with a longer one, or an eighth of that one where it is more."""
LONG = 160
"""Tokens of a prompt from which on a few more are less than what its attention gains by them."""


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new: int,
    sampling: Sampling | None = None,
    stops: Stops = (),
    seed: int = 0,
) -> Iterator[Decoded]:
    """Continue each prompt by up to `max_new` tokens; a batch gives what its prompts would give one by one.

    Args:
        prompts: token ids, of any lengths.
        sampling: default: greedy.
        stops: token sequences after which a text ends.
        seed: text i draws from seed + i.

    Raises:
        PromptTooLong, ValueError: as `lmopt.infer.sequence.begin`, at the first step.
    """
    texts = begin(decoder, prompts, max_new=max_new, stops=stops, seed=seed)
    sampling = sampling or Sampling()
    cache = decoder.new_cache(batch=len(texts), capacity=max(text.longest for text in texts))
    states_BD = prefill(decoder, [text.tokens for text in texts], cache)
    append_next(decoder.logits(states_BD), texts, sampling)
    yield taken(1, texts, {"prompt_tokens": sum(text.prompt for text in texts)})
    live, index = texts, 1
    while any(not text.ended for text in live):
        rows = [row for row, text in enumerate(live) if not text.ended]
        if len(rows) < len(live):
            cache.keep(rows)
            live = [live[row] for row in rows]
        last_B1 = torch.tensor([[text.tokens[-1]] for text in live], device=decoder.device)
        append_next(decoder.logits(decoder.extend(last_B1, cache)[:, -1]), live, sampling)
        index += 1
        yield taken(index, texts, {})


def prefill(decoder: Decoder, prompts: Sequence[Sequence[int]], cache: KvCache) -> Tensor:
    """Read prompts into an empty cache: the normalised state of each one's last token, B x D.

    Those of like length are read together. Shorter ones are filled up on the right; no token sees what comes after it,
    and the cache never counts it.
    """
    lengths = [len(prompt) for prompt in prompts]
    groups = list(_of_like_length(lengths))
    last_BD = torch.empty(len(prompts), decoder.model.width, dtype=decoder.dtype, device=decoder.device)
    for group in groups:
        tokens_BT = torch.zeros(len(group), _width(max(lengths[index] for index in group), cache), dtype=torch.int64)
        for row, index in enumerate(group):
            tokens_BT[row, : lengths[index]] = torch.tensor(prompts[index])
        x_BTD = decoder.run(decoder.embed(tokens_BT.to(decoder.device)), cache, rows=group if len(groups) > 1 else None)
        ends = torch.tensor([lengths[index] - 1 for index in group], device=decoder.device)
        last_BD[group] = x_BTD[torch.arange(len(group), device=decoder.device), ends]
    cache.advance(lengths)
    return decoder.norm(last_BD)


def _width(longest: int, cache: KvCache) -> int:
    """Tokens that prompts are filled up to: of long ones a multiple that attention on a CPU has a kernel for."""
    whole = -(-longest // native.MULTIPLE) * native.MULTIPLE
    return whole if longest >= LONG and whole <= cache.capacity else longest


def _of_like_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indexes of prompts, cut where filling up would take more than reading the weights once again."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        longest = lengths[group[0]] if group else lengths[index]
        if longest - lengths[index] > max(FILLED_UP, longest // 8):
            yield sorted(group)
            group = []
        group.append(index)
    yield sorted(group)


def append_next(logits_BV: Tensor, texts: Sequence[Text], sampling: Sampling) -> None:
    """Choose each text's next token and append it; text i has row i."""
    if sampling.greedy:
        chosen = largest(logits_BV).tolist()
    else:
        p_BV = probabilities(logits_BV, sampling)
        chosen = [text.choose(p_V) for text, p_V in zip(texts, p_BV, strict=True)]
    for text, token in zip(texts, chosen, strict=True):
        text.add(token)


def taken(index: int, texts: Sequence[Text], notes: Mapping[str, float]) -> Decoded:
    """The step that holds what was added to the texts since the last one."""
    added = tuple(text.take() for text in texts)
    return Decoded(index=index, tokens=sum(map(len, added)), notes=notes, added=added)


def written(steps: Iterator[Decoded]) -> list[list[int]]:
    """All steps put together: the new tokens of each text."""
    texts: list[list[int]] = []
    for step in steps:
        texts = texts or [[] for _ in step.added]
        for text, added in zip(texts, step.added, strict=True):
            text.extend(added)
    return texts
