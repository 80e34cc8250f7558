"""What the tests of the kernels in C++ share."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch

from lmopt import native

needs_kernel = pytest.mark.skipif(native.obstacle() is not None, reason=str(native.obstacle()))
"""Where they can be compiled they must be: a compiler's complaint is no reason to skip."""


def assert_no_bit_depends_on_threads(passes: Callable[[], Iterable[torch.Tensor]]) -> None:
    """Of whatever it returns."""
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            found.append(list(passes()))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(ours, first) for ours, first in zip(other, found[0], strict=True))
