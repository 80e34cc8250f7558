"""Logits with a cache against the full forward pass, and weights of every format against their reference."""

import pytest
import torch

from lmopt.arch import fused
from lmopt.infer import decoder as decoding
from lmopt.infer import feedforward, weights
from lmopt.infer.decoder import Decoder
from lmopt.recipe import Moe
from tests.lmopt.arch.kernels import needs_kernel
from tests.lmopt.infer.models import SHAPES, tiny, tokens

TOLERANCE = {"fp32": 1e-5, "bf16": 0.1}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", ["fp32", "bf16"])
def test_logits_with_a_cache_are_those_of_the_full_forward(shape, format):
    model, text_BT = tiny(**SHAPES[shape]), tokens(2, 14)
    full = model(text_BT)
    decoder = Decoder(model, format)
    cache = decoder.new_cache(batch=2, capacity=20)
    parts = [text_BT[:, :5], *text_BT[:, 5:9].split(1, 1), text_BT[:, 9:]]
    cached = torch.cat([decoder.logits(decoder.extend(part, cache)) for part in parts], 1).float()
    if shape == "sparse" and format == "bf16":  # a rounded state may choose another expert: most logits, not all
        assert (cached - full).abs().median() < TOLERANCE[format] * full.std()
    else:
        assert (cached - full).abs().max() < TOLERANCE[format] * full.std()


def test_rolled_back_tokens_leave_no_trace():
    decoder = Decoder(tiny())
    cache = decoder.new_cache(batch=1, capacity=20)
    decoder.extend(tokens(1, 6), cache)
    once = decoder.logits(decoder.extend(tokens(1, 3, seed=1), cache))
    decoder.extend(tokens(1, 5, seed=2), cache)
    cache.rollback([6])
    assert torch.equal(decoder.logits(decoder.extend(tokens(1, 3, seed=1), cache)), once)
    with pytest.raises(ValueError, match="row 0 has 9 tokens, it cannot be rolled back to 10"):
        cache.rollback([10])


def test_rows_of_unequal_length_do_not_see_each_other():
    decoder = Decoder(tiny(**SHAPES["grouped"]))
    both = decoder.new_cache(batch=2, capacity=20)
    decoder.extend(tokens(2, 8), both)
    both.rollback([8, 3])
    together = decoder.logits(decoder.extend(tokens(2, 4, seed=1), both))
    for row, length in enumerate((8, 3)):
        alone = decoder.new_cache(batch=1, capacity=20)
        decoder.extend(tokens(2, 8)[row : row + 1, :length], alone)
        expected = decoder.logits(decoder.extend(tokens(2, 4, seed=1)[row : row + 1], alone))
        torch.testing.assert_close(together[row : row + 1], expected, atol=1e-5, rtol=1e-5)


def test_a_decoder_keeps_nothing_of_the_model():
    model = tiny()
    decoder = Decoder(model)
    text_BT = tokens(1, 5)
    before = decoder.logits(decoder.extend(text_BT, decoder.new_cache(batch=1, capacity=8)))
    for parameter in model.parameters():
        parameter.zero_()
    after = decoder.logits(decoder.extend(text_BT, decoder.new_cache(batch=1, capacity=8)))
    assert torch.equal(before, after)


def test_a_cache_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match="a cache of 65 tokens exceeds the model's context of 64"):
        Decoder(tiny()).new_cache(batch=1, capacity=65)


class TestInt8:
    def test_weights_are_within_half_a_step(self):
        weight_FD = torch.randn(7, 64, generator=torch.Generator().manual_seed(0))
        weight_FD[3] = 0
        q_FD, scale_F = weights.quantize(weight_FD)
        error = (q_FD * scale_F.float()[:, None] - weight_FD).abs()
        # half a step, and for the largest weight what rounding the scale to bfloat16 takes (2^-9 relative)
        assert (error <= scale_F.float()[:, None] * (0.5 + 127 * 2**-9)).all()
        assert (q_FD[3] == 0).all()

    @pytest.mark.parametrize("rows", [1, 5, weights.INT8_ROWS, weights.INT8_ROWS + 1])
    def test_kernel_equals_the_reference(self, rows):
        weight = weights.Int8Weight(torch.randn(32, 64, generator=torch.Generator().manual_seed(0)))
        x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
        expected = x.double() @ (weight.q_FD.double() * weight.scale_F.double()[:, None]).T
        reference = weights.int8_reference(x, weight.q_FD, weight.scale_F)
        assert (weight(x) - expected).abs().max() < 0.02 * expected.std()
        assert (reference - expected).abs().max() < 0.02 * expected.std()

    @pytest.mark.parametrize("inputs", [1, 8, 17, 24, 40, 88, 1000])
    @pytest.mark.parametrize("rows", [1, 4, weights.INT8_ROWS + 1])
    def test_any_number_of_inputs_will_do(self, inputs, rows):
        draw = torch.Generator().manual_seed(inputs)
        matrix, x = torch.randn(32, inputs, generator=draw), torch.randn(rows, inputs, generator=draw).bfloat16()
        q_FD, scale_F = weights.quantize(matrix)
        expected = x.float() @ (q_FD * scale_F.float()[:, None]).T
        for _ in range(20):  # what lay behind the matrix in memory changed from call to call
            assert apart(weights.pack(matrix, "int8")(x), expected) < 2**-6

    def test_logits_are_near_the_models(self):
        model, text_BT = tiny(), tokens(2, 14)
        decoder = Decoder(model, "int8")
        logits = decoder.logits(decoder.extend(text_BT, decoder.new_cache(batch=2, capacity=14))).float()
        full = model(text_BT)
        assert (logits - full).abs().max() < 0.1 * full.std()
        assert decoder.nbytes < 0.6 * Decoder(model, "bf16").nbytes


@pytest.mark.parametrize(
    "moe",
    [
        Moe(experts=5, top_k=2, hidden=24, activation="relu2", shared=2),
        Moe(experts=5, top_k=5, hidden=24, normalise=False),
        Moe(experts=3, top_k=1, hidden=24, routing={"kind": "switch"}),
        Moe(experts=5, top_k=2, hidden=24, routing={"kind": "noisy"}),
        Moe(experts=5, top_k=2, hidden=24, routing={"kind": "loss_free", "score": "sigmoid"}),
        Moe(experts=1, top_k=1, hidden=24),
    ],
    ids=["shared relu2", "all of them", "switch", "noisy", "loss-free", "one"],
)
@pytest.mark.parametrize("rows", [1, 40])
def test_experts_say_what_they_say_in_the_model(moe, rows):
    ffn = tiny(ffn=moe).blocks[0].ffn
    if moe.routing.kind == "loss_free":
        ffn.router.bias_E.copy_(torch.tensor([0.3, 0, -0.2, 0.1, -0.3]))
    x = torch.randn(2, rows, 32, generator=torch.Generator().manual_seed(rows))
    torch.testing.assert_close(feedforward.ExpertsFfn(ffn, "fp32")(x), ffn(x)[0], rtol=1e-5, atol=1e-5)
    found = feedforward.ExpertsFfn(ffn, "bf16")(x.bfloat16()).flatten(0, 1)
    assert apart(found, feedforward.ModuleFfn(ffn, "bf16")(x.bfloat16()).flatten(0, 1)) < 2**-6


@pytest.mark.parametrize("format", ["int8", "int8_dynamic"])
@pytest.mark.parametrize("shape", ["sparse", "shared"])
class TestInt8Experts:
    @pytest.mark.parametrize("rows", [1, 9, 30])
    def test_a_token_gets_what_its_experts_with_rounded_weights_say(self, shape, format, rows):
        model = tiny(**SHAPES[shape])
        moe = model.blocks[0].ffn
        x = torch.randn(3, rows, 32, generator=torch.Generator().manual_seed(rows)).bfloat16()
        found = Decoder(model, format).layers[0].ffn(x)
        for name, parameter in moe.named_parameters():
            if not name.startswith("router."):
                parts = parameter if parameter.dim() == 3 else parameter[None]
                rounded = [q_FD * scale_F.float()[:, None] for q_FD, scale_F in map(weights.quantize, parts)]
                parameter.copy_(torch.stack(rounded).view_as(parameter))
        assert apart(found.flatten(0, 1), moe(x.float())[0].flatten(0, 1)) < (2**-6 if format == "int8" else 0.05)

    def test_experts_are_read_in_8_bits(self, shape, format):
        model = tiny(**SHAPES[shape])
        read = {name: Decoder(model, name).layers[0].ffn.nbytes for name in ("bf16", format)}
        assert read[format] < 0.6 * read["bf16"]


def apart(one, other):
    """Largest distance of a row from the other's, relative to its length."""
    return float(((one.float() - other.float()).norm(dim=1) / other.float().norm(dim=1)).max())


@pytest.fixture(params=["kernels", "torch"])
def by(request, monkeypatch):
    """By kernels of our own where this machine has them, and by torch's operations."""
    if request.param == "torch":
        monkeypatch.setattr(weights.panels_fused, "suits", lambda *_: False)
    return request.param


@pytest.mark.parametrize("rows", [1, 2, 7, 40])
def test_8_bit_activations_equal_the_slow_way_and_each_row_is_its_own(rows, by):
    draw = torch.Generator().manual_seed(rows)
    matrix = torch.randn(48, 64, generator=draw)
    weight, (q_FD, scale_F) = weights.pack(matrix, "int8_dynamic"), weights.quantize(matrix)
    x = torch.randn(rows, 64, generator=draw).bfloat16() * torch.logspace(-2, 2, rows)[:, None].bfloat16()
    found = weight(x)
    slow = weights.int8_dynamic_reference(x.float(), q_FD, scale_F.float())
    assert apart(found, slow) < 2**-7
    assert apart(found, torch.cat([weight(row[None]) for row in x])) < 2**-7
    exact = torch.nn.functional.linear(x.float(), q_FD.float() * scale_F.float()[:, None])
    assert apart(slow, exact) < 0.02, "what rounding activations costs"


@needs_kernel
@pytest.mark.parametrize("format", ["bf16", "int8", "int8_dynamic"])
@pytest.mark.parametrize("rows", [0, 3, 40])
def test_a_matrix_in_panels_takes_any_number_of_rows_of_any_type(format, rows):
    weight = weights.pack(tokens(48, 64) / 8 - 4, format)
    assert isinstance(weight, weights.PanelWeight)
    x, others = (torch.randn(rows, width).bfloat16() for width in (64, 48))
    found = weight(x.float(), others=others.float())
    assert found.shape == (rows, 48)
    assert torch.equal(found, weight(x, others=others))


def test_8_bit_activations_without_the_kernel(monkeypatch):
    matrix, x = torch.randn(16, 32), torch.randn(3, 32).bfloat16()
    with_kernel = weights.Int8DynamicWeight(matrix)
    monkeypatch.setattr(weights, "_multiplies_bytes", lambda: False)
    without = weights.Int8DynamicWeight(matrix)
    assert without.packed is None
    assert with_kernel.packed is None or with_kernel.q_FD is None, "a copy that nothing reads"
    assert apart(without(x), with_kernel(x)) < 2**-7
    assert (without(torch.zeros(2, 32).bfloat16()) == 0).all()
    assert (with_kernel(torch.zeros(1, 32).bfloat16()) == 0).all()


def test_generation_on_cuda_waits_for_no_plan_of_cudnn():
    allowed = torch.backends.cuda.cudnn_sdp_enabled
    before = allowed()
    with decoding._ready_kernels(torch.device("cuda")):
        assert not allowed()
        assert torch.backends.cuda.flash_sdp_enabled()
    assert allowed() == before
    with decoding._ready_kernels(torch.device("cpu")):
        assert allowed() == before


def test_a_row_more_takes_longer_where_bfloat16_is_multiplied_by_vectors(monkeypatch):
    monkeypatch.setattr(fused, "_obstacle", lambda: "left out")
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    costs = {}
    for tiles in (True, False):
        monkeypatch.setattr(weights, "TILES", tiles)
        costs[tiles] = {format: weights.row_cost(format, cpu) for format in ("fp32", "bf16", "int8", "int8_dynamic")}
        assert weights.row_cost("bf16", cuda) == weights.ROW_COST["bf16"]
    assert costs[True] == weights.ROW_COST
    assert {format for format in costs[True] if costs[True][format] != costs[False][format]} == {"bf16"}
    assert costs[False]["bf16"] > costs[True]["bf16"]


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="no weights are kept as 'int4': fp32, bf16, int8, int8_dynamic"):
        Decoder(tiny(), "int4")


@pytest.mark.parametrize("format", ["int8", "int8_dynamic"])
@pytest.mark.parametrize("rows", [1, 2, 20])
def test_what_is_no_number_stays_none_in_8_bits(format, rows, by):
    """A broken model must not decode as if it were sound."""
    matrix, x = torch.ones(48, 64), torch.ones(rows, 64, dtype=torch.bfloat16)
    matrix[3, 5] = float("nan")
    broken = weights.pack(matrix, format)(x)
    assert broken[:, 3].isnan().all()
    assert broken[:, :3].isfinite().all()
    x[0, 0] = float("nan")
    assert weights.pack(torch.ones(48, 64), format)(x)[0].isnan().all()
