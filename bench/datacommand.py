"""`lmbench data ...`: the data room from the command line."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from bench.forecast import columns
from lmopt.quantities import human_bytes, human_count, human_seconds
from lmopt.step import Step

TOLD_EVERY_S = 10.0
"""Where stderr is a file, a line of progress this often."""


def fetch(arguments: argparse.Namespace) -> int:
    """Download sources into the cache, those of a named corpus too; one line of facts each."""
    from lmopt.data.recipes import sources_of
    from lmopt.data.sources import fetch as fetch_source

    for text in sources_of(arguments.source):
        found = fetch_source(
            text,
            progress=_teller(),
            field=arguments.field,
            limit_bytes=arguments.limit,
            domain_field=arguments.domain_field,
        )
        print(
            f"{found.source}  {found.version}  {human_bytes(found.size_bytes)}  sha256 {found.sha256}"
            f"  {found.licence or 'licence not stated'}"
        )
    return 0


def _teller() -> Callable[[str], None]:
    """Shows how far something is on stderr: one line that changes in a terminal, else a line now and then."""
    last_s: float | None = None

    def tell(line: str) -> None:
        nonlocal last_s
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        elif last_s is None or time.monotonic() - last_s >= TOLD_EVERY_S:
            last_s = time.monotonic()
            print(line, file=sys.stderr)

    return tell


def bring(arguments: argparse.Namespace) -> int:
    """Seed the cache with a file under a hub name."""
    from lmopt.data.sources import import_file

    found = import_file(arguments.name, arguments.file)
    print(f"{found.source}  {human_bytes(found.size_bytes)}  sha256 {found.sha256}")
    return 0


def build(arguments: argparse.Namespace) -> int:
    """The corpus of a suite and the shards of each distinct chain of data steps."""
    from bench.evaluate import protected
    from bench.suite import load_suite
    from lmopt.data import corpus, shards, workers
    from lmopt.data.scratch import Scratch

    suite = load_suite(arguments.suite)
    out: Path = arguments.out
    chains = {arm.name: suite.resolve(arm.name, suite.over.scale[0].name).data for arm in suite.all_arms()}
    with nullcontext() if arguments.workers < 2 else workers.processes(arguments.workers) as mapper:
        for steps in chains.values():  # what cannot work is found before the corpus is built for it
            shards.rehearse(steps, mapper)
    texts, missing = protected.texts(suite.evaluate.tasks if suite.data.decontaminate else ())
    brought = corpus.build(suite.data, out / "corpus", protected=texts, unprotected=missing, progress=_teller())
    _watch("corpus", brought)
    print(out / "corpus")
    done: dict[str, str] = {}
    with nullcontext() if arguments.workers < 2 else workers.processes(arguments.workers) as mapper:
        for name, steps in chains.items():
            if repr(steps) not in done:
                scratch = Scratch(arguments.memory // max(len(steps), 1))
                built = shards.build(out / "corpus", steps, out / name, mapper=mapper, scratch=scratch)
                _watch(f"shards of {name}", built)
                done[repr(steps)] = name
                print(out / name)
    return 0


def _watch(what: str, steps: Iterator[Step]) -> None:
    """Tell how many documents went in and came out, while it happens and in the end."""
    tell, start_s, notes = _teller(), time.monotonic(), dict[str, float]()
    for step in steps:
        if "documents" in step.notes:
            notes = dict(step.notes)
            tell(f"{what}: {_so_far(notes, time.monotonic() - start_s)}")
        elif "held_out_documents" in step.notes:
            tell(f"{what}: {human_count(step.notes['held_out_documents'])} documents held out")
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    said = _so_far(notes, time.monotonic() - start_s) if notes else "finished before, left as it is"
    print(f"{what}: {said}", file=sys.stderr)


def _so_far(notes: Mapping[str, float], seconds: float) -> str:
    parts = [
        f"{human_count(notes['documents'])} documents, {human_bytes(notes['bytes'])} read",
        f"{human_count(notes['kept_documents'])} kept",
        f"{human_count(notes['dropped'])} dropped",
    ]
    if made := notes["synthetic_documents"]:
        parts.append(f"{human_count(made)} made by a model")
    return ", ".join([*parts, human_seconds(seconds)])


def describe(arguments: argparse.Namespace) -> int:
    """Documents, bytes and tokens a domain, and what was dropped and why."""
    from lmopt.data.describe import describe as describe_folder

    found: Mapping[str, Any] = describe_folder(arguments.folder)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    print(columns(_domain_table(found)))
    _print_steps(found.get("passed", []))
    _print_held_out(found)
    for name, facts in found.get("sources", {}).items():
        if unread := ", ".join(f"{count} {ending}" for ending, count in facts.get("left_out", {}).items()):
            print(f"\nnot read, {name}: {unread} (no reader goes by that ending)")
    for domain, facts in found.get("synthetic", {}).items():
        print(
            f"\nmade by a model, {domain}: {human_count(facts['documents'])} documents, {human_bytes(facts['bytes'])}"
        )
    for reason, facts in found["dropped"].items():
        print(f"\ndropped, {reason}: {facts['documents']}")
        for sample in facts["samples"]:
            kept = f"; {sample['kept']} stays" if sample["kept"] else ""
            print(f"  {sample['id']}: {sample['detail']}{kept}\n    {_one_line(sample['text'])}")
    return 0


def _domain_table(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What a domain kept and lost, and the sum of all."""
    kept: Mapping[str, Mapping[str, int]] = found["domains"]
    lost: Mapping[str, Mapping[str, int]] | None = found.get("dropped_domains")  # not counted by earlier builds
    table = [("domain", "documents", "bytes", "tokens", "dropped")]
    whole: Counter[str] = Counter()
    for domain in sorted(kept.keys() | (lost or {}).keys()):
        facts = Counter(kept.get(domain, {}))
        if lost is not None:
            facts["dropped"] = sum(lost.get(domain, {}).values())
        whole.update(facts)
        table.append((domain, *_sizes(facts)))
    return [*table, ("all", *_sizes(whole))]


def _sizes(facts: Mapping[str, int]) -> tuple[str, str, str, str]:
    tokens, dropped = (human_count(facts[name]) if name in facts else "" for name in ("tokens", "dropped"))
    return human_count(facts["documents"]), human_bytes(facts["bytes"]), tokens, dropped


def _print_held_out(found: Mapping[str, Any]) -> None:
    """The validation sets, and what training text lost because it repeats a set."""
    for name, facts in found.get("validation", {}).items():
        sizes = f"{human_count(facts['documents'])} documents, {human_bytes(facts['bytes'])}"
        print(f"\nheld out, {name}: {sizes}, {human_count(facts['tokens'])} tokens")
    cuts = found.get("decontamination") or {"sets": {}, "missing": {}}
    for name, facts in cuts["sets"].items():
        counts = f"{facts['documents_cut']} documents cut, {facts['documents_dropped']} dropped"
        print(f"decontaminated, {name}: {human_count(facts['texts'])} texts, {counts}")
    for name, why in cuts["missing"].items():
        print(f"not decontaminated, {name}: {why}")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _print_steps(passed: Sequence[Mapping[str, Any]]) -> None:
    """What went into each data step and came out of it."""
    if not passed:
        return
    table = [("step", "documents in", "out", "bytes in", "out", "FLOPs")]
    for count in passed:
        documents = (human_count(count["documents_in"]), human_count(count["documents_out"]))
        sizes = (human_bytes(count["bytes_in"]), human_bytes(count["bytes_out"]))
        table.append((count["kind"], *documents, *sizes, f"{count['flops']:.3g}" if count["flops"] else ""))
    print()
    print(columns(table))


def inspect(arguments: argparse.Namespace) -> int:
    """A few documents, or dropped ones with the reason."""
    from lmopt.data.describe import documents

    wanted = {"domain": arguments.domain, "reason": arguments.reason}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    rows = documents(arguments.folder, dropped=arguments.dropped or arguments.reason is not None)
    found = (row for row in rows if all(row[key] == value for key, value in wanted.items()))
    shown = 0
    for document in itertools.islice(found, arguments.count):
        print(json.dumps(document, ensure_ascii=False) if arguments.json else _as_text(document))
        shown += 1
    if not shown:
        print(f"no document of {' and '.join(wanted.values()) or arguments.folder}", file=sys.stderr)
        print(f"  hint: lmbench data describe {arguments.folder} shows domains and reasons", file=sys.stderr)
    return 0


def _as_text(document: Mapping[str, Any]) -> str:
    head = "  ".join(f"{key}={value}" for key, value in document.items() if key != "text")
    return f"--- {head}\n{document['text']}\n"


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "fetch": fetch,
    "import": bring,
    "build": build,
    "describe": describe,
    "inspect": inspect,
}
