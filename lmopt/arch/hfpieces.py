"""Which tensor of a Hugging Face checkpoint is which part of our parameters. No torch here.

What is one matrix here (queries, keys and values; gate and up; the experts of a layer) is several there, so each piece
names both places.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from lmopt.recipe import Moe, Recipe, SwiGlu
from lmopt.techniques.routing import Dropless

HEAD = "lm_head.weight"


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
    columns: int | None = None
    """None for a vector."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the checkpoint's tensor."""
        return (self.rows,) if self.columns is None else (self.rows, self.columns)


def family_of(recipe: Recipe) -> str:
    """The architecture that a recipe's model is.

    Raises:
        InterchangeError: none of the three.
    """
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


# --- which piece is which ------------------------------------------------------------------------


def pieces(recipe: Recipe) -> Iterator[Piece]:
    """Every tensor of the checkpoint, in the order of the model."""
    model = recipe.model
    assert model.vocab is not None
    yield Piece("model.embed_tokens.weight", "embedding.weight", None, 0, model.vocab, model.width)
    for layer in range(model.layers):
        yield from _block_pieces(recipe, f"model.layers.{layer}.", f"blocks.{layer}.")
    yield Piece("model.norm.weight", "norm.weight", None, 0, model.width)
    if not model.tied_head:
        yield Piece(HEAD, "head.weight", None, 0, model.vocab, model.width)


def _block_pieces(recipe: Recipe, theirs: str, ours: str) -> Iterator[Piece]:
    model, ffn = recipe.model, recipe.ffn
    keys = model.key_heads * model.head_width
    yield Piece(f"{theirs}input_layernorm.weight", f"{ours}attention_norm.weight", None, 0, model.width)
    qkv = f"{ours}attention.qkv.weight"
    yield Piece(f"{theirs}self_attn.q_proj.weight", qkv, None, 0, model.width, model.width)
    yield Piece(f"{theirs}self_attn.k_proj.weight", qkv, None, model.width, keys, model.width)
    yield Piece(f"{theirs}self_attn.v_proj.weight", qkv, None, model.width + keys, keys, model.width)
    if model.qk_norm:
        yield Piece(f"{theirs}self_attn.q_norm.weight", f"{ours}attention.query_norm.weight", None, 0, model.width)
        yield Piece(f"{theirs}self_attn.k_norm.weight", f"{ours}attention.key_norm.weight", None, 0, keys)
    yield Piece(f"{theirs}self_attn.o_proj.weight", f"{ours}attention.output.weight", None, 0, model.width, model.width)
    yield Piece(f"{theirs}post_attention_layernorm.weight", f"{ours}ffn_norm.weight", None, 0, model.width)
    hidden = ffn.hidden_for(model.width)
    if isinstance(ffn, SwiGlu):
        yield Piece(f"{theirs}mlp.gate_proj.weight", f"{ours}ffn.gate_up.weight", None, 0, hidden, model.width)
        yield Piece(f"{theirs}mlp.up_proj.weight", f"{ours}ffn.gate_up.weight", None, hidden, hidden, model.width)
        yield Piece(f"{theirs}mlp.down_proj.weight", f"{ours}ffn.down.weight", None, 0, model.width, hidden)
        return
    mixtral = family_of(recipe) == "mixtral"
    part = f"{theirs}block_sparse_moe." if mixtral else f"{theirs}mlp."
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    yield Piece(f"{part}gate.weight", f"{ours}ffn.router.weight", None, 0, ffn.experts, model.width)
    for expert in range(ffn.experts):
        yield Piece(f"{part}experts.{expert}.{gate}.weight", f"{ours}ffn.up", expert, 0, hidden, model.width)
        yield Piece(f"{part}experts.{expert}.{up}.weight", f"{ours}ffn.up", expert, hidden, hidden, model.width)
        yield Piece(f"{part}experts.{expert}.{down}.weight", f"{ours}ffn.down", expert, 0, model.width, hidden)
