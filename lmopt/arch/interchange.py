"""Models to and from Hugging Face's checkpoints: Llama, Mixtral and OLMoE (letters: see transformer.py).

lmopt/arch/hfcheckpoint.py says what a checkpoint is and what is wrong with it, lmopt/arch/hfpieces.py which of its
tensors is which part of our parameters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lmopt.arch import transformer
from lmopt.arch.hfcheckpoint import ARCHITECTURES, CONFIG, INDEX, SHARDS, WEIGHTS, described, opened_weights
from lmopt.arch.hfpieces import HEAD, InterchangeError, Piece, family_of, pieces
from lmopt.arch.moe import MoeFfn
from lmopt.arch.transformer import Transformer
from lmopt.recipe import Moe, Recipe

__all__ = ["InterchangeError", "load_hf", "save_hf"]

SHARD_BYTES = 5 * 10**9
"""Largest file written, as Hugging Face's own."""


# --- reading -------------------------------------------------------------------------------------


def load_hf(folder: Path | str, device: torch.device | str = "cpu") -> tuple[Recipe, Transformer]:
    """The model of a checkpoint, float32, in evaluation mode, and the recipe that describes it.

    The recipe's shape is the checkpoint's; what training needs besides (optimizer, batches, tokens) is our default.

    Raises:
        InterchangeError: not a checkpoint, damaged, of another architecture, with a part that we do not have, or with a
            weight that is no number.
    """
    found = described(folder)
    recipe, place = found.recipe, found.place
    model = transformer.build(recipe, seed=0, device=device)
    parameters = dict(model.named_parameters())
    with ExitStack() as opened, torch.no_grad():
        files = {name: opened.enter_context(opened_weights(found.folder / name, "pt")) for name in set(place.values())}
        for piece in found.pieces:
            own = _within(piece, parameters).copy_(files[place[piece.key]].get_tensor(piece.key))
            if not own.isfinite().all():
                raise InterchangeError(
                    f"{found.folder / place[piece.key]}: {piece.key} holds weights that are infinite or no numbers; "
                    "hint: the file is damaged, or the model's training had diverged"
                )
        if recipe.model.tied_head and HEAD in place:
            saved = files[place[HEAD]].get_tensor(HEAD).to(model.embedding.weight)
            if not torch.equal(saved, model.embedding.weight):
                raise InterchangeError(
                    f"{found.folder / place[HEAD]}: {HEAD} differs from the embedding, though {CONFIG} says they are "
                    "tied"
                )
    return recipe, model.eval()


def _within(piece: Piece, parameters: Mapping[str, Tensor]) -> Tensor:
    """The rows of our parameter that a piece is, as a view."""
    whole = parameters[piece.parameter]
    return (whole if piece.expert is None else whole[piece.expert]).narrow(0, piece.start, piece.rows)


# --- writing -------------------------------------------------------------------------------------


def save_hf(
    model: Transformer,
    recipe: Recipe,
    folder: Path | str,
    *,
    dtype: torch.dtype = torch.float32,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model as the checkpoint that `AutoModelForCausalLM.from_pretrained` reads.

    Weights of an earlier checkpoint in the folder are removed, also where they lay in more or fewer files.

    Raises:
        InterchangeError: none of the three architectures is this model, or the recipe is another model's.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    family = family_of(recipe)
    _refuse_other(model, recipe)
    parameters = dict(model.named_parameters())
    tensors = {
        piece.key: _within(piece, parameters).detach().to("cpu", dtype).clone(memory_format=torch.contiguous_format)
        for piece in pieces(recipe)
    }
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(tensors, shard_bytes))
    names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    for earlier in (folder / WEIGHTS, folder / INDEX, *folder.glob(SHARDS)):
        earlier.unlink(missing_ok=True)
    if len(shards) == 1:
        names = [WEIGHTS]
    else:
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": index})
    for name, keys in zip(names, shards, strict=True):
        save_file({key: tensors[key] for key in keys}, folder / name, metadata={"format": "pt"})
    _write_json(folder / CONFIG, _config(family, recipe, dtype))


def _refuse_other(model: Transformer, recipe: Recipe) -> None:
    """A recipe must be the model's own: what it leaves out would be missing, what it says otherwise read otherwise."""
    described = transformer.build(recipe, seed=0, device="meta")
    has, wanted = ({name: tuple(p.shape) for name, p in one.named_parameters()} for one in (model, described))
    for name in (*wanted, *has):
        if has.get(name) != wanted.get(name):
            raise InterchangeError(
                f"{name}: the model's shape is {has.get(name)}, the recipe's {wanted.get(name)}; "
                "hint: save a model with the recipe that it was built from"
            )
    facts = [(f"model.{field}", recipe.model, model.model, field) for field in type(recipe.model).model_fields]
    for own, other in zip(model.blocks, described.blocks, strict=True):
        if isinstance(own.ffn, MoeFfn) and isinstance(other.ffn, MoeFfn):
            facts += [
                (f"ffn.{field}", other.ffn.config, own.ffn.config, field) for field in ("top_k", "gates_sum_to_one")
            ]
    for name, asked, there, field in facts:
        if name != "model.init_stream" and getattr(asked, field) != getattr(there, field):
            raise InterchangeError(
                f"{name}: the model's is {getattr(there, field)}, the recipe's {getattr(asked, field)}; "
                "hint: save a model with the recipe that it was built from"
            )


def _shards(tensors: Mapping[str, Tensor], limit_bytes: int) -> Iterator[list[str]]:
    """Keys in order, as many to a file as fit."""
    keys: list[str] = []
    used = 0
    for key, tensor in tensors.items():
        if keys and used + tensor.nbytes > limit_bytes:
            yield keys
            keys, used = [], 0
        keys.append(key)
        used += tensor.nbytes
    yield keys


def _config(family: str, recipe: Recipe, dtype: torch.dtype) -> dict[str, Any]:
    model, ffn = recipe.model, recipe.ffn
    hidden = ffn.hidden_for(model.width)
    found = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "hidden_size": model.width,
        "intermediate_size": hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.key_heads,
        "vocab_size": model.vocab,
        "max_position_embeddings": model.context,
        "tie_word_embeddings": model.tied_head,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_base,
        "hidden_act": "silu",
        "attention_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    if family == "llama":
        return found | {"mlp_bias": False}
    assert isinstance(ffn, Moe)
    own = {"num_local_experts": ffn.experts} if family == "mixtral" else {"num_experts": ffn.experts}
    if family == "olmoe":
        own["norm_topk_prob"] = ffn.gates_sum_to_one
    return found | own | {"num_experts_per_tok": ffn.top_k}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
