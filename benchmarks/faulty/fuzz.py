"""Changed suites and records, by a hand, a disk or an adversary: never a traceback, a hang, or a file elsewhere."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from bench import cli
from bench.record import RecordError, _digest, read, unpacked  # pyright: ignore[reportPrivateUsage]

ROOT = Path(__file__).parents[2]
PATIENCE_S = 10.0
"""Processor time that a file may be thought about, many times what any of them needs unchanged."""


class Hung(BaseException):
    """The patience is over. No error of the program's own, so that nothing in it takes it for one."""


OWN_PROGRAMS = ("git", "gcc", "cc", "ld", "ldconfig", "objdump")
"""Started whatever the file says: to learn the commit, and by ctypes to find the libraries of the PDF writer."""
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 1e308, -1e308, 1e-320,
    "", " ", "x" * 10_000, "../..", "/etc/passwd", "a/b", "\u202e", "\x00", "nan", ".inf", "1e999", "2 days", "10M",
    "-5k", "yes", "<script>", "{}", "%s%n", [], {}, [[]], [None], {"": ""}, {"kind": "moe"}, {"kind": "none"},
    ["a"] * 2000,
    {"a": {"a": {"a": {"a": 1}}}},
)  # fmt: skip
"""Values that somebody did not think of."""
TEXTS = (
    "!!python/object/apply:os.system ['touch pwned']", "!!binary cHduZWQ=",
    "!<tag:yaml.org,2002:python/name:os.system>", "&a [*a]", "*unknown", "<<: *x", "? - :", "- - -", "\t", "%YAML 9.9",
    "---", "...", "|", ">-9", "'", '"', "{", "[", "]", "}", ": :", "#", "@", "`", "\u0000", "\ud7ff", "9" * 400, "0o17",
    "0x_", "1_000", "2024-01-01", "~",
)  # fmt: skip


class Tally:
    """What came of the files so far."""

    def __init__(self, place: Path) -> None:
        self.place = place.resolve()
        self.elsewhere: list[str] = []
        self.codes: dict[str, int] = {}
        self.tracebacks: list[str] = []
        self.longest_s = 0.0
        self.is_watching = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Notes every file that is opened for writing outside of the place, and every program that is started."""
        if not self.is_watching:
            return
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not self._may_write(path):
                self.elsewhere.append(path)
        elif event in ("os.system", "os.exec", "subprocess.Popen", "os.posix_spawn"):
            program = os.path.basename(os.fsdecode(arguments[0])) if arguments[0] else "?"
            if program not in OWN_PROGRAMS:
                self.elsewhere.append(f"{event} {arguments[0]!r}")

    def _may_write(self, path: str) -> bool:
        return f"{path}/".startswith((f"{self.place}/", "/dev/", "/proc/self/"))

    def look(self, what: str, do: Callable[[], object]) -> object:
        """Do something with a file, watched; what it returned, or None where it raised what it may not."""
        begun_s, before = time.process_time(), tempfile.tempdir
        self.is_watching, tempfile.tempdir = True, str(self.place)
        try:
            with _patience():
                answer = do()
        except BaseException as error:  # noqa: BLE001 - whatever comes out here would have been a traceback
            self.is_watching = False
            self.tracebacks.append(f"{what}: {type(error).__name__}: {str(error)[:300]}")
            shutil.copytree(self.place, self.place.with_name(f"found-{len(self.tracebacks)}"), dirs_exist_ok=True)
            return None
        finally:
            self.is_watching, tempfile.tempdir = False, before
            self.longest_s = max(self.longest_s, time.process_time() - begun_s)
        key = f"{what} {answer}"
        self.codes[key] = self.codes.get(key, 0) + 1
        return answer


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    def over(_number: int, _frame: FrameType | None) -> None:
        raise Hung(f"thought about it for more than {PATIENCE_S:g} s")

    before = signal.signal(signal.SIGVTALRM, over)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _command(*words: str) -> int:
    """`lmbench ...` in this process; its exit code."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return cli.main(list(words))
        except SystemExit as end:
            return int(end.code or 0)


# --- suites --------------------------------------------------------------------------------------


def suites(place: Path, count: int, draw: random.Random) -> Tally:
    """`lmbench check` of changed suites, and `lmbench plan` of those that are still valid."""
    texts = [path.read_text() for path in sorted((ROOT / "suites").glob("*.yaml"))]
    place.mkdir(parents=True)
    tally = Tally(place)
    path = place / "suite.yaml"
    for _ in range(count):
        content = draw.choice((_changed_bytes, _changed_lines, _changed_values))(draw.choice(texts), draw)
        path.write_bytes(content)
        if tally.look("check", lambda: _command("check", str(path))) == 0:
            tally.look("plan", lambda: _command("plan", str(path), "--no-calibration"))
    return tally


def _changed_bytes(text: str, draw: random.Random) -> bytes:
    content = bytearray(text.encode())
    for _ in range(draw.randint(1, 12)):
        at = draw.randrange(len(content))
        match draw.randrange(4):
            case 0:
                content[at] = draw.randrange(256)
            case 1:
                del content[at : at + draw.randint(1, 200)]
            case 2:
                content[at:at] = draw.randbytes(draw.randint(1, 8))
            case _:
                content[at:at] = content[at : at + draw.randint(1, 200)]
        if not content:
            return b""
    return bytes(content)


def _changed_lines(text: str, draw: random.Random) -> bytes:
    lines = text.split("\n")
    for _ in range(draw.randint(1, 5)):
        at = draw.randrange(len(lines))
        match draw.randrange(5):
            case 0:
                lines[at] = " " * draw.randint(0, 9) + lines[at].strip()
            case 1:
                lines.insert(at, draw.choice(lines))
            case 2:
                lines[at] = lines[at] + draw.choice(TEXTS)
            case 3:
                lines.insert(at, " " * draw.randint(0, 6) + draw.choice(TEXTS))
            case _:
                key, colon, _ = lines[at].partition(":")
                lines[at] = f"{key}{colon} {draw.choice(TEXTS)}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _changed_values(text: str, draw: random.Random) -> bytes:
    from ruamel.yaml import YAML

    data = YAML(typ="safe", pure=True).load(text)
    for _ in range(draw.randint(1, 3)):
        data = _changed(data, draw)
    return json.dumps(data, default=str).encode()


def _changed(data: Any, draw: random.Random) -> Any:
    """Plain data with one thing in it replaced, left out, put in or moved."""
    places = list(_places(data))
    if not places:
        return copy.deepcopy(draw.choice(HOSTILE))
    holder, key = draw.choice(places)
    match draw.randrange(5):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[draw.choice(("x", "kind", "name", "", "../x", "lr"))] = holder[key]
        case 2:
            other, its_key = draw.choice(places)
            holder[key] = json.loads(json.dumps(other[its_key], default=str))
        case _:
            holder[key] = copy.deepcopy(draw.choice(HOSTILE))
    return data


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in list(entries):
        yield data, key
        yield from _places(value)


# --- records -------------------------------------------------------------------------------------


def records(place: Path, count: int, draw: random.Random, judged: int) -> Tally:
    """Reading changed records; of `judged` of them, changed by somebody who knows how they are hashed, a verdict."""
    studies = [ROOT / "results" / "reference" / name for name in ("quickstart", "ablation", "first")]
    place.mkdir(parents=True)
    tally = Tally(place)
    for number in range(count):
        folder = place / "run"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        source = draw.choice(studies)
        lines = unpacked(source / "records.jsonl").split(b"\n")
        at = draw.randrange(len(lines) - 1)
        is_forged = number < judged
        lines[at] = _forged(lines[at], draw) if is_forged else _changed_bytes(lines[at].decode(), draw)
        (folder / "records.jsonl").write_bytes(b"\n".join(lines))
        answer = tally.look("read", lambda folder=folder: _read(folder / "records.jsonl"))
        if is_forged and answer == "accepted":
            for name in ("suite.yaml", "plan.json", "environment.json"):
                shutil.copy(source / name, folder / name)
            tally.look("judge", lambda folder=folder: _command("judge", str(folder)))
            if number % 20 == 0:
                tally.look("report", lambda folder=folder: _command("report", str(folder)))
    return tally


def _read(path: Path) -> str:
    try:
        read(path)
    except RecordError:
        return "refused"
    return "accepted"


def _forged(line: bytes, draw: random.Random) -> bytes:
    fields = _changed(json.loads(line), draw)
    if isinstance(fields, dict):
        fields["sha256"] = _digest(fields)
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )
