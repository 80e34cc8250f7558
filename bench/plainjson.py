"""JSON of files that anybody may have written."""

from __future__ import annotations

import json
from typing import Any


def parse(text: str | bytes) -> Any:
    """The value that a text holds.

    Raises:
        ValueError: it is not JSON, or nested deeper than Python's parser follows.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
