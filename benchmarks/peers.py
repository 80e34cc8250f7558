"""Training steps side by side: ours, and those of others as they ship, at equal parameters, batch and sequence.

Each contender is a function of (size, compiled, options) that returns its number of parameters and a step, which trains
on one batch and returns its loss. Imports are late: a process builds one contender and loads nothing else.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCAB = 8192
SEQUENCES = 8
LENGTH = 256


@dataclass(frozen=True)
class Size:
    """A decoder with 64-wide heads and a tied head; 12 x width^2 parameters a layer."""

    name: str
    layers: int
    width: int

    @property
    def heads(self) -> int:
        return self.width // 64


SIZES = {s.name: s for s in (Size("3M", 3, 192), Size("10M", 6, 320), Size("30M", 8, 512))}


def our_recipe(size: Size, ffn: str, compiled: bool = False) -> Any:
    """The recipe's defaults at a size, with a training so long that its schedule never ends here."""
    from lmopt.recipe import Recipe

    model = {"layers": size.layers, "width": size.width, "heads": size.heads, "vocab": VOCAB, "context": LENGTH}
    batching = {"sequences": SEQUENCES, "length": LENGTH}
    plain = {"model": model, "ffn": {"kind": ffn}, "batching": batching, "compile": compiled, "tokens": 10**12}
    return Recipe.model_validate(plain)


def ours(size: Size, compiled: bool, options: argparse.Namespace) -> tuple[int, Callable[[], float]]:
    """Our model, through the same loop that every training uses."""
    from lmopt.train import loop

    recipe = our_recipe(size, options.ffn, compiled)
    state = loop.start(recipe, seed=0)
    steps = loop.train(state, tokens())
    return sum(p.numel() for p in state.model.parameters()), lambda: next(steps).loss


def nanogpt(size: Size, compiled: bool, options: argparse.Namespace) -> tuple[int, Callable[[], float]]:
    """nanoGPT's model and the step of its `train.py`: autocast, clipping at 1, its own choice of optimizer."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(options.nanogpt) / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    config = module.GPTConfig(LENGTH, VOCAB, size.layers, size.heads, size.width, 0.0, False)
    model = module.GPT(config)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    return _count(model), _autocast_step(model, optimizer, compiled, lambda m, x, y: m(x, y)[1])


def hf_gpt2(size: Size, compiled: bool, options: argparse.Namespace) -> tuple[int, Callable[[], float]]:  # noqa: ARG001
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=LENGTH,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return _hugging_face(GPT2LMHeadModel(config), compiled)


def hf_llama(size: Size, compiled: bool, options: argparse.Namespace) -> tuple[int, Callable[[], float]]:  # noqa: ARG001
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        max_position_embeddings=LENGTH,
        hidden_size=size.width,
        intermediate_size=math.ceil(8 * size.width / 3 / 32) * 32,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return _hugging_face(LlamaForCausalLM(config), compiled)


def litgpt(size: Size, compiled: bool, options: argparse.Namespace) -> tuple[int, Callable[[], float]]:
    """litgpt's Llama shape with the head tied to the embedding, as ours is; its own chunked cross-entropy."""
    sys.path.append(str(options.litgpt))  # behind what is installed: of its folder, only what is missing here
    import torch
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    config = Config(
        block_size=LENGTH, padded_vocab_size=VOCAB, n_layer=size.layers, n_embd=size.width, n_head=size.heads,
        rotary_percentage=1.0, parallel_residual=False, bias=False, norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP", intermediate_size=math.ceil(8 * size.width / 3 / 32) * 32,
    )  # fmt: skip
    model = GPT(config)
    model.lm_head.weight = model.transformer.wte.weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    return _count(model), _autocast_step(model, optimizer, compiled, lambda m, x, y: chunked_cross_entropy(m(x), y))


def nanochat(size: Size, compiled: bool, options: argparse.Namespace) -> tuple[int, Callable[[], float]]:
    """nanochat's model as it ships, in its own bfloat16, with its own Muon and AdamW."""
    os.environ["NANOCHAT_DTYPE"] = "bfloat16"
    sys.path.insert(0, str(options.nanochat))
    import torch
    from nanochat.gpt import GPT, GPTConfig

    config = GPTConfig(sequence_len=LENGTH, vocab_size=VOCAB, n_layer=size.layers, n_head=size.heads,
                       n_kv_head=size.heads, n_embd=size.width, window_pattern="L")  # fmt: skip
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    model.init_weights()
    optimizer, batches = model.setup_optimizer(), tokens()
    run = torch.compile(model, dynamic=False) if compiled else model

    def step() -> float:
        batch = next(batches)
        loss = run(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        loss.backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        return loss.item()

    return _count(model), step


def _hugging_face(model: Any, compiled: bool) -> tuple[int, Callable[[], float]]:
    """`transformers`' model with the fused AdamW that its Trainer uses."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    return _count(model), _autocast_step(model, optimizer, compiled, lambda m, x, _: m(input_ids=x, labels=x).loss)


def _autocast_step(model: Any, optimizer: Any, compiled: bool, loss_of: Callable[..., Any]) -> Callable[[], float]:
    import torch

    model.train()
    run = torch.compile(model) if compiled else model
    batches = tokens()

    def step() -> float:
        batch = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(run, batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def _count(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def tokens() -> Iterator[Any]:
    """The same batches for everybody: noisy counting, so that the loss can be seen to fall."""
    import torch

    generator = torch.Generator().manual_seed(0)
    while True:
        first = torch.randint(0, VOCAB, (SEQUENCES, 1), generator=generator)
        yield (first + torch.arange(LENGTH + 1) * 7) % VOCAB


CONTENDERS = {
    "ours": ours,
    "nanogpt": nanogpt,
    "nanochat": nanochat,
    "litgpt": litgpt,
    "hf-gpt2": hf_gpt2,
    "hf-llama": hf_llama,
}
