"""No loss scale, under the calls of one."""

from __future__ import annotations

from typing import Any

from mpbook.loss_scaling.gradients import AnyOptimizer
from mpbook.loss_scaling.static import Check, StaticLossScaler


class NoLossScaler(StaticLossScaler):
    """No loss scale: the calls of a scaler, nothing multiplied, nothing checked, nothing skipped.

    What ``torch.amp.GradScaler(enabled=False)`` does: no call is refused, closures are handed on,
    and a step without any gradient is the optimizer's own affair.  Two things more: `unscale_`
    lets a wrapper take its gradients, so that they can be clipped in float32, and `step` returns
    True where torch's returns None, so that one loop can ask every scaler whether it made a step.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> NoLossScaler().step(torch.optim.SGD([weight]), closure=lambda: 0.5)
    0.5
    """

    def __init__(self) -> None:
        super().__init__(1.0)

    def is_enabled(self) -> bool:
        """False."""
        return False

    def scale(self, loss: Any) -> Any:
        """The loss itself, or whatever else was given."""
        return loss

    def unscale_(self, optimizer: AnyOptimizer) -> None:
        """Let a wrapper take its gradients, once in each step; nothing otherwise."""
        if hasattr(optimizer, "take_gradients") and id(optimizer) not in self._checks:
            self._checks[id(optimizer)] = Check(finite=True)
            optimizer.take_gradients()

    def step(self, optimizer: AnyOptimizer, *arguments: Any, **options: Any) -> Any:
        """The optimizer's step, and what it returns; True for None."""
        self.unscale_(optimizer)
        result = optimizer.step(*arguments, **options)
        self._checks.pop(id(optimizer), None)
        return True if result is None else result

    def update(self, new_scale: Any = None) -> None:
        """Close the step of all optimizers; there is no scale to change."""
        self._checks.clear()

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin a new step; no scaler's state changes this one."""
        self._checks.clear()
