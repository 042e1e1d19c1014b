"""The answers of the exercises on bfloat16, against torch and the package itself."""

import math

import pytest
import torch

from mpbook.exercises import find
from mpbook.formats import FORMATS, round_to
from mpbook.formats.bfloat16 import bfloat16_bits
from mpbook.training.paired import PairedDifference


def solution(name: str, *arguments: object) -> object:
    return find(f"bf16.{name}").solution(*arguments)


def inputs(name: str) -> list[tuple[object, ...]]:
    return list(find(f"bf16.{name}").inputs())


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 258, 259, 511, 513, 1024, 1027, 4096])
def test_positions_are_distinct_if_torch_keeps_them_apart(count: int) -> None:
    kept = torch.arange(count).to(torch.bfloat16).unique()
    assert solution("distinct_positions", count) == len(kept)


@pytest.mark.parametrize("bits", [bits for (bits,) in inputs("cut")])
def test_the_cut_is_the_rounding_of_the_package_and_of_torch(bits: int) -> None:
    x = torch.tensor([bits]).to(torch.int32).view(torch.float32)
    assert solution("cut", bits) == int(bfloat16_bits(x))
    assert solution("cut", bits) == int(x.bfloat16().view(torch.int16)) & 0xFFFF


@pytest.mark.parametrize(("low", "high", "margin"), inputs("verdict"))
def test_the_verdict_is_that_of_paired_differences(low: float, high: float, margin: float) -> None:
    quantile = 12.7062047  # of the t distribution with one degree of freedom, at 97.5%
    middle, half = (low + high) / 2, (high - low) / 2 / quantile
    pairs = PairedDifference(
        name="bf16-mixed",
        baseline="32-true",
        values=(1 + middle - half, 1 + middle + half),
        baseline_values=(1.0, 1.0),
    )
    assert pairs.relative_interval == pytest.approx((low, high))
    assert pairs.verdict(margin=margin).startswith(str(solution("verdict", low, high, margin)))


@pytest.mark.parametrize(("steps", "warmup", "mantissa_bits"), inputs("rate"))
def test_the_warm_up_goes_as_far_as_a_counter_of_that_format(
    steps: int, warmup: int, mantissa_bits: int
) -> None:
    name = {7: "bfloat16", 10: "float16"}[mantissa_bits]
    counter = torch.zeros(())
    for _ in range(steps):
        counter = round_to(counter + 1, name, overflow="inf")
    expected = min(1.0, counter.item() / warmup)
    assert solution("rate", steps, warmup, mantissa_bits) == expected


@pytest.mark.parametrize(("largest", "smallest", "mantissa_bits"), inputs("holds"))
def test_a_format_holds_what_torch_says_of_it(
    largest: float, smallest: float, mantissa_bits: int
) -> None:
    fits = []
    for name in ("float16", "bfloat16"):
        info = torch.finfo(getattr(torch, name))
        digits = -math.log2(info.eps)
        if info.tiny <= smallest and largest <= info.max and mantissa_bits <= digits:
            fits.append(name)
    assert solution("holds", largest, smallest, mantissa_bits) == tuple(fits)


def test_every_kind_of_verdict_and_of_tensor_is_asked_for() -> None:
    verdicts = {solution("verdict", *arguments) for arguments in inputs("verdict")}
    assert verdicts == {"within", "worse", "better", "not settled"}
    held = {solution("holds", *arguments) for arguments in inputs("holds")}
    assert held == {(), ("float16",), ("bfloat16",), ("float16", "bfloat16")}
    assert FORMATS["bfloat16"].precision == 8
