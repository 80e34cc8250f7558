"""A suite whose model is a checkpoint: what the rest of the suite then is, and what is wrong with the checkpoint.

Nothing is trained, so the suite needs no baseline, arms or axes: they are written out here from the checkpoint, one
model of one size with one seed, and everything after it sees a suite like any other. Configuration, keys, shapes and
tokenizer are read, and weights only where their hash is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from bench.datapaths import has, value_at
from bench.design import NAME_PATTERN
from bench.draft import Draft, value_of
from bench.findings import Finding, split_hint, validate
from bench.inferstanza import Inference, OwnModel
from bench.merge import SCALE_PATHS, VOCAB_PATH, in_words, merge, placed, without
from bench.source import DataPath
from lmopt.arch.hfcheckpoint import TOKENIZER, HfCheckpoint, described, token_ids
from lmopt.arch.hfpieces import InterchangeError
from lmopt.recipe import Recipe, Speculative
from lmopt.techniques.decoding import ModelDraft

HERE = ("inference", "model")
SCALE = "own"
"""Name of the only size."""
SEED = 0
HELD_OUT = 0.5
"""Share of the corpus that texts come from, where the suite names no validation set: the other half is for nothing."""
STAND_IN = {"layers": 1, "width": 64, "heads": 1, "context": 256, "tokens": 1_000_000}
"""What the scale says of the model; with these numbers of a checkpoint that cannot be read, so that the other mistakes
of its suite are shown too."""
OF_TRAINING: tuple[DataPath, ...] = (
    ("arms",), ("ablation",), ("extrapolate",), ("tune",), ("finetune",), ("evaluate", "tasks"),
    ("controls", "smaller"), ("controls", "aa"),
)  # fmt: skip
"""What a suite that trains nothing leaves empty."""


@dataclass(frozen=True, slots=True)
class Described:
    """A checkpoint with its tokenizer."""

    checkpoint: HfCheckpoint
    tokens: Mapping[str, int]
    tokenizer_sha256: str

    @property
    def recipe(self) -> Recipe:
        """The shape of its model."""
        return self.checkpoint.recipe


def folder_of(hf: str) -> Path:
    """Where a checkpoint lies; a relative path starts at the folder that the program is started in."""
    try:
        return Path(hf).expanduser()
    except RuntimeError as error:  # an unknown ~user
        raise InterchangeError(f"{hf}: {error}") from error


def describe(hf: str) -> Described:
    """A checkpoint that can generate.

    Raises:
        InterchangeError: it cannot: says what is missing, or does not fit.
    """
    folder = folder_of(hf)
    try:
        if not folder.is_dir():
            start = f"; hint: a relative path starts at the folder that you are in, {Path.cwd()}"
            raise InterchangeError(f"{folder}: no such folder{'' if folder.is_absolute() else start}")
        checkpoint, tokens = described(folder), token_ids(folder)
        digest = sha256((folder / TOKENIZER).read_bytes()).hexdigest()
    except OSError as error:  # a name too long, a folder that may not be read
        raise InterchangeError(f"{folder}: cannot be read ({error.strerror})") from error
    vocab, largest = checkpoint.recipe.model.vocab or 0, max(tokens.values(), default=-1)
    if not 0 <= largest < vocab:
        raise InterchangeError(f"{folder / TOKENIZER}: ids up to {largest}, and the model knows {vocab} tokens")
    return Described(checkpoint, tokens, digest)


# --- the suite that follows ----------------------------------------------------------------------


def spelled_out(data: dict[str, Any]) -> dict[str, Any]:
    """The suite with what follows from its checkpoint written out; as it is where it names none.

    What the suite says itself is kept: `findings` compares it with the checkpoint.
    """
    if not is_asked(data):
        return data
    own = named(data)
    found = None if own is None else _described(own)
    recipe = placed(STAND_IN) if found is None else found.recipe.model_dump(mode="json")
    scale = {"name": SCALE, **{name: value_at(recipe, SCALE_PATHS[name]) for name in STAND_IN}}
    rest = without(recipe, [VOCAB_PATH, *(SCALE_PATHS[name] for name in STAND_IN)])
    text: dict[str, Any] = {"validation": [{"kind": "holdout", "share": HELD_OUT}], "decontaminate": None}
    if own is not None and found is not None:
        text["tokenizer"] = _tokenizer(own, found)
    return {
        **data,
        "data": _under(text, data.get("data")),
        "baseline": _under({"name": _slug(own), "recipe": rest}, data.get("baseline")),
        "arms": data.get("arms", []),
        "over": _under({"scale": [scale], "seed": [SEED], "horizon": [1.0]}, data.get("over")),
    }


def is_asked(data: Mapping[str, Any]) -> bool:
    """Whether the suite's model is a checkpoint, rightly named or not."""
    return isinstance(value_of(data, *HERE), Mapping)


def named(data: Mapping[str, Any]) -> OwnModel | None:
    """The checkpoint that a suite names; None where it names none, or in a wrong way."""
    return validate(OwnModel, value_of(data, *HERE))[0] if is_asked(data) else None


def _described(own: OwnModel) -> Described | None:
    try:
        return describe(own.hf)
    except InterchangeError:
        return None  # findings say why


def _under(defaults: dict[str, Any], given: Any) -> Any:
    """Defaults below what is given; what is no mapping is left to the typed suite to refuse."""
    if given is None:
        return defaults
    return merge(defaults, given) if isinstance(given, Mapping) else given


def _slug(own: OwnModel | None) -> str:
    """A folder's name as the name of a model."""
    folder = "" if own is None else Path(own.hf).name.lower()
    name = re.sub(r"[^a-z0-9._-]+", "-", folder).strip("-._")[:64]
    return name if re.match(NAME_PATTERN, name) else "model"


def _tokenizer(own: OwnModel, found: Described) -> dict[str, Any]:
    file = str(Path(own.hf) / TOKENIZER)
    return {"kind": "given", "file": file, "vocab": found.recipe.model.vocab, "sha256": found.tokenizer_sha256}


# --- what is wrong -------------------------------------------------------------------------------


def findings(draft: Draft, *, look_at_files: bool) -> Iterator[Finding]:
    """What is wrong with a checkpoint as the model of a suite, and with the suite around it."""
    yield from _of_training(draft.data)
    own = named(draft.data)
    if own is None or not look_at_files:
        return
    try:
        found = describe(own.hf)
    except InterchangeError as error:
        yield Finding((*HERE, "hf"), *split_hint(str(error)))
        return
    yield from _other_model(draft, found)
    if value_of(draft.data, "data", "tokenizer") != _tokenizer(own, found):
        message = "the tokenizer is the checkpoint's own, and this is another"
        yield Finding(("data", "tokenizer"), message, "leave `tokenizer` out", at_key=True)


def draft_findings(stanza: Inference) -> Iterator[Finding]:
    """What is wrong with the checkpoints that draft for a checkpoint; none where that one is wrong itself."""
    found = None if stanza.own is None else _described(stanza.own)
    if found is None:
        return
    for index, arm in enumerate(stanza.arms):
        decoding: Any = arm.decoding
        if isinstance(decoding, Speculative) and isinstance(decoding.draft, ModelDraft) and decoding.draft.hf:
            reason = _unfit(decoding.draft.hf, found, stanza)
            if reason:
                yield Finding((*HERE[:1], "arms", index, "decoding", "draft", "hf"), *split_hint(reason))


def _of_training(data: Mapping[str, Any]) -> Iterator[Finding]:
    for path in OF_TRAINING:
        if has(data, path) and value_of(data, *map(str, path)):
            message = f"`{'.'.join(map(str, path))}` is about training, and a model that is a checkpoint is not trained"
            yield Finding(path, message, "leave it out", at_key=True)
    if value_of(data, "layout") not in (None, "economical"):
        yield Finding(("layout",), "layouts are of trainings, and nothing is trained here", "leave it out", at_key=True)
    for axis in ("scale", "seed", "horizon"):
        values = value_of(data, "over", axis)
        if isinstance(values, list | tuple) and len(values) > 1:
            message = f"one model has one {axis}: intervals are over texts, and about this model"
            yield Finding(("over", axis), message, "leave `over` out", at_key=True)


def _other_model(draft: Draft, found: Described) -> Iterator[Finding]:
    """A baseline or scale of the suite's own that describes another model than the checkpoint."""
    for scale in draft.scales.values():
        recipe = validate(Recipe, draft.expanded(draft.baseline, scale))[0]
        differs = None if recipe is None else in_words(found.recipe, recipe)
        if differs not in (None, "no change"):
            at = "baseline" if value_of(draft.data, "baseline", "recipe") else "over"
            yield Finding((at,), f"not the model of the checkpoint: {differs}", f"leave `{at}` out", at_key=True)
            return


def _unfit(hf: str, target: Described, stanza: Inference) -> str | None:
    """Why a checkpoint cannot draft for another."""
    try:
        draft = described(folder_of(hf))
        tokens = token_ids(draft.folder) if (draft.folder / TOKENIZER).exists() else None
    except InterchangeError as error:
        return str(error)
    ours, theirs = draft.recipe.model, target.recipe.model
    if ours.vocab != theirs.vocab:
        return f"the draft knows {ours.vocab} tokens, the model {theirs.vocab}; hint: both need the same vocabulary"
    if tokens is not None and tokens != target.tokens:
        return "the draft's tokenizer has other tokens than the model's; hint: both need the same vocabulary"
    if ours.context < stanza.tokens:
        return f"the draft's context is {ours.context}, and prompt and new tokens are {stanza.tokens}"
    return None


# --- content -------------------------------------------------------------------------------------


def pinned(inference: Inference) -> tuple[Inference, list[Finding]]:
    """The stanza with the hash of every checkpoint that it names, and those that are not what they were said to be."""
    wrong: list[Finding] = []

    def hashed(hf: str, said: str | None, path: DataPath) -> str:
        try:
            found = described(folder_of(hf)).sha256()
        except InterchangeError as error:
            wrong.append(Finding((*path, "hf"), *split_hint(str(error))))
            return said or ""
        if said not in (None, found):
            message = f"{hf} holds another checkpoint: its SHA-256 is {found}"
            wrong.append(Finding((*path, "sha256"), message, "remove `sha256` to take it as it is"))
        return found

    assert inference.own is not None
    own = inference.own.model_copy(update={"sha256": hashed(inference.own.hf, inference.own.sha256, HERE)})
    arms = list(inference.arms)
    for index, arm in enumerate(arms):
        decoding: Any = arm.decoding
        draft = getattr(decoding, "draft", None)
        if isinstance(draft, ModelDraft) and draft.hf is not None:
            found = hashed(draft.hf, draft.sha256, (HERE[0], "arms", index, "decoding", "draft"))
            decoding = decoding.model_copy(update={"draft": draft.model_copy(update={"sha256": found})})
            arms[index] = arm.model_copy(update={"decoding": decoding})
    return inference.model_copy(update={"model": own, "arms": tuple(arms)}), wrong
