"""What a suite asks of inference: ways of decoding, each against a plain one, on models that the study trains or on a
checkpoint that is there already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, model_validator

from bench import design
from bench.design import Endpoint, Frozen, Name
from bench.stanzas import MAX_ARMS, MIN_BLOCKS
from lmopt.quantities import Whole
from lmopt.recipe import MAX_CONTEXT, Decoding, OneByOne, Positive, Speculative
from lmopt.techniques.decoding import Sampling, Sha256
from lmopt.techniques.technique import Misfits

MAX_TEXTS = 100_000


class InferenceReference(Frozen):
    """What every way of decoding is compared with."""

    name: Name = "plain"
    """Its name."""
    decoding: OneByOne = OneByOne()
    """A token a pass, in this format of weights."""


class InferenceArm(Frozen):
    """A way of decoding."""

    name: Name
    """Its name, none of the other arms'."""
    decoding: Decoding  # pyright: ignore[reportInvalidTypeForm]
    """How it decodes."""
    primary: Endpoint = "time"
    """The endpoint that decides: `time`, `flops` or `energy` of a generated token."""

    def lossless(self, reference: OneByOne) -> bool:
        """Whether it must write exactly what the reference writes."""
        chosen: Any = self.decoding
        return isinstance(chosen, OneByOne | Speculative) and chosen.weights == reference.weights


class OwnModel(Frozen):
    """A Hugging Face checkpoint (Llama, Mixtral or OLMoE) in the place of a trained model: nothing is trained."""

    hf: Annotated[str, Field(min_length=1, max_length=500)]
    """Its folder: `config.json`, safetensors, `tokenizer.json`."""
    sha256: Sha256 | None = None
    """Of its content; filled in when the suite is planned. Where it is given, another content is refused."""


def _own_or_arm(value: Any) -> str:
    return "own" if isinstance(value, OwnModel | Mapping) else "arm"


Source = Annotated[
    Annotated[Name, Tag("arm")] | Annotated[OwnModel, Tag("own")],
    Discriminator(_own_or_arm),
]


class Inference(Frozen):
    """Ways of decoding compared in interleaved blocks: saving a generated token, at quality that is not inferior."""

    model: Source | None = None
    """The arm whose trained models generate, at horizon 1.0, one a seed; null is the baseline. Or a checkpoint,
    `{hf: FOLDER}`, for which nothing is trained."""
    reference: InferenceReference = InferenceReference()
    """What the arms are compared with."""
    arms: Annotated[tuple[InferenceArm, ...], Field(min_length=1, max_length=MAX_ARMS)]
    """The ways of decoding."""
    prompts: Annotated[Whole, Field(ge=MIN_BLOCKS, le=MAX_TEXTS)] = 32
    """Held-out texts that are continued and timed, the same for every seed."""
    blocks: Annotated[Whole, Field(ge=MIN_BLOCKS, le=MAX_TEXTS)] = MIN_BLOCKS
    """Blocks that the prompts are timed in, each reference, arm, arm, reference."""
    prompt_tokens: Annotated[Positive, Field(ge=2, le=MAX_CONTEXT)] = 64
    """Tokens of each prompt."""
    new_tokens: Annotated[Positive, Field(ge=4, le=MAX_CONTEXT)] = 64
    """Tokens written behind each."""
    sampling: Sampling = Sampling()
    """How the timed texts are drawn; default: the likeliest token."""
    validation: Name | None = None
    """The validation set that texts come from; null is the first."""
    quality_texts: Annotated[Whole, Field(ge=MIN_BLOCKS, le=MAX_TEXTS)] = 192
    """Held-out texts that a lossy arm's quality is judged on; the prompts are the first of them."""
    calibration_texts: Annotated[Whole, Field(ge=MIN_BLOCKS, le=MAX_TEXTS)] = 128
    """Held-out texts of other documents, on which thresholds are calibrated."""

    @model_validator(mode="after")
    def _numbers_fit(self) -> Self:
        found: list[str] = []
        if self.blocks > self.prompts:
            found.append(f"blocks ({self.blocks}) must not exceed prompts ({self.prompts})")
        if self.quality_texts < self.prompts:
            found.append(f"quality_texts ({self.quality_texts}) must not be fewer than prompts ({self.prompts})")
        if found:
            raise Misfits(tuple(found))
        return self

    @property
    def tokens(self) -> int:
        """Of a text: those of its prompt and those written behind it."""
        return self.prompt_tokens + self.new_tokens

    @property
    def own(self) -> OwnModel | None:
        """The checkpoint that generates, if one does."""
        return self.model if isinstance(self.model, OwnModel) else None

    @property
    def arm(self) -> str | None:
        """The arm whose models generate, where the suite names one."""
        return self.model if isinstance(self.model, str) else None

    def as_design(self, baseline: str) -> design.InferenceDesign:
        """The part that judging needs."""
        return design.InferenceDesign(
            model=baseline if self.own is not None else self.arm or baseline,
            trains=self.own is None,
            reference=self.reference.name,
            new_tokens=self.new_tokens,
            arms=tuple(
                design.InferenceArmDesign(
                    name=arm.name,
                    primary=arm.primary,
                    lossless=arm.lossless(self.reference.decoding),
                    decoding=in_words(arm.decoding),
                )
                for arm in self.arms
            ),
        )


def in_words(decoding: Any) -> str:
    """`speculative (draft: lookup (longest 3, shortest 1), draft_tokens 4, ...)`."""
    knobs = decoding.model_dump(mode="json", exclude={"kind": True, "draft": {"sha256"}}, exclude_none=True)
    parts = [f"{name} {_word(value)}" for name, value in knobs.items()]
    return f"{decoding.kind} ({', '.join(parts)})"


def _word(value: Any) -> str:
    if isinstance(value, dict):
        knobs = ", ".join(f"{name} {_word(knob)}" for name, knob in value.items() if name != "kind")
        return f"{value['kind']} ({knobs})" if knobs else str(value["kind"])
    if isinstance(value, list):
        return ", ".join(map(_word, value))
    return "on" if value is True else "off" if value is False else str(value)
