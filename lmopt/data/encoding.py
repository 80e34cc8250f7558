"""Documents to token ids, several times as fast as encoding them whole: each distinct piece of text is encoded once.

Byte-level BPE first cuts a text into pieces (a word with the space before it, a number, punctuation) and then encodes
each piece by itself, so a table from piece to ids gives the same ids. Cutting is done here with the rule of Radford et
al. (2019, GPT-2); texts with characters on whose class `re` and the tokenizer's own expressions could disagree are
encoded whole, and so is all text by a tokenizer that cuts by another rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from lmopt.data.pieces import pieces
from lmopt.data.tokenizer import is_ours, token_type

PIECE = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")
ALIKE = re.compile(
    "[\\x00-\\x1b\\x20-\\x84\\x86-\\xb1\\xb4-\\xb8\\xba\\xbb\\xbf-\\u02c1\\u0391-\\u0481"
    "\\u2010-\\u2027\\u2030-\\u205e\\u20a0-\\u20bf]*"
)
"""Characters whose class both expressions agree on: ASCII, Latin, Greek, Cyrillic, punctuation, currency signs.
Python counts \\x1c-\\x1f as white space and superscripts as word characters that are no digits."""
MAX_PIECES = 1_000_000
LONGEST_PIECE = 100
"""Characters; longer pieces are rare and are not remembered."""
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = (byte for byte in range(0x100) if byte not in _PRINTABLE)
_BYTES = {byte: 0x100 + number for number, byte in enumerate(_OTHERS)}
"""The characters that stand for bytes in a byte-level vocabulary (Radford et al. 2019): printable ones for themselves,
the others for those from U+0100 on."""


class Encoder:
    """A tokenizer with its table of pieces met so far."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pieces = _Pieces(tokenizer) if is_ours(tokenizer) else None
        self._type = token_type(tokenizer)

    def encode(self, texts: Iterable[str]) -> list[NDArray[np.unsignedinteger]]:
        """Token ids of each text, without special tokens: exactly those of `tokenizer.encode`."""
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> NDArray[np.unsignedinteger]:
        if self._pieces is None:
            return self._whole(text)
        known = self._pieces.__getitem__ if ALIKE.fullmatch(text) else None
        found = [
            self._whole(part) if known is None else np.frombuffer(b"".join(map(known, PIECE.findall(part))), self._type)
            for part in pieces(text)
        ]
        return np.concatenate(found) if len(found) > 1 else found[0]

    def _whole(self, text: str) -> NDArray[np.unsignedinteger]:
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, self._type)


class _Pieces(dict[str, bytes]):
    """Piece -> its token ids as bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._merges = tokenizer.model  # nothing is left to be cut, and the model alone is twice as fast
        self._type = token_type(tokenizer)

    def __missing__(self, piece: str) -> bytes:
        characters = piece.encode().decode("latin-1").translate(_BYTES)
        ids = np.array([token.id for token in self._merges.tokenize(characters)], self._type).tobytes()
        if len(piece) <= LONGEST_PIECE:
            if len(self) >= MAX_PIECES:
                self.clear()
            self[piece] = ids
        return ids
