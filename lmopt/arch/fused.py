"""Kernels of our own for a CPU that multiplies bfloat16, in C++ (lmopt.native): whether there are any; calls."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from lmopt import native

TYPES = {"b": ctypes.c_bool, "q": ctypes.c_int64, "i": ctypes.c_int, "f": ctypes.c_float, "p": ctypes.c_void_p}
ROWS = {
    "norm_forward": "qqfi" + "p" * 4,
    "norm_backward": "qqi" + "p" * 6,
    "activation_forward": "bqqi" + "p" * 2,
    "activation_backward": "bqqi" + "p" * 3,
    "heads_forward": "qqqqqi" + "p" * 6,
    "heads_backward": "qqqqqi" + "p" * 6,
    "attention_forward": "qqqqqi" + "p" * 5,
    "attention_backward": "qqqqqi" + "p" * 8,
    "softmax_minus_target": "qqi" + "p" * 3,
    "extend": "qqqqqqi" + "p" * 8,
}
"""Kernels of which there are two, for rows of bfloat16 and of float32: see `made_for`."""
SIGNATURES = {
    "experts_work": "",
    "experts_forward": "bbqqqqqqi" + "p" * 11,
    "experts_backward": "bbqqqqqqi" + "p" * 15,
    "route_forward": "bbqqqqiff" + "p" * 8,
    "route_backward": "bbqqqqif" + "p" * 11,
    "place_slots": "qqqq" + "p" * 6,
    "multiply_panels": "qqqifi" + "p" * 5,
    "decode_layers": "b" + "q" * 10 + "ifi" + "p" * 9,
    "multiply_panels_to_float": "qqqi" + "p" * 3,
    "multiply_many": "qqqii" + "p" * 5,
    "multiply_many_to_float": "qqqi" + "p" * 3,
    "summarise": "qqi" + "p" * 3,
    "multiply_byte_panels": "bqqqifi" + "p" * 7,
    **ROWS,
    **{f"{name}_float": signature for name, signature in ROWS.items()},
}
"""Arguments of each kernel, by the letters of `TYPES`; all return a truth value. Numbers are bfloat16, or float32 where
the name says so; `summarise` takes float32."""


@torch.compiler.assume_constant_result
def obstacle() -> str | None:
    """Why the kernels cannot be had in this process; None if they can. The first call compiles them."""
    if torch.jit.is_tracing():
        return "a trace would not see them, and gives tensors for the numbers that they take"
    return _obstacle() if torch.backends.mkldnn.enabled else "oneDNN is switched off (torch.backends.mkldnn)"


@functools.cache
def _obstacle() -> str | None:
    try:
        _kernels()
    except (native.BuildError, OSError) as error:
        return str(error)
    return None


EXPERT_FORMATS = (torch.bfloat16,)
"""Those in which experts and their routers have kernels."""
ROW_FORMATS = (torch.bfloat16, torch.float32)
"""Those in which all else has."""


def unsuited(formats: Sequence[torch.dtype], dtype: torch.dtype, device: torch.device, *widths: int) -> str | None:
    """Why kernels for these formats are not for this one, this device and rows of these widths; None where they are."""
    if dtype not in formats or device.type != "cpu":
        names = " and ".join(str(each).removeprefix("torch.") for each in formats)
        return f"made for {names} on a CPU, not for {str(dtype).removeprefix('torch.')} on {device.type}"
    if odd := [width for width in widths if width % native.MULTIPLE]:
        return f"{odd[0]} is no multiple of {native.MULTIPLE}"
    return obstacle()


Argument = bool | int | float | Tensor | None
Around = Callable[[str, tuple[Argument, ...]], AbstractContextManager[object]]
"""From the name and arguments of a kernel's call, the context that it happens in."""
_around: Around | None = None


@contextmanager
def watched(around: Around) -> Generator[None]:
    """Within it every call of a kernel happens in the context that `around` makes of its name and arguments.

    torch sees kernels that are not called by an operator in neither profile nor dispatch.
    """
    global _around
    before, _around = _around, around
    try:
        yield
    finally:
        _around = before


def made_for(name: str, numbers: Tensor) -> str:
    """The kernel of this name for bfloat16 or float32, as the numbers are."""
    return f"{name}_float" if numbers.dtype == torch.float32 else name


def call(name: str, *arguments: Argument) -> bool:
    """Run a kernel on scalars and contiguous tensors, which it gets as addresses; None stands for no tensor.

    Returns:
        What it returns: false where it could not do its work.
    """
    wanted = zip(SIGNATURES[name], arguments, strict=True)
    given = [each.data_ptr() if letter == "p" and each is not None else each for letter, each in wanted]
    if _around is None:
        return _kernels()[name](*given)
    with _around(name, arguments):
        return _kernels()[name](*given)


def run(name: str, *arguments: Argument) -> None:
    """The same of a kernel that can fail for want of memory alone.

    Raises:
        MemoryError: it did.
    """
    if not call(name, *arguments):
        raise MemoryError(f"not enough memory for {name}")


@functools.cache
def _kernels() -> dict[str, Callable[..., bool]]:
    """Each by its name in `SIGNATURES`. Loaded after torch, which brings the libraries that they call.

    Raises:
        BuildError: they cannot be compiled here, or oneDNN multiplies no bfloat16.
        OSError: what was compiled cannot be loaded.
    """
    library = ctypes.CDLL(str(native.library()))
    found = {name: getattr(library, f"lmopt_{name}") for name in SIGNATURES}
    for name, signature in SIGNATURES.items():
        found[name].argtypes = [TYPES[letter] for letter in signature]
        found[name].restype = ctypes.c_bool
    if not found["experts_work"]():
        raise native.BuildError("oneDNN multiplies no bfloat16 here (ONEDNN_MAX_CPU_ISA may forbid it)")
    return found
