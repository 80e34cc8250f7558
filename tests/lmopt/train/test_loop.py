"""The training loop: learning, determinism, accumulation, divergence, lag."""

import itertools
from dataclasses import replace

import pytest
import torch

from lmopt.recipe import Bf16, LayerSkip, Recipe
from lmopt.train import compiling, loop
from lmopt.train.loop import Diverged

KINDS = {
    "fp32": {},
    "bf16": {"precision": {"kind": "bf16"}},
    "relu2": {"ffn": {"kind": "relu2"}},
    "bf16_sr": {"precision": {"kind": "bf16_sr"}},
    "int8": {"precision": {"kind": "int8", "grad_weight": True, "rounding": "stochastic", "outliers": "smooth"}},
    "adamw_8bit": {"optimizer": {"kind": "adamw_8bit", "lr": 1e-2, "block": 16}},
    "moe": {"ffn": {"kind": "moe", "experts": 4, "top_k": 2}},
    "moe bf16": {"ffn": {"kind": "moe", "experts": 4, "top_k": 2}, "precision": {"kind": "bf16"}},
    "accumulated": {"batching": {"sequences": 4, "length": 16, "micro_sequences": 1}},
}


def run(recipe, batches, *, seed=0, horizon=1.0, lag=None):
    state = loop.start(recipe, seed=seed, horizon=horizon)
    steps = list(loop.train(state, batches, lag=lag))
    return state, steps


def weights(state):
    return dict(state.model.named_parameters())


def same_bits(a, b):
    return all(torch.equal(weights(a)[name], weights(b)[name]) for name in weights(a))


@pytest.mark.parametrize("change", KINDS.values(), ids=KINDS.keys())
def test_every_kind_learns(recipe, batches, change):
    state, steps = run(recipe(**change, tokens=64 * 40), batches())
    assert [s.index for s in steps] == list(range(1, 41))
    assert state.step == state.total_steps == 40
    assert steps[-1].loss < 0.6 * steps[0].loss
    assert all(s.tokens == 64 and s.notes["grad_norm"] > 0 for s in steps)


@pytest.mark.parametrize("change", KINDS.values(), ids=KINDS.keys())
def test_same_seed_same_bits(recipe, batches, change):
    (a, steps_a), (b, steps_b) = (run(recipe(**change), batches()) for _ in range(2))
    assert same_bits(a, b)
    assert [s.loss for s in steps_a] == [s.loss for s in steps_b]


def test_another_seed_or_order_gives_other_bits(recipe, batches):
    base, _ = run(recipe(), batches())
    assert not same_bits(base, run(recipe(), batches(), seed=1)[0])
    assert not same_bits(base, run(recipe(), batches(seed=1))[0])


def test_accumulated_micro_batches_equal_one_batch(recipe, batches):
    whole, steps = run(recipe(), batches())
    parts, part_steps = run(recipe(batching={"sequences": 4, "length": 16, "micro_sequences": 2}), batches())
    for one, two in zip(steps, part_steps, strict=True):
        assert two.loss == pytest.approx(one.loss, rel=1e-3)
    first, second = steps[0], part_steps[0]  # before rounding differences grow: equal to reduction order
    assert second.loss == pytest.approx(first.loss, rel=1e-6)
    assert second.notes["grad_norm"] == pytest.approx(first.notes["grad_norm"], rel=1e-5)
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], weight, atol=2e-3, rtol=0)


def test_first_update_is_adamw_by_hand(recipe, batches):
    """One step against the textbook formulas: clip, moments, bias correction, decoupled decay on matrices only."""
    config = recipe(optimizer={"lr": 1e-2, "clip": 0.1, "weight_decay": 0.5})
    state = loop.start(config, seed=0)
    before = {name: p.detach().clone() for name, p in weights(state).items()}
    batch = next(batches())
    state.model.loss(batch[:, :-1], batch[:, 1:]).total.backward()
    gradients = {name: p.grad.clone() for name, p in weights(state).items()}
    state.model.zero_grad()
    norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt().item()
    step = next(loop.train(state, [batch]))
    assert step.notes["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert norm > 0.1
    lr = step.notes["lr"]
    for name, after in weights(state).items():
        g = gradients[name] * (0.1 / norm)
        decay = 0.5 if after.ndim == 2 and name != "embedding.weight" else 0.0
        wanted = before[name] * (1 - lr * decay) - lr * g / (g.abs() + 1e-8)  # m / sqrt(v) is g / |g| at step 1
        torch.testing.assert_close(after, wanted, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_lag_changes_nothing_that_is_yielded(recipe, batches, lag):
    _, now = run(recipe(), batches(), lag=0)
    _, later = run(recipe(), batches(), lag=lag)
    assert now == later


def test_lag_dispatches_ahead(recipe, batches):
    state = loop.start(recipe(), seed=0)
    step = next(loop.train(state, batches(), lag=1))
    assert (step.index, state.step) == (1, 2)


@pytest.mark.parametrize("lag", [0, 1])
def test_divergence_is_an_event_with_its_step(recipe, batches, lag):
    state = loop.start(recipe(), seed=0)
    steps = loop.train(state, batches(), lag=lag)
    seen = [next(steps).index for _ in range(3 - lag)]
    state.model.norm.weight.data[0] = float("nan")
    seen += [next(steps).index for _ in range(lag)]
    assert seen == [1, 2, 3]
    with pytest.raises(Diverged, match="step 4") as caught:
        next(steps)
    assert caught.value.step == 4


def test_an_infinite_gradient_is_divergence_too(recipe, batches):
    state = loop.start(recipe(), seed=0)
    state.optimizer.step = lambda share: torch.tensor(float("inf"))
    with pytest.raises(Diverged, match="gradient norm inf"):
        next(loop.train(state, batches()))


def test_horizon_scales_steps_and_anneals_fully(recipe, batches):
    state, steps = run(recipe(), batches(), horizon=0.5)
    assert state.total_steps == 6
    assert steps[-1].notes["lr"] == pytest.approx(0.1 * 1e-2)


def test_auxiliary_losses_train_the_router(recipe, batches):
    """The balance loss must reach the update: without it the weights end elsewhere."""
    moe = {"kind": "moe", "experts": 4, "top_k": 2}
    with_loss, _ = run(recipe(ffn=moe | {"balance_loss": 1.0}), batches())
    without, _ = run(recipe(ffn=moe | {"balance_loss": 0.0}), batches())
    assert not same_bits(with_loss, without)


def test_model_report_is_read_at_the_end(recipe, batches):
    _, steps = run(recipe(ffn={"kind": "moe", "experts": 4, "top_k": 2}), batches())
    assert any(name.startswith("layer0/") for name in steps[-1].notes)
    assert not any(name.startswith("layer0/") for name in steps[0].notes)


def test_missing_vocabulary_and_bad_horizon_fail_before_work(recipe):
    no_vocab = recipe(model={"layers": 1, "width": 32, "heads": 2})
    with pytest.raises(ValueError, match=r"model\.vocab is not set"):
        loop.start(no_vocab, seed=0)
    for horizon in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="horizon must be a positive number"):
            loop.start(recipe(), seed=0, horizon=horizon)


def test_wrong_batches_are_named(recipe, batches):
    with pytest.raises(ValueError, match=r"shape \(4, 16\), expected \(4, 17\)"):
        next(loop.train(loop.start(recipe(), seed=0), [torch.zeros(4, 16, dtype=torch.int64)]))
    with pytest.raises(ValueError, match="batches ran out at step 3 of 12"):
        list(loop.train(loop.start(recipe(), seed=0), itertools.islice(batches(), 3)))


def test_compiling_leaves_no_trace(recipe, batches):
    """Compiling runs a batch through the model; it must leave weights, gradients and random state as they were."""
    state = loop.start(recipe(), seed=7)
    state = replace(state, loss=lambda t, y: (torch.rand(3), state.model.loss(t, y))[1])
    random, before = torch.get_rng_state(), {n: p.detach().clone() for n, p in weights(state).items()}
    part = next(loop._next_batch(state, state.pace.next(), batches()).parts(None))
    assert compiling._compile(state, part) > 0
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in weights(state).items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecates
def test_compiled_training_matches_eager(recipe, batches):
    _, eager = run(recipe(), batches())
    _, compiled = run(recipe(compile=True), batches())
    assert compiled[0].notes["compile_time_s"] > 0
    assert "compile_time_s" not in compiled[1].notes
    for one, two in zip(eager, compiled, strict=True):
        assert two.loss == pytest.approx(one.loss, rel=1e-3)


def test_auto_compiles_on_a_gpu_alone_and_goes_on_where_the_compiler_fails(recipe, batches, monkeypatch):
    auto = recipe(compile="auto")
    assert not auto.compiles_on("cpu")
    assert auto.compiles_on("cuda")
    assert not recipe(compile="auto", objective=LayerSkip(exits=(1,))).compiles_on("cuda")
    _, plain = run(recipe(), batches())

    def broken(_loss, **_options):
        def fails(*_tensors):
            raise RuntimeError("no such compiler\nlong explanation")

        return fails

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(Recipe, "compiles_on", lambda *_: True)
    state, steps = run(auto, batches())
    assert state.not_compiled == "RuntimeError: no such compiler"
    assert [step.loss for step in steps] == [step.loss for step in plain]
    assert [step.notes.get("not_compiled") for step in steps[:2]] == [1.0, None]
    with pytest.raises(compiling.CannotCompile, match=r"^RuntimeError: no such compiler\nhint: .*`compile: auto`"):
        run(recipe(compile=True), batches())


def test_bf16_is_the_default_and_close_to_fp32(recipe, batches):
    assert recipe(precision=Bf16()).precision.kind == "bf16"
    _, single = run(recipe(), batches())
    state, half = run(recipe(precision=Bf16()), batches())
    assert half[0].loss == pytest.approx(single[0].loss, rel=5e-3)
    assert half[0].loss != single[0].loss
    assert half[-1].loss == pytest.approx(single[-1].loss, rel=0.1)
    assert all(p.dtype == torch.float32 for p in weights(state).values())
