"""Kernels in C++: compiled once on the machine they run on, and kept in the user's cache.

They need a compiler once, torch's headers and libraries (which hold oneDNN), and a processor with arithmetic in
bfloat16. Where something is missing their callers do without. No torch is loaded here.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NAMES = (
    *("kernels.h", "products.h", "experts.h"),
    *("attention_fused.cpp", "experts_fused.cpp", "experts_backward_fused.cpp", "extension_fused.cpp"),
    *("layers_fused.cpp", "panels_fused.cpp", "routing_fused.cpp", "rows_fused.cpp"),
)
SOURCES = tuple(Path(__file__).parent / "arch" / name for name in NAMES)
"""Of the one library that all kernels are in, headers among them."""
NEEDED = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_vnni")
"""Instructions of the processor that the kernels are written for, as /proc/cpuinfo names them."""
FLAGS = (
    *("-O3", "-march=native", "-std=c++20", "-fopenmp", "-fPIC", "-shared", "-w"),
    *("-DCPU_CAPABILITY=AVX512", "-DCPU_CAPABILITY_AVX512"),  # which of its vectors torch's headers define
)
TIMEOUT_S = 300
FAILURE_S = 3600
"""For so long a compiler's complaint is believed, before it is asked again."""
UNUSED_S = 90 * 86_400
"""A library that nobody has asked for so long is removed when another is compiled."""
DIGEST_BYTES = 32
"""Of a library's end: the SHA-256 of what stands before. Loading half a file would end the process."""
CPUINFO = Path("/proc/cpuinfo")
NVIDIA = Path("/dev/nvidiactl")
"""There where NVIDIA's driver runs."""
AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq")
"""What torch asks of a processor before it takes AVX-512."""
MULTIPLE = 16
"""Numbers of a register: widths must be multiples."""


class BuildError(Exception):
    """A kernel cannot be had; the message says what is missing, or is the compiler's complaint."""


def has_gpu() -> bool:
    """Whether work goes to a GPU, as far as can be told without torch."""
    return NVIDIA.exists()


@functools.cache
def mkl_keeps_to_avx2() -> bool:
    """Whether the processor has AVX-512 and is not Intel's, so that MKL leaves it unused; no if Linux does not say."""
    try:
        is_intel = "GenuineIntel" in CPUINFO.read_text(errors="replace")
    except OSError:
        return False
    return not is_intel and _processor()[1].issuperset(AVX512)


@functools.cache
def obstacle(*sources: Path) -> str | None:
    """What keeps this machine from having the kernels; None if nothing does that can be told without compiling them."""
    try:
        _refuse_processor()
        place = _place(sources or SOURCES)
        if not _is_whole(place):
            _refuse_folder(place.parent)
            _compiler()
            _refuse_failure(place)
    except (BuildError, OSError) as error:
        return str(error)
    return None


def library(*sources: Path) -> Path:
    """C++ files as a shared library for this processor and version of torch; compiled unless it was before.

    Raises:
        BuildError: it could not be.
    """
    if (found := obstacle(*sources)) is not None:
        raise BuildError(found)
    place = _place(sources or SOURCES)
    if not _is_whole(place):
        try:
            _compile(sources or SOURCES, place)
        except OSError as error:
            raise BuildError(
                f"{error}; kernels are kept in {place.parent}: XDG_CACHE_HOME names another place"
            ) from error
        _remove_unused(place.parent)
    with contextlib.suppress(OSError):  # a cache that can only be read
        os.utime(place)
    return place


def _compile(sources: tuple[Path, ...], place: Path) -> None:
    """Beside its place first: processes that compile at once do not see each other's halves."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, ignore_cleanup_errors=True) as folder:
        compiler, made = [*_compiler(), *FLAGS], Path(folder) / place.name
        complaint = _build([source for source in sources if source.suffix == ".cpp"], compiler, made)
        if complaint is None and not made.exists():
            complaint = "wrote no library"
        if complaint is not None:
            failed = f"{os.path.basename(compiler[0])}: {complaint}"
            _failure(place).write_text(failed, encoding="utf-8")
            raise BuildError(failed)
        with made.open("ab") as file:
            file.write(hashlib.sha256(made.read_bytes()).digest())
            file.flush()
            os.fsync(file.fileno())
        made.replace(place)


def _build(sources: Sequence[Path], compiler: Sequence[str], made: Path) -> str | None:
    """The files side by side, then all of them as one library; the first complaint."""
    torch = _torch()
    objects = [made.with_name(f"{source.stem}.o") for source in sources]
    commands = [
        [*compiler, "-isystem", str(torch / "include"), "-c", str(source), "-o", str(each)]
        for source, each in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        complaints = [found for found in threads.map(_complaint, commands) if found is not None]
    if complaints:
        return complaints[0]
    link = [*compiler, *map(str, objects), "-L", str(torch / "lib"), "-o", str(made), "-ltorch_cpu", "-lc10"]
    return _complaint(link)


def _complaint(command: list[str]) -> str | None:
    """What a compiler found wrong first; None if nothing."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said = process.communicate(timeout=TIMEOUT_S)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the compiler proper, which the driver has started
        process.communicate()
        return f"was not done after {TIMEOUT_S} s"
    if process.returncode == 0:
        return None
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [
        line for line in lines if any(words in line for words in ("error:", "cannot find", "undefined reference"))
    ]
    causes = [line for line in telling if "collect2:" not in line and "linker command failed" not in line]
    return next(iter(causes or telling or lines), f"ended with {process.returncode} and said nothing")


# --- what is looked at before --------------------------------------------------------------------


def _refuse_processor() -> None:
    flags = _processor()[1]
    if not flags:
        raise BuildError(f"{CPUINFO} does not say what this {platform.machine()} processor can do")
    if missing := [flag for flag in NEEDED if flag not in flags]:
        raise BuildError(f"{platform.machine()} processor without {missing[0]}")


def _refuse_folder(folder: Path) -> None:
    """Nothing is written: the folder may be there tomorrow."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    why = None
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        why = "cannot be written"
    elif os.statvfs(existing).f_flag & os.ST_NOEXEC:
        why = "is mounted noexec"
    if why is not None:
        raise BuildError(f"{existing}, where kernels would be kept, {why}: XDG_CACHE_HOME names another place")


def _refuse_failure(place: Path) -> None:
    path = _failure(place)
    if path.exists() and time.time() - path.stat().st_mtime < FAILURE_S:
        raise BuildError(f"{path.read_text(encoding='utf-8')} (remove {path} to try again)")


def _compiler() -> list[str]:
    """The command that CXX names, with its arguments, or g++ or clang++."""
    if named := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(named[0]) is None:
            raise BuildError(f"CXX names {named[0]!r}, which is not found")
        return named
    for known in ("g++", "clang++"):
        if (found := shutil.which(known)) is not None:
            return [found]
    raise BuildError("no C++ compiler (Debian: apt-get install g++; or set CXX)")


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


# --- where it is kept ----------------------------------------------------------------------------


def _place(sources: tuple[Path, ...]) -> Path:
    """A name that changes with whatever the library is made from and for. The compiler may be gone tomorrow."""
    try:
        home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        version = importlib.metadata.version("torch")
    except RuntimeError as error:  # of Path.home
        raise BuildError(f"no home folder to keep kernels in ({error}): set XDG_CACHE_HOME") from error
    except importlib.metadata.PackageNotFoundError as error:
        raise BuildError("torch is not installed") from error
    name, flags = _processor()
    texts = [source.read_text(encoding="utf-8") for source in sources]
    parts = (*texts, version, str(_torch()), *FLAGS, name, *sorted(flags))
    identity = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return Path(home) / "lmbench" / "kernels" / f"{sources[0].stem}-{identity}.so"


def _remove_unused(folder: Path) -> None:
    """Of other sources, versions of torch and processors; a process that has loaded one keeps it."""
    for path in folder.glob("*.*"):
        with contextlib.suppress(OSError):  # somebody else removes it, too
            if path.suffix in (".so", ".failed") and time.time() - path.stat().st_mtime > UNUSED_S:
                path.unlink()


def _failure(place: Path) -> Path:
    return place.with_suffix(".failed")


def _is_whole(place: Path) -> bool:
    try:
        content = place.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return hashlib.sha256(content[:-DIGEST_BYTES]).digest() == content[-DIGEST_BYTES:]


def _torch() -> Path:
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise BuildError("torch is not installed")
    return Path(found.origin).parent
