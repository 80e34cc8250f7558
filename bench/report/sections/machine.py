"""Where and with what it was measured, and how to do it again."""

from __future__ import annotations

from typing import Any

from bench.report import numbers
from bench.report.runfolder import RunFolder, mapping, number, sequence
from bench.report.tree import Block, Cell, Code, Column, Facts, Folded, Paragraph, Row, Section, Table, absent, words

MAX_FACT_CHARACTERS = 160


def section(study: RunFolder) -> Section:
    """Machine, versions, sensors, the suite and the command."""
    blocks: list[Block] = []
    machine = mapping(study.environment.get("machine"))
    items = [
        ("Run", words(study.name, code=True)),
        ("Environment", _known(study.environment.get("env"), "environment.json was not kept")),
        ("Commit", _commits(study)),
        ("Machine class", _known(study.plan.get("machine_class"), "the plan does not say")),
        *(_chosen(machine) if machine else ()),
    ]
    blocks.append(Facts(id="machine-facts", items=tuple(items)))
    if machine:
        known = Facts(id="machine-all", items=tuple(_flat(machine)))
        blocks.append(Folded(id="machine-more", summary="Everything that was noted of the machine", blocks=(known,)))
    sensors = mapping(study.environment.get("sensors"))
    if sensors:
        blocks.append(_sensors(sensors))
    blocks.append(_reproduce(study))
    if study.suite_text:
        suite = Code(id="suite-text", caption="suite.yaml as resolved", text=study.suite_text)
        blocks.append(Folded(id="suite", summary="The suite", blocks=(suite,)))
    blocks.extend(Paragraph(text=text, kind="note") for text in study.absent)
    return Section(id="machine", title="Machine, versions, and how to repeat it", blocks=tuple(blocks))


def _chosen(machine: dict[str, Any]) -> list[tuple[str, Cell]]:
    """What a reader asks first: processor, memory, accelerators, versions."""
    memory = number(machine.get("memory_bytes"))
    processor, cores = mapping(machine.get("cpu")), mapping(machine.get("cores"))
    gpus = [str(mapping(gpu).get("name") or gpu) for gpu in sequence(machine.get("gpus"))]
    packages = mapping(machine.get("packages"))
    return [
        ("Processor", _known(processor.get("model") or machine.get("cpu"), "the machine does not say")),
        ("Cores", _known(cores.get("usable") or machine.get("cores"), "the machine does not say")),
        ("Memory", absent("the machine does not say") if memory is None else
                   Cell(text=numbers.size(memory), value=memory)),
        ("Accelerators", words(", ".join(gpus) or "none")),
        ("Python", _known(machine.get("python"), "it was not noted")),
        ("PyTorch", _known(packages.get("torch"), "it was not noted")),
    ]  # fmt: skip


def _known(value: Any, why: str) -> Cell:
    return absent(why) if value in (None, "") else words(str(value), code=True)


def _commits(study: RunFolder) -> Cell:
    commits = sorted({record.commit for record in study.records if record.commit})
    if not commits:
        return absent("no record names one")
    small = "" if len(commits) == 1 else "records of several commits give no time or energy evidence"
    return words(", ".join(commits), code=True, small=small)


def _flat(fields: dict[str, Any], prefix: str = "") -> list[tuple[str, Cell]]:
    """Nested facts as a flat list, in the order of the file."""
    items: list[tuple[str, Cell]] = []
    for key, value in fields.items():
        label = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            items.extend(_flat(mapping(value), f"{prefix}{key} "))
        elif isinstance(value, list):
            parts = sequence(value)
            plain = [str(part) for part in parts if not isinstance(part, dict | list)]
            if plain or not parts:
                items.append((label, words(_cut(", ".join(plain)) or "none")))
            things = [mapping(part) for part in parts if isinstance(part, dict)]
            for place, thing in enumerate(things):
                items.append((f"{label} {place}" if len(things) > 1 else label, words(_cut(_in_line(thing)))))
        elif value is None or value == "":
            items.append((label, absent("this machine does not say")))
        else:
            items.append((label.removesuffix(" bytes"), _scalar(key, value)))
    return items


def _in_line(thing: dict[str, Any]) -> str:
    """The facts of one of several like things, such as a NUMA node."""
    facts: list[str] = []
    for key, value in thing.items():
        text = " ".join(map(str, sequence(value))) if isinstance(value, list) else str(_scalar(key, value).text)
        facts.append(f"{key.removesuffix('_bytes').replace('_', ' ')} {text}")
    return ", ".join(facts)


def _scalar(key: str, value: Any) -> Cell:
    size = number(value)
    if size is not None and key.endswith("_bytes"):
        return Cell(text=numbers.size(size), value=size)
    if isinstance(value, bool):
        return words("yes" if value else "no")
    return words(_cut(str(value)))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_FACT_CHARACTERS else text[: MAX_FACT_CHARACTERS - 1] + "\u2026"


def _sensors(sensors: dict[str, Any]) -> Table:
    rows: list[Row] = []
    for name, fields in sorted(sensors.items()):
        one = mapping(fields)
        there = bool(one.get("available"))
        rows.append(
            Row(
                cells=(
                    words(name, code=True),
                    words("works here", tone="good") if there else words("not here", tone="none"),
                    words(str(one.get("grade") or numbers.DASH)),
                    words(str(one.get("reason") or numbers.DASH), small=str(one.get("hint") or "")),
                )
            )
        )
    return Table(
        id="sensors",
        caption="What each sensor could do on this machine.",
        columns=(
            Column(key="sensor", label="Sensor", numeric=False),
            Column(key="available", label="Here", numeric=False),
            Column(key="grade", label="Grade", numeric=False),
            Column(key="reason", label="Found", numeric=False),
        ),
        rows=tuple(rows),
    )


def _reproduce(study: RunFolder) -> Code:
    commits = sorted({record.commit for record in study.records if record.commit})
    lines = [f"git checkout {commits[0].removesuffix('-dirty')}"] if len(commits) == 1 else []
    lines += [
        f"lmbench run suites/{study.design.suite}.yaml",
        f"lmbench report results/{study.design.suite}/{study.name}",
    ]
    return Code(
        id="reproduce", caption="To repeat it (the folder's own suite.yaml runs as well)", text="\n".join(lines)
    )
