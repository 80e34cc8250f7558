"""Small checkpoints as a user has them: a folder of config.json, safetensors and tokenizer.json."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from lmopt.arch.interchange import save_hf
from lmopt.arch.transformer import build
from lmopt.recipe import Recipe

WORDS = ("the", "a", "cat", "dog", "sees", "hears", "walks", "under", "near", "house", "tree", "river", "slowly")
VOCAB = 128


def texts(documents: int = 400) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=60)) + "." for _ in range(documents)]


def write_text(folder: Path) -> None:
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts()))


def tokenizer(size: int = 100) -> Tokenizer:
    """Pieces as SentencePiece cuts them, and a token that begins every text: nothing of ours has either."""
    found = Tokenizer(models.BPE(unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "</s>", "<unk>"]
    found.train_from_iterator(
        texts(), trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    )
    found.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return found


def write(folder: Path, *, seed: int = 0, tokens: Tokenizer | None = None, **shape: int) -> Path:
    """A random Llama with its tokenizer."""
    model = {"layers": 2, "width": 32, "heads": 2, "vocab": VOCAB, "context": 64, "tied_head": False} | shape
    recipe = Recipe(model=model, ffn={"hidden": 48}, batching={"length": 16, "sequences": 1}, tokens=16)
    save_hf(build(recipe, seed=seed), recipe, folder)
    (tokens or tokenizer()).save(str(folder / "tokenizer.json"))
    return folder
