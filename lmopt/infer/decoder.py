"""A trained model made ready to generate: its weights cast and laid out once, its layers run by number over a cache.

Layers can be run in part (`run(first, last)`), which is what leaving early and drafting by one's own first layers
need. Letters: see lmopt/arch/transformer.py; S keys in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmopt import native
from lmopt.arch import attention, extension_fused
from lmopt.arch.attention import rotate, torch_attention
from lmopt.arch.layers_fused import Layers, Matrices
from lmopt.arch.numbers import compute_dtype
from lmopt.arch.panels_fused import FEW_ROWS, is_watched
from lmopt.arch.transformer import Block, Transformer
from lmopt.infer import feedforward
from lmopt.infer.cache import KvCache
from lmopt.infer.weights import Format, Norm, PanelWeight, activation_dtype, pack, row_cost
from lmopt.recipe import Model


class PromptTooLong(ValueError):
    """A prompt and what shall follow it do not fit the model's context."""


def _normed(x_BTHC: Tensor, norm: Norm) -> Tensor:
    """Each head by itself or all heads together, whichever is as wide as the norm."""
    return norm(x_BTHC.flatten(2).unflatten(-1, (-1, norm.width))).view_as(x_BTHC)


class Layer:
    """One block over packed weights."""

    def __init__(self, block: Block, format: Format) -> None:
        attention = block.attention
        self.heads, self.key_heads, self.head_width = attention.heads, attention.key_heads, attention.head_width
        self.attention_norm, self.ffn_norm = Norm(block.attention_norm), Norm(block.ffn_norm)
        self.query_norm = None if attention.query_norm is None else Norm(attention.query_norm)
        self.key_norm = None if attention.key_norm is None else Norm(attention.key_norm)
        self.qkv, self.output = pack(attention.qkv.weight, format), pack(attention.output.weight, format)
        queries = attention.heads * attention.head_width
        self.key_value = pack(attention.qkv.weight[queries:], format)  # again by themselves, for tokens that left early
        self.ffn = feedforward.ready(block.ffn, format)
        self.parameters = sum(parameter.numel() for parameter in block.parameters())

    @property
    def nbytes(self) -> int:
        """Weights that one token's pass reads (all experts counted)."""
        return self.qkv.nbytes + self.output.nbytes + self.ffn.nbytes

    def feed_forward(self, x_BTD: Tensor) -> Tensor:
        """The second half of the block, with its input added."""
        if isinstance(self.ffn, feedforward.DenseFfn):
            return self.ffn(x_BTD, norm=self.ffn_norm, others=x_BTD)
        return x_BTD + self.ffn(self.ffn_norm(x_BTD))

    def apart(self, qkv_BTF: Tensor, cos_T1C: Tensor, sin_T1C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries B x H x T x C, keys and values B x K x T x C, turned to their positions."""
        qkv_BTHC = qkv_BTF.unflatten(-1, (-1, self.head_width))
        if self.query_norm is not None and self.key_norm is not None:
            q, k, v = qkv_BTHC.split([self.heads, self.key_heads, self.key_heads], dim=2)
            q, k = _normed(q, self.query_norm), _normed(k, self.key_norm)
            q, k = rotate(q, cos_T1C, sin_T1C), rotate(k, cos_T1C, sin_T1C)
        else:  # queries and keys are neighbours: turned at once
            qk, v = qkv_BTHC.split([self.heads + self.key_heads, self.key_heads], dim=2)
            q, k = rotate(qk, cos_T1C, sin_T1C).split([self.heads, self.key_heads], dim=2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def keys_and_values(self, x_BTD: Tensor, cos_T1C: Tensor, sin_T1C: Tensor) -> tuple[Tensor, Tensor]:
        """Only keys and values of this layer for a state that goes no deeper: B x K x T x C each."""
        kv_BTKC = self.key_value(x_BTD, norm=self.attention_norm).unflatten(-1, (-1, self.head_width))
        k, v = kv_BTKC.split([self.key_heads, self.key_heads], dim=2)
        k = k if self.key_norm is None else _normed(k, self.key_norm)
        return rotate(k, cos_T1C, sin_T1C).transpose(1, 2), v.transpose(1, 2)


class Decoder:
    """A model's weights for generation. It shares no memory with the model it was made from."""

    def __init__(self, model: Transformer, format: Format = "fp32") -> None:
        self.model, self.format, self.dtype = model.model, format, activation_dtype(format)
        self.embedding_VD = model.embedding.weight.detach().to(self.dtype, copy=True)
        self.device = self.embedding_VD.device
        self.layers = [Layer(block, format) for block in model.blocks]
        self.norm = Norm(model.norm)
        self.head = pack(model.head_weight_VD, format)
        self.cos_TC = model.rotary.cos_TC.to(self.dtype)
        self.sin_TC = model.rotary.sin_TC.to(self.dtype)
        suits = extension_fused.suits(self.dtype, self.device, self.model.head_width)
        self._extends = suits and not self.model.qk_norm
        self._together = _together(self.layers, self.model) if self._extends else None
        self.nbytes = self.head.nbytes + sum(layer.nbytes for layer in self.layers)
        """Weights that are read for one token."""

    @property
    def row_cost(self) -> float:
        """Time of reading one token more in a pass, as a share of a pass over one."""
        return row_cost(self.format, self.device)

    @property
    def vocab(self) -> int:
        """Number of token ids."""
        return len(self.embedding_VD)

    def new_cache(self, *, batch: int, capacity: int) -> KvCache:
        """An empty cache that fits this model."""
        return KvCache(self.model, batch=batch, capacity=capacity, dtype=self.dtype, device=self.device)

    @torch.inference_mode()
    def extend(self, tokens_BT: Tensor, cache: KvCache) -> Tensor:
        """Read tokens behind those in the cache and count them: normalised states B x T x D, ready for `logits`."""
        x_BTD = self.run(self.embed(tokens_BT), cache)
        cache.advance([tokens_BT.shape[1]] * len(tokens_BT))
        return self.norm(x_BTD)

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """States before the first layer: B x T x D."""
        return functional.embedding(tokens_BT, self.embedding_VD)

    @torch.inference_mode()
    def run(
        self,
        x_BTD: Tensor,
        cache: KvCache,
        *,
        first: int = 0,
        last: int | None = None,
        ahead: int = 0,
        rows: Sequence[int] | None = None,
    ) -> Tensor:
        """Layers `first` to `last` (exclusive; all by default) on states of the tokens behind the cache's lengths.

        Writes keys and values of those layers; the cache's lengths stay.

        Args:
            ahead: tokens already written behind the lengths, not counted yet.
            rows: the cache's rows that the B sequences are; default: all.
        """
        start, last = _start(cache, ahead, rows), len(self.layers) if last is None else last
        few = x_BTD.shape[0] * x_BTD.shape[1] <= FEW_ROWS
        if self._together is not None and few and first < last and self._suits(x_BTD) and not is_watched():
            return self._together.extend(
                x_BTD, self.cos_TC, self.sin_TC, cache.keys_LBKSC, cache.values_LBKSC,
                *_places(cache, start, rows, x_BTD.shape[1]), first=first, last=last,
            )  # fmt: skip
        attend = self._attention(x_BTD, cache, start, rows)
        with _ready_kernels(self.device):
            for number in range(first, last):
                layer = self.layers[number]
                x_BTD = layer.output(attend(number, layer.qkv(x_BTD, norm=layer.attention_norm)), others=x_BTD)
                x_BTD = layer.feed_forward(x_BTD)
        return x_BTD

    def _attention(
        self, x_BTD: Tensor, cache: KvCache, start: Sequence[int], rows: Sequence[int] | None
    ) -> Callable[[int, Tensor], Tensor]:
        """What makes attention's result B x T x D of a layer's number and its queries, keys and values B x T x F."""
        count = x_BTD.shape[1]
        if self._suits(x_BTD):
            start_B, rows_B = _places(cache, start, rows, count)
            seen = sum(start) + count * len(start)
            return lambda number, qkv_BTF: extension_fused.extend(
                qkv_BTF, self.cos_TC, self.sin_TC, cache.keys_LBKSC[number], cache.values_LBKSC[number],
                start_B, rows_B, seen,
            )  # fmt: skip
        cos, sin = self._angles(start, count)
        mask = _mask(start, count, x_BTD)

        def attend(number: int, qkv_BTF: Tensor) -> Tensor:
            q, k, v = self.layers[number].apart(qkv_BTF, cos, sin)
            cache.write(number, start, k, v, rows)
            if mask is True:
                return _attend_causally(q, k, v).flatten(2)
            keys, values = cache.seen(number, max(start) + count, rows)
            return _attend(q, keys, values, mask).transpose(1, 2).flatten(2)

        return attend

    def _suits(self, x_BTD: Tensor) -> bool:
        """Whether the kernel for a few new tokens is there and made for these."""
        one_type = compute_dtype(x_BTD) == self.dtype  # under autocast a product's result may be no cache's numbers
        return self._extends and one_type and 0 < x_BTD.shape[1] <= extension_fused.MOST_TOKENS and len(x_BTD) > 0

    @torch.inference_mode()
    def fill(self, x_BTD: Tensor, cache: KvCache, *, first: int, rows: Sequence[int] | None = None) -> None:
        """Keys and values of the layers from `first` on, for states that skip these and so leave them unchanged."""
        start = _start(cache, 0, rows)
        cos, sin = self._angles(start, x_BTD.shape[1])
        for number in range(first, len(self.layers)):
            cache.write(number, start, *self.layers[number].keys_and_values(x_BTD, cos, sin), rows)

    @torch.inference_mode()
    def logits(self, x_BTD: Tensor) -> Tensor:
        """Logits of the next token from normalised states, in the decoder's type."""
        return self.head(x_BTD)

    def _angles(self, start: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
        """Rotary tables for `count` positions from each row's start: (B or 1) x T x 1 x C."""
        first = start[0]
        if all(other == first for other in start):
            rows = slice(first, first + count)
            return self.cos_TC[None, rows, None], self.sin_TC[None, rows, None]
        place_BT = torch.tensor(start, device=self.device)[:, None] + torch.arange(count, device=self.device)
        return self.cos_TC[place_BT][:, :, None], self.sin_TC[place_BT][:, :, None]


def _start(cache: KvCache, ahead: int, rows: Sequence[int] | None) -> list[int]:
    lengths = cache.lengths if rows is None else [cache.lengths[row] for row in rows]
    return [length + ahead for length in lengths]


def _places(cache: KvCache, start: Sequence[int], rows: Sequence[int] | None, count: int) -> Tensor:
    """Where the kernel puts `count` new tokens of each sequence: starts and rows of the cache, 2 x B."""
    cache.refuse_beyond(max(start) + count)
    return torch.tensor([list(start), list(rows or range(len(start)))])


def _together(layers: Sequence[Layer], model: Model) -> Layers | None:
    """All layers in one kernel, where each of their matrices has one; their cores start it once a token."""
    found: list[Matrices] = []
    for layer in layers:
        ffn = layer.ffn
        weights = (layer.qkv, layer.output, ffn.up, ffn.down) if isinstance(ffn, feedforward.DenseFfn) else ()
        panels = [weight.panels for weight in weights if isinstance(weight, PanelWeight)]
        if len(panels) < 4 or not (layer.attention_norm.has_kernel and layer.ffn_norm.has_kernel):
            return None
        qkv, output, up, down = panels
        found.append(Matrices(layer.attention_norm.weight_D, qkv, output, layer.ffn_norm.weight_D, up, down))
    return Layers(found, eps=model.norm_eps) if found else None


def _mask(start: Sequence[int], count: int, like: Tensor) -> Tensor | bool | None:
    """What is added to scores, B x 1 x T x S; True for plain causal attention from 0, None where all is visible.

    A mask of numbers, in the queries' type: with one of truth values torch's CPU kernel takes ten times as long.
    """
    uniform = min(start) == max(start)
    if uniform and (count == 1 or start[0] == 0):
        return True if count > 1 else None
    place_BT = torch.tensor(start, device=like.device)[:, None] + torch.arange(count, device=like.device)
    seen_BTS = torch.arange(max(start) + count, device=like.device) <= place_BT[..., None]
    zero = torch.zeros(seen_BTS.shape, dtype=like.dtype, device=like.device)
    return zero.masked_fill_(~seen_BTS, float("-inf"))[:, None]


def _ready_kernels(device: torch.device) -> AbstractContextManager[object]:
    """Attention without cuDNN on CUDA, which builds a plan for each new pair of lengths.

    A text that grows token by token meets a new one at every step, and drafts of changing lengths meet far more.
    """
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def _attend_causally(q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor) -> Tensor:
    """From the beginning, B x T x H x C; training's attention is made for whole registers of tokens."""
    if q_BHTC.shape[2] % native.MULTIPLE == 0:
        return attention.attend(q_BHTC, k_BKTC, v_BKTC)
    return torch_attention(q_BHTC, k_BKTC, v_BKTC, causal=True).transpose(1, 2)


def _attend(q_BHTC: Tensor, keys_BKSC: Tensor, values_BKSC: Tensor, mask: Tensor | None) -> Tensor:
    heads, key_heads, count = q_BHTC.shape[1], keys_BKSC.shape[1], q_BHTC.shape[2]
    if count > 1:
        return torch_attention(q_BHTC, keys_BKSC, values_BKSC, mask)
    # One query a head: those that share keys are rows of one product. A product of a single row is four times as slow
    # as one of two in bfloat16 on a CPU, so a row that stands alone is asked for twice.
    q_BKGC = q_BHTC.reshape(len(q_BHTC), key_heads, heads // key_heads, -1)
    alone = heads == key_heads and q_BHTC.dtype == torch.bfloat16 and q_BHTC.device.type == "cpu"
    rows = q_BKGC.repeat(1, 1, 2, 1) if alone else q_BKGC
    out_BKGC = torch_attention(rows, keys_BKSC, values_BKSC, mask)
    return (out_BKGC[:, :, :1] if alone else out_BKGC).reshape(q_BHTC.shape)
