"""Greedy decoding of one text at 94M parameters: our decoder in bf16 and 8 bits against Hugging Face's generate.

    python benchmarks/decode.py                            # needs the `bench` extra
    python benchmarks/decode.py --products                 # the matrix products alone, by width and rows
    python benchmarks/decode.py --rows                     # what one more row takes, as a share of a pass over one
    python benchmarks/decode.py --attention                # new tokens over a cache: torch's operations and our kernel
    python benchmarks/decode.py --experts                  # sparse layers: expert by expert, or as in training

All run the same random weights, from the same prompt. One round times each runner once forwards and once backwards,
A B C C B A; the ratio is the median over rounds, so what drifts hits all alike. With one thread the clock is processor
time, which neighbours on the machine disturb less than wall time. Tokens a second count decoding only: our prompt is
read before the clock starts, and Hugging Face's time for one token is taken off its time for all.

The share of the memory bandwidth is bytes of weights read a token x tokens a second, over what adding up a tensor of
as many bytes reaches in the same rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
import unittest.mock
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, get_args

import torch
from torch.nn import functional
from turns import compare as in_turn

from lmopt.arch import fused, transformer
from lmopt.arch.transformer import Transformer
from lmopt.compute.memory import tune_allocator
from lmopt.infer.decoder import Decoder
from lmopt.infer.feedforward import ModuleFfn
from lmopt.infer.generate import generate
from lmopt.infer.weights import Format, pack
from lmopt.recipe import FixedBatch, Model, Moe, Recipe, SwiGlu

Clock = Callable[[], float]


def describe(layers: int, width: int, vocab: int, context: int) -> Recipe:
    """A dense decoder with heads of 64 and a tied head."""
    shape = Model(layers=layers, width=width, heads=width // 64, vocab=vocab, context=context)
    return Recipe(model=shape, ffn=SwiGlu(), batching=FixedBatch(length=context), tokens=10**9)


def hugging_face(model: Transformer, hidden: int) -> Any:
    """The same weights as a transformers Llama in bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = model.model
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=shape.context,
        rms_norm_eps=shape.norm_eps,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    theirs = LlamaForCausalLM(config)
    with torch.no_grad():
        theirs.model.embed_tokens.weight.copy_(model.embedding.weight)
        for ours, layer in zip(model.blocks, theirs.model.layers, strict=True):
            q, k, v = ours.attention.qkv.weight.split([shape.width, *[shape.key_heads * shape.head_width] * 2])
            for projection, weight in zip(("q_proj", "k_proj", "v_proj"), (q, k, v), strict=True):
                getattr(layer.self_attn, projection).weight.copy_(weight)
            layer.self_attn.o_proj.weight.copy_(ours.attention.output.weight)
            gate, up = ours.ffn.gate_up.weight.chunk(2)
            layer.mlp.gate_proj.weight.copy_(gate)
            layer.mlp.up_proj.weight.copy_(up)
            layer.mlp.down_proj.weight.copy_(ours.ffn.down.weight)
    return theirs.eval().bfloat16()


def ours_s(decoder: Decoder, prompt: list[int], new: int, clock: Clock) -> float:
    """Seconds of `new` tokens behind the first."""
    steps = generate(decoder, [prompt], max_new=new + 1)
    next(steps)
    start_s = clock()
    for _ in steps:
        pass
    return clock() - start_s


def theirs_s(model: Any, prompt: list[int], new: int, clock: Clock) -> float:
    """The same by Hugging Face."""
    tokens = torch.tensor([prompt])

    def timed(count: int) -> float:
        start_s = clock()
        with torch.inference_mode():
            model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count, min_new_tokens=count,
                           do_sample=False)  # fmt: skip
        return clock() - start_s

    return timed(new + 1) - timed(1)


def _without_kernels() -> AbstractContextManager[object]:
    """What is packed in it goes by torch's operations."""
    return unittest.mock.patch.object(fused, "_obstacle", return_value="left out")


def _composed(model: Transformer, format: Format) -> Decoder:
    """The same weights without kernels of our own."""
    with _without_kernels():
        return Decoder(model, format)


def read_s(buffer: torch.Tensor, clock: Clock) -> float:
    """Seconds of reading a buffer once."""
    start_s = clock()
    buffer.sum()
    return clock() - start_s


def compare(args: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """Tokens a second of each runner, ratios against Hugging Face, share of the bandwidth."""
    recipe = describe(args.layers, args.width, args.vocab, args.context)
    model = transformer.build(recipe, seed=0).eval()
    decoders = {f"ours {format}": Decoder(model, format) for format in ("bf16", "int8", "int8_dynamic")}
    if args.composed:
        formats: tuple[Format, ...] = ("bf16", "int8", "int8_dynamic")
        decoders |= {f"ours {format}, by torch's operations": _composed(model, format) for format in formats}
    runners: dict[str, Callable[[], float]] = {
        name: lambda decoder=decoder: ours_s(decoder, prompt, args.new, clock) for name, decoder in decoders.items()
    }
    prompt = torch.randint(0, args.vocab, (args.prompt,), generator=torch.Generator().manual_seed(0)).tolist()
    theirs = hugging_face(model, recipe.ffn.hidden_for(args.width))
    runners["hugging face"] = lambda: theirs_s(theirs, prompt, args.new, clock)
    buffer = torch.zeros(decoders["ours bf16"].nbytes // 4)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    bandwidth: list[float] = []
    for number in range(args.rounds + 1):
        order = [*runners, *reversed(runners)]
        times = [(name, runners[name]()) for name in order]
        if number == 0:
            continue  # warm-up
        for name in runners:
            seconds[name].append(sum(time_s for found, time_s in times if found == name) / (2 * args.new))
        bandwidth.append(buffer.nbytes / min(read_s(buffer, clock) for _ in range(5)))
    held = sum(parameter.numel() for parameter in model.parameters())
    result: dict[str, Any] = {
        "parameters": held,
        "threads": torch.get_num_threads(),
        "bandwidth_bytes_per_s": statistics.median(bandwidth),
    }
    for name, found in seconds.items():
        ratios = [theirs / own for theirs, own in zip(seconds["hugging face"], found, strict=True)]
        result[name] = {"tokens_per_s": 1 / statistics.median(found), "against_hugging_face": statistics.median(ratios)}
        if name in decoders:
            shares = [decoders[name].nbytes / own / speed for own, speed in zip(found, bandwidth, strict=True)]
            result[name]["share_of_bandwidth"] = statistics.median(shares)
    return result


def rows(args: argparse.Namespace, clock: Clock, rounds: int = 25) -> dict[str, Any]:
    """Time of one more row as a share of a pass over one, by how many there are; medians over interleaved rounds."""
    model = transformer.build(describe(args.layers, args.width, args.vocab, args.context), seed=0).eval()
    result: dict[str, Any] = {}
    for format in get_args(Format):
        decoder = Decoder(model, format)
        cache = decoder.new_cache(batch=1, capacity=args.prompt + 24)
        cache.advance([args.prompt])
        found: dict[int, list[float]] = {count: [] for count in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 24)}
        for _ in range(rounds):
            for count, seconds in found.items():
                tokens_BT = torch.randint(0, args.vocab, (1, count))
                start_s = clock()
                decoder.logits(decoder.norm(decoder.run(decoder.embed(tokens_BT), cache)))
                seconds.append(clock() - start_s)
        times = {count: statistics.median(seconds) for count, seconds in found.items()}
        shares = {
            count: round((time_s / times[1] - 1) / (count - 1), 3) for count, time_s in times.items() if count > 1
        }
        result[format] = {"ms": round(1e3 * times[1], 2), "one_more": shares}
    return result


def products(width: int, clock: Clock, rounds: int = 40) -> dict[str, Any]:
    """Microseconds of one product, best of several, on matrices that do not stay in a core's cache."""
    result: dict[str, Any] = {}
    for outputs in (3 * width, 16 * width // 3, 32_000):
        copies = max(1, 60_000_000 // (2 * outputs * width))
        weights = [torch.randn(outputs, width) for _ in range(copies)]
        formats: tuple[Format, ...] = ("bf16", "int8", "int8_dynamic")
        kinds: dict[str, list[Any]] = {format: [pack(weight, format) for weight in weights] for format in formats}
        with _without_kernels():
            kinds |= {f"{format}, torch": [pack(weight, format) for weight in weights] for format in formats}
        plain = [weight.bfloat16() for weight in weights]
        kinds["linear bf16"] = [lambda x, weight=weight: functional.linear(x, weight) for weight in plain]
        for rows in (1, 5, 32, 128):
            x = torch.randn(rows, width).bfloat16()
            for kind, matrices in kinds.items():
                found = [_product_s(matrices[i % copies], x, clock) for i in range(rounds)]
                result[f"{width} -> {outputs}, {rows} rows, {kind}"] = round(1e6 * min(found[5:]), 1)
    return result


def attention(threads: int, rounds: int = 9) -> dict[str, Any]:
    """Attention of new tokens over a cache, with positions and what is written: our kernel and torch's operations.

    Microseconds a layer, and how many times as fast the kernel is: median, least and most of the rounds.
    """
    if (missing := fused.obstacle()) is not None:
        raise SystemExit(f"no kernel to compare with: {missing}")
    result: dict[str, Any] = {}
    formats: tuple[Format, ...] = ("bf16", "fp32")
    for key_heads, format in itertools.product((12, 3), formats):
        shape = Model(layers=4, width=768, heads=12, kv_heads=key_heads, vocab=64, context=2048)
        recipe = Recipe(model=shape, ffn=SwiGlu(), batching=FixedBatch(length=64), tokens=10**6)
        decoder = Decoder(transformer.build(recipe, seed=0).eval(), format)
        for texts, before, new in (
            (1, 64, 1),
            (1, 512, 1),
            (1, 1900, 1),
            (1, 512, 5),
            (1, 512, 32),
            (16, 200, 1),
            (16, 200, 5),
        ):
            cache = decoder.new_cache(batch=texts, capacity=before + new)
            cache.advance([before] * texts)
            x_BTD = torch.randn(texts, new, shape.width).to(decoder.dtype)
            qkv_BTF = decoder.layers[0].qkv(x_BTD)
            ways = []
            for decoder._extends in (False, True):
                attend = decoder._attention(x_BTD, cache, cache.lengths, None)
                ways.append(lambda attend=attend, qkv_BTF=qkv_BTF: [attend(layer, qkv_BTF) for layer in range(4)])
            found = in_turn(*ways, rounds=rounds, warmup_rounds=2, threads=threads)
            result[f"12 heads on {key_heads}, {format}, {texts} x {new} tokens behind {before}"] = {
                "torch_us": round(1e6 * found.first_s / 4, 1),
                "kernel_us": round(1e6 * found.second_s / 4, 1),
                "times_as_fast": found.times_as_fast(),
            }
    return result


def experts(clock: Clock, rounds: int = 15, layers: int = 4) -> dict[str, Any]:
    """Milliseconds of a bf16 pass over sparse layers, median: expert by expert, and by training's products."""
    result: dict[str, Any] = {}
    for width, count, chosen, split in ((512, 8, 2, 1), (256, 16, 4, None), (128, 64, 8, None)):
        shape = Model(layers=layers, width=width, heads=4, vocab=512, context=512)
        sparse = Moe(experts=count, top_k=chosen, split=split)
        model = transformer.build(Recipe(model=shape, ffn=sparse, batching=FixedBatch(length=32), tokens=10**9), seed=0)
        ours, training = Decoder(model.eval(), "bf16"), Decoder(model, "bf16")
        for layer, block in zip(training.layers, model.blocks, strict=True):
            layer.ffn = ModuleFfn(block.ffn, "bf16")
        for label, (texts, tokens) in {"1 token": (1, 1), "256 of a prompt": (1, 256), "64 texts": (64, 1)}.items():
            found: dict[str, list[float]] = {"one by one": [], "as in training": []}
            for _ in range(rounds):
                text_BT = torch.randint(0, 512, (texts, tokens))
                for way, decoder in zip(found, (ours, training), strict=True):
                    cache = decoder.new_cache(batch=texts, capacity=tokens)
                    start_s = clock()
                    decoder.extend(text_BT, cache)
                    found[way].append(clock() - start_s)
            times = {way: 1e3 * statistics.median(seconds[3:]) for way, seconds in found.items()}
            ratio = times["one by one"] / times["as in training"]
            result[f"width {width}, {chosen} of {count}, {label}"] = {
                **{way: round(ms, 2) for way, ms in times.items()}, "ratio": round(ratio, 2)
            }  # fmt: skip
    return result


def _product_s(weight: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, clock: Clock) -> float:
    start_s = clock()
    weight(x)
    return clock() - start_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=704)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens decoded a time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--composed", action="store_true", help="ours by torch's operations, without our kernels, too")
    parser.add_argument("--products", action="store_true", help="time the matrix products alone")
    parser.add_argument("--attention", action="store_true", help="time attention over a cache alone")
    parser.add_argument("--rows", action="store_true", help="time passes over a few rows")
    parser.add_argument("--experts", action="store_true", help="time sparse layers alone")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tune_allocator()
    warnings.simplefilter("ignore")  # transformers' remarks on generation settings
    clock = time.process_time if args.threads == 1 else time.perf_counter
    with torch.inference_mode():
        if args.attention:
            result = attention(args.threads)
        elif args.rows:
            result = rows(args, clock)
        elif args.experts:
            result = experts(clock)
        else:
            result = products(args.width, clock) if args.products else compare(args, clock)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
