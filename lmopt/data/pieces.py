"""A long text in pieces that can be looked at one after the other, so that its words never all exist at once.

Eighteen million words, each a Python object, take over a gigabyte; their hashes take a tenth of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

PIECE_CHARACTERS = 1 << 20
"""A piece ends at the first chance behind so many characters."""
_CUT = re.compile(r"(?<=\S)(?=[ \n])")


def pieces(text: str) -> Iterator[str]:
    """The text in order, cut between a character and the space or line feed behind it.

    No word, run of non-space or piece of byte-level BPE (which takes the space in front of it along) is cut in two. A
    text without white space is one piece.
    """
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        found = _CUT.search(text, start + PIECE_CHARACTERS)
        if found is None:
            break
        yield text[start : found.start()]
        start = found.start()
    yield text[start:] if start else text
