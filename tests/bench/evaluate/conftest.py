"""A tiny model and a tiny tokenizer for the evaluation tests."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer

from lmopt.arch.transformer import Transformer
from lmopt.data import tokenizer as bpe
from lmopt.data.spec import Bpe
from tests.bench.evaluate.tiny import tiny_model

TEXT = (
    "The old man went down to the sea in the morning. He had not eaten for two days, and the boat was small. "
    "A bird came out of the west and sat on the line; it was too tired to fly. The fish were deep and slow. "
    "Question: which of the two stones falls faster? Answer: both of them, more or less. Is it larger or smaller? "
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte-level BPE of 300 tokens, learnt from a paragraph."""
    return bpe.train([TEXT] * 3, Bpe(vocab=300))


@pytest.fixture
def model(tokenizer: Tokenizer) -> Transformer:
    """The tiny model, in float32."""
    return tiny_model(tokenizer)


@pytest.fixture
def constant_model(tokenizer: Tokenizer) -> Transformer:
    """Gives every token the same probability after every context."""
    model = tiny_model(tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model
