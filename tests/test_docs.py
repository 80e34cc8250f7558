"""The documents stay true: every command is described by its own help text, every link leads somewhere, every suite
in an example is valid. `make docs` rewrites what is generated."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.cli import _parser

ROOT = Path(__file__).parent.parent
COMMANDS = ROOT / "docs" / "commands.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def subparsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield child
                yield from subparsers(child)


def generated() -> str:
    os.environ["COLUMNS"] = "110"
    os.environ["NO_COLOR"] = "1"
    parts = ["# Commands\n\nGenerated from the program's own help (`make docs`).\n"]
    for parser in [_parser(), *subparsers(_parser())]:
        help_text = re.sub(r"[ \t]+\n", "\n", parser.format_help().strip())
        parts.append(f"## {parser.prog}\n\n```\n{help_text}\n```\n")
    return "\n".join(parts)


def test_every_command_is_documented_by_its_own_help() -> None:
    text = generated()
    if os.environ.get("LMBENCH_UPDATE_DOCS"):
        COMMANDS.write_text(text)
    # Python 3.13 breaks long usage lines elsewhere: the words are compared, not the line breaks.
    assert COMMANDS.read_text().split() == text.split(), "docs/commands.md is out of date: make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def suites_in_documents() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)):
            if re.search(r"^suite:", block, re.MULTILINE):
                yield f"{page.name}-{number}", block


@pytest.mark.parametrize(("name", "text"), list(suites_in_documents()))
def test_example_suites_are_valid(name: str, text: str, tmp_path: Path) -> None:
    from bench.suite import check, format_problem

    path = tmp_path / f"{name}.yaml"
    path.write_text(text)
    assert not [format_problem(problem) for problem in check(path)]


def test_the_readme_names_every_suite() -> None:
    text = (ROOT / "README.md").read_text()
    assert not [path.stem for path in sorted((ROOT / "suites").glob("*.yaml")) if f"`{path.stem}`" not in text]


def test_every_module_of_the_harness_stands_in_a_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    modules = {path.stem for path in (ROOT / "bench").glob("*.py")} - {"__init__"}
    rooms = {f"{path.parent.name}/" for path in (ROOT / "bench").glob("*/__init__.py")}
    assert not [name for name in sorted(modules | rooms) if f"`{name}`" not in text]


def test_suites_of_the_project_are_valid() -> None:
    from bench.suite import check, format_problem

    for path in sorted((ROOT / "suites").glob("*.yaml")):
        assert not [format_problem(problem) for problem in check(path)]
