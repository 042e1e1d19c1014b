"""The answers of the exercises on FP8 and below, against the package's formats."""

import pytest
import torch

from mpbook.exercises import find
from mpbook.formats import FORMATS
from mpbook.formats.block_description import BLOCK_FORMATS
from mpbook.formats.blocks import quantise


def solution(name: str, *arguments: object) -> object:
    return find(f"fp8_and_below.{name}").solution(*arguments)


def inputs(name: str) -> list[tuple[object, ...]]:
    return list(find(f"fp8_and_below.{name}").inputs())


@pytest.mark.parametrize("amax", [amax for (amax,) in inputs("scale")])
def test_the_scale_is_that_of_the_package(amax: float) -> None:
    blocks = quantise(torch.tensor([[amax, 0.0]]), "fp8_per_tensor")
    assert solution("scale", amax) == pytest.approx(blocks.scales.item(), rel=1e-6)


@pytest.mark.parametrize(("name", "bits"), [("mxfp8_e4m3", 8.25), ("mxfp4", 4.25), ("nvfp4", 4.5)])
def test_the_bits_of_a_number_are_those_of_the_formats(name: str, bits: float) -> None:
    block_format = BLOCK_FORMATS[name]
    element, scale = block_format.element.bits, block_format.scale.bits
    assert solution("bits", element, scale, block_format.block[-1]) == bits


@pytest.mark.parametrize(("amax", "largest"), inputs("exponent"))
def test_the_exponent_is_that_of_rceil(amax: float, largest: float) -> None:
    name = "mxfp8_e4m3" if largest == FORMATS["float8_e4m3fn"].max else "mxfp4"
    x = torch.full((1, 32), amax)
    scale = quantise(x, name, scale_mode="rceil").scales.item()
    assert 2.0 ** solution("exponent", amax, largest) == scale
