"""The answers of the exercises on master weights, against torch and the package itself."""

import math

import pytest
import torch

from mpbook.cost.measure import count_bytes, state_tensors
from mpbook.exercises import find
from mpbook.formats import FORMATS, round_to
from mpbook.master_weights import KahanSummation, MasterWeights, StochasticRounding


def solution(name: str, *arguments: object) -> object:
    return find(f"master_weights.{name}").solution(*arguments)


def inputs(name: str) -> list[tuple[object, ...]]:
    return list(find(f"master_weights.{name}").inputs())


def positive_numbers(format: str) -> torch.Tensor:
    """All positive finite numbers of a 16-bit format, in order, as float64."""
    codes = torch.arange(1, 2**15, dtype=torch.int16).view(getattr(torch, format))
    return codes[codes.isfinite()].double()


@pytest.mark.parametrize(
    ("rate", "format"), [i for i in inputs("frozen_above") if "32" not in i[1]]
)
def test_from_there_on_no_weight_moves_and_below_some_do(rate: float, format: str) -> None:
    weights = positive_numbers(format)
    limit = solution("frozen_above", rate, format)
    assert isinstance(limit, float)
    dtype = getattr(torch, format)
    up, down = ((weights + step).to(dtype) != weights.to(dtype) for step in (rate, -rate))
    moves = (up | down)[weights < FORMATS[format].max]
    weights = weights[weights < FORMATS[format].max]
    assert not moves[weights >= limit].any()
    assert moves[(weights >= limit / 2) & (weights < limit)].any()


@pytest.mark.parametrize(("weight", "update", "format"), inputs("arrives"))
def test_an_update_arrives_if_torch_says_so(weight: float, update: float, format: str) -> None:
    dtype = getattr(torch, format)
    new = torch.tensor(weight + update, dtype=torch.float64).to(dtype)
    moved = bool(new != torch.tensor(weight, dtype=dtype))
    assert solution("arrives", weight, update, format) is moved


def test_updates_that_arrive_and_updates_that_do_not_are_asked_about() -> None:
    answers = [solution("arrives", *case) for case in inputs("arrives")]
    assert 3 <= sum(map(bool, answers)) <= len(answers) - 3


@pytest.mark.parametrize(("weights", "cure"), inputs("bytes_per_parameter"))
def test_the_bytes_are_those_of_real_tensors(weights: str, cure: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(256, dtype=getattr(torch, weights)))
    optimizer: torch.optim.Optimizer = torch.optim.AdamW([parameter])
    if cure == "stochastic_rounding":
        optimizer = StochasticRounding(optimizer, generator=torch.Generator())
    elif cure != "none":
        wrap = MasterWeights if cure == "master_weights" else KahanSummation
        optimizer = wrap(optimizer)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = [t for t in state_tensors(dict(optimizer.state)) if t.dim()]
    kept = list(getattr(optimizer, "kept", {}).values())
    held = count_bytes([parameter, parameter.grad, *moments, *kept])
    assert solution("bytes_per_parameter", weights, cure) == held / 256


@pytest.mark.parametrize(
    ("weight", "lost", "update"), [case[:3] for case in inputs("kahan_update")]
)
def test_a_kahan_update_is_what_the_wrapper_does(weight: float, lost: float, update: float) -> None:
    parameter = torch.nn.Parameter(torch.tensor([weight], dtype=torch.bfloat16))
    optimizer = KahanSummation(torch.optim.SGD([parameter], lr=1.0))
    optimizer.kept[parameter].fill_(lost)
    assert optimizer.kept[parameter].item() == lost
    parameter.grad = torch.tensor([-update], dtype=torch.bfloat16)
    assert parameter.grad.item() == -update
    optimizer.step()
    rounded = inputs("kahan_update")[0][3]
    expected = parameter.item(), optimizer.kept[parameter].item()
    assert solution("kahan_update", weight, lost, update, rounded) == expected


@pytest.mark.parametrize(("gradient", "beta2"), inputs("vanishes"))
def test_a_second_moment_vanishes_if_float16_rounds_it_to_zero(
    gradient: float, beta2: float
) -> None:
    moment = torch.tensor((1 - beta2) * gradient**2, dtype=torch.float64).half()
    assert solution("vanishes", gradient, beta2) is bool(moment == 0)


@pytest.mark.parametrize(("weight", "update", "format"), inputs("expected_steps"))
def test_stochastic_rounding_takes_that_many_steps_in_the_mean(
    weight: float, update: float, format: str
) -> None:
    steps = solution("expected_steps", weight, update, format)
    assert isinstance(steps, float)
    draws = torch.Generator().manual_seed(0)
    new = round_to(
        torch.full((100_000,), weight + update, dtype=torch.float64),
        format,
        rounding="stochastic",
        overflow="inf",
        generator=draws,
    )
    moved = (new != weight).double().mean().item()
    assert moved == pytest.approx(1 / steps, abs=5 * math.sqrt(1 / steps / 100_000))


def test_no_input_is_asked_twice() -> None:
    for name in ("frozen_above", "arrives", "bytes_per_parameter", "vanishes", "expected_steps"):
        assert len(set(inputs(name))) == len(inputs(name))
