"""Kernels in C++: compiled once, kept apart by what they were made for, and their absence said."""

from __future__ import annotations

import ctypes
import inspect
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lmopt import native

SOURCE = 'extern "C" int lmopt_answer() { return 42; }\n'
ABLE = frozenset(native.NEEDED)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A small kernel, and a cache of its own on a machine that can compile."""
    try:
        native._compiler()
    except native.BuildError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "_processor", lambda: ("A CPU", ABLE))
    monkeypatch.setattr(native, "obstacle", inspect.unwrap(native.obstacle))
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE)
    return path


def answer(library: Path) -> int:
    return ctypes.CDLL(str(library)).lmopt_answer()


def kept(source: Path) -> list[str]:
    folder = source.parent / "cache" / "lmbench" / "kernels"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_library_is_compiled_once(source):
    made = native.library(source)
    assert answer(made) == 42
    before = made.stat().st_ino
    assert native.library(source) == made
    assert made.stat().st_ino == before
    assert kept(source) == [made.name]


def test_another_source_torch_or_processor_is_another_library(source, monkeypatch):
    first = native.library(source)
    source.write_text(SOURCE.replace("42", "43"))
    second = native.library(source)
    assert answer(second) == 43
    monkeypatch.setattr(native, "_processor", lambda: ("Another", ABLE))
    third = native.library(source)
    monkeypatch.setattr(native.importlib.metadata, "version", lambda _: "2.99")
    assert len({first, second, third, native.library(source)}) == 4


def test_processes_that_compile_at_once_all_get_it(source):
    found, threads = [], []
    for _ in range(4):
        threads.append(threading.Thread(target=lambda: found.append(native.library(source))))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert answer(found[0]) == 42


def test_what_nobody_asked_for_in_three_months_goes_when_another_is_compiled(source):
    first = native.library(source)
    for number in (43, 44):
        source.write_text(SOURCE.replace("42", str(number)))
        native.library(source)
    mine = first.with_name("notes.txt")
    mine.write_text("not ours")
    for path in first.parent.iterdir():
        os.utime(path, (0, time.time() - native.UNUSED_S - 60))
    assert answer(native.library(source)) == 44  # asked for: as good as new
    source.write_text(SOURCE.replace("42", "45"))
    assert answer(native.library(source)) == 45
    assert len(kept(source)) == 3
    assert mine.exists()
    assert not first.exists()


@pytest.mark.parametrize("left", [0, 100, 4096])
def test_half_a_library_is_made_again(source, left):
    made = native.library(source)
    whole = made.read_bytes()
    made.write_bytes(whole[:left])  # loaded, the last of these would end the process
    assert answer(native.library(source)) == 42


def test_a_library_outlives_its_compiler(source, monkeypatch):
    made = native.library(source)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(source.parent))
    assert native.library(source) == made
    source.write_text(SOURCE.replace("42", "43"))
    with pytest.raises(native.BuildError, match=r"no C\+\+ compiler \(Debian: apt-get install g\+\+"):
        native.library(source)


# --- what is said --------------------------------------------------------------------------------


def test_what_a_processor_needs(source, monkeypatch):
    assert native.obstacle(source) is None
    monkeypatch.setattr(native, "_processor", lambda: ("", ABLE - {"avx512_bf16"}))
    assert "processor without avx512_bf16" in native.obstacle(source)


def test_linux_is_asked_what_the_processor_can_do(source, monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setattr(native, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(native, "_processor", inspect.unwrap(native._processor))
    assert "does not say what this" in inspect.unwrap(native.obstacle)()
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx512f\n")
    assert native._processor() == ("A CPU", {"fpu", "avx512f"})
    assert "without avx512bw" in inspect.unwrap(native.obstacle)()


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [
        ("AuthenticAMD", native.AVX512, True),
        ("AuthenticAMD", native.AVX512[1:], False),
        ("GenuineIntel", native.AVX512, False),
    ],
)
def test_whose_processor_has_avx512_that_mkl_leaves_unused(vendor, flags, expected, monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setattr(native, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(native, "_processor", inspect.unwrap(native._processor))
    asked = inspect.unwrap(native.mkl_keeps_to_avx2)
    assert not asked()
    (tmp_path / "cpuinfo").write_text(f"vendor_id\t: {vendor}\nflags\t\t: fpu {' '.join(flags)}\n")
    assert asked() is expected


def test_the_compilers_complaint_is_believed_for_a_while(source, monkeypatch):
    source.write_text("int broken( {\n")
    with pytest.raises(native.BuildError, match=r"answer\.cpp:1:.*error:"):
        native.library(source)
    (failed,) = kept(source)
    monkeypatch.setattr(native, "_compile", lambda *_: pytest.fail("compiled again"))
    assert f"{failed} to try again" in native.obstacle(source)
    path = source.parent / "cache" / "lmbench" / "kernels" / failed
    os.utime(path, (time.time() - native.FAILURE_S - 1,) * 2)
    assert native.obstacle(source) is None


def script(folder: Path, text: str) -> str:
    path = folder / "c++"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo 'ld: cannot find -lomp' >&2; echo 'collect2: error: ld returned 1 exit status' >&2; exit 1", "-lomp"),
        ("echo 'clang: error: linker command failed' >&2; exit 1", "linker command failed"),
        ("kill -9 $$", "ended with -9 and said nothing"),
        ("exit 0", "wrote no library"),
    ],
)
def test_what_compilers_say(source, monkeypatch, text, words):
    monkeypatch.setenv("CXX", script(source.parent, text))
    with pytest.raises(native.BuildError, match=rf"^c\+\+: .*{words}"):
        native.library(source)


def test_a_compiler_that_hangs_is_ended_with_its_children(source, monkeypatch):
    monkeypatch.setenv("CXX", script(source.parent, f"sleep 60 & echo $! > {source.parent}/child; wait"))
    monkeypatch.setattr(native, "TIMEOUT_S", 0.5)
    with pytest.raises(native.BuildError, match=r"was not done after 0\.5 s"):
        native.library(source)
    child = int((source.parent / "child").read_text())
    for _ in range(50):
        stat = Path(f"/proc/{child}/stat")
        if not stat.exists() or stat.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("the compiler's child lives")


def test_a_compiler_may_come_with_arguments(source, monkeypatch):
    monkeypatch.setenv("CXX", " ".join([*native._compiler(), "-DTWO=2"]))
    source.write_text('extern "C" int lmopt_answer() { return TWO; }\n')
    assert answer(native.library(source)) == 2
    source.write_text(SOURCE)
    monkeypatch.setenv("CXX", "nosuch -O3")
    with pytest.raises(native.BuildError, match="CXX names 'nosuch', which is not found"):
        native.library(source)


def test_a_folder_that_cannot_be_written(source, monkeypatch):
    (source.parent / "cache").write_text("a file")
    assert "cannot be written: XDG_CACHE_HOME names another place" in native.obstacle(source)
    (source.parent / "cache").unlink()
    monkeypatch.setattr(native.os, "statvfs", lambda _: type("Mount", (), {"f_flag": os.ST_NOEXEC}))
    assert "is mounted noexec" in native.obstacle(source)


def test_nobody_without_a_home(source, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")

    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(native.Path, "home", nowhere)
    assert "set XDG_CACHE_HOME" in native.obstacle(source)


def test_no_torch_is_loaded():
    code = "import sys; from lmopt import native; native.obstacle(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
