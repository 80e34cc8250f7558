"""The JSON Schema: current, valid, and of one mind with the typed suite where it can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import source
from bench.schema import schema, schema_text
from lmopt.recipe import Recipe, techniques
from tests.bench.small_suite import ROOT, SUITES, edited

jsonschema = pytest.importorskip("jsonschema")


def errors(data: Any) -> list[tuple[Any, ...]]:
    """Paths of what the schema refuses."""
    return [tuple(error.absolute_path) for error in jsonschema.Draft202012Validator(schema()).iter_errors(data)]


def data_of(*changes: tuple[str, str]) -> Any:
    return source.parse_text(edited(*changes), "s").data()


def test_the_committed_schema_is_current() -> None:
    committed = (ROOT / "suites" / "suite.schema.json").read_text(encoding="utf-8")
    assert committed == schema_text(), "run: lmbench schema > suites/suite.schema.json"


def test_the_schema_is_a_valid_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_committed_suite_fits_and_names_the_schema(path: Path) -> None:
    assert path.read_text().startswith("# yaml-language-server: $schema=./suite.schema.json\n")
    assert errors(source.read(path).data()) == []


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        (("about:", "abuot:"), ()),
        (("role: claim", "role: clam"), ("arms", 2, "role")),
        (("name: moe\n", "name: My Moe\n"), ("arms", 0, "name")),
        (("{kind: fp32}", "{kind: fp23}"), ("arms", 1, "change", "precision")),
        (("top_k: 2", "topk: 2"), ("arms", 0, "change", "ffn")),
        (("tokens: 100k", "tokens: 100 cows"), ("over", "scale", 0, "tokens")),
        (("    batching:", "    bathing:"), ("baseline", "recipe")),
    ],
)
def test_an_editor_marks_what_check_refuses(edit: tuple[str, str], where: tuple[Any, ...]) -> None:
    assert errors(data_of(edit)) == [where]


@pytest.mark.parametrize("change", ["{ffn: {hidden: 64}}", "{ffn: {top_k: 1}}", "{model: {width: 32}}", "{tokens: 2M}"])
def test_a_change_may_be_any_part_of_a_recipe(change: str) -> None:
    assert errors(data_of(("{ffn: {kind: moe, experts: 8, top_k: 2}}", change))) == []


def test_every_key_explains_itself() -> None:
    """A hover in an editor shows a description for all but `kind`."""
    silent = [
        f"{name}.{key}"
        for name, definition in {"Suite": schema(), **schema()["$defs"]}.items()
        for key, value in definition["properties"].items()
        if key != "kind" and not value.get("description")
    ]
    outside = [key for key in silent if key.split(".")[0] in ("ArmDesign", "Design")]
    assert sorted(set(silent) - set(outside)) == []


def test_every_technique_can_be_completed() -> None:
    text = json.dumps(schema())
    for _, technique in techniques():
        assert f'"const": "{technique.model_fields["kind"].default}"' in text


def test_a_recipe_in_a_suite_has_the_keys_of_a_recipe() -> None:
    definition = schema()["$defs"]["Recipe"]
    assert set(definition["properties"]) == set(Recipe.model_fields)
    assert "required" not in definition
