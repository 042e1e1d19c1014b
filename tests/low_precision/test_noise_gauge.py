"""How much of a gradient is signal, and when it sinks below the noise of rounding."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from mpbook.low_precision import HIGH, RECIPES, Product, convert, noise_gauge
from mpbook.low_precision.noise_gauge import THRESHOLD, Reading, forecast, read_gauge

BACKWARD = dataclasses.replace(
    RECIPES["nvfp4"], name="nvfp4 backward", fprop=Product(HIGH, HIGH), last_layers_high=0
)


def a_layer(recipe=BACKWARD):
    torch.manual_seed(0)
    layer = nn.Linear(64, 32, bias=False)
    return convert(layer, recipe) if recipe is not None else layer


def a_loss(layer, *, tokens=64, offset=0.0):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, 64, generator=generator)
    pull = torch.randn(tokens, 32, generator=generator) + offset
    return lambda: (layer(x) * pull).mean()


def test_the_signal_is_the_gradient_without_rounding():
    plain, layer = a_layer(None), a_layer()
    a_loss(plain)().backward()
    reading = read_gauge(layer, a_loss(layer), draws=64)
    # its inputs are rounded to nearest, in 4 bits: some percent
    assert reading.signal == pytest.approx(plain.weight.grad.norm().item(), rel=0.1)


def test_the_noise_is_the_error_of_one_draw_beyond_the_mean():
    layer = a_layer()
    loss = a_loss(layer)
    draws = torch.stack([torch.autograd.grad(loss(), layer.weight)[0] for _ in range(200)])
    spread = (draws - draws.mean(0)).square().sum((1, 2)).mean().sqrt().item()
    assert read_gauge(layer, loss, draws=64).noise == pytest.approx(spread, rel=0.15)


def test_more_draws_do_not_raise_the_signal_of_a_gradient_that_is_mostly_noise():
    layer = a_layer()
    loss = a_loss(layer, tokens=1024)
    few = [read_gauge(layer, loss, draws=2).signal for _ in range(40)]
    many = read_gauge(layer, loss, draws=128).signal
    mean_square = sum(signal**2 for signal in few) / len(few)
    assert mean_square == pytest.approx(many**2, rel=0.2)


def test_the_share_of_noise_in_a_mean_of_draws_is_no_signal(monkeypatch):
    draws = iter([torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0])])
    monkeypatch.setattr(noise_gauge, "_gradient", lambda loss, weights: next(draws))
    layer = a_layer()
    reading = read_gauge(layer, a_loss(layer), draws=2)
    assert (reading.signal**2, reading.noise**2) == pytest.approx((2**2 + 1 - 2 / 2, 2))


def test_where_noise_hides_all_signal_there_is_none(monkeypatch):
    draws = iter([torch.tensor([1.0, 0.5]), torch.tensor([-1.0, 0.5])])
    monkeypatch.setattr(noise_gauge, "_gradient", lambda loss, weights: next(draws))
    layer = a_layer()
    reading = read_gauge(layer, a_loss(layer), draws=2)  # 0.25 in the mean, noise of 2 / 2
    assert (reading.signal, reading.ratio, reading.gain) == (0, 0, 0)


def test_reading_the_gauge_leaves_the_gradients_alone():
    layer = a_layer()
    read_gauge(layer, a_loss(layer), draws=2)
    assert layer.weight.grad is None


@pytest.mark.parametrize(("ratio", "gain"), [(1.0, 0.5), (THRESHOLD, 0.75), (3.0, 0.9)])
def test_the_gain_of_a_noisy_step(ratio, gain):
    reading = Reading(ratio * 2, 2.0)
    assert reading.ratio == pytest.approx(ratio)
    assert reading.gain == pytest.approx(gain)


def test_the_gain_is_what_the_best_step_gains_on_a_bowl():
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(4096, generator=generator)
    gradient *= 2 / gradient.norm()
    noise = torch.randn(500, 4096, generator=generator) / 64
    noisy = gradient + noise

    def lost(length):  # of the bowl |w|**2 / 2, from the point whose gradient this is
        after = gradient - length * noisy
        return ((gradient.square().sum() - after.square().sum(1)) / 2).mean().item()

    best = max(lost(length / 100) for length in range(1, 101))
    whole = gradient.square().sum().item() / 2
    assert best / whole == pytest.approx(Reading(2.0, 1.0).gain, abs=0.02)


@pytest.mark.parametrize("power", [-0.5, -0.75, -1.0])
def test_a_power_law_is_met_where_it_leads(power):
    steps = [10, 20, 40, 80]
    meets = forecast(steps, [50.0 * step**power for step in steps])
    assert 50.0 * meets**power == pytest.approx(THRESHOLD)


def test_a_ratio_that_does_not_fall_never_gets_there():
    assert forecast([1, 10], [2.0, 2.0]) == math.inf
    assert forecast([1, 10], [2.0, 3.0]) == math.inf


@pytest.mark.parametrize(
    ("steps", "ratios"), [([1], [2.0]), ([1, 1], [2.0, 1.0]), ([1, 2], [2.0]), ([], [])]
)
def test_too_little_for_a_forecast_is_refused(steps, ratios):
    with pytest.raises(ValueError, match="expected two or more"):
        forecast(steps, ratios)


@pytest.mark.parametrize(("steps", "ratios"), [([0, 1], [2.0, 1.0]), ([1, 2], [2.0, 0.0])])
def test_what_has_no_logarithm_is_refused(steps, ratios):
    with pytest.raises(ValueError, match="expected positive"):
        forecast(steps, ratios)


def test_what_the_gauge_cannot_read_is_refused():
    plain, eight = a_layer(None), a_layer(dataclasses.replace(RECIPES["mxfp8"], last_layers_high=0))
    with pytest.raises(ValueError, match="no layer of Linear is quantised"):
        read_gauge(plain, a_loss(plain))
    with pytest.raises(ValueError, match="nothing is rounded at random"):
        read_gauge(eight, a_loss(eight))
    with pytest.raises(ValueError, match="draws=1"):
        read_gauge(eight, a_loss(eight), draws=1)
