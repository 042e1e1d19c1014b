"""A loss scale that looks for its place: lower after an overflow, higher after many steps."""

from __future__ import annotations

import math
from typing import Any

from mpbook.loss_scaling.static import INITIAL_SCALE, StaticLossScaler
from mpbook.precision import as_float32

GROWTH_FACTOR = 2.0
"""What a dynamic loss scale grows by, unless it is told otherwise."""

BACKOFF_FACTOR = 0.5
"""What a dynamic loss scale is multiplied by after an overflow, unless it is told otherwise."""

GROWTH_INTERVAL = 2000
"""Finite steps in a row after which a dynamic loss scale grows, unless it is told otherwise."""


class DynamicLossScaler(StaticLossScaler):
    """A loss scale that backs off at each overflow and grows after a run without one.

    Args:
        scale: the first loss scale; kept in float32.
        growth_factor: multiplies the scale after ``growth_interval`` finite steps in a row.
        backoff_factor: multiplies the scale after a step whose gradients overflowed.
        growth_interval: steps.

    Raises:
        ValueError: no scale, factors on the wrong side of 1, or no positive number of steps.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer, scaler = torch.optim.SGD([weight], lr=0.5), DynamicLossScaler(1024)
    >>> scaler.scale(3 * weight.sum()).backward()
    >>> weight.grad
    tensor([3072.])
    >>> scaler.unscale_(optimizer)
    >>> weight.grad
    tensor([3.])
    >>> scaler.step(optimizer)
    True
    >>> weight.grad.fill_(torch.inf)
    tensor([inf])
    >>> scaler.update()
    >>> scaler.step(optimizer)
    False
    >>> scaler.update()
    >>> scaler.loss_scale, weight.item()
    (512.0, -0.5)
    """

    def __init__(
        self,
        scale: float = INITIAL_SCALE,
        *,
        growth_factor: float = GROWTH_FACTOR,
        backoff_factor: float = BACKOFF_FACTOR,
        growth_interval: int = GROWTH_INTERVAL,
    ):
        super().__init__(scale)
        if not (_is_number(growth_factor) and 1 < growth_factor < math.inf):
            raise ValueError(f"growth_factor={growth_factor!r}: expected a number above 1")
        if not (_is_number(backoff_factor) and 0 < backoff_factor < 1):
            raise ValueError(f"backoff_factor={backoff_factor!r}: expected between 0 and 1")
        if not (_is_whole(growth_interval) and growth_interval >= 1):
            raise ValueError(f"growth_interval={growth_interval!r}: expected 1, 2, ... steps")
        self.growth_factor = growth_factor
        self.backoff_factor = backoff_factor
        self.growth_interval = growth_interval
        self.finite_steps = 0

    def _adapt(self, *, finite: bool) -> None:
        """Back off after an overflow, grow after ``growth_interval`` finite steps in a row."""
        if not finite:
            self.loss_scale = as_float32(self.loss_scale * self.backoff_factor)
            self.finite_steps = 0
            return
        self.finite_steps += 1
        if self.finite_steps == self.growth_interval:
            grown = as_float32(self.loss_scale * self.growth_factor)
            self.loss_scale = grown if math.isfinite(grown) else self.loss_scale
            self.finite_steps = 0

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, in the form of `torch.amp.GradScaler`."""
        return {
            "scale": self.loss_scale,
            "growth_factor": self.growth_factor,
            "backoff_factor": self.backoff_factor,
            "growth_interval": self.growth_interval,
            "_growth_tracker": self.finite_steps,
        }

    def _restored(self, state: dict[str, Any]) -> DynamicLossScaler:
        options = {k: v for k, v in state.items() if k not in ("scale", "_growth_tracker")}
        restored = DynamicLossScaler(state["scale"], **options)
        done = state["_growth_tracker"]
        if not (_is_whole(done) and 0 <= done < restored.growth_interval):
            raise ValueError(
                f"_growth_tracker={done!r}: expected 0 or more finite steps, fewer than "
                f"growth_interval={restored.growth_interval}, or the scale would never grow again"
            )
        restored.finite_steps = done
        return restored


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
