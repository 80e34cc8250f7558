"""Models to and from Hugging Face's checkpoints: Llama, Mixtral and OLMoE (letters: see transformer.py).

A checkpoint is a folder of `config.json` and safetensors, in one file or several with an index. Nothing is unpickled
and no code of a checkpoint is run. Weights are copied piece by piece: what is one matrix here (queries, keys and
values; gate and up; the experts of a layer) is several there, and each piece names both places.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lmopt.arch import transformer
from lmopt.arch.transformer import Transformer
from lmopt.recipe import Model, Moe, Recipe, SwiGlu
from lmopt.techniques.routing import Dropless

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
"""Largest file written, as Hugging Face's own."""
DERIVED = ".rotary_emb.inv_freq"
"""Tables that old checkpoints carry and that follow from their configuration."""
ARCHITECTURES = {"llama": "LlamaForCausalLM", "mixtral": "MixtralForCausalLM", "olmoe": "OlmoeForCausalLM"}


class InterchangeError(ValueError):
    """A checkpoint or model that cannot be exchanged: names file and key, what was found and what is allowed."""


class Piece(NamedTuple):
    """One tensor of a checkpoint and the rows of our parameter that it is."""

    key: str
    parameter: str
    expert: int | None
    """Which of the stacked experts, where the parameter is such a stack."""
    start: int
    rows: int

    def within(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The rows, as a view."""
        whole = parameters[self.parameter]
        return (whole if self.expert is None else whole[self.expert]).narrow(0, self.start, self.rows)


# --- reading -------------------------------------------------------------------------------------


def load_hf(folder: Path | str, device: torch.device | str = "cpu") -> tuple[Recipe, Transformer]:
    """The model of a checkpoint, float32, in evaluation mode, and the recipe that describes it.

    The recipe's shape is the checkpoint's; what training needs besides (optimizer, batches, tokens) is our default.

    Raises:
        InterchangeError: not a checkpoint, damaged, of another architecture, or with a part that we do not have.
    """
    folder = Path(folder)
    recipe = _recipe(folder / CONFIG, _json(folder / CONFIG))
    model = transformer.build(recipe, seed=0, device=device)
    parameters = dict(model.named_parameters())
    with ExitStack() as opened, torch.no_grad():
        files = {name: opened.enter_context(_open(folder / name)) for name in _files(folder)}
        place = {key: name for name, file in files.items() for key in file.keys()}  # noqa: SIM118 - not a mapping
        wanted = list(_pieces(recipe))
        _compare_keys(folder, recipe, {piece.key for piece in wanted}, set(place))
        for piece in wanted:
            target, name = piece.within(parameters), place[piece.key]
            shape = tuple(files[name].get_slice(piece.key).get_shape())
            if shape != tuple(target.shape):
                raise InterchangeError(
                    f"{folder / name}: {piece.key} has shape {shape}, expected {tuple(target.shape)} by {CONFIG}"
                )
            target.copy_(files[name].get_tensor(piece.key))
        head = "lm_head.weight"
        if recipe.model.tied_head and head in place:
            saved = files[place[head]].get_tensor(head).to(model.embedding.weight)
            if not torch.equal(saved, model.embedding.weight):
                raise InterchangeError(
                    f"{folder / place[head]}: {head} differs from the embedding, though {CONFIG} says they are tied"
                )
    return recipe, model.eval()


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InterchangeError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InterchangeError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise InterchangeError(f"{path}: a JSON {type(found).__name__}, expected an object")
    return found


def _recipe(path: Path, config: Mapping[str, Any]) -> Recipe:
    """What a configuration describes; entries that older ones lack have Hugging Face's defaults."""
    family = config.get("model_type")
    if family not in ARCHITECTURES:
        raise InterchangeError(f"{path}: model_type is {family!r}, allowed: {', '.join(ARCHITECTURES)}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    context, width = config.get("max_position_embeddings"), config.get("hidden_size")
    heads = config.get("num_attention_heads")
    plain = {
        "hidden_act": ("silu", config.get("hidden_act", "silu")),
        "attention_bias": (False, config.get("attention_bias", False)),
        "mlp_bias": (False, config.get("mlp_bias", False)),
        "clip_qkv": (None, config.get("clip_qkv")),
        "rope_type": ("default", rope.get("rope_type", rope.get("type", "default"))),
        "partial_rotary_factor": (1.0, rope.get("partial_rotary_factor", 1.0)),
        "auto_map": (None, config.get("auto_map")),
        "quantization_config": (None, config.get("quantization_config")),
    }
    for name, (allowed, found) in plain.items():
        if found != allowed:
            raise InterchangeError(f"{path}: {name} is {found!r}, allowed: {allowed!r}")
    window = config.get("sliding_window")
    if window is not None and context is not None and window < context:
        raise InterchangeError(f"{path}: sliding_window is {window}, allowed: null, or all {context} positions")
    head_dim = config.get("head_dim")
    if head_dim is not None and width and heads and head_dim * heads != width:
        raise InterchangeError(f"{path}: head_dim is {head_dim}, allowed: hidden_size / heads = {width / heads:g}")
    try:
        model = Model(
            layers=config.get("num_hidden_layers"),
            width=width,
            heads=heads,
            kv_heads=config.get("num_key_value_heads"),
            vocab=config.get("vocab_size"),
            context=context,
            tied_head=config.get("tie_word_embeddings", False),
            qk_norm=family == "olmoe",
            qk_norm_over="all" if family == "olmoe" else "head",
            rope_base=rope.get("rope_theta") or config.get("rope_theta", 1e6 if family == "mixtral" else 1e4),
            norm_eps=config.get("rms_norm_eps", 1e-6 if family == "llama" else 1e-5),
        )
        ffn = SwiGlu(hidden=config.get("intermediate_size")) if family == "llama" else _moe(family, config)
        length = min(256, model.context)
        return Recipe(model=model, ffn=ffn, batching={"length": length, "sequences": 1}, tokens=length)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise InterchangeError(f"{path}: describes no model ({wrong})") from error


def _moe(family: str, config: Mapping[str, Any]) -> Moe:
    return Moe(
        experts=config.get("num_local_experts", 8) if family == "mixtral" else config.get("num_experts", 64),
        top_k=config.get("num_experts_per_tok", 2 if family == "mixtral" else 8),
        hidden=config.get("intermediate_size"),
        normalise=True if family == "mixtral" else config.get("norm_topk_prob", False),
    )


def _files(folder: Path) -> list[str]:
    """The names of the weight files."""
    if (folder / INDEX).exists():
        named = _json(folder / INDEX).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
            raise InterchangeError(f"{folder / INDEX}: weight_map does not map keys to files")
        outside = [name for name in named.values() if Path(name).name != name]
        if outside:
            raise InterchangeError(f"{folder / INDEX}: weight_map leads out of the folder: {outside[0]!r}")
        return sorted(set(named.values()))
    if not (folder / WEIGHTS).exists() and list(folder.glob("*.bin")):
        raise InterchangeError(
            f"{folder}: holds pickled weights (*.bin), which are never read; hint: convert them to {WEIGHTS}"
        )
    return [WEIGHTS]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InterchangeError(f"{path}: not a readable safetensors file ({error})") from error


def _compare_keys(folder: Path, recipe: Recipe, wanted: set[str], found: set[str]) -> None:
    found = {key for key in found if not key.endswith(DERIVED)}
    if recipe.model.tied_head:
        found.discard("lm_head.weight")
    if wanted != found:
        missing, unknown = sorted(wanted - found), sorted(found - wanted)
        raise InterchangeError(
            f"{folder}: keys do not fit {CONFIG}: {len(missing)} missing {_some(missing)}, "
            f"{len(unknown)} unknown {_some(unknown)}"
        )


def _some(keys: list[str]) -> str:
    return f"[{', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''}]"


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

    Raises:
        InterchangeError: none of the three architectures is this model.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    family = _family(recipe)
    parameters = dict(model.named_parameters())
    tensors = {
        piece.key: piece.within(parameters).detach().to("cpu", dtype).clone(memory_format=torch.contiguous_format)
        for piece in _pieces(recipe)
    }
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(tensors, shard_bytes))
    names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [WEIGHTS]
    else:
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": index})
    for name, keys in zip(names, shards, strict=True):
        save_file({key: tensors[key] for key in keys}, folder / name, metadata={"format": "pt"})
    _write_json(folder / CONFIG, _config(family, recipe, dtype))


def _family(recipe: Recipe) -> str:
    ffn, model = recipe.ffn, recipe.model
    if isinstance(ffn, SwiGlu) and not model.qk_norm:
        return "llama"
    if isinstance(ffn, Moe) and ffn.activation == "swiglu" and not ffn.shared and isinstance(ffn.routing, Dropless):
        if not model.qk_norm and ffn.gates_sum_to_one:
            return "mixtral"
        if model.qk_norm and model.qk_norm_over == "all":
            return "olmoe"
    raise InterchangeError(
        f"a model with ffn {ffn!r}, qk_norm {model.qk_norm} over {model.qk_norm_over} is neither Llama (swiglu), "
        "Mixtral (dropless swiglu experts, gates that sum to 1) nor OLMoE (the same with qk_norm over all heads)"
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


# --- which piece is which ------------------------------------------------------------------------


def _pieces(recipe: Recipe) -> Iterator[Piece]:
    """Every tensor of the checkpoint, in the order of the model."""
    model = recipe.model
    assert model.vocab is not None
    yield Piece("model.embed_tokens.weight", "embedding.weight", None, 0, model.vocab)
    for layer in range(model.layers):
        yield from _block_pieces(recipe, f"model.layers.{layer}.", f"blocks.{layer}.")
    yield Piece("model.norm.weight", "norm.weight", None, 0, model.width)
    if not model.tied_head:
        yield Piece("lm_head.weight", "head.weight", None, 0, model.vocab)


def _block_pieces(recipe: Recipe, theirs: str, ours: str) -> Iterator[Piece]:
    model, ffn = recipe.model, recipe.ffn
    keys = model.key_heads * model.head_width
    yield Piece(f"{theirs}input_layernorm.weight", f"{ours}attention_norm.weight", None, 0, model.width)
    qkv = f"{ours}attention.qkv.weight"
    yield Piece(f"{theirs}self_attn.q_proj.weight", qkv, None, 0, model.width)
    yield Piece(f"{theirs}self_attn.k_proj.weight", qkv, None, model.width, keys)
    yield Piece(f"{theirs}self_attn.v_proj.weight", qkv, None, model.width + keys, keys)
    if model.qk_norm:
        yield Piece(f"{theirs}self_attn.q_norm.weight", f"{ours}attention.query_norm.weight", None, 0, model.width)
        yield Piece(f"{theirs}self_attn.k_norm.weight", f"{ours}attention.key_norm.weight", None, 0, keys)
    yield Piece(f"{theirs}self_attn.o_proj.weight", f"{ours}attention.output.weight", None, 0, model.width)
    yield Piece(f"{theirs}post_attention_layernorm.weight", f"{ours}ffn_norm.weight", None, 0, model.width)
    hidden = ffn.hidden_for(model.width)
    if isinstance(ffn, SwiGlu):
        yield Piece(f"{theirs}mlp.gate_proj.weight", f"{ours}ffn.gate_up.weight", None, 0, hidden)
        yield Piece(f"{theirs}mlp.up_proj.weight", f"{ours}ffn.gate_up.weight", None, hidden, hidden)
        yield Piece(f"{theirs}mlp.down_proj.weight", f"{ours}ffn.down.weight", None, 0, model.width)
        return
    mixtral = _family(recipe) == "mixtral"
    part = f"{theirs}block_sparse_moe." if mixtral else f"{theirs}mlp."
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    yield Piece(f"{part}gate.weight", f"{ours}ffn.router.weight", None, 0, ffn.experts)
    for expert in range(ffn.experts):
        yield Piece(f"{part}experts.{expert}.{gate}.weight", f"{ours}ffn.up", expert, 0, hidden)
        yield Piece(f"{part}experts.{expert}.{up}.weight", f"{ours}ffn.up", expert, hidden, hidden)
        yield Piece(f"{part}experts.{expert}.{down}.weight", f"{ours}ffn.down", expert, 0, model.width)
