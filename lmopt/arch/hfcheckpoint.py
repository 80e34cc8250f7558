"""A Hugging Face checkpoint as far as it can be read without torch: its recipe, its tensors by key, shape and file.

A checkpoint is a folder of `config.json` and safetensors, in one file or several with an index. Nothing is unpickled,
no code of a checkpoint is run, and no weights are read here: a checkpoint of any size is described at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from lmopt.arch.hfpieces import HEAD, InterchangeError, Piece, pieces
from lmopt.recipe import Model, Moe, Recipe, SwiGlu

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = "model-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9].safetensors"
"""What the files of weights are called where there are several."""
TOKENIZER = "tokenizer.json"
DERIVED = ".rotary_emb.inv_freq"
"""Tables that old checkpoints carry and that follow from their configuration."""
ARCHITECTURES = {"llama": "LlamaForCausalLM", "mixtral": "MixtralForCausalLM", "olmoe": "OlmoeForCausalLM"}
WHOLE_NUMBERS = (
    "vocab_size", "hidden_size", "num_attention_heads", "max_position_embeddings", "head_dim", "sliding_window"
)  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of weights that are numbers by themselves: 8 bits and fewer need scales that stand elsewhere."""


@dataclass(frozen=True, slots=True)
class HfCheckpoint:
    """A checkpoint whose configuration, keys and shapes agree."""

    folder: Path
    recipe: Recipe
    """The checkpoint's shape; what training needs besides (optimizer, batches, tokens) is our default."""
    pieces: tuple[Piece, ...]
    place: Mapping[str, str]
    """Key -> the file that holds it."""

    def sha256(self) -> str:
        """Of configuration, tokenizer and weights: all that generation depends on. Reads the files in full.

        Raises:
            InterchangeError: one of them cannot be read.
        """
        whole = hashlib.sha256()
        for name in (CONFIG, TOKENIZER, *sorted(set(self.place.values()))):
            try:
                with (self.folder / name).open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except FileNotFoundError:
                digest = "none"  # a checkpoint needs no tokenizer to be loaded
            except OSError as error:
                raise InterchangeError(f"{self.folder / name}: cannot be read ({error.strerror})") from error
            whole.update(f"{name} {digest}\n".encode())
        return whole.hexdigest()


def described(folder: Path | str) -> HfCheckpoint:
    """What a folder holds.

    Raises:
        InterchangeError: not a checkpoint, damaged, of another architecture, or with a part that we do not have.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InterchangeError(f"{folder}: no such folder")
    recipe = _recipe(folder / CONFIG, read_json(folder / CONFIG))
    wanted = tuple(pieces(recipe))
    with ExitStack() as opened:
        files = {name: opened.enter_context(opened_weights(folder / name, "np")) for name in _files(folder)}
        place = _places(folder, files)
        _compare_keys(folder, recipe, {piece.key for piece in wanted}, set(place))
        for piece in wanted:
            _compare(folder / place[piece.key], piece, files[place[piece.key]].get_slice(piece.key))
    return HfCheckpoint(folder, recipe, wanted, place)


def _places(folder: Path, files: Mapping[str, Any]) -> dict[str, str]:
    """Key -> the name of the file that holds it."""
    place: dict[str, str] = {}
    for name, file in files.items():
        for key in file.keys():  # noqa: SIM118 - not a mapping
            if key in place:
                raise InterchangeError(f"{folder}: {key} stands in {place[key]} and in {name}, allowed: one of them")
            place[key] = name
    return place


def opened_weights(path: Path, framework: str) -> Any:
    """A safetensors file, open for reading.

    Raises:
        InterchangeError: it is not one.
    """
    try:
        return safe_open(path, framework=framework)
    except (SafetensorError, OSError) as error:
        raise InterchangeError(f"{path}: not a readable safetensors file ({error})") from error


def _compare(path: Path, piece: Piece, found: Any) -> None:
    shape = tuple(found.get_shape())
    if shape != piece.shape:
        raise InterchangeError(f"{path}: {piece.key} has shape {shape}, expected {piece.shape} by {CONFIG}")
    if found.get_dtype() not in FLOATS:
        raise InterchangeError(
            f"{path}: {piece.key} has type {found.get_dtype()}, allowed: {', '.join(FLOATS)}; hint: quantised weights "
            "are not read, the formats of `decoding` make their own"
        )


def _compare_keys(folder: Path, recipe: Recipe, wanted: set[str], found: set[str]) -> None:
    found = {key for key in found if not key.endswith(DERIVED)}
    if recipe.model.tied_head:
        found.discard(HEAD)
    if wanted != found:
        missing, unknown = sorted(wanted - found), sorted(found - wanted)
        raise InterchangeError(
            f"{folder}: keys do not fit {CONFIG}: {len(missing)} missing {_some(missing)}, "
            f"{len(unknown)} unknown {_some(unknown)}"
        )


def _some(keys: list[str]) -> str:
    return f"[{', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''}]"


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object.

    Raises:
        InterchangeError: it cannot be read, or is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InterchangeError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InterchangeError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise InterchangeError(f"{path}: a JSON {type(found).__name__}, expected an object")
    return found


def _recipe(path: Path, config: Mapping[str, Any]) -> Recipe:
    """What a configuration describes; entries that older ones lack have Hugging Face's defaults."""
    family = config.get("model_type")
    if not isinstance(family, str) or family not in ARCHITECTURES:
        raise InterchangeError(f"{path}: model_type is {family!r}, allowed: {', '.join(ARCHITECTURES)}")
    if config.get("auto_map") is not None:
        raise InterchangeError(
            f"{path}: auto_map is {config['auto_map']!r}: code of the checkpoint's own, which is never run; "
            f"hint: save the model as one of {', '.join(ARCHITECTURES)}"
        )
    _check_types(path, config)
    rope = _rope(path, config)
    _refuse_unknown_parts(path, config, rope)
    base = rope.get("rope_theta")
    try:
        model = Model(
            layers=config.get("num_hidden_layers"),
            width=config.get("hidden_size"),
            heads=config.get("num_attention_heads"),
            kv_heads=config.get("num_key_value_heads"),
            vocab=config.get("vocab_size"),
            context=config.get("max_position_embeddings"),
            tied_head=config.get("tie_word_embeddings", False),
            qk_norm=family == "olmoe",
            qk_norm_over="all" if family == "olmoe" else "head",
            rope_base=config.get("rope_theta", 1e6 if family == "mixtral" else 1e4) if base is None else base,
            norm_eps=config.get("rms_norm_eps", 1e-6 if family == "llama" else 1e-5),
        )
        ffn = SwiGlu(hidden=config.get("intermediate_size")) if family == "llama" else _moe(family, config)
        length = min(256, model.context)
        return Recipe(model=model, ffn=ffn, batching={"length": length, "sequences": 1}, tokens=length)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise InterchangeError(f"{path}: describes no model ({wrong})") from error


def _rope(path: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of rotary positions, under the name that transformers 5 gives them or under the older one."""
    two = [config[name] for name in ("rope_parameters", "rope_scaling") if config.get(name)]
    if len(two) > 1 and two[0] != two[1]:
        raise InterchangeError(
            f"{path}: rope_parameters is {two[0]!r} and rope_scaling {two[1]!r}, allowed: one of them; hint: remove "
            "the one that the model was not trained with"
        )
    return two[0] if two else {}


def _refuse_unknown_parts(path: Path, config: Mapping[str, Any], rope: Mapping[str, Any]) -> None:
    """What a configuration may ask for and our model does not have."""
    plain = {
        "hidden_act": ("silu", config.get("hidden_act", "silu")),
        "attention_bias": (False, config.get("attention_bias", False)),
        "mlp_bias": (False, config.get("mlp_bias", False)),
        "clip_qkv": (None, config.get("clip_qkv")),
        "rope_type": ("default", rope.get("rope_type", rope.get("type", "default"))),
        "partial_rotary_factor": (1.0, rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))),
        "quantization_config": (None, config.get("quantization_config")),
    }
    for name, (allowed, found) in plain.items():
        if found != allowed:
            raise InterchangeError(f"{path}: {name} is {found!r}, allowed: {allowed!r}")
    context, window = config.get("max_position_embeddings"), config.get("sliding_window")
    if window is not None and context is not None and window < context:
        raise InterchangeError(f"{path}: sliding_window is {window}, allowed: null, or all {context} positions")
    width, heads, head_dim = (config.get(name) for name in ("hidden_size", "num_attention_heads", "head_dim"))
    if head_dim is not None and width and heads and head_dim * heads != width:
        raise InterchangeError(f"{path}: head_dim is {head_dim}, allowed: hidden_size / heads = {width / heads:g}")


def _check_types(path: Path, config: Mapping[str, Any]) -> None:
    """What is compared before the model's own description looks at it."""
    for name in WHOLE_NUMBERS:
        found = config.get(name)
        if found is not None and (isinstance(found, bool) or not isinstance(found, int)):
            raise InterchangeError(f"{path}: {name} is {found!r}, allowed: a whole number")
    if config.get("vocab_size") is None:
        raise InterchangeError(f"{path}: vocab_size is None, allowed: a whole number")
    for name in ("rope_parameters", "rope_scaling"):
        found = config.get(name)
        if found is not None and not isinstance(found, dict):
            raise InterchangeError(f"{path}: {name} is {found!r}, allowed: null or an object")


def _moe(family: str, config: Mapping[str, Any]) -> Moe:
    return Moe(
        experts=config.get("num_local_experts", 8) if family == "mixtral" else config.get("num_experts", 64),
        top_k=config.get("num_experts_per_tok", 2 if family == "mixtral" else 8),
        hidden=config.get("intermediate_size"),
        normalise=True if family == "mixtral" else config.get("norm_topk_prob", False),
    )


def _files(folder: Path) -> list[str]:
    """The names of the weight files; a single one goes before an index, as in transformers."""
    if (folder / WEIGHTS).exists():
        return [WEIGHTS]
    if (folder / INDEX).exists():
        named = read_json(folder / INDEX).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
            raise InterchangeError(f"{folder / INDEX}: weight_map does not map keys to files")
        outside = [name for name in named.values() if Path(name).name != name]
        if outside:
            raise InterchangeError(f"{folder / INDEX}: weight_map leads out of the folder: {outside[0]!r}")
        return sorted(set(named.values()))
    if list(folder.glob("*.bin")):
        raise InterchangeError(
            f"{folder}: holds pickled weights (*.bin), which are never read: reading them runs what they hold; hint: "
            f"convert them to {WEIGHTS} (`model.save_pretrained(folder, safe_serialization=True)`)"
        )
    raise InterchangeError(f"{folder}: no weights there ({WEIGHTS}, or {INDEX} and the files that it names)")


# --- tokenizer -----------------------------------------------------------------------------------


def token_ids(folder: Path | str) -> dict[str, int]:
    """Every token of a checkpoint's `tokenizer.json` with the id that it will get, those added to its model included.

    Raises:
        InterchangeError: there is none, or it is not understood.
    """
    path = Path(folder) / TOKENIZER
    if not path.exists():
        raise InterchangeError(
            f"{path}: not there; hint: `AutoTokenizer.from_pretrained(...).save_pretrained(folder)` writes it"
        )
    from tokenizers import Tokenizer  # late: checking a suite imports this module, and most have no checkpoint

    try:
        return Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises nothing more special
        raise InterchangeError(f"{path}: not a tokenizer ({error})") from error
