"""The working parts of generation, as the harness uses them: decoders of trained models, held-out texts, what a
decoding says of known words, and whether it is exact.

Of all that runs inside a case, only this module and bench.workloads build models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from bench import workloads
from bench.ownmodel import folder_of
from lmopt.arch import hfcheckpoint, interchange
from lmopt.arch.transformer import Transformer
from lmopt.compute.memory import tune_allocator
from lmopt.data import sample, tokenizer, validation
from lmopt.infer import exactness
from lmopt.infer.calibration import FULL_DEPTH, Calibration, by_document, calibrate
from lmopt.infer.decoder import Decoder
from lmopt.infer.decoding import Aid, Write, exit_rule
from lmopt.infer.early_exit import ExitRule
from lmopt.infer.forced import Forced, forced
from lmopt.infer.generate import written
from lmopt.infer.ngramstore import NgramStore
from lmopt.recipe import Decoding, EarlyExit, Speculative, Technique, builder
from lmopt.techniques.decoding import LookupDraft
from lmopt.train import checkpoint

DECODINGS: TypeAdapter[Technique] = TypeAdapter(Decoding)  # pyright: ignore[reportInvalidTypeForm]
EXACT_PROMPTS = 16
"""Prompts whose greedy text is compared in float32."""
SAMPLED_PROMPT = 16
"""Tokens of the prompt behind which sampled text is enumerated: a short one makes every path cheap."""
CALIBRATION_EVERY = 3
"""Of so many held-out documents one is for calibration, so that no text of it is judged."""
BATCH = 64
"""Texts read at a time."""
THRESHOLDS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99, FULL_DEPTH)
"""Confidences that are tried: denser at both ends, where the gaps of a small model and the cosines of states lie."""


Told = Callable[[], None]
"""Called whenever a part of a long piece of work is done: a large model is silent for hours otherwise."""


def _untold() -> None:
    """For work that nobody watches."""


@dataclass(frozen=True, slots=True)
class Models:
    """What generates, and the smaller model that drafts if one does."""

    target: Transformer
    draft: Transformer | None
    store: NgramStore | None = None
    """Texts that drafts are looked up in, where a decoding asks for it."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Held-out texts of equal length; no document is in both parts."""

    calibration: Tensor
    judged: Tensor
    calibration_documents: tuple[int, ...]
    """Number of the document of each text for calibration."""
    documents: tuple[int, ...]
    """Number of the document of each judged text."""


@dataclass(frozen=True, slots=True)
class Writer:
    """One way of decoding, ready."""

    config: Any
    decoder: Decoder
    write: Write


def described(decoding: Mapping[str, Any]) -> Any:
    """A way of decoding as its typed description."""
    return DECODINGS.validate_python(decoding)


def models(folders: Sequence[Path]) -> Models:
    """The trained model of the first folder, and of the second if there is one."""
    tune_allocator()
    target, *draft = (checkpoint.load_model(folder / "model", workloads.device()) for folder in folders)
    return Models(target, draft[0] if draft else None)


class OtherCheckpoint(ValueError):
    """A checkpoint holds something else than when its study was planned."""


def own_models(spec: Mapping[str, Any]) -> Models:
    """The checkpoint that a suite takes its model from, and the one that drafts for it if one does.

    Raises:
        OtherCheckpoint: one of them has changed.
        InterchangeError: one of them is not a whole checkpoint.
    """
    tune_allocator()
    draft = spec["decoding"].get("draft") or {}
    return Models(_loaded(spec["own"]), _loaded(draft) if draft.get("hf") else None)


def _loaded(named: Mapping[str, Any]) -> Transformer:
    folder = folder_of(named["hf"])
    found = hfcheckpoint.described(folder).sha256()
    if found != named["sha256"]:
        raise OtherCheckpoint(
            f"{folder}: its SHA-256 is {found[:12]}, and was {str(named['sha256'])[:12]} when the study was planned\n"
            "hint: run the suite again, it is another study"
        )
    return interchange.load_hf(folder, workloads.device())[1]


def writer(decoding: Any, models: Models, weights: str | None = None) -> Writer:
    """A decoding over weights that are cast and laid out now; `weights` overrides its format."""
    config = decoding if weights is None else decoding.model_copy(update={"weights": weights})
    decoder = Decoder(models.target, config.weights)
    return Writer(config, decoder, builder(config)(config, decoder, _aid(config, models, config.weights)))


def _aid(config: Any, models: Models, weights: Any) -> Aid:
    """What a draft needs beside the target."""
    if not isinstance(config, Speculative):
        return None
    if config.draft.kind == "model" and models.draft is not None:
        return Decoder(models.draft, weights)
    return models.store


def store(corpus: Path, decoding: Any) -> NgramStore | None:
    """The training text of a corpus to look drafts up in, where a way of decoding asks for it.

    Raises:
        DataError: the corpus is not finished, or damaged.
    """
    draft = getattr(decoding, "draft", None)
    if not isinstance(draft, LookupDraft) or draft.corpus is None:
        return None
    return NgramStore(sample.tokens(corpus, most_bytes=draft.corpus), draft.longest)


# --- texts ---------------------------------------------------------------------------------------


class TooFewTexts(ValueError):
    """The held-out set does not hold as many texts as a suite asks for."""


def texts(corpus: Path, spec: Mapping[str, Any]) -> Texts:
    """Windows of held-out documents: the first of each, then the second of each, and so on.

    Where no threshold is looked for, calibration has what there is, be it nothing.

    Raises:
        TooFewTexts: there are not enough of them.
    """
    name = spec["validation"] or validation.names(corpus)[0]
    words = tokenizer.load(corpus / "tokenizer.json")
    opening = tokenizer.opening(words)  # what the model is used to reading first
    documents = [one.tokens for one in validation.tokenised(corpus, name, words)]
    length = int(spec["prompt_tokens"]) + int(spec["new_tokens"]) - len(opening)
    wanted = {"calibration_texts": int(spec["calibration_texts"]), "quality_texts": int(spec["quality_texts"])}
    places = {
        "calibration_texts": range(0, len(documents), CALIBRATION_EVERY),
        "quality_texts": [place for place in range(len(documents)) if place % CALIBRATION_EVERY],
    }
    found: dict[str, list[tuple[int, Any]]] = {}
    decoding = spec["decoding"]
    is_calibrated = decoding["kind"] == "early_exit" and decoding.get("threshold") is None
    for part, numbers in places.items():
        found[part] = _windows(documents, numbers, length, wanted[part])
        is_needed = part == "quality_texts" or is_calibrated
        if is_needed and len(found[part]) < wanted[part]:
            raise TooFewTexts(
                f"validation set {name!r} holds {len(found[part])} texts of {length} tokens for {part}, "
                f"{wanted[part]} are asked\nhint: lower inference.{part}, or hold out more text"
            )
    calibration, judged = (
        torch.tensor([[*opening, *map(int, window)] for _, window in part])
        for part in (found["calibration_texts"], found["quality_texts"])
    )
    numbers = (tuple(number for number, _ in part) for part in (found["calibration_texts"], found["quality_texts"]))
    return Texts(calibration, judged, *numbers)


def _windows(documents: Sequence[Any], numbers: Iterable[int], length: int, wanted: int) -> list[tuple[int, Any]]:
    """(document, window) of the documents numbered, window by window."""
    left, found = list(numbers), list[tuple[int, Any]]()
    for start in count(0, length):
        left = [number for number in left if len(documents[number]) >= start + length]
        found += [(number, documents[number][start : start + length]) for number in left]
        if not left or len(found) >= wanted:
            return found[:wanted]
    raise AssertionError


# --- what a decoding says of known words ---------------------------------------------------------


def read(
    writer: Writer, texts_BT: Tensor, prompt: int, threshold: float | None = None, *, told: Told = _untold
) -> Forced:
    """Every text read as the decoding would, in batches; `threshold` in place of an early exit's own."""
    rule: ExitRule | None = None
    if isinstance(writer.config, EarlyExit):
        chosen = writer.config if threshold is None else writer.config.model_copy(update={"threshold": threshold})
        rule = exit_rule(chosen)
    parts: list[Forced] = []
    for part in texts_BT.split(BATCH):
        parts.append(forced(writer.decoder, part, prompt=prompt, rule=rule))
        told()
    return Forced(*(torch.cat([getattr(part, name).cpu() for part in parts])
                    for name in ("nats_BN", "choice_BN", "left_BN")))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Curve:
    """An early exit at every threshold, on calibration texts and on those that are judged."""

    thresholds: tuple[float, ...]
    judged: Mapping[float, Forced]
    calibration: Calibration | None
    """How the threshold was chosen; None where the suite gave it."""
    chosen: float


def curve(config: EarlyExit, models: Models, texts: Texts, prompt: int, *, told: Told) -> Curve:
    """Read all texts at each threshold; choose the lowest whose risk passes, where the suite leaves that open."""
    full = Writer(config, Decoder(models.target, config.weights), _no_writing)
    own = () if config.threshold is None else (config.threshold,)
    thresholds = tuple(sorted({*THRESHOLDS, *own}))
    judged = {threshold: read(full, texts.judged, prompt, threshold, told=told) for threshold in thresholds}
    if config.threshold is not None:
        return Curve(thresholds, judged, None, config.threshold)
    whole = read(full, texts.calibration, prompt, FULL_DEPTH, told=told).choice_BN
    losses: dict[float, list[float]] = {}
    for threshold in sorted(thresholds, reverse=True)[1:]:
        differs = read(full, texts.calibration, prompt, threshold, told=told).choice_BN != whole
        losses[threshold] = by_document(differs.double().mean(1).tolist(), texts.calibration_documents)
        found = calibrate(losses, risk=config.risk, level=config.level)
        if not found.tested[-1].rejected:
            break  # lower ones are not tested
    found = calibrate(losses, risk=config.risk, level=config.level)
    return Curve(thresholds, judged, found, found.threshold)


def _no_writing(*_: Any, **__: Any) -> Any:
    raise AssertionError("only read with")


# --- exactness -----------------------------------------------------------------------------------


def exact_in_float32(
    config: Any, reference: Any, models: Models, prompts: Sequence[Sequence[int]], new: int, *, told: Told
) -> dict[str, Any]:
    """Greedy text of a lossless decoding against the reference's, both in float32; sampled text by enumeration."""
    ours, plain = writer(config, models, "fp32"), writer(reference, models, "fp32")
    some = prompts[:EXACT_PROMPTS]
    found = exactness.agreement(plain.decoder, some, *(_texts(one, some, new, told) for one in (plain, ours)))
    facts: dict[str, Any] = {
        "texts": found.texts, "identical": found.identical, "tied": found.tied, "wrong": found.wrong,
    }  # fmt: skip
    if isinstance(ours.config, Speculative):
        facts |= _sampled(ours, models, some)
    return facts


def _sampled(writer: Writer, models: Models, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Sampled text by enumeration, behind one prompt after the other until something is drafted there."""
    distance, drafted = 0.0, 0
    aid = _aid(writer.config, models, "fp32")
    for prompt in prompts:
        found = exactness.sampled(writer.config, writer.decoder, aid, prompt[:SAMPLED_PROMPT])
        distance, drafted = max(distance, found.distance), drafted + found.drafted
        if drafted:
            break
    return {"sampled_distance": distance, "sampled_drafted": drafted}


def _texts(writer: Writer, prompts: Sequence[Sequence[int]], new: int, told: Told) -> list[list[int]]:
    found: list[list[int]] = []
    for prompt in prompts:
        found.append(written(writer.write(prompt, max_new=new))[0])
        told()
    return found


def agreement(
    writer: Writer, prompts: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]], ours: Sequence[Sequence[int]]
) -> dict[str, int]:
    """How many texts are the reference's, token for token, and how many part where two tokens tie."""
    found = exactness.agreement(writer.decoder, prompts, theirs, ours)
    return {"texts": found.texts, "identical": found.identical, "tied": found.tied, "wrong": found.wrong}
