"""The answers of the exercises on speed, against the roofline and what torch counts."""

from typing import Any

import pytest
import torch
from torch import nn

from mpbook.cost.measure import count_flops, utilisation
from mpbook.cost.roofline import Roof, Work, matmul
from mpbook.exercises import find

FORMATS = {1: "float8_e4m3fn", 2: "bfloat16", 4: "float32"}


def solution(name: str, *arguments: object) -> object:
    return find(f"speed.{name}").solution(*arguments)


def inputs(name: str) -> list[tuple[Any, ...]]:
    return list(find(f"speed.{name}").inputs())


@pytest.mark.parametrize(("m", "k", "n", "size"), inputs("intensity"))
def test_the_intensity_is_that_of_the_package(m: int, k: int, n: int, size: int) -> None:
    assert solution("intensity", m, k, n, size) == matmul(m, k, n, FORMATS[size]).intensity


@pytest.mark.parametrize(("intensity", "peak32", "peak16", "bandwidth"), inputs("best_speed_up"))
def test_the_best_speed_up_is_that_of_the_roof(
    intensity: float, peak32: float, peak16: float, bandwidth: float
) -> None:
    roof = Roof("device", bandwidth, {"float32": peak32, "bfloat16": peak16})
    wide, narrow = (Work("w", int(8 * intensity), size) for size in (8, 4))
    expected = roof.seconds(wide, "float32") / roof.seconds(narrow, "bfloat16")
    assert solution("best_speed_up", intensity, peak32, peak16, bandwidth) == expected


def test_both_bounds_and_the_change_between_them_are_asked_about() -> None:
    sides = set()
    for intensity, peak32, peak16, bandwidth in inputs("best_speed_up"):
        sides.add((intensity >= peak32 / bandwidth, 2 * intensity >= peak16 / bandwidth))
    assert {(False, False), (True, True), (True, False)} <= sides


@pytest.mark.parametrize(("share", "factor"), inputs("whole_step"))
def test_the_whole_step_takes_the_sum_of_its_parts(share: float, factor: float) -> None:
    seconds = [100 * (1 - share), 100 * share / factor]
    assert solution("whole_step", share, factor) == pytest.approx(100 / sum(seconds))


@pytest.mark.parametrize(("size", "multiple"), inputs("padded"))
def test_a_padded_size_is_the_next_multiple(size: int, multiple: int) -> None:
    padded = solution("padded", size, multiple)
    assert padded == next(n for n in range(size, size + multiple) if n % multiple == 0)


def test_gpt2s_vocabulary_becomes_the_one_of_nanogpt() -> None:
    assert solution("padded", 50257, 64) == 50304


@pytest.mark.parametrize(("parameters", "tokens", "peak"), inputs("mfu"))
def test_utilisation_is_of_the_dense_peak(parameters: float, tokens: float, peak: float) -> None:
    expected = utilisation(6 * parameters * tokens, 1.0, peak / 2)
    assert solution("mfu", parameters, tokens, peak) == pytest.approx(expected)


def test_six_operations_a_weight_are_what_torch_counts() -> None:
    model, x = nn.Linear(8, 16, bias=False), torch.randn(4, 8, requires_grad=True)
    assert count_flops(lambda: model(x).sum().backward()) == 6 * 8 * 16 * 4
