"""How much of a gradient is signal, and how much is the noise of stochastic rounding.

Rounding a gradient stochastically leaves its mean as it was and adds noise.  While the gradient is
large the noise does not matter.  As training converges the gradients of the single tokens stay, and
cancel in their sum; their roundings do not cancel, so the noise stays while the signal falls.

A step along g + noise, of the best length, gains r**2 / (1 + r**2) of what a step along g alone
gains, on a bowl that is equally steep on all sides, with r the norm of g over that of the noise.
At r = sqrt(3) that is three quarters: about there, says the paper, training in four bits becomes
less effective.

Source: "FP4 All the Way", arXiv:2505.19115, for the threshold.

Taught in the chapter "FP8 and below".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpbook.distributed import BEFORE_SHARDING, is_data_parallel, refuse_sharded
from mpbook.low_precision.linear import QuantizedLinear

THRESHOLD = math.sqrt(3)
"""Of signal over noise, below which training in four bits becomes less effective."""


@dataclass(frozen=True)
class Reading:
    """The norms of a gradient's mean over draws, and of its deviation from it in one draw."""

    signal: float
    noise: float

    @property
    def ratio(self) -> float:
        """Signal over noise."""
        return self.signal / self.noise

    @property
    def gain(self) -> float:
        """What the best step keeps of the gain of one without noise, on an equally steep bowl.

        >>> Reading(signal=THRESHOLD, noise=1.0).gain
        0.75
        """
        return self.signal**2 / (self.signal**2 + self.noise**2)


def read_gauge(model: nn.Module, loss: Callable[[], Tensor], *, draws: int = 8) -> Reading:
    """Signal and noise of the gradient of a model's quantised weights, on one batch.

    The noise is what differs between draws of the rounding; the signal is the norm of their mean,
    without the share that noise has in it.  Leaves ``.grad`` alone.

    Args:
        model: has layers that `mpbook.low_precision.convert` quantised.
        loss: computes the loss of one and the same batch, each time anew.
        draws: how many; 2 or more.

    Raises:
        ValueError: too few draws, a model that ranks share, one without quantised layers, or one
            of which nothing is rounded stochastically.
    """
    if draws < 2:
        raise ValueError(f"draws={draws}: expected 2 or more, to see a difference")
    refuse_sharded(model, instead=BEFORE_SHARDING)
    if is_data_parallel(model):
        raise ValueError(
            f"model: a {type(model).__name__}, whose gradients are averaged over the ranks only in "
            "backward(); expected model.module, and a loss that calls that one"
        )
    weights = [layer.weight for layer in model.modules() if isinstance(layer, QuantizedLinear)]
    if not weights:
        raise ValueError(f"model: no layer of {type(model).__name__} is quantised; convert it")
    gradients = torch.stack([_gradient(loss(), weights) for _ in range(draws)])
    noise = gradients.var(0).sum().item()
    if noise == 0:
        raise ValueError("model: every draw gives the same gradient: nothing is rounded at random")
    signal = gradients.mean(0).square().sum().item() - noise / draws
    return Reading(math.sqrt(max(signal, 0.0)), math.sqrt(noise))


def forecast(steps: Sequence[float], ratios: Sequence[float], *, to: float = THRESHOLD) -> float:
    """The step at which a ratio that falls as a power of the step reaches a threshold.

    A line is fitted through the logarithms.

    Args:
        steps: positive, two or more different ones.
        ratios: read there, positive.
        to: the threshold.

    Returns:
        The step, or infinity where the ratio does not fall.

    Raises:
        ValueError: fewer than two steps, or a number that is not positive.

    >>> forecast([1, 10, 100], [40.0, 12.0, 3.6], to=1.08)
    1000.0
    """
    if len(steps) != len(ratios) or len(set(steps)) < 2:
        raise ValueError(
            f"steps={list(steps)}, ratios={list(ratios)}: expected two or more different steps, "
            "and as many ratios"
        )
    if min(*steps, *ratios, to) <= 0:
        raise ValueError(
            f"steps={list(steps)}, ratios={list(ratios)}, to={to}: expected positive numbers, for "
            "their logarithms"
        )
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (steps, ratios))
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    if slope >= 0:
        return math.inf
    return round(math.exp(((math.log(to) - y.mean()) / slope + x.mean()).item()), 6)


def _gradient(loss: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return torch.cat([g.flatten().double() for g in torch.autograd.grad(loss, weights)])
