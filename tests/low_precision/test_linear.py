"""`mpbook.low_precision.linear` against numpy and ml_dtypes, product by product."""

import copy
import io
import math
from dataclasses import replace

import numpy as np
import product_references as references
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mpbook.low_precision import (
    HIGH,
    RECIPES,
    Accumulation,
    Delayed,
    Operand,
    Product,
    QuantizedLinear,
    Recipe,
    advance,
    as_recipe,
    convert,
    of_tensors,
    quantised,
)

STATELESS = [name for name in RECIPES if name != "float8_delayed"]
ROTATED = {"mxfp4": 32, "nvfp4": 16}


def to_nearest(recipe: Recipe) -> Recipe:
    """The same recipe without any draws."""

    def product(p: Product) -> Product:
        return Product(*(replace(o, rounding="nearest-even") for o in (p.left, p.right)))

    return replace(
        recipe,
        fprop=product(recipe.fprop),
        dgrad=product(recipe.dgrad),
        wgrad=product(recipe.wgrad),
    )


def layer(recipe, w: torch.Tensor, *, bias: bool = False) -> QuantizedLinear:
    linear = nn.Linear(w.shape[1], w.shape[0], bias=bias)
    linear.weight.data = w.clone()
    return convert(linear, recipe, filter=lambda module, name: True)


def run(module: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(dy)
    return {"y": y.detach(), "dx": x.grad, "dw": module.weight.grad}


@pytest.mark.parametrize("name", STATELESS)
def test_each_product_is_that_of_the_quantised_operands(name):
    x, w, dy = references.layer_data()
    recipe = to_nearest(RECIPES[name])
    signs = recipe.wgrad.left.signs
    assert len(signs) == ROTATED.get(name, 0)
    found = run(layer(recipe, w), x, dy)
    for part, (expected, size) in references.products(name, x, w, dy, signs).items():
        # float32 sums of up to 384 terms, and rotated numbers that round the other way now and then
        error = np.abs(found[part].double().numpy() - expected)
        if part == "dw" and signs:
            assert np.linalg.norm(error) < 2e-3 * np.linalg.norm(expected)
        else:
            assert (error <= 1e-5 * size + 1e-30).all(), part


@pytest.mark.parametrize("name", STATELESS)
def test_the_reference_tells_the_recipes_apart(name):
    x, w, dy = references.layer_data(spread=4)
    own = references.products(name, x, w, dy)
    for other in STATELESS:
        if other != name:
            theirs = references.products(other, x, w, dy)
            gaps = [np.abs(own[p][0] - theirs[p][0]) / (own[p][1] + 1e-30) for p in own]
            assert max(gap.max() for gap in gaps) > 0.01, other


def test_one_operand_at_a_time_changes_its_own_products_alone():
    x, w, dy = references.layer_data()
    plain = run(layer(Recipe("high", Product(), Product(), Product()), w), x, dy)
    e2m1 = Operand("mxfp4", "rceil")
    for tensor, changed in (("x", {"y", "dw"}), ("w", {"y", "dx"}), ("dy", {"dx", "dw"})):
        operands = dict(x=HIGH, w=HIGH, dy=HIGH) | {tensor: e2m1}
        found = run(layer(of_tensors("one", **operands), w), x, dy)
        gaps = {p: (found[p] - plain[p]).norm() / plain[p].norm() for p in plain}
        assert {p for p, gap in gaps.items() if gap > 0.02} == changed
        assert all(gap < 1e-5 for p, gap in gaps.items() if p not in changed)


@pytest.mark.parametrize("size", [2, 16, 128])
def test_rotating_both_operands_changes_nothing_that_is_not_quantised(size):
    x, w, dy = references.layer_data()
    turned = Product(Operand(hadamard=size), Operand(hadamard=size))
    plain = run(layer(Recipe("high", Product(), Product(), Product()), w), x, dy)
    found = run(layer(Recipe("turned", turned, turned, turned), w), x, dy)
    for part in plain:
        assert (found[part] - plain[part]).norm() < 1e-5 * plain[part].norm()
    rows = quantised(x, Operand(hadamard=size))
    assert (rows - x).norm() > 0.5 * x.norm()  # though the operands themselves are other numbers
    assert torch.allclose(rows.norm(dim=1), x.norm(dim=1), rtol=1e-5)


def test_a_quantised_operand_is_one_of_few_numbers_along_the_contracted_dimension():
    x, _, _ = references.layer_data()
    for matrix in (x, x.T):  # as fprop and as wgrad see it
        y = quantised(matrix, Operand("mxfp4", "rceil"))
        blocks = (y.abs().reshape(len(y), -1, 32)).double()
        ratios = blocks / blocks.amax(-1, keepdim=True)
        on_grid = [n / d for n in (0, 0.5, 1, 1.5, 2, 3, 4, 6) for d in (3, 4, 6)]
        assert all(any(math.isclose(r, g) for g in on_grid) for r in ratios.unique().tolist())


# --- stochastic rounding -----------------------------------------------------------------------


def test_gradients_are_right_on_average_where_dy_is_rounded_stochastically():
    x, w, dy = references.layer_data(tokens=32, inputs=32, outputs=64)
    drawn = Operand("mxfp4", "rceil", rounding="stochastic")
    exact = run(layer(of_tensors("high", x=HIGH, w=HIGH, dy=HIGH), w), x, dy)
    nearest = run(layer(of_tensors("n", x=HIGH, w=HIGH, dy=Operand("mxfp4", "rceil")), w), x, dy)
    module, draws = layer(of_tensors("drawn", x=HIGH, w=HIGH, dy=drawn), w), []
    torch.manual_seed(0)
    for _ in range(300):
        module.weight.grad = None
        draws.append(run(module, x, dy))
    for part in ("dx", "dw"):
        sample = torch.stack([d[part] for d in draws]).double()
        error = sample.std(0) / math.sqrt(len(draws)) + 1e-6 * exact[part].abs() + 1e-12
        z = (sample.mean(0) - exact[part]) / error
        assert z.abs().max() < 7 and 0.7 < z.std() < 1.3  # nearest is off by far more than that:
        assert ((nearest[part] - exact[part]) / error).abs().max() > 12
    assert all(torch.equal(d["y"], draws[0]["y"]) for d in draws)


def test_draws_follow_torchs_generator():
    x, w, dy = references.layer_data()
    module = layer("nvfp4", w)

    def gradient(seed):
        module.weight.grad = None
        torch.manual_seed(seed)
        return run(module, x, dy)["dw"]

    assert torch.equal(gradient(1), gradient(1)) and not torch.equal(gradient(1), gradient(2))


def test_the_two_products_of_dy_have_draws_of_their_own():
    x = torch.eye(64)
    dy = torch.full((64, 64), 1.3)
    dy[:, 0] = dy[0] = 6.0  # the largest of every block
    drawn = Operand("mxfp4", "rceil", rounding="stochastic")
    found = run(layer(of_tensors("drawn", x=HIGH, w=HIGH, dy=drawn), torch.eye(64)), x, dy)
    assert not torch.equal(found["dx"], found["dw"].T)  # dy as it was drawn for each


# --- dtypes, bias, shapes ------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["mxfp8", "float8_tensorwise"])  # scales: powers of 2, and any
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_output_is_rounded_once_and_the_weight_is_quantised_from_float32(
    dtype, recipe
):
    x, w, dy = references.layer_data()
    module = layer(recipe, w)
    with torch.autocast("cpu", dtype=dtype):
        found = run(module, x, dy.to(dtype))
    assert found["y"].dtype == dtype and found["dx"].dtype == found["dw"].dtype == torch.float32
    for part in ("dx", "dw"):  # rounded to 16 bits, as autocast's own products are
        assert torch.equal(found[part].to(dtype).float(), found[part])
    inputs = x.to(dtype).float(), w, dy.to(dtype).float()
    for part, (expected, size) in references.products(recipe, *inputs).items():
        rounded = np.abs(expected) * torch.finfo(dtype).eps / 2
        tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        error = np.abs(found[part].double().numpy() - expected)
        assert (error <= 1e-5 * size + 1.01 * rounded + tiny).all(), part


def test_a_bias_is_added_and_gets_the_sum_of_dy():
    x, w, dy = references.layer_data()
    without, with_bias = layer("mxfp8", w), layer("mxfp8", w, bias=True)
    with_bias.bias.data = torch.linspace(-1, 1, len(w))
    x3, dy3 = x.view(2, 128, -1), dy.view(2, 128, -1)
    y = with_bias(x3)
    y.backward(dy3)
    assert torch.equal(y.view(256, -1), without(x) + with_bias.bias)
    assert torch.allclose(with_bias.bias.grad, dy.sum(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_bias_leaves_the_output_in_autocasts_dtype_as_torchs_does(dtype):
    x, w, _ = references.layer_data()
    plain, module = nn.Linear(w.shape[1], len(w)), layer("mxfp8", w, bias=True)
    with torch.autocast("cpu", dtype=dtype):
        assert module(x).dtype == plain(x).dtype == dtype


def test_what_needs_no_gradient_gets_none():
    x, w, dy = references.layer_data()
    module = layer("nvfp4", w)
    module.weight.requires_grad_(False)  # as the base of an adapter
    found = run(module, x[:100], dy[:100])  # and no product contracts its tokens
    assert found["dw"] is None and found["dx"].shape == (100, 128)
    module.weight.requires_grad_(True)
    module(x).backward(dy)
    assert module.weight.grad is not None


@pytest.mark.parametrize("name", RECIPES)
def test_no_tokens_give_no_output_and_a_gradient_of_zeros(name):
    _, w, _ = references.layer_data()
    module, x = layer(name, w), torch.zeros(0, 128, requires_grad=True)
    y = module(x)
    y.sum().backward()
    assert y.shape == (0, 384) and x.grad.shape == (0, 128)
    assert module.weight.grad.shape == w.shape and not module.weight.grad.any()


@pytest.mark.parametrize("name", RECIPES)
def test_zeros_stay_zeros(name):
    _, w, _ = references.layer_data()
    found = run(layer(name, w * 0), torch.zeros(256, 128), torch.zeros(256, 384))
    assert not any(part.any() for part in found.values())


@pytest.mark.parametrize("name", STATELESS)
def test_a_block_of_zeros_is_no_nan_beside_numbers(name):
    x, w, dy = references.layer_data()
    x[:128], w[:128], dy[:, :128] = 0, 0, 0
    found = run(layer(name, w), x, dy)
    assert all(part.isfinite().all() for part in found.values())
    assert not found["y"][:128].any() and not found["y"][:, :128].any()


# --- NaN and infinity ---------------------------------------------------------------------------

SHARED = {  # what of y is NaN where x[3, 70] is
    "float8_tensorwise": lambda y: y,
    "float8_delayed": lambda y: y[3],
    "unscaled_e4m3": lambda y: y[3],
    "nvfp4": lambda y: y,
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", RECIPES)
def test_nan_and_infinity_become_nan_in_all_that_shares_a_scale(name, value):
    x, w, dy = references.layer_data()
    bad = x.clone()
    bad[3, 70] = value
    module = layer(name, w)
    y, good = module(bad), module(x)
    theirs = SHARED.get(name, lambda y: y[3])
    assert theirs(y).isnan().all()
    if theirs(y).dim() == 1:
        rest = torch.arange(len(y)) != 3
        assert torch.equal(y[rest], good[rest])
    bad = dy.clone()
    bad[3, 70] = value
    found = run(layer(name, w), x, bad)
    assert found["dx"][3].isnan().all() and found["dw"][70].isnan().all()


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_an_input_that_is_no_real_floating_point_tensor_is_refused(dtype):
    model = nn.ModuleDict({"inner": nn.Linear(32, 32)})
    convert(model, "mxfp8", filter=lambda module, name: True)
    with pytest.raises(TypeError, match=f'layer "inner": input has dtype {dtype}, expected a real'):
        model["inner"](torch.ones(32, 32).to(dtype))


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"input has shape \(2, 31\), expected in_features=32"):
        layer("mxfp8", torch.ones(32, 32))(torch.ones(2, 31))


def test_tokens_that_the_blocks_of_wgrad_do_not_divide_are_refused_before_the_backward_pass():
    model = convert(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), "mxfp8")
    x = torch.ones(4, 25, 64)
    message = (
        r'layer "0": input has 100 tokens, of shape \(4, 25, 64\), and the gradient of its weight '
        r"contracts them in mxfp8's blocks of 32; make the product of batch and length a multiple "
        "of 32, 128 for example, or keep the layer high"
    )
    with pytest.raises(ValueError, match=message):
        model(x)
    with torch.no_grad():  # an output alone contracts no tokens
        assert model(x).shape == (4, 25, 64)


def test_tokens_are_any_number_where_no_block_spans_them():
    for name in ("float8_tensorwise", "float8_rowwise", "float8_delayed"):
        x, w, dy = references.layer_data(tokens=37)
        assert run(layer(name, w), x, dy)["dw"].isfinite().all()


# --- accumulation -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float8_tensorwise", "float8_rowwise", "mxfp8", "nvfp4"])
def test_many_bits_in_the_accumulator_change_nothing_and_few_do(name):
    x, w, dy = references.layer_data(tokens=64, inputs=64, outputs=64)
    recipe = to_nearest(RECIPES[name])
    plain = run(layer(recipe, w), x, dy)
    for bits, low, high in ((24, 0, 1e-5), (6, 5e-3, 1)):
        found = run(layer(replace(recipe, accumulation=Accumulation(bits)), w), x, dy)
        for part in plain:
            assert low <= (found[part] - plain[part]).norm() / plain[part].norm() <= high


# --- activation checkpointing, copies, files ----------------------------------------------------


class Checkpointed(nn.Module):
    """Two layers that are computed again in the backward pass."""

    def __init__(self, use_reentrant: bool | None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(64, 128), nn.Linear(128, 64)
        self.last, self.use_reentrant = nn.Linear(64, 64), use_reentrant

    def block(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.use_reentrant is None:
            return self.last(self.block(x))
        return self.last(checkpoint(self.block, x, use_reentrant=self.use_reentrant))


SHORT_HISTORY = replace(RECIPES["float8_delayed"], scaling=Delayed(history=3))
DRAWN = Operand("mxfp8_e4m3", "rceil", rounding="stochastic")
DRAWN_EVERYWHERE = of_tensors("drawn", x=DRAWN, w=DRAWN, dy=HIGH)


@pytest.mark.parametrize("recipe", [SHORT_HISTORY, RECIPES["mxfp8"], DRAWN_EVERYWHERE], ids=str)
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_replayed_forward_pass_computes_and_notes_the_same(recipe, use_reentrant):
    models = [convert(Checkpointed(way), recipe) for way in (None, use_reentrant)]
    for step in range(3):
        x, _, _ = references.layer_data(tokens=32, inputs=64, seed=step)
        for model in models:
            torch.manual_seed(step)
            model.zero_grad()
            for part in (x, x * 2):  # two micro-batches
                model(part.clone().requires_grad_()).square().mean().backward()
            advance(model)
        plain, replayed = (m.state_dict() for m in models)
        assert all(torch.equal(plain[key], replayed[key]) for key in plain)
        gradients = zip(models[0].parameters(), models[1].parameters(), strict=True)
        assert all(torch.equal(a.grad, b.grad) for a, b in gradients)


def test_a_copy_is_a_layer_of_its_own():
    x, w, dy = references.layer_data()
    module = layer(SHORT_HISTORY, w)
    other = copy.deepcopy(module)
    run(other, x, dy)
    other.advance()
    assert other.recipe == module.recipe and not module.amax_history.any()
    assert (module.scale == 1).all() and (other.scale != 1).all()


def test_casting_a_model_leaves_its_scales_in_float32():
    x, w, dy = references.layer_data()
    module = layer(SHORT_HISTORY, w)
    run(module, x, dy)
    module.advance()
    scale = module.scale.clone()
    module.to(torch.bfloat16)
    assert module.weight.dtype == torch.bfloat16 and torch.equal(module.scale, scale)
    assert run(module, x.bfloat16(), dy.bfloat16())["dw"].dtype == torch.bfloat16


def saved_and_loaded(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_without_delayed_scaling_a_checkpoint_is_that_of_the_plain_model():
    plain = Checkpointed(None)
    converted = convert(copy.deepcopy(plain), "nvfp4")
    assert list(converted.state_dict()) == list(plain.state_dict())
    converted.load_state_dict(saved_and_loaded(plain.state_dict()))
    plain.load_state_dict(saved_and_loaded(converted.state_dict()))


def test_a_checkpoint_of_another_recipe_is_refused_with_the_layer_and_the_cure():
    state = saved_and_loaded(convert(Checkpointed(None), "mxfp8").state_dict())
    other = convert(Checkpointed(None), "nvfp4")
    message = 'layer "first": trained by the recipe "mxfp8", loaded into one of "nvfp4"; convert'
    with pytest.raises(RuntimeError, match=message):
        other.load_state_dict(state)
    convert(Checkpointed(None), "mxfp8").load_state_dict(state)


def test_delayed_scaling_goes_on_from_a_checkpoint_and_from_no_other():
    x, _, _ = references.layer_data(tokens=32, inputs=64)
    trained, fresh = (convert(Checkpointed(None), SHORT_HISTORY) for _ in range(2))
    for _ in range(2):
        trained(x).square().mean().backward()
        advance(trained)
    fresh.load_state_dict(saved_and_loaded(trained.state_dict()))
    assert torch.equal(fresh(x), trained(x))
    assert torch.equal(fresh.first.amax_history, trained.first.amax_history)
    with pytest.raises(RuntimeError, match='layer "first": no amax history in the checkpoint'):
        fresh.load_state_dict(saved_and_loaded(Checkpointed(None).state_dict()))


def test_a_layer_names_its_recipe():
    assert "recipe='mxfp8'" in repr(layer("mxfp8", torch.ones(32, 32)))
    assert as_recipe("mxfp8") is layer("mxfp8", torch.ones(32, 32)).recipe
