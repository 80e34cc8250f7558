"""Kernels in C++: compiled once, kept apart by what they were made for, and their absence said."""

from __future__ import annotations

import ctypes
import inspect
import subprocess
import threading

import pytest

from lmopt import native

SOURCE = 'extern "C" int lmopt_answer() { return 42; }\n'


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A small kernel, and a cache of its own on a machine that can compile."""
    if native._compiler() is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "obstacle", lambda: None)
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE)
    return path


def machine(monkeypatch, tmp_path, flags, compiler="/usr/bin/c++"):
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nmodel name\t: A CPU\nflags\t\t: {flags}\n")
    monkeypatch.setattr(native, "CPUINFO", path)
    monkeypatch.setattr(native, "_processor", inspect.unwrap(native._processor))
    monkeypatch.setattr(native, "_compiler", lambda: compiler)
    return native.obstacle.__wrapped__()


def test_what_a_machine_needs(monkeypatch, tmp_path):
    able = " ".join(native.NEEDED)
    assert machine(monkeypatch, tmp_path, able) is None
    assert "without avx512_bf16" in machine(monkeypatch, tmp_path, able.replace("avx512_bf16", ""))
    assert "without avx512f" in machine(monkeypatch, tmp_path, "sse2")
    assert "apt-get install g++" in machine(monkeypatch, tmp_path, able, compiler=None)
    monkeypatch.setattr(native, "CPUINFO", tmp_path / "none")
    assert "without avx512f" in native.obstacle.__wrapped__()


def test_a_library_is_compiled_once(source, monkeypatch):
    made = native.library(source)
    assert ctypes.CDLL(str(made)).lmopt_answer() == 42
    before = made.stat().st_mtime_ns
    assert native.library(source) == made
    assert made.stat().st_mtime_ns == before
    assert [path.name for path in made.parent.iterdir()] == [made.name]


def test_another_source_torch_or_processor_is_another_library(source, monkeypatch):
    first = native.library(source)
    source.write_text(SOURCE.replace("42", "43"))
    second = native.library(source)
    assert ctypes.CDLL(str(second)).lmopt_answer() == 43
    monkeypatch.setattr(native, "_processor", lambda: ("Another", frozenset(native.NEEDED)))
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
    assert ctypes.CDLL(str(found[0])).lmopt_answer() == 42


def test_the_compilers_first_complaint(source):
    source.write_text("int broken( {\n")
    with pytest.raises(native.BuildError, match=r"answer\.cpp:1:.*error"):
        native.library(source)
    assert list((source.parent / "cache" / "lmbench" / "kernels").iterdir()) == []


def test_a_cache_that_cannot_be_written(source, monkeypatch):
    (source.parent / "cache").write_text("a file")
    with pytest.raises(native.BuildError, match="Not a directory"):
        native.library(source)


def test_a_compiler_that_hangs(source, monkeypatch):
    run = subprocess.run

    def hangs(command, **options):
        if "--version" in command:
            return run(command, **options)
        raise subprocess.TimeoutExpired(command, native.TIMEOUT_S)

    monkeypatch.setattr(native.subprocess, "run", hangs)
    with pytest.raises(native.BuildError, match="timed out"):
        native.library(source)


def test_an_obstacle_is_said(source, monkeypatch):
    monkeypatch.setattr(native, "obstacle", lambda: "no C++ compiler")
    with pytest.raises(native.BuildError, match=r"no C\+\+ compiler"):
        native.library(source)
