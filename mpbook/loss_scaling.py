"""Loss scaling: move the gradients to where float16 has numbers, and back.

Multiply the loss by S, and the chain rule multiplies every gradient by S, away from float16's
smallest subnormal; divide by S before the update, in float32, and nobody knows.  A static scaler
keeps S.  A dynamic one halves S whenever a gradient overflows, skips that update, and doubles S
after a long run without overflow.  Step for step this is `torch.amp.GradScaler`, which the tests
hold it to, bit for bit.

Source: Micikevicius et al. 2018, section 3.2; `torch.amp.GradScaler` for the schedule.
Its chapter, "Loss scaling", is not written yet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class StaticLossScaler:
    """A constant loss scale; a step whose gradients are not finite is skipped all the same.

    Args:
        scale: what the loss is multiplied by.

    Raises:
        ValueError: a scale that is not a positive finite number.
    """

    def __init__(self, scale: float = 2.0**16):
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale={scale}: expected a positive finite number")
        self.loss_scale = float(scale)

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to call ``backward`` on."""
        return loss * self.loss_scale

    def unscale_(self, gradients: Sequence[Tensor]) -> bool:
        """Divide float32 gradients by the loss scale in place; say whether all are finite.

        Raises:
            ValueError: gradients that are not float32, where division would round again.
        """
        for gradient in gradients:
            if gradient.dtype != torch.float32:
                raise ValueError(
                    f"gradients: {gradient.dtype} gradients lose in unscaling what the scale "
                    "saved; convert them to float32 first (or keep float32 parameters)"
                )
        # The reciprocal of a scale that is no power of two is rounded once, as in GradScaler.
        inverse = torch.tensor(1 / self.loss_scale, dtype=torch.float32).item()
        for gradient in gradients:
            gradient.mul_(inverse)
        return all_finite(gradients)

    def update(self, *, finite: bool) -> None:
        """Note how the step went; a static scale does not change."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return dict(self.__dict__)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state.

        Raises:
            ValueError: the state of another kind of scaler.
        """
        if state.keys() != self.__dict__.keys():
            raise ValueError(
                f"state has {sorted(state)}, a {type(self).__name__} needs {sorted(self.__dict__)}"
            )
        self.__dict__.update(state)


class DynamicLossScaler(StaticLossScaler):
    """A loss scale that backs off at each overflow and grows after a run without one.

    Args:
        scale: the first loss scale.
        growth_factor: multiplies the scale after ``growth_interval`` finite steps in a row.
        backoff_factor: multiplies the scale after a step whose gradients overflowed.
        growth_interval: steps.

    Raises:
        ValueError: factors on the wrong side of 1, or an interval below 1.
    """

    def __init__(
        self,
        scale: float = 2.0**16,
        *,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ):
        super().__init__(scale)
        if not growth_factor > 1:
            raise ValueError(f"growth_factor={growth_factor}: expected more than 1")
        if not 0 < backoff_factor < 1:
            raise ValueError(f"backoff_factor={backoff_factor}: expected between 0 and 1")
        if growth_interval < 1:
            raise ValueError(f"growth_interval={growth_interval}: expected at least 1")
        self.growth_factor = growth_factor
        self.backoff_factor = backoff_factor
        self.growth_interval = growth_interval
        self.finite_steps = 0

    def update(self, *, finite: bool) -> None:
        """Back off after an overflow, grow after ``growth_interval`` finite steps in a row."""
        if not finite:
            self.loss_scale = _float32(self.loss_scale * self.backoff_factor)
            self.finite_steps = 0
            return
        self.finite_steps += 1
        if self.finite_steps == self.growth_interval:
            grown = _float32(self.loss_scale * self.growth_factor)
            self.loss_scale = grown if math.isfinite(grown) else self.loss_scale
            self.finite_steps = 0


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no element of any tensor is infinite or NaN; waits for the device once."""
    if not tensors:
        return True
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def _float32(value: float) -> float:
    """GradScaler keeps its scale in float32."""
    return torch.tensor(value, dtype=torch.float32).item()
