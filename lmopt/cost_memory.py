"""What a training step holds and moves in memory, estimated from the recipe alone (no torch here either)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable

from lmopt import native
from lmopt.cost import ffn_cost, keeps_probabilities, parameters
from lmopt.quantities import human_bytes
from lmopt.recipe import FixedBatch, Moe, Recipe, Recompute

LOGIT_CHUNK_BYTES = 64 * 2**20
"""Logits that the fused loss holds at once, counted as float32 (lmopt.arch.loss.CHUNK_BYTES)."""
LOGIT_ROOM = 2
"""Room that fewer logits than a chunk take, over themselves: what they let go of is found again in part only. Read off
2 to 32 MiB of them, of models of 0.1 to 9 M parameters."""
HEAD_BYTES = 17 * 2**20
"""What stands beside them: the block in which softmax runs, and the head's gradient of a chunk."""
TRANSIENT_SHARE = 0.2
"""Gradients of activations that exist for a moment in backward, over the activations of what is being computed. This
and those below were read off trainings of 1 to 290 M parameters on a CPU (benchmarks/memory.py), dense and
sparse, activations kept and computed again: docs/training.md has the table."""
HOLES_SHARE = {2: 0.7, 4: 2.9}
"""Bytes of a number in the forward pass -> holes in the heap over the inputs that blocks computed again keep: each lies
above what its block let go of. Read off 16 sequences at 30 M, 8 at 100 M, 300 M and a billion parameters."""
CHANGING_SHARE = 0.33
"""Holes that shorter sequences of earlier steps leave, over activations: read off a billion parameters."""
CAST_SHARE = 0.5
"""Part of a dense model's bfloat16 casts that adds to the peak: they are let go of while the gradients grow."""
SPARSE_AGAIN_SHARE = 0.6
"""Holes that sparse blocks computed again leave, over the activations of all of them: their odd sizes differ from block
to block. Read off a billion parameters, with sequences of one length and growing ones."""
COMPILED_EXPERT_BYTES = 30 * 2**20
"""What oneDNN's bfloat16 products take on a CPU where experts have other numbers of rows at every step, for each
expert: one is compiled for each number, most in the first fifty steps (docs/techniques/moe.md). Read off 8 experts."""
COMPILED_MOST_BYTES = 600 * 2**20
"""The most that they take: oneDNN keeps 1,024. Read off 31 experts."""
FUSED_EXPERTS_BYTES = 10 * 2**20
FUSED_THREAD_BYTES = 6 * 2**20
"""The same of the fused kernel, which compiles a few hundred small products before it begins, in each thread."""
COMPILED_BLOCK_BYTES = 12 * 2**20
"""The same of a dense block's products, forward and backward, for each number of sequences that go through it: 12 to 15
products of 0.6 to 0.7 MiB, in float32 no more where oneDNN makes them (lmopt.arch.matmul). Read off layers left out for
some of 8, 16 and 32 sequences."""
COMPILER_BYTES = 180 * 2**20
"""What torch.compile takes of a process that trains on a CPU: its modules, and what they keep. Read off compiled steps
of 0.1 to 30 M parameters, which take 100 to 200 MiB more than others."""
SELDOM = 4
"""Standard deviations below the mean at which a number of sequences is too seldom to be counted."""
EXIT_WIDTHS = 4
"""Numbers that an exit on the way keeps, a token, over the width: state, norm, and the gradient of both."""
EIGHT_BIT_UPDATE_BYTES = 40
"""What the 8-bit optimizer unpacks to update a slice of a parameter, a number of it: moments, quotients and codes."""
EIGHT_BIT_SLICE = 1 << 18
"""Numbers of a slice (lmopt.train.compact.SLICE)."""


def peak_memory_bytes(recipe: Recipe) -> int:
    """Estimated peak of a training step over the empty process."""
    held, a_sequence = memory_parts(recipe)
    unfilled = LOGIT_CHUNK_BYTES - _logit_bytes(recipe)
    heads = 1 if recipe.teacher is None else 2
    return held - heads * unfilled * _product_bytes(recipe) // 4 + recipe.batching.held_sequences * a_sequence


def bytes_by_micro(recipe: Recipe, sizes: Iterable[int]) -> dict[int, int]:
    """The same by how many sequences go through at once."""
    sequences, length = recipe.batching.sequences, recipe.batching.length
    split = {size: FixedBatch(sequences=sequences, length=length, micro_sequences=size) for size in sizes}
    return {size: peak_memory_bytes(recipe.model_copy(update={"batching": split[size]})) for size in split}


def want_of_own(recipe: Recipe) -> str | None:
    """Why a training cannot do with what its recipe's own `batching.memory` allows; None where it can."""
    own, needed = getattr(recipe.batching, "memory", None), peak_memory_bytes(recipe)
    if own is None or own >= needed:
        return None
    return (
        f"batching.memory ({human_bytes(own)}) is less than a training with one sequence of "
        f"{recipe.batching.length} tokens at once takes: about {-(-needed // 2**20)}MiB"
        "\nhint: raise batching.memory, shorten batching.length, or take a smaller model"
    )


def memory_parts(recipe: Recipe) -> tuple[int, int]:
    """Bytes that are held whatever the batch, and bytes that each sequence of a forward pass adds.

    Held: weights, gradients and moments as precision and optimizer keep them, a copy of the weights in the products'
    type, the head's chunk as if sequences filled it, a teacher's weights and chunk. A sequence: the activations kept
    for backward, with what exists for a moment beside them. A dense block that is computed again keeps its input; its
    copy and activations exist one block at a time. A sparse one does too, but its odd sizes leave holes in the heap.
    """
    held, model, layers, sparse = parameters(recipe), recipe.model, recipe.model.layers, isinstance(recipe.ffn, Moe)
    again = recipe.activations.layers_of(layers) if isinstance(recipe.activations, Recompute) else 0
    block, inputs = (
        _kept_per_token(recipe, fused=_fused(recipe)),
        model.width * (again + 4),
    )  # and of the embedding, last norm and head
    numbers = (layers - (0 if sparse else again)) * block + inputs
    numbers += block * (1 + TRANSIENT_SHARE) if again and not sparse else (layers * block + inputs) * TRANSIENT_SHARE
    if again and not sparse:
        numbers += inputs * HOLES_SHARE[_product_bytes(recipe)]
    if again and sparse:
        numbers *= SPARSE_AGAIN_SHARE
    elif recipe.batching.kind == "length_warmup":
        numbers *= 1 + CHANGING_SHARE
    copied = held.total - held.embedding - (_expert_parameters(recipe) if _fused(recipe) else 0)
    copies = copied * max(1, layers - again) / layers + held.embedding
    copies *= recipe.precision.copy_bytes * (1.0 if again or sparse else CAST_SHARE)
    kept_and_gradient = 2 * recipe.precision.weight_bytes
    state = held.total * (kept_and_gradient + recipe.optimizer.state_bytes)
    exits = recipe.objective.early_exits
    numbers += exits * EXIT_WIDTHS * model.width
    in_full = 2 * (4 - recipe.precision.weight_bytes) * held.embedding  # kept in float32 by every precision
    head = HEAD_BYTES + LOGIT_CHUNK_BYTES * _product_bytes(recipe) // 4
    whole = round(state + copies) + in_full + head + (8 + 4 * exits) * held.embedding + _compiled_bytes(recipe)
    whole += _attention_bytes(recipe) + (COMPILER_BYTES if recipe.compiles_on("cpu") and not native.has_gpu() else 0)
    if recipe.optimizer.kind == "adamw_8bit":
        whole += EIGHT_BIT_UPDATE_BYTES * min(held.embedding, EIGHT_BIT_SLICE)
    if recipe.teacher is not None:
        whole += 4 * parameters(recipe.teacher).total + LOGIT_CHUNK_BYTES * _product_bytes(recipe) // 4
        whole += _changing_bytes(recipe.teacher)
        numbers += _kept_per_token(recipe.teacher, fused=False)  # a block at a time, nothing is kept
    return whole, round(recipe.batching.length * numbers * _product_bytes(recipe))


def _logit_bytes(recipe: Recipe) -> int:
    """Room that the logits of a forward pass take, counted as float32: a chunk at most, less where few are held."""
    logits = recipe.batching.held_sequences * recipe.batching.length * 4 * (recipe.model.vocab or 1)
    return min(LOGIT_ROOM * logits, LOGIT_CHUNK_BYTES)


def _compiled_bytes(recipe: Recipe) -> int:
    """What products take that are compiled anew, as they have other numbers of rows from step to step."""
    blocks = COMPILED_BLOCK_BYTES * _fewer_sequences(recipe)
    if recipe.precision.arithmetic != "bf16":
        return blocks if native.mkl_keeps_to_avx2() and not native.has_gpu() else 0
    experts = _changing_bytes(recipe)
    if _fused(recipe):
        experts = FUSED_EXPERTS_BYTES + FUSED_THREAD_BYTES * (os.cpu_count() or 1) + _room_bytes(recipe)
    return experts + blocks


def _room_bytes(recipe: Recipe) -> int:
    """Room of the experts' kernel, which it keeps: as experts_backward_fused.cpp asks for it, and a quarter.

    For each thread where there is an expert for each; one expert is taken to have half as many rows again as the mean.
    """
    ffn, width, threads = recipe.ffn, recipe.model.width, os.cpu_count() or 1
    assert isinstance(ffn, Moe)
    tokens = recipe.batching.held_sequences * recipe.batching.length
    hidden, rows = ffn.hidden_for(width), 3 * tokens * ffn.top_k // (2 * ffn.experts)
    inner = (_matrices(ffn) - 1) * hidden
    room = 2 * (rows * (2 * width + hidden + inner) + rows * 9 // 8 * (width + inner) + _matrices(ffn) * width * hidden)
    return (threads if ffn.experts >= threads else 1) * room * 5 // 4


def _attention_bytes(recipe: Recipe) -> int:
    """Room of the attention kernel's threads, which they keep: as attention_fused.cpp asks for it, and a quarter."""
    length, width = recipe.batching.length, recipe.model.head_width
    if length % native.MULTIPLE or width % native.MULTIPLE or not _native():
        return 0
    return (os.cpu_count() or 1) * (12 * length * width + 128 * (12 * length + 8 * width)) * 5 // 4


def _changing_bytes(recipe: Recipe) -> int:
    """What grouped products of experts take: with a capacity their rows are always as many."""
    if not isinstance(recipe.ffn, Moe) or recipe.ffn.routing.kind == "switch" or recipe.precision.arithmetic != "bf16":
        return 0
    return min(COMPILED_EXPERT_BYTES * recipe.ffn.experts, COMPILED_MOST_BYTES)


def _fused(recipe: Recipe) -> bool:
    """Whether experts will run in the fused kernel (lmopt.arch.experts_fused), as far as can be told without torch."""
    ffn, width = recipe.ffn, recipe.model.width
    if not isinstance(ffn, Moe) or ffn.kernel != "auto":
        return False
    whole = width % native.MULTIPLE == 0 and ffn.hidden_for(width) % native.MULTIPLE == 0
    return recipe.precision.arithmetic == "bf16" and whole and _native()


def _native() -> bool:
    """Whether training will have kernels of its own, as far as can be told without torch."""
    return not native.has_gpu() and native.obstacle() is None


def _expert_parameters(recipe: Recipe) -> int:
    """Those of all experts but the shared ones."""
    ffn, model = recipe.ffn, recipe.model
    assert isinstance(ffn, Moe)
    return model.layers * ffn.experts * _matrices(ffn) * model.width * ffn.hidden_for(model.width)


def _matrices(ffn: Moe) -> int:
    """Of one expert."""
    return 3 if ffn.activation == "swiglu" else 2


def _fewer_sequences(recipe: Recipe) -> int:
    """How many numbers of sequences below all of them go through the layer that is left out most: binomial draws."""
    sequences, dropout = recipe.batching.held_sequences, recipe.objective.layer_dropout(recipe.model.layers)[-1]
    if not dropout:
        return 0
    fewest = sequences * (1 - dropout) - SELDOM * math.sqrt(sequences * dropout * (1 - dropout))
    return max(0, sequences - max(1, math.ceil(fewest)))


def _product_bytes(recipe: Recipe) -> int:
    """Bytes of a number in the forward pass."""
    return 2 if recipe.precision.arithmetic == "bf16" else 4


def _kept_per_token(recipe: Recipe, *, fused: bool) -> int:
    """Numbers that one block keeps for backward, a token."""
    model, length, ffn = recipe.model, recipe.batching.length, ffn_cost(recipe.ffn, recipe.model.width)
    return (
        2 * model.width  # residual stream before each half of a block
        + 2 * model.width  # normalised inputs of the two halves
        + (2 * model.heads + 3 * model.key_heads) * model.head_width  # projections, turned queries and keys
        + model.width  # attention's output
        + (ffn.fused_activations_per_token if fused else ffn.activations_per_token)
        + (model.heads * length * 5 // 8 if keeps_probabilities("cpu", length) else 0)  # causal half, by blocks
    )


def update_bytes(recipe: Recipe) -> float:
    """Bytes that a step moves for its parameters beside the products: copies, gradients, the optimizer's update.

    Read: weight, gradient twice (norm, update), the state, weight again for its copy. Written: gradient, weight, state,
    copy.
    """
    weight, copy = recipe.precision.weight_bytes, recipe.precision.copy_bytes
    a_parameter = 5 * weight + 2 * recipe.optimizer.state_bytes + (weight + copy if copy else 0)
    return parameters(recipe).total * a_parameter
