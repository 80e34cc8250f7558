"""Checkpoints of Hugging Face's Llama, Mixtral and OLMoE: equal logits both ways, and what is wrong with bad ones."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from lmopt.arch.hfcheckpoint import described, token_ids
from lmopt.arch.interchange import InterchangeError, load_hf, save_hf
from lmopt.arch.transformer import build
from lmopt.recipe import Model, Moe, Recipe, Relu2, SwiGlu

SHAPE = {"layers": 2, "width": 48, "heads": 6, "kv_heads": 2, "vocab": 97, "context": 64}


def recipe(ffn, **shape) -> Recipe:
    return Recipe(model=Model(**SHAPE | shape), ffn=ffn, batching={"length": 64}, tokens=100_000)


KINDS = {
    "llama": recipe(SwiGlu(hidden=80), tied_head=False),
    "llama-tied": recipe(SwiGlu(hidden=80), rope_base=5e5, norm_eps=1e-6),
    "mixtral": recipe(Moe(experts=4, top_k=2, hidden=40), tied_head=False),
    "mixtral-top1": recipe(Moe(experts=3, top_k=1, hidden=40, normalise=True)),
    "olmoe": recipe(Moe(experts=6, top_k=3, hidden=24, normalise=False), qk_norm=True, qk_norm_over="all"),
    "olmoe-normalised": recipe(Moe(experts=6, top_k=3, hidden=24), qk_norm=True, qk_norm_over="all", kv_heads=6),
}
TOKENS = torch.randint(97, (2, 50), generator=torch.Generator().manual_seed(0))


def model_of(described: Recipe):
    model = build(described, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():  # norms too, or a mistaken one would not show
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model.eval()


def theirs(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_what_we_write_transformers_reads(kind, tmp_path):
    described = KINDS[kind]
    ours = model_of(described)
    save_hf(ours, described, tmp_path)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(theirs(tmp_path)(TOKENS).logits, ours(TOKENS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_transformers_writes_we_read(kind, tmp_path):
    described = KINDS[kind]
    save_hf(model_of(described), described, tmp_path / "a")
    other = theirs(tmp_path / "a")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for parameter in other.parameters():
            parameter.mul_(1.1)
        other.save_pretrained(tmp_path / "b", max_shard_size="100KB")
        found, ours = load_hf(tmp_path / "b")
        assert found.model == described.model
        assert found.ffn.hidden_for(48) == described.ffn.hidden_for(48)
        torch.testing.assert_close(ours(TOKENS), other(TOKENS).logits, rtol=1e-5, atol=1e-5)
    assert (tmp_path / "b" / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("shard_bytes", [10**9, 30_000])
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_is_exact(kind, shard_bytes, tmp_path):
    described = KINDS[kind]
    ours = model_of(described)
    save_hf(ours, described, tmp_path, shard_bytes=shard_bytes)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_bytes < 10**9)
    found, again = load_hf(tmp_path)
    assert not again.training
    assert found.model == described.model
    for (name, ours_value), (_, value) in zip(ours.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(ours_value, value), name


@pytest.mark.parametrize("sizes", [(10**9, 30_000), (30_000, 10**9), (30_000, 60_000)], ids=["more", "one", "fewer"])
def test_a_checkpoint_written_over_another_is_the_new_one(sizes, tmp_path):
    described = KINDS["llama-tied"]
    (tmp_path / "model-card.safetensors").write_bytes(b"not ours")
    for seed, shard_bytes in enumerate(sizes):
        save_hf(build(described, seed=seed), described, tmp_path, shard_bytes=shard_bytes)
    ours, (_, found) = build(described, seed=1).eval(), load_hf(tmp_path)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(found(TOKENS), ours(TOKENS))
        torch.testing.assert_close(theirs(tmp_path)(TOKENS).logits, ours(TOKENS), rtol=1e-5, atol=1e-5)
    assert (tmp_path / "model-card.safetensors").exists()


def test_of_a_single_file_and_an_index_the_single_one_counts(tmp_path):
    described = KINDS["llama-tied"]
    save_hf(build(described, seed=0), described, tmp_path, shard_bytes=30_000)
    save_hf(build(described, seed=1), described, tmp_path / "new")
    shutil.copy(tmp_path / "new" / "model.safetensors", tmp_path)
    with torch.no_grad():
        assert torch.equal(load_hf(tmp_path)[1](TOKENS), build(described, seed=1).eval()(TOKENS))


def test_half_precision_is_read_as_float32(tmp_path):
    described = KINDS["llama"]
    save_hf(model_of(described), described, tmp_path, dtype=torch.bfloat16)
    assert load_file(tmp_path / "model.safetensors")["lm_head.weight"].dtype == torch.bfloat16
    _, model = load_hf(tmp_path)
    assert model.embedding.weight.dtype == torch.float32


def test_the_example_of_the_page(tmp_path, monkeypatch):
    page = (Path(__file__).parents[3] / "docs" / "interchange.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    described = KINDS["llama"]
    save_hf(model_of(described), described, tmp_path / "path" / "to" / "checkpoint")
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert load_hf(tmp_path / "path" / "to" / "another")[0].model == described.model


# --- what is wrong is named ----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    described = KINDS["mixtral"]
    save_hf(model_of(described), described, tmp_path)
    return tmp_path


def edit_weights(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def message(folder) -> str:
    with pytest.raises(InterchangeError) as caught:
        load_hf(folder)
    return str(caught.value)


def test_a_wrong_shape_names_key_and_both_shapes(folder):
    key = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    edit_weights(folder, lambda tensors: tensors.update({key: torch.zeros(40, 47)}))
    assert f"{key} has shape (40, 47), expected (40, 48)" in message(folder)


def test_missing_and_unknown_keys_are_named(folder):
    key = "model.layers.0.self_attn.q_proj.weight"
    edit_weights(folder, lambda tensors: tensors.update({f"{key}_scale": tensors.pop(key)}))
    assert f"1 missing [{key}], 1 unknown [{key}_scale]" in message(folder)


def test_a_mismatched_configuration_is_noticed(folder):
    edit_config(folder, intermediate_size=48)
    assert "has shape (40, 48), expected (48, 48)" in message(folder)
    edit_config(folder, intermediate_size=40, num_hidden_layers=3)
    assert "missing [model.layers.2." in message(folder)


def test_damaged_files(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "not a readable safetensors file" in message(folder)
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in message(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "pickled weights" in message(folder)
    (folder / "config.json").write_text("{")
    assert "config.json: not JSON" in message(folder)
    (folder / "config.json").unlink()
    assert "config.json: cannot be read" in message(folder)


def test_a_damaged_index(folder):
    described = KINDS["mixtral"]
    save_hf(model_of(described), described, folder, shard_bytes=30_000)
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    (folder / sorted(set(good["weight_map"].values()))[1]).unlink()
    assert "model-00002-of-" in message(folder)
    save_hf(model_of(described), described, folder, shard_bytes=30_000)
    first, second, *_ = sorted(set(good["weight_map"].values()))
    shutil.copy(folder / first, folder / second)
    assert f"model.embed_tokens.weight stands in {first} and in {second}, allowed: one of them" in message(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    assert "leads out of the folder" in message(folder)
    index.write_text("{}")
    assert "weight_map does not map" in message(folder)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2', allowed: llama, mixtral, olmoe"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', allowed: 'silu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, allowed: 1.0"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope_type is 'yarn', allowed: 'default'"),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "rope_parameters is {'rope_type': 'default'} and rope_scaling {'rope_type': 'linear', 'factor': 2.0}",
        ),
        ({"rope_parameters": {"rope_theta": 0}}, "describes no model (rope_base: Input should be greater than 1"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "auto_map is"),
        ({"sliding_window": 32}, "sliding_window is 32"),
        ({"head_dim": 16}, "head_dim is 16"),
        ({"num_experts_per_tok": 5}, "top_k (5) must not exceed experts (4)"),
        ({"num_attention_heads": 5}, "heads (5) must divide width (48)"),
        ({"hidden_size": None}, "describes no model (width"),
        ({"hidden_size": "48"}, "hidden_size is '48', allowed: a whole number"),
        ({"head_dim": [16]}, "head_dim is [16], allowed: a whole number"),
        ({"vocab_size": None}, "vocab_size is None, allowed: a whole number"),
        ({"sliding_window": "all"}, "sliding_window is 'all', allowed: a whole number"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear', allowed: null or an object"),
        ({"model_type": ["llama"]}, "model_type is ['llama'], allowed: llama, mixtral, olmoe"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_we_do_not_have_is_refused(folder, values, expected):
    edit_config(folder, **values)
    assert expected in message(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(folder, value):
    key = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    edit_weights(folder, lambda tensors: tensors[key][3, 4:5].fill_(value))
    assert f"model.safetensors: {key} holds weights that are infinite or no numbers" in message(folder)


def test_a_configuration_nested_without_end(folder):
    (folder / "config.json").write_text("[" * 100_000 + "]" * 100_000)
    assert "config.json: not JSON" in message(folder)


def test_a_head_that_is_not_the_tied_embedding(tmp_path):
    described = KINDS["llama-tied"]
    save_hf(model_of(described), described, tmp_path)
    same = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    edit_weights(tmp_path, lambda tensors: tensors.update({"lm_head.weight": same.clone()}))
    load_hf(tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.update({"lm_head.weight": same + 1}))
    assert "lm_head.weight differs from the embedding" in message(tmp_path)


@pytest.mark.parametrize(
    "described",
    [
        recipe(Relu2()),
        recipe(SwiGlu(), qk_norm=True),
        recipe(Moe(normalise=False)),
        recipe(Moe(shared=1)),
        recipe(Moe(routing={"kind": "loss_free"})),
    ],
    ids=["relu2", "qk-norm", "bare-gates", "shared", "loss-free"],
)
def test_a_model_that_no_architecture_is(described, tmp_path):
    with pytest.raises(InterchangeError, match="is neither Llama"):
        save_hf(build(described, seed=0), described, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": 3}, r"blocks.2.attention_norm.weight: the model's shape is None, the recipe's \(48,\)"),
        ({"layers": 1}, "blocks.1.attention_norm.weight: the model's shape is .*, the recipe's None"),
        ({"vocab": 90}, r"embedding.weight: the model's shape is \(97, 48\), the recipe's \(90, 48\)"),
        ({"tied_head": False}, "head.weight: the model's shape is None"),
        ({"kv_heads": 3}, "blocks.0.attention.qkv.weight"),
        ({"heads": 12, "kv_heads": 4}, "model.heads: the model's is 6, the recipe's 12"),
        ({"rope_base": 7.0}, "model.rope_base: the model's is 500000.0, the recipe's 7.0"),
    ],
)
def test_another_model_s_recipe_is_refused_and_nothing_is_lost(change, words, tmp_path):
    described = KINDS["llama-tied"]
    model = model_of(described)
    save_hf(model, described, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    other = described.model_copy(update={"model": described.model.model_copy(update=change)})
    with pytest.raises(InterchangeError, match=words):
        save_hf(model, other, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_another_number_of_experts_chosen_is_refused(tmp_path):
    described, other = KINDS["mixtral"], recipe(Moe(experts=4, top_k=3, hidden=40), tied_head=False)
    with pytest.raises(InterchangeError, match=r"ffn.top_k: the model's is 2, the recipe's 3"):
        save_hf(model_of(described), other, tmp_path)


# --- without torch -------------------------------------------------------------------------------


def test_a_checkpoint_is_described_without_torch_and_without_its_weights(folder):
    program = f"import sys; from lmopt.arch.hfcheckpoint import described; found = described({str(folder)!r})\n"
    program += "print(found.recipe.model.layers, len(found.pieces), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", str(len(load_file(folder / "model.safetensors"))), "False"]


def test_the_hash_is_of_configuration_tokenizer_and_weights(folder):
    (folder / "tokenizer.json").write_text("{}")
    seen = {described(folder).sha256()}
    (folder / "README.md").write_text("says nothing of the model")
    assert described(folder).sha256() in seen
    for change in (
        lambda: edit_config(folder, rope_theta=5e5),
        lambda: (folder / "tokenizer.json").write_text('{"model": {}}'),
        lambda: edit_weights(folder, lambda tensors: tensors["model.norm.weight"].add_(1)),
    ):
        change()
        assert described(folder).sha256() not in seen
        seen.add(described(folder).sha256())


def test_quantised_weights_are_refused(folder):
    key = "model.layers.0.self_attn.q_proj.weight"
    edit_weights(folder, lambda tensors: tensors.update({key: tensors[key].to(torch.int8)}))
    assert f"{key} has type I8, allowed: F64, F32, F16, BF16" in message(folder)


def test_tokens_of_every_kind_of_tokenizer(folder):
    path, vocab = folder / "tokenizer.json", {"a": 0, "b": 1}
    kinds = (
        models.BPE(vocab=vocab, merges=[]),
        models.WordLevel(vocab=vocab, unk_token="a"),
        models.WordPiece(vocab=vocab, unk_token="a"),
        models.Unigram([("a", -1.0), ("b", -2.0)], 0),
    )
    for kind in kinds:
        found = Tokenizer(kind)
        found.save(str(path))
        assert token_ids(folder) == vocab
        found.add_special_tokens(["<s>", "b"])
        found.save(str(path))
        assert token_ids(folder) == {**vocab, "<s>": 2}


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: saved.pop("model"),
        lambda saved: saved["model"].update(type="Other"),
        lambda saved: saved["model"].update(vocab=3),
        lambda saved: saved["model"].update(vocab=["a", "b"]),
        lambda saved: saved["model"]["vocab"].update(a="x"),
        lambda saved: saved["model"]["vocab"].update(a=-1),
        lambda saved: saved["model"].update(merges=[["a", "c"]]),
    ],
    ids=["no model", "unknown kind", "number", "list", "id is text", "negative id", "unknown merge"],
)
def test_a_damaged_tokenizer_is_named(folder, damage):
    path = folder / "tokenizer.json"
    saved = json.loads(Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[])).to_str())
    damage(saved)
    path.write_text(json.dumps(saved))
    with pytest.raises(InterchangeError, match=r"tokenizer\.json: not a tokenizer"):
        token_ids(folder)
