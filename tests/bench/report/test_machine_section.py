"""What a report says of the machine."""

from __future__ import annotations

from pathlib import Path

from bench.report.runfolder import load
from bench.report.sections import machine
from bench.report.tree import Facts, Folded
from tests.bench.report.study_folder import Folder, write

NODES = [
    {"node": 0, "cpus": "0-1", "memory_bytes": 25_276_510_208, "distances": [10, 21]},
    {"node": 1, "cpus": "2-3", "memory_bytes": 25_276_510_208, "distances": [21, 10]},
]


def noted(folder: Path, facts: dict[str, object]) -> dict[str, str]:
    """What a reader finds under everything that was noted."""
    write(folder, Folder(machine=facts))
    section = machine.section(load(folder))
    folded = next(block for block in section.blocks if isinstance(block, Folded) and block.id == "machine-more")
    (known,) = folded.blocks
    assert isinstance(known, Facts)
    return {
        label: cell.text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{NARROW NO-BREAK SPACE}", " ")
        for label, cell in known.items
    }


def test_numa_nodes_are_shown_one_a_line(tmp_path: Path) -> None:
    found = noted(tmp_path, {"numa": NODES})
    assert found["numa 0"] == "node 0, cpus 0-1, memory 23.5 GiB, distances 10 21"
    assert found["numa 1"] == "node 1, cpus 2-3, memory 23.5 GiB, distances 21 10"


def test_a_single_node_needs_no_number_and_no_node_is_none(tmp_path: Path) -> None:
    found = noted(tmp_path, {"numa": NODES[:1], "gpus": [], "names": ["a", "b"]})
    assert found["numa"].startswith("node 0, cpus 0-1")
    assert found["gpus"] == "none"
    assert found["names"] == "a, b"
