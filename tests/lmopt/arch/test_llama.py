"""The dense decoder is Llama: equal logits from the same random weights as in Hugging Face's implementation."""

from __future__ import annotations

import warnings

import pytest
import torch

from lmopt.arch.transformer import build
from lmopt.recipe import Model, Recipe, SwiGlu

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_those_of_hugging_face(tied):
    shape = Model(layers=3, width=48, heads=6, kv_heads=2, vocab=97, context=64, tied_head=tied)
    ours = build(Recipe(model=shape, ffn=SwiGlu(hidden=80), batching={"length": 64}, tokens=100_000), seed=0)
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=shape.norm_eps,
        rope_theta=shape.rope_base,
        tie_word_embeddings=tied,
        attention_bias=False,
        mlp_bias=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.LlamaForCausalLM(config).eval()
    p = {name: torch.randn_like(value) * 0.1 + (value.dim() == 1) for name, value in ours.state_dict().items()}
    ours.load_state_dict(p)
    renamed = {"model.embed_tokens.weight": p["embedding.weight"], "model.norm.weight": p["norm.weight"]}
    renamed["lm_head.weight"] = p["embedding.weight" if tied else "head.weight"]
    for i in range(3):
        a, b = f"blocks.{i}.", f"model.layers.{i}."
        q, k, v = p[a + "attention.qkv.weight"].split([48, 16, 16])
        gate, up = p[a + "ffn.gate_up.weight"].chunk(2)
        renamed |= {
            b + "self_attn.q_proj.weight": q,
            b + "self_attn.k_proj.weight": k,
            b + "self_attn.v_proj.weight": v,
            b + "self_attn.o_proj.weight": p[a + "attention.output.weight"],
            b + "mlp.gate_proj.weight": gate,
            b + "mlp.up_proj.weight": up,
            b + "mlp.down_proj.weight": p[a + "ffn.down.weight"],
            b + "input_layernorm.weight": p[a + "attention_norm.weight"],
            b + "post_attention_layernorm.weight": p[a + "ffn_norm.weight"],
        }
    theirs.load_state_dict(renamed)
    tokens = torch.randint(97, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)
