"""A small language model that a data step trains on its own documents: to measure texts with, or to fill gaps.

Letters: B texts, T tokens of a text, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from lmopt import cost
from lmopt.arch.transformer import Transformer
from lmopt.data import batches, tokenizer
from lmopt.data.documents import Document, fingerprint
from lmopt.data.encoding import Encoder
from lmopt.data.shards import Shards
from lmopt.data.spec import Bpe
from lmopt.data.storage import DataError
from lmopt.recipe import FixedBatch, Fp32, Model, Recipe
from lmopt.techniques.difficulty import SmallModel
from lmopt.train import loop

CONTEXT = 128
SEQUENCES = 16
BYTES_PER_TOKEN = 4
"""Text sampled for a token of training: a little more than a small vocabulary's tokens hold."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A trained small model and its tokenizer."""

    model: Transformer
    words: Tokenizer
    recipe: Recipe
    train_flops: float

    @torch.inference_mode()
    def bits_per_byte(self, texts: list[str]) -> tuple[list[float], float]:
        """(bits a byte of the beginning of each text, at most CONTEXT tokens; FLOPs spent). An empty text has 0."""
        end = tokenizer.end_of_text(self.words)
        ids = [encoding.ids[:CONTEXT] for encoding in self.words.encode_batch([text[: 16 * CONTEXT] for text in texts])]
        longest = max(map(len, ids), default=0)
        if not longest:
            return [0.0] * len(texts), 0.0
        tokens_BT = torch.full((len(ids), longest + 1), end)
        for row, found in enumerate(ids):
            tokens_BT[row, 1 : len(found) + 1] = torch.tensor(found)
        nats_BT = self._nats(tokens_BT)
        nats = [float(nats_BT[row, : len(found)].sum()) for row, found in enumerate(ids)]
        bits = [
            value / np.log(2) / max(len(self.words.decode(found).encode()), 1) if found else 0.0
            for value, found in zip(nats, ids, strict=True)
        ]
        return bits, len(ids) * cost.forward_flops(self.recipe, longest).total

    def _nats(self, tokens_BT: Tensor) -> Tensor:
        logits_BTV = self.model(tokens_BT[:, :-1]).float()
        return functional.cross_entropy(logits_BTV.transpose(1, 2), tokens_BT[:, 1:], reduction="none")


def train(shape: SmallModel, documents: Iterable[Document], *, seed: int) -> Reference:
    """Train on a sample of the documents, chosen by hash so that every part of the stream is in it.

    Raises:
        DataError: the documents are too few for one batch.
    """
    texts = sample(documents, shape.tokens * BYTES_PER_TOKEN)
    words = tokenizer.train(texts, Bpe(vocab=shape.vocab))
    end = np.array([tokenizer.end_of_text(words)])
    pieces = [piece for ids in Encoder(words).encode(texts) for piece in (ids, end)]
    tokens = np.concatenate(pieces).astype(np.uint32) if pieces else np.empty(0, np.uint32)
    recipe = Recipe(
        model=Model(
            layers=shape.layers, width=shape.width, heads=shape.heads, vocab=words.get_vocab_size(), context=CONTEXT
        ),
        precision=Fp32(),
        batching=FixedBatch(sequences=SEQUENCES, length=CONTEXT),
        tokens=max(shape.tokens, SEQUENCES * CONTEXT),
    )
    state = loop.start(recipe, seed=seed)
    trained = 0
    try:
        for step in loop.train(state, batches.build(recipe.batching, Shards(tokens, {}), seed=seed)):
            trained += step.tokens
    except DataError as error:
        raise DataError(f"the small model of a data step: {error}") from error
    flops = cost.train_flops_per_token(recipe).executed * trained
    return Reference(state.model.eval().requires_grad_(False), words, recipe, flops)


def sample(documents: Iterable[Document], most_bytes: int) -> list[str]:
    """Texts of about so many bytes, a share of all documents chosen by hash; memory holds no more than twice that."""
    share, kept, size = 1.0, list[tuple[float, str]](), 0
    for document in documents:
        place = int.from_bytes(fingerprint(document.text)[:8], "big") / 2**64
        if place < share:
            kept.append((place, document.text))
            size += len(document.text.encode())
        while size > 2 * most_bytes and len(kept) > 1:
            share /= 2
            kept = [(at, text) for at, text in kept if at < share] or kept[:1]
            size = sum(len(text.encode()) for _, text in kept)
            if len(kept) == 1:
                break
    return [text for _, text in kept]
