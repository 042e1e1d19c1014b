"""Loss scaling: move the gradients to where float16 has numbers, and back.

Multiply the loss by S, and the chain rule multiplies every gradient by S, away from float16's
smallest subnormal; divide by S before the update, in float32, and nobody knows.  Three scalers
share the calls of one step:

    scaler.scale(loss).backward()  # gradients, times S
    scaler.unscale_(optimizer)     # gradients; clip them here, if at all
    scaler.step(optimizer)         # unless one of them is infinite or NaN
    scaler.update()                # a lower S after an overflow, a higher one after many steps

* `StaticLossScaler` keeps S.
* `DynamicLossScaler` multiplies S by ``backoff_factor`` after each step with an overflow and by
  ``growth_factor`` after ``growth_interval`` steps in a row without one.
* `NoLossScaler` leaves out all but the calls, so that one loop serves every precision.

The dynamic one is `torch.amp.GradScaler`, step for step and bit for bit; their saved states are
interchangeable, and a call is an error in the one where it is an error in the other, but for two
that GradScaler lets through: a ``fused=True`` optimizer with float16 gradients or none, and a
closure that is passed by position.  The last one is ``torch.amp.GradScaler(enabled=False)``.

Whether to step is decided in Python, so `step` waits for the device once for each optimizer, as
GradScaler does; an optimizer with ``fused=True`` decides for GradScaler in its kernel, without a
wait.  Nothing else waits: ``loss_scale`` is a Python number, where
``GradScaler.get_scale()`` waits again.  Gradients are read twice, to look for infinities and to
divide, in plain tensor operations; GradScaler has one kernel for both.

A scale that falls and falls means gradients that are infinite or NaN whatever the scale:
`nonfinite_gradients` names the parameters, after a backward pass with any scaler.  Below 2**-128
the reciprocal of a scale is infinite itself, and the product with it comes after the check: from
there on GradScaler writes infinities and NaN to the weights, and so does `DynamicLossScaler`.  A
scale that grows and grows, as with bfloat16, ends at 2**127, the largest power of two in float32.

Source: Micikevicius et al. 2018, section 3.2; `torch.amp.GradScaler` for the schedule.
Taught in the chapter "Loss scaling".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

import torch
from torch import Tensor, nn

from mpbook.precision import as_float32, checked_loss_scale

INITIAL_SCALE = 2.0**16
"""Where a loss scale starts, unless it is told otherwise: here and in `torch.amp.GradScaler`."""

GROWTH_FACTOR = 2.0
"""What a dynamic loss scale grows by, unless it is told otherwise."""

BACKOFF_FACTOR = 0.5
"""What a dynamic loss scale is multiplied by after an overflow, unless it is told otherwise."""

GROWTH_INTERVAL = 2000
"""Finite steps in a row after which a dynamic loss scale grows, unless it is told otherwise."""


class AnyOptimizer(Protocol):
    """A `torch.optim.Optimizer`, or a wrapper that looks like one.

    A wrapper that updates float32 copies of 16-bit weights has the copies in ``param_groups`` and
    a method ``take_gradients()``, which gives them the gradients of the weights, in float32.
    """

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of parameters, each with a list ``"params"``."""

    def step(self, *arguments: Any, **options: Any) -> Any:
        """Update the parameters."""


@dataclass
class _Check:
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
        self._checks: dict[int, _Check] = {}

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
        self._checks[id(optimizer)] = _Check(self._divide_(gradients) if gradients else None)

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
        finite = all_finite(values)
        # The reciprocal of a scale that is no power of two is rounded once, as in GradScaler.
        inverse = as_float32(1 / self.loss_scale) if self.loss_scale else math.inf
        for value in values:
            value.mul_(inverse)
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


class DynamicLossScaler(StaticLossScaler):
    """A loss scale that backs off at each overflow and grows after a run without one.

    Args:
        scale: the first loss scale; kept in float32.
        growth_factor: multiplies the scale after ``growth_interval`` finite steps in a row.
        backoff_factor: multiplies the scale after a step whose gradients overflowed.
        growth_interval: steps.

    Raises:
        ValueError: no scale, factors on the wrong side of 1, or no positive number of steps.

    >>> weight = nn.Parameter(torch.tensor([1.0]))
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


class NoLossScaler(StaticLossScaler):
    """No loss scale: the calls of a scaler, nothing multiplied, nothing checked, nothing skipped.

    What ``torch.amp.GradScaler(enabled=False)`` does: no call is refused, closures are handed on,
    and a step without any gradient is the optimizer's own affair.  Two things more: `unscale_`
    lets a wrapper take its gradients, so that they can be clipped in float32, and `step` returns
    True where torch's returns None, so that one loop can ask every scaler whether it made a step.

    >>> weight = nn.Parameter(torch.tensor([1.0]))
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
            self._checks[id(optimizer)] = _Check(finite=True)
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


def gradients_of(optimizer: AnyOptimizer) -> list[Tensor]:
    """The gradients that an optimizer will use, without those that are None.

    Raises:
        TypeError: not an optimizer.
    """
    if not hasattr(optimizer, "param_groups"):
        raise TypeError(
            f"optimizer: a {type(optimizer).__name__}; expected a torch.optim.Optimizer, or a "
            "wrapper with its param_groups"
        )
    groups = optimizer.param_groups
    return [p.grad for group in groups for p in group["params"] if p.grad is not None]


def nonfinite_gradients(model: nn.Module) -> list[str]:
    """The names of the parameters with an infinite or NaN gradient, in the model's order.

    Call it after ``backward`` and before ``zero_grad``; unscaling makes no difference, and the
    scaler may be torch's.  The backward pass comes from the loss and hands an infinity on to
    everything before, so look at the *last* name first.  If it is the last layer of the model, so
    that every name is there, look at the loss: the forward pass may have overflowed already.

    It waits for the device once.

    Raises:
        ValueError: a model without any gradient.

    >>> layers = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1, bias=False))
    >>> for parameter in layers.parameters():
    ...     parameter.grad = torch.ones_like(parameter)
    >>> layers[0].bias.grad /= 0
    >>> nonfinite_gradients(layers)
    ['0.bias']
    """
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if not named:
        raise ValueError(
            f"model: no parameter of this {type(model).__name__} has a gradient; expected a call "
            "between backward() and zero_grad()"
        )
    values = [g._values() if g.is_sparse else g for g in named.values()]
    finite = _are_finite(values).tolist()
    return [name for name, good in zip(named, finite, strict=True) if not good]


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether no element is infinite or NaN, as a tensor on the first one's device.

    >>> all_finite([torch.ones(2), torch.tensor([[1.0, -torch.inf]])])
    tensor(False)
    """
    return _are_finite(tensors).all() if tensors else torch.tensor(True)


def _are_finite(tensors: Sequence[Tensor]) -> Tensor:
    """One bool for each tensor, on the first one's device."""
    # A tensor's smallest and largest element show every infinity, and NaN is passed on.  This is
    # one pass, and several times as fast on a CPU as isfinite().all(), which stores what it finds.
    extremes = [(t if t.numel() else t.new_zeros(1)).aminmax() for t in tensors]
    device = tensors[0].device
    flat = torch.stack([value.to(device) for pair in extremes for value in pair])
    return flat.isfinite().view(-1, 2).all(dim=1)


# --- Numbers ----------------------------------------------------------------------------------


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
