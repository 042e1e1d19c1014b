"""Failures without an infinity or NaN in the end: a layer that is silenced, results that are 0."""

from __future__ import annotations

import linecache
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mpbook.diagnosis import Diagnosis, diagnose

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
