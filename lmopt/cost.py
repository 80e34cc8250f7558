"""What a recipe costs before anything runs: parameters and FLOPs, counted from its description alone.

Convention: one multiply-add is 2 FLOPs; matrix products and attention only, the head included; looking up an embedding,
norms, activations, softmax and the optimizer count nothing. Attention is counted full, length x length, though a causal
kernel may skip half of it. No torch here: planning a study must not import it.
"""

from __future__ import annotations

from dataclasses import dataclass

from lmopt.recipe import Distillation, Int8, Moe, Recipe, Recompute, Relu2, SwiGlu, Wasteful
from lmopt.techniques.routing import NoisyTopK, Switch

ATTENTION_BACKWARD_EXECUTED = 2.5
"""Backward over forward of a fused attention kernel: five products against two, because it computes the scores again
instead of keeping them (Dao et al., arXiv 2205.14135, section 3.1 and algorithm 4)."""
KEPT_PROBABILITIES_LENGTH = 1024
"""Longest sequence whose attention probabilities a CPU keeps for backward (lmopt.arch.causal) instead of computing
the scores again. Twelve heads of 1,024 tokens keep 13 MiB a sequence and layer in bfloat16."""
BACKWARD_MODEL = 2.0
"""Backward over forward of a product y = x W: one product for x's gradient, one for W's (Kaplan et al., 2001.08361)."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """How many numbers a model holds."""

    total: int
    active: int
    """Those that one token's forward pass reads: experts it is not sent to left out."""
    embedding: int
    """Those of the input embedding, included above (it is the head's matrix too where the head is tied)."""


@dataclass(frozen=True, slots=True)
class Flops:
    """Forward FLOPs of one sequence, part by part."""

    projections: int
    """Query, key, value and output products."""
    attention: int
    """Scores and weighted values, length x length."""
    ffn: int
    """Feed-forward products, or those of the experts that tokens are sent to."""
    router: int
    head: int

    @property
    def linear(self) -> int:
        """All but attention: products with a weight matrix."""
        return self.projections + self.ffn + self.router + self.head

    @property
    def total(self) -> int:
        return self.linear + self.attention

    @property
    def causal(self) -> int:
        """The total with only the causal half of attention, for comparison with papers that count so."""
        return self.linear + self.attention // 2


@dataclass(frozen=True, slots=True)
class TrainFlops:
    """Forward and backward FLOPs a token."""

    executed: float
    """As the kernels do it: where attention does not keep its probabilities, backward computes the scores again, and
    an expert with a capacity computes its empty rows too."""
    model: float
    """As the mathematics needs it: backward = 2 x forward (PaLM's convention, arXiv 2204.02311, appendix B)."""


@dataclass(frozen=True, slots=True)
class FfnCost:
    """What one feed-forward costs. A technique of another package states its own by a method `cost(width)`."""

    parameters_total: int
    parameters_active: int
    flops_per_token: int
    router_flops_per_token: int = 0
    activations_per_token: int = 0
    fused_activations_per_token: int = 0
    """The same where experts run in the fused kernel of a CPU, which keeps their inner layer alone."""
    """Numbers kept for the backward pass, a token."""
    noise_flops_per_token: int = 0
    """Of a router's noise, which is drawn in training only."""
    padding_flops_per_token: float = 0.0
    """Executed in training for rows that hold no token, beyond `flops_per_token`."""
    last_product_flops_per_token: int = 0
    """The part of `flops_per_token` whose result nothing keeps: computing a block again stops before it."""


def ffn_cost(ffn: object, width: int, tokens: int | None = None) -> FfnCost:
    """Cost of one block's feed-forward in a model of this width.

    Args:
        tokens: of one forward pass, which an expert's capacity is a share of; None leaves its rounding out.

    Raises:
        LookupError: a technique of another package that does not say what it costs.
    """
    match ffn:
        case SwiGlu() | Relu2():
            hidden = ffn.hidden_for(width)
            matrices = 3 if isinstance(ffn, SwiGlu) else 2
            weights = matrices * width * hidden
            return FfnCost(
                weights,
                weights,
                2 * weights,
                activations_per_token=width + matrices * hidden,
                last_product_flops_per_token=2 * width * hidden,
            )
        case Wasteful():
            living, dead = (ffn_cost(SwiGlu(hidden=hidden), width) for hidden in (ffn.hidden_for(width), ffn.dead))
            weights = living.parameters_total + dead.parameters_total
            activations = living.activations_per_token + dead.activations_per_token
            return FfnCost(
                weights,
                weights,
                2 * weights,
                activations_per_token=activations,
                last_product_flops_per_token=dead.last_product_flops_per_token,
            )
        case Moe():
            return _moe_cost(ffn, width, tokens)
        case _ if callable(own := getattr(ffn, "cost", None)):
            return own(width)
        case _:
            raise LookupError(f"feed-forward {ffn!r} does not say what it costs; hint: give it cost(width) -> FfnCost")


def _moe_cost(ffn: Moe, width: int, tokens: int | None) -> FfnCost:
    hidden = ffn.hidden_for(width)
    matrices = 3 if ffn.activation == "swiglu" else 2
    expert, scores = matrices * width * hidden, width * ffn.experts
    shared = ffn.shared * expert
    noisy = isinstance(ffn.routing, NoisyTopK)
    router = 2 * scores if noisy else scores
    rows = float(ffn.top_k)  # rows of experts computed in training, a token
    if isinstance(ffn.routing, Switch):
        rows = ffn.routing.capacity_factor
        if tokens is not None:
            rows = ffn.experts * ffn.routing.capacity(tokens, ffn.experts) / tokens
    beside = width + 4 * ffn.experts + ffn.shared * matrices * hidden
    return FfnCost(
        parameters_total=ffn.experts * expert + shared + router,
        parameters_active=ffn.top_k * expert + shared + router,
        flops_per_token=2 * (ffn.top_k * expert + shared),
        router_flops_per_token=2 * scores,
        noise_flops_per_token=2 * scores if noisy else 0,
        padding_flops_per_token=2 * expert * (rows - ffn.top_k),
        last_product_flops_per_token=2 * width * ffn.shared * hidden,
        activations_per_token=round(rows * (2 * width + matrices * hidden) + beside),
        fused_activations_per_token=round(rows * (matrices - 1) * hidden + beside),
    )


def parameters(recipe: Recipe) -> Parameters:
    """Parameters of the model, counted structurally."""
    model, ffn = recipe.model, ffn_cost(recipe.ffn, recipe.model.width)
    embedding = _vocab(recipe) * model.width
    heads_normed = 2 if model.qk_norm_over == "head" else model.heads + model.key_heads
    qk_norms = heads_normed * model.head_width if model.qk_norm else 0
    block = _projection_weights(recipe) + 2 * model.width + qk_norms
    shared = embedding * (1 if model.tied_head else 2) + model.width
    return Parameters(
        total=shared + model.layers * (block + ffn.parameters_total),
        active=shared + model.layers * (block + ffn.parameters_active),
        embedding=embedding,
    )


def forward_flops(recipe: Recipe, length: int) -> Flops:
    """Forward FLOPs of one sequence of `length` tokens."""
    model, ffn = recipe.model, ffn_cost(recipe.ffn, recipe.model.width)
    return Flops(
        projections=model.layers * length * 2 * _projection_weights(recipe),
        attention=model.layers * 2 * (2 * length * length * model.width),
        ffn=model.layers * length * ffn.flops_per_token,
        router=model.layers * length * ffn.router_flops_per_token,
        head=length * 2 * model.width * _vocab(recipe),
    )


def keeps_probabilities(device: str, length: int) -> bool:
    """Whether attention on this kind of device (`cpu`, `cuda`) keeps its probabilities for backward."""
    return device == "cpu" and length <= KEPT_PROBABILITIES_LENGTH


def train_flops(recipe: Recipe, length: int, device: str = "cpu", tokens: int | None = None) -> TrainFlops:
    """Forward and backward FLOPs of one sequence of `length` tokens on a kind of device (`cpu`, `cuda`).

    Where layers are left out by chance, what a sequence costs on average.

    Args:
        tokens: of the forward pass that the sequence is part of. Default: it is alone.
    """
    forward, ffn = forward_flops(recipe, length), ffn_cost(recipe.ffn, recipe.model.width, tokens or length)
    share = recipe.objective.executed_share(recipe.model.layers)
    heads = (1 + recipe.objective.early_exits) * forward.head
    in_layers = forward.linear - forward.head + recipe.model.layers * length * ffn.noise_flops_per_token
    linear = (1 + BACKWARD_MODEL) * (share * in_layers + heads)
    padding = (1 + BACKWARD_MODEL) * share * recipe.model.layers * length * ffn.padding_flops_per_token
    attention = share * forward.attention
    backward = BACKWARD_MODEL if keeps_probabilities(device, length) else ATTENTION_BACKWARD_EXECUTED
    taught = teacher_flops(recipe, length)
    return TrainFlops(
        executed=linear + padding + (1 + backward) * attention + recomputed_flops(recipe, length, tokens) + taught,
        model=linear + (1 + BACKWARD_MODEL) * attention + taught,
    )


def teacher_flops(recipe: Recipe, length: int) -> float:
    """FLOPs of the teacher's forward pass over one sequence; its head is asked where its probabilities are learnt."""
    teacher = recipe.teacher
    if teacher is None or not isinstance(recipe.objective, Distillation) or not recipe.objective.asks_teacher:
        return 0
    forward = forward_flops(teacher, length)
    return forward.total - (0 if recipe.objective.probabilities else forward.head)


def recomputed_flops(recipe: Recipe, length: int, tokens: int | None = None) -> float:
    """Forward FLOPs of one sequence that are done a second time, because activations were not kept.

    A layer that is left out by chance is not computed again either. Empty rows of experts and a router's noise are.

    Args:
        tokens: of the forward pass that the sequence is part of. Default: it is alone.
    """
    if not isinstance(recipe.activations, Recompute):
        return 0
    forward, layers = forward_flops(recipe, length), recipe.model.layers
    # an 8-bit product is one function with its quantising: it has to end before what backward needs of it is there
    stops_before = 0 if isinstance(recipe.precision, Int8) else 1
    ffn = ffn_cost(recipe.ffn, recipe.model.width, tokens or length)
    beside = ffn.padding_flops_per_token + ffn.noise_flops_per_token - stops_before * ffn.last_product_flops_per_token
    again = forward.total - forward.head + layers * length * beside
    every = recipe.activations.every
    return again * sum(1 - left_out for left_out in recipe.objective.layer_dropout(layers)[::every]) / layers


def train_flops_per_token(recipe: Recipe, device: str = "cpu", length: int | None = None) -> TrainFlops:
    """Training FLOPs a token in sequences of a length (default: the recipe's) on a kind of device (`cpu`, `cuda`)."""
    length = length or recipe.batching.length
    sequence = train_flops(recipe, length, device, _pass_tokens(recipe))
    return TrainFlops(sequence.executed / length, sequence.model / length)


def training_flops(recipe: Recipe, horizon: float, device: str = "cpu") -> float:
    """Executed FLOPs of a whole training: shorter sequences of a warm-up cost less attention a token."""
    windows = recipe.batching.portion
    return sum(
        phase.steps * phase.portions * windows * (recipe.batching.length / phase.length)
        * train_flops(recipe, phase.length, device, _pass_tokens(recipe)).executed
        for phase in recipe.phases(horizon)
    )  # fmt: skip


def infer_flops_per_token(recipe: Recipe) -> float:
    """Forward FLOPs a token when a sequence of the recipe's batch length is read at once."""
    return forward_flops(recipe, recipe.batching.length).total / recipe.batching.length


def _pass_tokens(recipe: Recipe) -> int:
    """Tokens of one forward pass in training."""
    batching = recipe.batching
    sequences = getattr(batching, "micro_sequences", None) or getattr(batching, "sequences", None)
    return sequences * batching.length if sequences else batching.tokens


def _vocab(recipe: Recipe) -> int:
    if recipe.model.vocab is None:
        raise ValueError("recipe.model.vocab is not set; hint: a suite fills it in from its tokenizer")
    return recipe.model.vocab


def _projection_weights(recipe: Recipe) -> int:
    """Weights of one block's query, key, value and output matrices."""
    model = recipe.model
    return model.width * model.head_width * (2 * model.heads + 2 * model.key_heads)
