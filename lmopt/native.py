"""Kernels in C++: compiled once on the machine they run on, and kept in the user's cache.

They need a compiler, torch's headers and libraries (which hold oneDNN), and a processor with arithmetic in bfloat16.
Where something is missing their callers do without. No torch is loaded here.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

NEEDED = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16")
"""Instructions of the processor that the kernels are written for, as /proc/cpuinfo names them."""
FLAGS = (
    *("-O3", "-march=native", "-std=c++20", "-fopenmp", "-fPIC", "-shared", "-w"),
    *("-DCPU_CAPABILITY=AVX512", "-DCPU_CAPABILITY_AVX512"),  # which of its vectors torch's headers define
)
TIMEOUT_S = 300
CPUINFO = Path("/proc/cpuinfo")
NVIDIA = Path("/dev/nvidiactl")
"""There where NVIDIA's driver runs."""
MULTIPLE = 16
"""Numbers of a register: widths must be multiples."""


class BuildError(Exception):
    """A kernel could not be compiled; the message is the compiler's first complaint, or what is missing."""


def has_gpu() -> bool:
    """Whether work goes to a GPU, as far as can be told without torch."""
    return NVIDIA.exists()


@functools.cache
def obstacle() -> str | None:
    """What keeps this machine from compiling and running kernels; None if nothing does that can be told beforehand."""
    if missing := [flag for flag in NEEDED if flag not in _processor()[1]]:
        return f"{platform.machine()} processor without {missing[0]}"
    if _compiler() is None:
        return "no C++ compiler (Debian: apt-get install g++; or set CXX)"
    return None


def library(source: Path) -> Path:
    """One C++ file as a shared library for this processor, compiler and torch; compiled unless it was before.

    Raises:
        BuildError: it could not be.
    """
    if (found := obstacle()) is not None:
        raise BuildError(found)
    made = _cache() / f"{source.stem}-{_identity(source)}.so"
    if not made.exists():
        _compile(source, made)
    return made


def _compile(source: Path, place: Path) -> None:
    """Beside its place first: processes that compile at once do not see each other's halves."""
    torch = _torch()
    command = [str(_compiler()), *FLAGS, "-isystem", str(torch / "include"), str(source), "-L", str(torch / "lib")]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            made = Path(folder) / place.name
            done = subprocess.run(
                [*command, "-o", str(made), "-ltorch_cpu", "-lc10"],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT_S,
                check=False,
            )
            if done.returncode:
                complaints = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr.strip()]
                raise BuildError(f"{os.path.basename(command[0])}: {complaints[0]}")
            made.replace(place)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(str(error)) from error


def _identity(source: Path) -> str:
    """Changes with whatever the library was made from and for."""
    compiler = subprocess.run([str(_compiler()), "--version"], capture_output=True, text=True, check=False).stdout
    name, flags = _processor()
    parts = (
        source.read_text(),
        importlib.metadata.version("torch"),
        str(_torch()),
        compiler,
        *FLAGS,
        name,
        *sorted(flags),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _torch() -> Path:
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise BuildError("torch is not installed")
    return Path(found.origin).parent


@functools.cache
def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++")


@functools.cache
def _processor() -> tuple[str, frozenset[str]]:
    """Its name and what it can do; nothing where Linux does not say."""
    name, flags = "", frozenset[str]()
    try:
        for line in CPUINFO.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            name = name or (value.strip() if key.strip() == "model name" else "")
            flags = flags or frozenset(value.split() if key.strip() == "flags" else ())
    except OSError:
        pass
    return name, flags


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmbench" / "kernels"
