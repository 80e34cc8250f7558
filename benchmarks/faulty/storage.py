"""Disks that are full, folders that cannot be written, files that are half there or changed: said, and overcome."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.faulty import study

DISK_SIZES_KB = (64, 160, 320, 480, 640, 960, 1280, 1920)
"""A study of this module needs some 2 MB: each of these disks is full at another moment of it."""
ROOMY = "64m"


@contextmanager
def disk(place: Path, size: str) -> Iterator[Path]:
    """A file system of a size in memory.

    Raises:
        OSError: this user may not mount.
    """
    place.mkdir(parents=True, exist_ok=True)
    _mount(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)])
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def _mount(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError(done.stderr.strip())


def _resize(place: Path, options: str) -> None:
    _mount(["mount", "-o", f"remount,{options}", str(place)])


def full_disk(place: Path) -> dict[str, Any]:
    """Runs on disks too small for them, then on the same disks made larger."""
    study.prepare(place, tokens=60_000, seeds=1)
    assert study.run(place, "whole")[0] == 0
    expected = study.result(place / "whole")
    found = {"disks": 0, "of_them_full": 0, "said_so": 0, "tracebacks": 0, "records_lost": 0, "not_bit_identical": 0}
    for number, size_kb in enumerate(DISK_SIZES_KB):
        with disk(place / f"disk-{number}", f"{size_kb}k") as small:
            code, errors = study.run(place, small / "run")
            before = study.lines(small / "run")
            found["disks"] += 1
            found["of_them_full"] += code != 0
            found["said_so"] += code != 0 and ("No space" in errors or "no space" in errors)
            found["tracebacks"] += "Traceback" in errors
            _resize(small, f"size={ROOMY}")
            code, errors = study.run(place, small / "run")
            found["records_lost"] += study.lines(small / "run")[: len(before)] != before
            found["not_bit_identical"] += code != 0 or study.result(small / "run") != expected
    return found


def read_only(place: Path) -> dict[str, Any]:
    """Results that cannot be written: at the first run, and where a killed one is continued.

    (Under a run that goes on it cannot be staged: a file system with open files refuses to become read-only.)
    """
    study.prepare(place, tokens=60_000, seeds=1)
    assert study.run(place, "whole")[0] == 0
    found = {"runs": 0, "said_so": 0, "tracebacks": 0, "not_bit_identical": 0}
    for moment in ("first", "continued"):
        with disk(place / f"read-only-{moment}", ROOMY) as where:
            folder = where / "run"
            if moment == "continued":
                process = study.start(place, folder)
                study.until(lambda folder=folder: list(folder.glob("cases/*/checkpoint/step-*")), process)
                process.kill()
                study.ended(process)
            _become_read_only(where)
            code, errors = study.run(place, folder)
            found["runs"] += 1
            found["said_so"] += code != 0 and "ead-only file system" in errors
            found["tracebacks"] += "Traceback" in errors
            _resize(where, "rw")
            code, _ = study.run(place, folder)
            found["not_bit_identical"] += code != 0 or study.result(folder) != study.result(place / "whole")
    return found


def _become_read_only(where: Path) -> None:
    """Once the killed run's processes have let go of their files."""
    for _ in range(2000):
        try:
            return _resize(where, "ro")
        except PermissionError:
            time.sleep(0.01)
    raise TimeoutError(f"{where} never became read-only")


# --- files ---------------------------------------------------------------------------------------


def truncated(path: Path, draw: random.Random) -> None:
    """Only its beginning reached the disk."""
    os.truncate(path, draw.randrange(path.stat().st_size))


def emptied(path: Path, _draw: random.Random) -> None:
    """Its name is there, its content is not."""
    os.truncate(path, 0)


def flipped(path: Path, draw: random.Random) -> None:
    """One bit of it is wrong."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def removed(path: Path, _draw: random.Random) -> None:
    """It is gone."""
    path.unlink()


HARMS: tuple[Callable[[Path, random.Random], None], ...] = (truncated, emptied, flipped, removed)


def checkpoints(place: Path, draw: random.Random) -> dict[str, Any]:
    """Each harm to each file of the newest checkpoint of an interrupted training; then to all checkpoints of it."""
    study.prepare(place, tokens=200_000, seeds=1)
    assert study.run(place, "whole")[0] == 0
    expected = study.result(place / "whole")
    victim = _interrupted(place)
    names = sorted(path.name for path in _steps(victim)[0].iterdir())
    harms = [(name, harm, all_of_them) for all_of_them in (False, True) for name in names for harm in HARMS]
    found = {"harms": 0, "noticed": 0, "last_good_used": 0, "started_over": 0, "tracebacks": 0, "not_bit_identical": 0}
    for number, (name, harm, all_of_them) in enumerate(harms):
        folder = place / f"harmed-{number}"
        shutil.copytree(victim, folder, ignore=shutil.ignore_patterns(".lock"))
        good = len(_steps(folder))
        for step in _steps(folder) if all_of_them else _steps(folder)[:1]:
            harm(step / name, draw)
        code, errors = study.run(place, folder)
        logs = "".join(path.read_text() for path in folder.glob("cases/*/log.txt"))
        found["harms"] += 1
        found["noticed"] += "damaged" in logs or "cannot be read" in logs or "not a whole description" in logs
        found["last_good_used"] += not all_of_them and good > 1 and "starting over" not in logs
        found["started_over"] += "starting over" in logs
        found["tracebacks"] += "Traceback" in errors
        found["not_bit_identical"] += code != 0 or study.result(folder) != expected
        shutil.rmtree(folder)
    return found


def _interrupted(place: Path) -> Path:
    """A run ended by SIGTERM in its first training, with two checkpoints there."""
    folder = place / "interrupted"
    process = study.start(place, folder)
    assert study.until(lambda: len(_steps(folder)) > 1, process)
    process.terminate()
    code, errors = study.ended(process)
    assert code == 130, errors
    assert len(_steps(folder)) > 1
    return folder


def _steps(folder: Path) -> list[Path]:
    """Checkpoints of the training that was interrupted, newest first."""
    return sorted(folder.glob("cases/*/checkpoint/step-*"), reverse=True)


def records(place: Path, draw: random.Random, torn: int = 12) -> dict[str, Any]:
    """A last record of which a part is there; bits flipped in finished ones; and the same for every other file."""
    study.prepare(place, tokens=20_000, seeds=1)
    assert study.run(place, "whole")[0] == 0
    expected, whole = study.result(place / "whole"), study.lines(place / "whole")
    found = {"torn_records": 0, "flipped_records": 0, "flips_noticed": 0, "other_files": 0, "tracebacks": 0,
             "records_lost": 0, "not_bit_identical": 0}  # fmt: skip
    for number in range(torn):
        folder = _copy(place, f"torn-{number}")
        kept = draw.randrange(1, len(whole[-1].encode()))
        size = (folder / "records.jsonl").stat().st_size
        os.truncate(folder / "records.jsonl", size - 1 - kept)
        code, errors = study.run(place, folder)
        found["torn_records"] += 1
        found["records_lost"] += study.lines(folder)[: len(whole) - 1] != whole[:-1]
        _judge(found, code, errors, study.result(folder) == expected)
    for number in range(torn):
        folder = _copy(place, f"flipped-{number}")
        path = folder / "records.jsonl"
        content = path.read_bytes()
        lines = content.split(b"\n")
        broken = bytearray(lines[number % (len(lines) - 1)])
        broken[draw.randrange(len(broken))] ^= 1 << draw.randrange(8)
        path.write_bytes(content.replace(lines[number % (len(lines) - 1)], bytes(broken)))
        code, errors = study.run(place, folder)
        found["flipped_records"] += 1
        found["flips_noticed"] += code == 3 and "records.jsonl" in errors
        found["tracebacks"] += "Traceback" in errors
    others = [path.relative_to(place / "whole") for path in sorted((place / "whole").rglob("*"))
              if path.is_file() and path.stat().st_size and path.name not in ("records.jsonl", ".lock")
              and "cases" not in path.parts]  # fmt: skip
    for number, name in enumerate(others):
        folder = _copy(place, f"other-{number}")
        truncated(folder / name, draw)
        code, errors = study.run(place, folder)
        found["other_files"] += 1
        is_refused = code == 2 and "hint" in errors
        _judge(found, 0 if is_refused else code, errors, study.result(folder) == expected)
    return found


def _judge(found: dict[str, int], code: int, errors: str, is_same: bool) -> None:
    found["tracebacks"] += "Traceback" in errors
    found["not_bit_identical"] += code != 0 or not is_same


def _copy(place: Path, name: str) -> Path:
    shutil.copytree(place / "whole", place / name, ignore=shutil.ignore_patterns(".lock"))
    return place / name
