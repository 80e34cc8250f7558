"""A finished study copied to where it is kept: its records beside its report, and nothing large."""

from __future__ import annotations

import json
import lzma
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from bench.design import NAME_PATTERN
from bench.record import packed


class PublishError(ValueError):
    """What cannot be published: says why and what to do."""


KEPT = (
    "suite.yaml",
    "plan.json",
    "environment.json",
    "records.jsonl",
    "looks.jsonl",
    "registered.json",
    "verdict.json",
)
"""What judging and reporting read; checkpoints, shards and logs stay behind."""
OPTIONAL = ("looks.jsonl", "registered.json", "report.pdf")
"""Files that not every study has."""
SHOWN = ("report.html", "report.md", "report.pdf")
"""What a reader opens. Figures and tables stand in them; `lmbench report` writes them as files from the records."""
FIRST_TO_STAY = "report.pdf"
"""What is left out where there is no room for it: `lmbench report` draws it again."""
FIGURE = re.compile(r"^!\[(.*)\]\(figures/[^)]*\)$", re.MULTILINE)
"""A figure in `report.md`; the files stay behind, so what they show stands in words."""
PACKED_ABOVE_BYTES = 100_000
"""Larger `records.jsonl` are published as `records.jsonl.xz`, a sixth to a tenth of their size; `xz -dc` shows them."""
MAX_ITEMS_BYTES = 2_000_000
"""A per-item file above this stays behind: its hash is in the record."""
MAX_TOTAL_BYTES = 15_000_000
"""All published studies and reports together."""


def publish(run: Path, name: str, root: Path) -> list[Path]:
    """Copy a reported run to `root/results/reference/NAME` and `root/reports/NAME`; returns the copies.

    Raises:
        PublishError: a name that is none, a run without a report, or more bytes than published studies may take.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        allowed = "small letters, digits, `.`, `_` and `-`"
        raise PublishError(f"{name!r} is no name for a published study; allowed: {allowed}")
    wanted = [file for file in (*KEPT, *SHOWN) if not _held(run / file).exists() and file not in OPTIONAL]
    if wanted:
        raise PublishError(
            f"{run}: cannot be published without {', '.join(wanted)}; hint: finish, judge and report it first"
        )
    targets = {"results/reference": root / "results" / "reference" / name, "reports": root / "reports" / name}
    copies = [*_study(run, targets["results/reference"]), *_report(run, targets["reports"])]
    others = _others_bytes(root, tuple(targets.values()))
    if _bytes(copies) + others > MAX_TOTAL_BYTES:
        copies = [(source, copy) for source, copy in copies if copy.name != FIRST_TO_STAY]
    _refuse_if_large(copies, others)
    drafts = {target: _draft(target, copies) for target in targets.values()}
    for target, draft in drafts.items():
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)
    return [copy for _, copy in copies]


def left_out(run: Path, copies: list[Path]) -> str | None:
    """A sentence on the run's file that found no room, as `publish` returned its copies; None where all came along."""
    if not (run / FIRST_TO_STAY).exists() or any(copy.name == FIRST_TO_STAY for copy in copies):
        return None
    most = f"{MAX_TOTAL_BYTES / 1e6:.0f} MB"
    return f"{FIRST_TO_STAY} was left out: with it published studies would take more than {most}"


def _draft(target: Path, copies: list[tuple[Path, Path]]) -> Path:
    """A folder beside the target, filled. Nothing is removed before: the run may be the target itself."""
    draft = target.with_name(f".{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    for source, copy in copies:
        if copy.is_relative_to(target):
            place = draft / copy.relative_to(target)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(_content(source, copy))
    return draft


def _content(source: Path, copy: Path) -> bytes:
    """What the copy will hold: the same bytes, packed where its name says so; a plan without white space."""
    content = source.read_bytes()
    if copy.name == "report.md":
        return FIGURE.sub(r"*Figure: \1*", content.decode()).encode()
    if copy.name == "plan.json":
        return json.dumps(json.loads(content), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    return lzma.compress(content, preset=9 | lzma.PRESET_EXTREME) if copy.name == packed(source).name else content


def _held(file: Path) -> Path:
    """The file, or its packed form where only that is there."""
    return packed(file) if not file.exists() and packed(file).exists() else file


def _study(run: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    for file in KEPT:
        held = _held(run / file)
        if held.exists():
            large = held.name == "records.jsonl" and held.stat().st_size > PACKED_ABOVE_BYTES
            yield held, target / (packed(held).name if large else held.name)
    for items in sorted(run.glob("cases/*/items.parquet")):
        if items.stat().st_size <= MAX_ITEMS_BYTES:
            yield items, target / items.relative_to(run)
    for profile in sorted(run.glob("profiles/*.profile.json")):
        yield profile, target / profile.relative_to(run)


def _report(run: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    for file in SHOWN:
        if (run / file).exists():
            yield run / file, target / file


def _bytes(copies: list[tuple[Path, Path]]) -> int:
    return sum(len(_content(source, copy)) for source, copy in copies)


def _others_bytes(root: Path, targets: tuple[Path, ...]) -> int:
    """What the other published studies and reports take."""
    return sum(
        file.stat().st_size
        for folder in (root / "results" / "reference", root / "reports")
        for file in folder.rglob("*")
        if file.is_file() and not any(file.is_relative_to(target) for target in targets)
    )


def _refuse_if_large(copies: list[tuple[Path, Path]], others: int) -> None:
    total = _bytes(copies) + others
    if total > MAX_TOTAL_BYTES:
        largest = max(copies, key=lambda pair: pair[0].stat().st_size)[0]
        raise PublishError(
            f"publishing would take {total / 1e6:.1f} MB, and published studies may take "
            f"{MAX_TOTAL_BYTES / 1e6:.0f} MB in all ({others / 1e6:.1f} MB are there already); the largest new file is "
            f"{largest}; hint: remove an older study from reports/ and results/reference/"
        )
