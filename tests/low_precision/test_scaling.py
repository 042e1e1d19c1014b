"""Scales from earlier steps, as TransformerEngine publishes them, and scales that are fixed."""

import math
from dataclasses import replace

import ml_dtypes
import numpy as np
import product_references as references
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mpbook.low_precision import RECIPES, Delayed, Fixed, advance, convert
from mpbook.low_precision.scaling import COLUMNS, begin_row_, elements_at, next_scale

DELAYED = RECIPES["float8_delayed"]


def transformer_engines_scale(amax: float, scale: float, largest: float, margin: int) -> float:
    """As its documentation defines it: FP8_MAX / amax / 2**margin, unless amax says nothing."""
    if amax <= 0 or not math.isfinite(amax):
        return scale
    with np.errstate(over="ignore"):
        found = np.float32(np.float32(largest) / np.float32(amax)) / np.float32(2**margin)
    return min(float(found), float(np.finfo(np.float32).max))


@given(
    st.lists(st.floats(0, 2.0**100, width=32) | st.just(math.inf), min_size=3, max_size=12),
    st.integers(0, 5),
    st.sampled_from(["max", "most_recent"]),
)
def test_the_next_scale_is_transformer_engines(amaxes, margin, which):
    history = torch.tensor(amaxes[: len(amaxes) // 3 * 3]).reshape(-1, 3)
    scale, largest = torch.tensor([2.0, 3.0, 5.0]), torch.tensor([448.0, 448.0, 57344.0])
    scaling = Delayed(len(history), margin, which)
    found = next_scale(history, scale, largest, scaling)
    for i in range(3):
        amax = history[0, i] if which == "most_recent" else history[:, i].max()
        expected = transformer_engines_scale(
            amax.item(), scale[i].item(), largest[i].item(), margin
        )
        assert math.isclose(found[i].item(), expected, rel_tol=1e-6)


def test_an_amax_of_nan_says_nothing():
    history = torch.tensor([[math.nan, 1.0, 1.0]])
    found = next_scale(history, torch.tensor([7.0, 7.0, 7.0]), torch.full((3,), 448.0), Delayed(1))
    assert found.tolist() == [7, 448, 448]


def test_the_oldest_row_of_a_history_is_forgotten():
    history = torch.arange(1.0, 10.0).reshape(3, 3)
    begin_row_(history)
    assert history.tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]


@given(st.lists(st.floats(-1000, 1000, width=32), min_size=1), st.floats(2.0**-20, 2.0**20))
def test_elements_are_ml_dtypes_casts(values, scale):
    x, factor = torch.tensor(values), torch.tensor(scale, dtype=torch.float32)
    found = elements_at(x, DELAYED.element("x"), factor)
    scaled = np.clip((x * factor).numpy(), -448, 448)
    assert np.array_equal(found.numpy(), scaled.astype(ml_dtypes.float8_e4m3fn).astype(np.float32))


class Net(nn.Module):
    def __init__(self, recipe=DELAYED, size=64):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(size, size, bias=False)
        convert(self, recipe, filter=lambda module, name: True)

    def forward(self, x):
        return self.inner(x)


def step(net: Net, x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    y = net(x.clone().requires_grad_())
    y.backward(dy)
    return y.detach()


def test_each_tensor_has_its_own_column_and_its_own_scale():
    net = Net(replace(DELAYED, scaling=Delayed(4)))
    step(net, torch.full((8, 64), 100.0), torch.full((8, 64), 1e-5))
    amax = {"x": 100.0, "w": net.inner.weight.abs().max().item(), "dy": 1e-5}
    largest = {"x": 448.0, "w": 448.0, "dy": 57344.0}
    advance(net)
    for tensor, column in COLUMNS.items():
        noted = net.inner.amax_history[1, column].item()
        assert math.isclose(noted, amax[tensor], rel_tol=1e-6)
        assert math.isclose(
            net.inner.scale[column].item(), largest[tensor] / amax[tensor], rel_tol=1e-5
        )


def test_every_product_takes_the_scales_of_its_own_two_tensors():
    x, w, dy = references.layer_data(tokens=64, inputs=64, outputs=64)
    w, dy = w * 1e-3, dy * 1e-6  # so that the scale of one would make nothing of another
    net = Net(replace(DELAYED, scaling=Delayed(1)))
    net.inner.weight.data = w.clone()
    step(net, x, dy)
    advance(net)
    net.zero_grad()
    inputs = x.clone().requires_grad_()
    y = net(inputs)
    y.backward(dy)
    found = {"y": y.detach(), "dx": inputs.grad, "dw": net.inner.weight.grad}
    for part, (expected, size) in references.products("float8_tensorwise", x, w, dy).items():
        gap = np.abs(found[part].double().numpy() - expected).max()
        assert gap < 1e-3 * size.max(), part  # a reciprocal scale moves an element now and then


def test_a_step_uses_the_scale_of_the_steps_before_and_notes_its_own_amax():
    net, x, dy = Net(), torch.full((8, 64), 1e-3), torch.full((8, 64), 1e-3)
    first = step(net, x, dy)
    assert (net.inner.scale == 1).all()  # the first step knows nothing: 1e-3 in E4M3 is 2**-9 / 2
    advance(net)
    second = step(net, x, dy)
    exact = nn.functional.linear(x, net.inner.weight)
    errors = [(y - exact).norm() / exact.norm() for y in (first, second)]
    assert errors[0] > 0.4 and errors[1] < 0.05
    step(net, x * 1e4, dy)  # grows between two steps, and saturates
    noted, scale = net.inner.amax_history[0, 0].item(), net.inner.scale[0].item()
    assert math.isclose(noted, 10, rel_tol=1e-5) and math.isclose(scale, 448e3, rel_tol=1e-5)
    saturated = step(net, x * 1e4, dy)
    assert (saturated.abs().max() / (exact * 1e4).abs().max()) < 1e-3


def test_micro_batches_share_a_row_and_the_scale_moves_once_a_step():
    net, dy = Net(replace(DELAYED, scaling=Delayed(4))), torch.ones(8, 64)
    for size in (1.0, 3.0, 2.0):
        step(net, torch.full((8, 64), size), dy)
    assert net.inner.amax_history[:, 0].tolist() == [3, 0, 0, 0]
    advance(net)
    assert net.inner.amax_history[:, 0].tolist() == [0, 3, 0, 0]
    for _ in range(4):
        step(net, torch.full((8, 64), 0.5), dy)
        advance(net)
    assert net.inner.amax_history[:, 0].tolist() == [0, 0.5, 0.5, 0.5]
    assert math.isclose(net.inner.scale[0].item(), 896)


def test_validation_notes_nothing():
    net = Net().eval()
    net(torch.full((8, 64), 9.0))
    assert not net.inner.amax_history.any()


def test_a_margin_leaves_room_above_amax():
    nets = [Net(replace(DELAYED, scaling=Delayed(4, margin=m))) for m in (0, 3)]
    for net in nets:
        step(net, torch.ones(8, 64), torch.ones(8, 64))
        advance(net)
    assert torch.equal(nets[0].inner.scale, nets[1].inner.scale * 8)


def test_a_fixed_scale_has_no_state():
    net = Net(replace(RECIPES["unscaled_e4m3"], scaling=Fixed(64.0)))
    x = torch.full((8, 64), 1e-3)
    before = step(net, x, x)
    advance(net)
    assert torch.equal(step(net, x, x), before)
    assert list(net.state_dict()) == ["inner.weight"] and net.inner.amax_history is None


def test_without_a_scale_small_gradients_are_zero():
    net, x, dy = Net("unscaled_e4m3"), torch.ones(8, 64), torch.full((8, 64), 2.0**-11)
    step(net, x, dy)
    assert not net.inner.weight.grad.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Delayed(history=0), "history=0: expected 1 step or more"),
        (lambda: Delayed(margin=-1), "margin=-1: expected whole binades"),
        (lambda: Delayed(amax="mean"), 'amax=\'mean\': expected "max" or "most_recent"'),
        (lambda: Fixed(0.0), "scale=0.0: expected a positive number"),
        (lambda: Fixed(math.nan), "scale=nan: expected a positive number"),
        (lambda: Fixed(math.inf), "scale=inf: expected a positive number"),
    ],
)
def test_a_scaling_out_of_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
