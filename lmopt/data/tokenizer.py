"""Byte-level BPE: trained on the training text, and applied to documents."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lmopt.data.spec import Bpe

END_OF_TEXT = "<|endoftext|>"
"""The special token behind every document; text that spells it is not taken for it."""
UINT16_VOCAB = 1 << 16
_ENDLESS = re.compile(r"\S{1000}|\s{1000}")


def train(texts: Iterable[str], config: Bpe) -> Tokenizer:
    """A tokenizer whose merges are learnt from `texts`; the same texts give the same tokenizer, bit for bit.

    Fewer merges than `vocab` allows are learnt from a text too small for more; `size` gives the vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_without_endless_runs(texts), trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def _without_endless_runs(texts: Iterable[str]) -> Iterator[str]:
    """Texts, cut within runs without a break: learning merges takes time quadratic in the longest piece."""
    for text in texts:
        start = 0
        for run in _ENDLESS.finditer(text):
            yield text[start : run.end()]
            start = run.end()
        yield text[start:]


def is_ours(tokenizer: Tokenizer) -> bool:
    """Whether it cuts text as one that `train` made: by GPT-2's rule, and neither changed before nor added to after."""
    cuts: Any = tokenizer.pre_tokenizer
    return (
        tokenizer.normalizer is None
        and tokenizer.post_processor is None
        and isinstance(cuts, pre_tokenizers.ByteLevel)
        and not cuts.add_prefix_space
        and cuts.use_regex
    )


def opening(tokenizer: Tokenizer) -> list[int]:
    """Ids that it sets before every text (a model's begin-of-text token); one that `train` made sets none."""
    encoding = tokenizer.encode("a")
    added = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
    return [token for token, _ in itertools.takewhile(lambda one: one[1], added)]


def load(path: Path) -> Tokenizer:
    """A saved tokenizer, set to read `<|endoftext|>` inside a text as plain characters, and texts whole.

    Others' tokenizers may have been saved with a length that texts are cut to and filled up to.
    """
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def end_of_text(tokenizer: Tokenizer) -> int:
    """Id of the end-of-text token."""
    token = tokenizer.token_to_id(END_OF_TEXT)
    if token is None:
        raise ValueError(f"this tokenizer has no {END_OF_TEXT} token")
    return token


def token_type(tokenizer: Tokenizer) -> np.dtype[np.unsignedinteger]:
    """The smallest type that holds every id; of others' tokenizers some ids may be left out."""
    return np.dtype(np.uint16 if max(tokenizer.get_vocab().values(), default=0) < UINT16_VOCAB else np.uint32)
