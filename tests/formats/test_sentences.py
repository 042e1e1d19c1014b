"""Sentences of the chapters on numbers, and of the glossary, that no cell of theirs shows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn

from mpbook.formats import FORMATS, decode_tensor, kahan_sums


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_kahan_in_the_narrow_format_stalls_at_the_square_of_where_a_plain_sum_does(
    name: str,
) -> None:
    stall = 2 ** (2 * (FORMATS[name].mantissa_bits + 1))
    totals = kahan_sums(torch.ones(stall + 100), name)
    assert (totals[stall // 2 - 1], totals[stall - 1]) == (stall // 2, stall)
    assert (totals[stall:] == stall).all()


@pytest.mark.parametrize("name", FORMATS)
def test_zero_has_both_signs_but_in_three_formats(name: str) -> None:
    format = FORMATS[name]
    if format.bits > 16:
        pytest.skip("too many codes to look at each")
    numbers = decode_tensor(torch.arange(2**format.bits), name)
    signs = {bool(x) for x in torch.signbit(numbers[numbers == 0]).tolist()}
    lacking = {
        "float8_e4m3fnuz": {False},
        "float8_e5m2fnuz": {False},
        "float8_e8m0fnu": set[bool](),
    }
    assert signs == lacking.get(name, {False, True})


@pytest.mark.parametrize(("inputs", "activation_gradient_is_smaller"), [(1.0, True), (1e-4, False)])
def test_which_gradient_is_smaller_depends_on_the_inputs(
    inputs: float, activation_gradient_is_smaller: bool
) -> None:
    """A weight's gradient is a sum over the tokens of activation gradients times inputs."""
    draws = torch.Generator().manual_seed(0)
    layer = nn.Linear(32, 32)
    x = inputs * torch.randn(64, 32, generator=draws)
    y = layer(x)
    y.retain_grad()
    (y * torch.randn(64, 32, generator=draws)).mean().backward()
    assert y.grad is not None and layer.weight.grad is not None
    activation, weight = y.grad.abs().mean(), layer.weight.grad.abs().mean()
    assert (activation < weight / 3).item() is activation_gradient_is_smaller
    assert (activation > weight * 3).item() is not activation_gradient_is_smaller


@contextmanager
def without_onednn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own about its TF32 switches
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def test_a_bfloat16_convolution_without_onednn_counts_images_up_to_256() -> None:
    layer = nn.Conv2d(1, 1, 1, dtype=torch.bfloat16)
    images = torch.ones(1000, 1, 1, 1, dtype=torch.bfloat16)
    with without_onednn():
        layer(images).float().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.item() == 256


@pytest.mark.parametrize("norm", [nn.GroupNorm(1, 64), nn.BatchNorm1d(64)])
def test_other_norms_add_up_the_gradient_of_the_bias_in_float32(norm: nn.Module) -> None:
    norm = norm.bfloat16()
    norm(torch.randn(4096, 64).bfloat16()).float().sum().backward()
    bias = dict(norm.named_parameters())["bias"]
    assert bias.grad is not None and (bias.grad == 4096).all()


def test_grad_dtype_gives_bfloat16_parameters_float32_gradients() -> None:
    parameter = nn.Parameter(torch.ones((), dtype=torch.bfloat16))
    parameter.grad_dtype = torch.float32
    for _ in range(1000):
        (parameter * 1e-3).backward()
    assert parameter.grad is not None and parameter.grad.dtype == torch.float32
    assert parameter.grad.item() == pytest.approx(1, abs=1e-3)
    with pytest.raises(RuntimeError, match="dtype"):
        torch.optim.AdamW([parameter]).step()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cached_cast_collects_the_gradients_of_a_weight_in_16_bits(dtype: torch.dtype) -> None:
    """Where one region uses it many times; without the cache each use has a cast of its own."""
    uses, stall = 3000, int(2 / torch.finfo(dtype).eps)
    for cached, expected in ((True, stall), (False, uses)):
        weight, x = nn.Parameter(torch.ones(1, 1)), torch.ones(1, 1)
        with torch.autocast("cpu", dtype=dtype, cache_enabled=cached):
            outputs = [nn.functional.linear(x, weight) for _ in range(uses)]
        torch.cat(outputs).float().sum().backward()
        assert weight.grad is not None and weight.grad.item() == expected


def test_a_bfloat16_tensor_is_clamped_to_float16s_range_in_float32_or_not_at_all() -> None:
    x = torch.tensor([70_000.0]).bfloat16()
    largest = torch.finfo(torch.float16).max
    assert x.clamp(-largest, largest).half().isinf().all()
    assert x.float().clamp(-largest, largest).half() == largest


def test_a_region_for_each_use_clears_no_cache_inside_another_region() -> None:
    def gradient(*, outer: bool, cached: bool) -> float:
        weight = nn.Parameter(torch.ones(1, 1))
        around = torch.autocast("cpu", dtype=torch.bfloat16) if outer else nullcontext()
        outputs = []
        with around:
            for _ in range(1000):
                with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cached):
                    outputs.append(nn.functional.linear(torch.ones(1, 1), weight))
        torch.cat(outputs).float().sum().backward()
        assert weight.grad is not None
        return weight.grad.item()

    assert gradient(outer=False, cached=True) == 1000
    assert gradient(outer=True, cached=True) < 300
    assert gradient(outer=True, cached=False) == 1000


def test_a_fused_adam_in_float16_stores_no_small_second_moment_and_steps_too_far() -> None:
    moved = {}
    for dtype in (torch.float32, torch.float16):
        weight = nn.Parameter(torch.zeros(64, dtype=dtype))
        optimizer = torch.optim.Adam([weight], lr=1e-3, fused=True)
        for _ in range(50):
            before = weight.detach().clone()
            weight.grad = torch.full_like(weight, 1e-3)
            optimizer.step()
        moved[dtype] = (weight - before).abs().mean().item()
    assert moved[torch.float16] / moved[torch.float32] == pytest.approx(7, rel=0.05)
