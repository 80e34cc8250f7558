"""JSON Schema of a suite, for editors: `# yaml-language-server: $schema=./suite.schema.json` completes and explains.

Generated from the typed suite. What a suite leaves to be checked after merging (`baseline.recipe`, `change`) is given
the type of a recipe whose every key may be left out.
"""

from __future__ import annotations

import json
from typing import Any

from bench.suite import Suite
from lmopt.recipe import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_RECIPE_HOLDERS = (("Baseline", "recipe"), ("Arm", "change"))
OF_TRAINING = ("baseline", "arms", "over")
"""Keys that a suite must have, unless its model is a checkpoint."""


def schema_text() -> str:
    """The schema as it is committed in suites/suite.schema.json."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def schema() -> dict[str, Any]:
    """The schema of a suite as plain data."""
    suite = Suite.model_json_schema()
    definitions: dict[str, Any] = suite.pop("$defs")
    recipe = Recipe.model_json_schema()
    parts: dict[str, Any] = recipe.pop("$defs")
    definitions["Recipe"] = _optional(recipe)
    definitions |= {name: _optional(part) for name, part in parts.items()}
    for holder, name in _RECIPE_HOLDERS:
        about = definitions[holder]["properties"][name]["description"]
        definitions[holder]["properties"][name] = {"$ref": "#/$defs/Recipe", "description": about}
    # A suite whose model is a checkpoint trains nothing, and needs nothing that says what to train.
    suite["required"] = [name for name in suite["required"] if name not in OF_TRAINING]
    own = {"properties": {"inference": {"properties": {"model": {"type": "object"}}, "required": ["model"]}}}
    trains = {"required": list(OF_TRAINING), "properties": {"arms": {"minItems": 1}}}
    suite |= {"if": own | {"required": ["inference"]}, "else": trains}
    return {
        "$schema": DIALECT,
        "title": "lmbench suite",
        **{key: value for key, value in suite.items() if key != "title"},
        "$defs": {name: definitions[name] for name in sorted(definitions)},
    }


def _optional(part: Any) -> Any:
    """A schema whose keys may all be left out, and whose unions are told apart by `kind` where it is written.

    `oneOf` would refuse `{hidden: 64}`, which fits two techniques; what it merges into decides which is meant.
    """
    if isinstance(part, list):
        return [_optional(item) for item in part]
    if not isinstance(part, dict):
        return part
    dropped = {"required", "discriminator"} | ({"default"} if "const" in part else set())
    kept = {key: _optional(value) for key, value in part.items() if key not in dropped | {"properties"}}
    if "properties" in part:
        kept["properties"] = {name: _optional(value) for name, value in part["properties"].items()}
    if "oneOf" in kept:
        kept["anyOf"] = kept.pop("oneOf")
    return kept
