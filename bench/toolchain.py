"""What `torch.compile` needs of a machine, looked for without torch."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import NamedTuple

from lmopt import native


class Toolchain(NamedTuple):
    works: bool
    reason: str
    hint: str | None = None


def likely_device() -> str:
    """`cuda` or `cpu`: where steps would be compiled, as far as can be told without torch."""
    return "cuda" if native.has_gpu() else "cpu"


def toolchain(device: str) -> Toolchain:
    """Whether steps can be compiled for a device (`cpu`, `cuda`): by a C++ compiler, or by Triton and a C compiler."""
    if device == "cuda":
        if importlib.util.find_spec("triton") is None:
            return Toolchain(False, "triton is missing", "pip install triton")
        compiler = shutil.which(os.environ.get("CC") or "gcc") or shutil.which("clang")
        if compiler:  # triton builds its launchers with it
            return Toolchain(True, f"triton, {os.path.basename(compiler)}")
        return Toolchain(False, "triton has no C compiler to build its launchers with", _hint("gcc", "CC"))
    compiler = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++")
    if compiler:
        return Toolchain(True, os.path.basename(compiler))
    return Toolchain(False, "no C++ compiler for compiled steps", _hint("g++", "CXX"))


def _hint(package: str, variable: str) -> str:
    return f"Debian: apt-get install {package}; or set {variable}; suites with `compile: false` do without"
