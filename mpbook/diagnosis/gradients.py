"""The gradients of a run against those of the reference."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mpbook.diagnosis.stepping import Run

TRIFLE = 1e-6
"""Of all gradients together: a parameter's that counts for nothing."""


def relative_errors(run: Run, reference: Run, without: set[str]) -> dict[str, float]:
    """Of each parameter's gradient, ``|difference| / |reference|``, but for those without a say."""
    pairs = (
        (name, run.gradients[name], expected)
        for name, expected in reference.gradients.items()
        if name in run.gradients and name not in without
    )
    return {name: _relative_error(got, expected) for name, got, expected in pairs}


def _real(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double()


def _relative_error(got: Tensor, expected: Tensor) -> float:
    got, expected = _real(got), _real(expected)
    norm = float(expected.norm())
    if not norm or not math.isfinite(norm):
        return 0.0
    error = float((got - expected).norm()) / norm
    return error if math.isfinite(error) else math.inf


def total_error(run: Run, reference: Run, without: set[str]) -> float:
    """The relative error of all gradients as one vector."""
    named = [n for n in reference.gradients if n in run.gradients and n not in without]
    if not named:
        return 0.0
    pairs = [(_real(run.gradients[n]), _real(reference.gradients[n])) for n in named]
    flat = [torch.cat([pair[i].flatten().cpu() for pair in pairs]) for i in range(2)]
    return _relative_error(*flat)


def without_gradient(run: Run, reference: Run, without: set[str]) -> tuple[str, ...]:
    """Parameters whose gradient is 0 throughout, and no trifle in the reference."""
    sizes = {n: float(_real(g).norm()) for n, g in reference.gradients.items() if n not in without}
    least = TRIFLE * math.hypot(*sizes.values())
    found = (n for n, size in sizes.items() if size > least and n in run.gradients)
    return tuple(n for n in found if not run.gradients[n].any())


def losses_without_scale(
    unscaled: Run, scaled: Run, reference: Run, without: set[str]
) -> dict[str, float]:
    """How much more of each gradient is wrong without a loss scale than with it."""
    bare, helped = (relative_errors(run, reference, without) for run in (unscaled, scaled))
    return {name: _more(bare[name], helped.get(name, 0.0)) for name in bare}


def _more(bare: float, helped: float) -> float:
    return max(bare - helped, 0.0) if math.isfinite(helped) else 0.0


def loss_error(run: Run, reference: Run) -> float:
    """The losses against float32's, where they are furthest off; all by the largest of float32's.

    A difference that begins at 0, as a policy's from its reference, is right in the first step and
    may stand still in the next; and where it begins at 1e-9, a rounding of 1e-3 is no failure.
    """
    pairs = list(zip(run.losses, reference.losses, strict=False))
    if not pairs or not all(math.isfinite(loss) for loss in run.losses):
        return 0.0
    largest = max(abs(expected) for _, expected in pairs)
    return max(abs(got - expected) for got, expected in pairs) / max(largest, 1e-12)
