"""A loss scale that stays as it is; the calls that all scalers share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from mpbook.loss_scaling.gradients import AnyOptimizer, all_finite, gradients_of
from mpbook.precision import as_float32, checked_loss_scale
from mpbook.shards import own_part

INITIAL_SCALE = 2.0**16
"""Where a loss scale starts, unless it is told otherwise: here and in `torch.amp.GradScaler`."""


@dataclass
class Check:
    """What unscaling one optimizer's gradients found, left on the device until somebody asks."""

    finite: Tensor | bool | None  # None where there was no gradient to look at
    stepped: bool = False


class StaticLossScaler:
    """A constant loss scale; a step whose gradients are not finite is skipped all the same.

    Args:
        scale: what the loss is multiplied by; kept in float32.

    Raises:
        ValueError: not a positive number that float32 holds, together with its reciprocal.
    """

    def __init__(self, scale: float = INITIAL_SCALE):
        self.loss_scale = checked_loss_scale("scale", scale)
        self._checks: dict[int, Check] = {}

    def get_scale(self) -> float:
        """``loss_scale``, by the name that `torch.amp.GradScaler` has for it."""
        return self.loss_scale

    def is_enabled(self) -> bool:
        """Whether there is a loss scale at all."""
        return True

    @overload
    def scale(self, loss: Tensor) -> Tensor: ...
    @overload
    def scale(self, loss: list[Tensor]) -> list[Tensor]: ...
    @overload
    def scale(self, loss: tuple[Tensor, ...]) -> tuple[Tensor, ...]: ...
    @overload
    def scale(self, loss: Iterable[Tensor]) -> Iterable[Tensor]: ...
    def scale(self, loss: Tensor | Iterable[Tensor]) -> Tensor | Iterable[Tensor]:
        """The loss to call ``backward`` on; of a list or tuple one like it, of a generator one.

        Raises:
            TypeError: neither a floating-point tensor nor an iterable of them.

        >>> StaticLossScaler(1024).scale(torch.tensor(0.5))
        tensor(512.)
        """
        if isinstance(loss, list | tuple):
            return type(loss)(map(self.scale, loss))
        if isinstance(loss, Iterable) and not isinstance(loss, Tensor | str | Mapping):
            return map(self.scale, loss)
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"loss: a {type(loss).__name__}; expected a tensor that has not become a Python "
                "number yet, or a list of tensors"
            )
        if not loss.is_floating_point():
            raise TypeError(f"loss: {loss.dtype}; expected a floating-point tensor")
        # Tensor times tensor, so that a scalar float16 loss becomes float32 instead of infinite.
        return loss * torch.full((), self.loss_scale, dtype=torch.float32, device=loss.device)

    def unscale_(self, optimizer: AnyOptimizer) -> None:
        """Divide an optimizer's gradients by the loss scale, in place, and look for infinities.

        Call it after the last of several backward passes; `step` calls it if nobody has.

        Without any gradient there is nothing to divide; that is an error of `step`.

        Raises:
            RuntimeError: called a second time before `update`.
            ValueError: float16 gradients.
            TypeError: not an optimizer.
        """
        check = self._checks.get(id(optimizer))
        if check is not None:
            wrong = "after step()" if check.stepped else "for the second time"
            raise RuntimeError(
                f"optimizer: unscale_() is called {wrong} since the last update() on this "
                f"{type(optimizer).__name__}; expected scale, backward, unscale_, step, update"
            )
        if hasattr(optimizer, "take_gradients"):
            optimizer.take_gradients()
        gradients = gradients_of(optimizer)
        self._checks[id(optimizer)] = Check(self._divide_(gradients) if gradients else None)

    def _divide_(self, gradients: list[Tensor]) -> Tensor:
        """Divide in place; say whether all was finite before."""
        if any(gradient.dtype == torch.float16 for gradient in gradients):
            raise ValueError(
                'optimizer: "Attempting to unscale FP16 gradients." would round away what the '
                "scale saved; keep float32 parameters and compute in float16 under autocast, or "
                "wrap the optimizer in mpbook.master_weights.MasterWeights"
            )
        # A sparse gradient holds its numbers, and perhaps several for one place, in a dense tensor.
        values = [g._values() if g.is_sparse else g for g in gradients]
        finite = all_finite(values)  # on all ranks, where each holds a part
        # The reciprocal of a scale that is no power of two is rounded once, as in GradScaler.
        inverse = as_float32(1 / self.loss_scale) if self.loss_scale else math.inf
        for value in values:
            own_part(value).mul_(inverse)
        return finite

    def step(self, optimizer: AnyOptimizer, closure: None = None) -> bool:
        """Update the weights, unless a gradient is infinite or NaN; say whether it did.

        Raises:
            RuntimeError: called a second time before `update`, or with a closure.
            ValueError: no gradients, or some that `unscale_` refuses.
        """
        if closure is not None:
            raise RuntimeError(
                "closure: expected None; an optimizer that computes the loss by itself, like "
                "LBFGS, would see gradients that are still scaled (torch says: Closure use is not "
                "currently supported if GradScaler is enabled.)"
            )
        if id(optimizer) not in self._checks:
            self.unscale_(optimizer)
        check = self._checks[id(optimizer)]
        if check.stepped:
            raise RuntimeError(
                f"optimizer: step() has already been called on this {type(optimizer).__name__} "
                "since the last update(); expected update() once, after every optimizer's step"
            )
        if check.finite is None:
            raise ValueError(
                f"optimizer: no parameter of this {type(optimizer).__name__} has a gradient; "
                "expected scale(loss).backward() first, and a loss that depends on them (torch "
                "says: No inf checks were recorded for this optimizer.)"
            )
        check.finite = bool(check.finite)  # waits for the device
        if check.finite:
            optimizer.step()
        check.stepped = True
        return check.finite

    def update(self, new_scale: float | None = None) -> None:
        """Close the step of all optimizers; with ``new_scale``, go on with that scale.

        Raises:
            RuntimeError: no gradient was unscaled since the last `update`.
            ValueError: a ``new_scale`` that is no scale.
        """
        found = [check.finite for check in self._checks.values() if check.finite is not None]
        if new_scale is not None:
            self.loss_scale = checked_loss_scale("new_scale", new_scale)
        elif not found:
            raise RuntimeError(
                "update(): no gradients were checked since the last one; expected unscale_() or "
                "step() of an optimizer first"
            )
        else:
            self._adapt(finite=all(map(bool, found)))
        self._checks.clear()

    def _adapt(self, *, finite: bool) -> None:
        """Change the scale, or not, after a step in which all gradients were finite, or not."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, to be asked for after `update`."""
        return {"scale": self.loss_scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state, and begin a new step.

        Raises:
            ValueError: the state of another kind of scaler, or one that no run can be in.
        """
        if state.keys() != self.state_dict().keys():
            raise ValueError(
                f"state has the keys {sorted(state)}; a {type(self).__name__} needs "
                f"{sorted(self.state_dict())}"
            )
        self.__dict__.update(self._restored(state).__dict__)

    def _restored(self, state: dict[str, Any]) -> StaticLossScaler:
        """A new scaler in this state, which has been through all checks."""
        return StaticLossScaler(state["scale"])
