"""Failures without an infinity or NaN: a silenced layer, rounding, results that are 0."""

from __future__ import annotations

import inspect
import linecache
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mpbook.diagnosis import Diagnosis, diagnose
from mpbook.diagnosis.advice import advise
from mpbook.diagnosis.format_report import FormatReport
from mpbook.diagnosis.operators_seen import Recorder
from mpbook.diagnosis.places import Key, Place, Seen
from mpbook.diagnosis.rescue import FEW, Rescue, by_halving
from mpbook.diagnosis.stepping import Run
from mpbook.diagnosis.verdicts import FormatVerdict

X, Y = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3
SGD = partial(torch.optim.SGD, lr=0.01)


class Beside(nn.Module):
    """A small branch beside a layer whose gradients are much larger."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.before = nn.Linear(8, 3), nn.Linear(8, 3)
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + 0.01 * self.branch(self.before(x))


class Norm(nn.Module):
    """A norm by hand."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        large = x * self.size + self.size
        squares = large * large  # the squares
        return large / squares.sum(-1, keepdim=True).sqrt()


def diagnosed(model: nn.Module, **options: Any) -> Diagnosis:
    return diagnose(model, (X, Y), loss=F.cross_entropy, optimizer=SGD, formats=["float16"],
                    steps=2, **options)  # fmt: skip


def test_a_layer_silenced_by_an_overflow_is_a_failure_however_small_its_share() -> None:
    found = diagnosed(Beside(Norm(1000)))
    verdict, rescue = found.of("float16"), found.formats["float16"].rescue
    assert verdict.survives == "no" and verdict.total < 0.1
    assert verdict.gradient_error["before.weight"] > 0.9
    assert "the gradient of before." in verdict.reason
    assert verdict.failure is not None
    assert "# the squares" in line_of(verdict.failure.key.place)
    assert rescue is not None and rescue.holds
    assert ["# the squares" in line_of(place) for place in rescue.places] == [True]


def line_of(place: Any) -> str:
    return linecache.getline(place.file, place.line)


def test_a_small_layer_without_an_overflow_is_none() -> None:
    assert diagnosed(Beside(Norm(1))).survives("float16") == "yes"


# --- Finite, and wrong ------------------------------------------------------------------------


class Between(nn.Module):
    """A function between two layers, each on a line of its own."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after, self.function = nn.Linear(8, 8), nn.Linear(8, 3), function

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.before(x)
        hidden = self.function(hidden)
        return self.after(hidden)


def _of_large_numbers(hidden: Tensor) -> Tensor:
    large = hidden + 3000  # wrong
    return large - 3000


def _variance_in_one_pass(hidden: Tensor) -> Tensor:
    hidden = hidden + 20
    mean = hidden.mean(-1, keepdim=True)  # wrong
    variance = (hidden * hidden).mean(-1, keepdim=True) - mean * mean  # wrong
    return (hidden - mean) / (variance.abs() + 1e-3).sqrt()


def _tiny(hidden: Tensor) -> Tensor:
    small = hidden * 2e-8  # wrong
    return small.float() * 5e7


def _at_positions(hidden: Tensor) -> Tensor:
    times = torch.arange(2**14, 2**14 + 16, dtype=hidden.dtype)  # wrong
    return hidden * times.float().sin()[:, None]


@pytest.mark.parametrize(
    ("function", "because", "words"),
    [
        (_of_large_numbers, "rounding", "rounding there is too coarse"),
        (_variance_in_one_pass, "rounding", "rounding there is too coarse"),
        (_tiny, "underflow", "below the normal numbers"),
        (_at_positions, "whole numbers", "cannot tell these whole numbers apart"),
    ],
)
def test_what_is_finite_and_wrong_has_its_lines(function: Any, because: str, words: str) -> None:
    found = diagnosed(Between(function))
    verdict, rescue = found.of("float16"), found.formats["float16"].rescue
    assert verdict.survives == "no" and verdict.wrong and verdict.failure is None
    assert rescue is not None and rescue.holds and rescue.because == because
    source = inspect.getsource(function).splitlines()
    expected = [line.strip() for line in source if "# wrong" in line]
    assert sorted(line_of(place).strip() for place in rescue.places) == sorted(expected)
    assert rescue.total < 0.05 < verdict.total
    (advice,) = (one for one in found.advice if "# now" in one.lines)
    assert words in advice.what and f"{rescue.total:.1%}" in advice.what


@pytest.mark.parametrize("count", [1, 2, 3, FEW])
def test_halving_finds_what_is_needed_and_nothing_else(count: int) -> None:
    places = [Place(str(i)) for i in range(40)]
    run = Run(torch.float16, 1.0, Recorder(nn.Module()), 1)
    for order, place in enumerate(places):
        key = Key("forward", place, "mul", 1)
        run.recorder.seen[key] = Seen(key, torch.float16, order, (1,))
    for seed in range(20):
        needed = set(random.Random(seed).sample(places, count))
        assert set(by_halving(run, lambda kept: needed <= set(kept))) == needed  # noqa: B023
    assert by_halving(run, lambda kept: len(set(kept)) > FEW) == []
    assert by_halving(run, lambda kept: False) == []


def test_rounding_in_many_places_is_laid_to_none() -> None:
    verdict = FormatVerdict("bfloat16", "no", "", wrong=True, total=0.9)
    (found,) = advise({"bfloat16": FormatReport(verdict, Rescue("bfloat16", (), holds=False))}, [])
    assert "no few places are to blame" in found.what


# --- Wrong, and not by enough to fail ---------------------------------------------------------


def _positions(dtype: torch.dtype | None) -> Callable[[Tensor], Tensor]:
    return lambda h: h * (torch.arange(300, 316, dtype=dtype or h.dtype).float() / 9).sin()[:, None]


def test_rounded_positions_are_in_what_to_do_if_they_are_the_error() -> None:
    def bfloat16(function: Callable[[Tensor], Tensor]) -> Diagnosis:
        return diagnose(Between(function), (X, Y), loss=F.cross_entropy, formats=["bfloat16"])

    found = bfloat16(_positions(None))
    assert found.survives("bfloat16") == "yes" and found.of("bfloat16").total > 0.05
    (advice,) = (one for one in found.advice if "positions" in one.what)
    assert "positions = torch.arange" in advice.lines
    assert "positions" not in bfloat16(_positions(torch.float32)).to_do()


def test_a_loss_whose_value_alone_is_infinite_fails_nothing() -> None:
    def loss(output: Tensor, batch: Any) -> Tensor:
        beyond = (0 * output[0, 0] + 300) * 300  # 90000
        return F.cross_entropy(output, batch[1]) + beyond

    class WithItsLoss(Between):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return loss(super().forward(x), (x, y))

    for model, one in ((Between(torch.tanh), loss), (WithItsLoss(torch.tanh), None)):
        found = diagnose(model, (X, Y), loss=one, formats=["float16"])
        assert found.survives("float16") == "yes"
        assert "the loss's own value is not finite" in found.of("float16").reason
        assert "the loss that is printed is not finite" in found.advice[0].what
        assert ("loss_function(output.float(), target)" in found.advice[0].lines) == bool(one)


# --- Where float32 rounds as well -------------------------------------------------------------


class Curvature(nn.Module):
    """A second derivative by differences, of which float32 has some digits and 16 bits none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        near = self.net(x + 1e-3) - 2 * self.net(x) + self.net(x - 1e-3)  # cancels
        return (near / 1e-6 + x.sin()).square().mean()


@pytest.mark.parametrize("format", ["float16", "bfloat16"])
def test_gradients_that_float32_rounds_too_are_no_excuse_for_a_format(format: str) -> None:
    x = 3 * torch.rand(64, 1, generator=torch.Generator().manual_seed(0))
    found = diagnose(Curvature(), (x,), formats=[format])
    rescue = found.formats[format].rescue
    assert found.survives(format) == "no" and found.of(format).wrong
    assert rescue is not None and rescue.holds
    assert ["# cancels" in line_of(place) for place in rescue.places] == [True]


def test_a_loss_whose_value_alone_is_off_is_told() -> None:
    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(8, 1)
            nn.init.constant_(self.layer.bias, 1000.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x[:8]).mean() - self.layer(x[8:]).mean()

    found = diagnose(Critic(), (X,), formats=["bfloat16"])
    said = [line.finding for line in found.lines() if line.topic == "loss"]
    assert found.survives("bfloat16") == "yes" and len(said) == 1 and "off float32's" in said[0]
    assert [one.what.partition(" is ")[0] for one in found.advice] == ["the loss"]


@pytest.mark.parametrize("is_told", [False, True])
def test_a_loss_that_stands_still_in_the_next_steps_is_told(is_told: bool) -> None:
    class Preference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(8, 8, bias=False)
            self.start: Tensor
            self.register_buffer("start", self.layer.weight.detach().clone())

        def forward(self, x: Tensor) -> Tensor:
            now, before = self.layer(x), F.linear(x, self.start)
            offset = 1000.0 if is_told else 0.0  # of a sum over many tokens
            sums = [part.sum().to(part.dtype) + offset for part in (now, before)]
            return -F.logsigmoid(sums[0] - sums[1])

    sgd = partial(torch.optim.SGD, lr=0.003)
    found = diagnose(Preference(), (X,), optimizer=sgd, formats=["bfloat16"])
    assert found.survives("bfloat16") == "yes" and found.of("bfloat16").total < 0.3
    assert any(line.topic == "loss" for line in found.lines()) == is_told


def test_a_layer_that_no_gradient_reaches_is_told_however_small_its_share() -> None:
    class Slow(nn.Module):
        """An average whose decay is 1 in bfloat16."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.before, self.after = nn.Linear(8, 8), nn.Linear(8, 3)
            self.decay = nn.Parameter(torch.tensor(0.999))

        def forward(self, x: Tensor) -> Tensor:
            new = self.before(x)
            decay = self.decay.to(new.dtype)
            return self.after(decay * torch.ones_like(new) + (1 - decay) * new)

    found = diagnose(Slow(), (X, Y), loss=F.cross_entropy)
    assert found.of("bfloat16").without_gradient == ("before.weight", "before.bias")
    assert found.of("float16").without_gradient == ()
    (told,) = [one for one in found.advice if one.what.startswith("no gradient reaches")]
    assert told.format == "bfloat16" and "before.weight, before.bias" in told.what


class Codes(nn.Module):
    """Nearest codes by ``|a|^2 + |b|^2 - 2ab``, far from the origin or at it."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 4)
        nn.init.constant_(self.layer.bias, offset)
        self.codes: Tensor
        self.register_buffer("codes", torch.randn(16, 4) + offset)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x)
        codes = self.codes.to(hidden.dtype)
        squares = (hidden * hidden).sum(1, keepdim=True) + (codes * codes).sum(1)
        nearest = (squares.to(hidden.dtype) - 2 * hidden @ codes.mT).argmin(-1)
        return hidden.float() - 0.1 * self.codes[nearest]


@pytest.mark.parametrize(("offset", "is_told"), [(0.0, False), (60.0, True)])
def test_choices_of_which_most_differ_are_in_what_to_do(offset: float, is_told: bool) -> None:
    x = torch.randn(128, 8, generator=torch.Generator().manual_seed(0))
    found = diagnose(Codes(offset), x, loss=lambda out: out.float().square().mean())
    assert found.survives("bfloat16") == "yes"
    assert ("argmin chooses differently" in found.to_do()) == is_told


def test_positions_beyond_65504_are_not_to_be_standardised() -> None:
    def rotated(hidden: Tensor) -> Tensor:
        positions = torch.arange(99_984, 100_000).to(hidden.dtype)
        return hidden * positions.float().sin()[:, None]

    first = diagnosed(Between(rotated)).advice[0]
    assert "keep positions, times or indices in float32" in first.what
    assert "mean" not in first.lines and "positions" in first.lines
