"""Gradients that are nothing but rounding: their size says nothing about a format.

A bias before a batch norm, a key's bias before a softmax, have a gradient of exactly zero; what is
computed is the rounding of a sum that should vanish, some 1e-9 in float32 and no number in float64.
Whether a format keeps it makes no difference, so it has no vote.  A gradient of which float64 has
the most is none of these, however much float32 rounds it: a format that loses it loses something.

A model that casts to float32 itself, as many do to times or positions, does not run in float64.  Of
such a one the rounding is changed: each weight becomes the next larger number, and what that moves
as much as its own size was rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpbook.diagnosis.copies import to_next_numbers
from mpbook.diagnosis.stepping import Run
from mpbook.diagnosis.workload import Workload

REAL = 0.5
"""Of a gradient's size in float32: what float64 keeps of it, at most, if it counts as rounding."""
MOVED = 0.25
"""Of a gradient: what changed rounding moves, at least, if it counts as rounding."""


def noise(workload: Workload, reference: Run) -> set[str]:
    """Names of the parameters whose float32 gradient is mostly rounding, by float64's."""
    few = reference.steps_to_gradients
    other = workload.run(torch.float64, steps=few, weights=torch.float64, watched=False)
    is_exact = other.error is None
    if not is_exact:
        other = workload.run(torch.float32, steps=few, changed=to_next_numbers, watched=False)
    found = set()
    for name, got in reference.gradients.items():
        expected = other.gradients.get(name)
        if expected is None or not bool(got.isfinite().all()):
            continue
        size, real = _size(got), _size(expected)
        moved = _size(got.to(expected.dtype) - expected)
        if real < REAL * size if is_exact else moved > MOVED * size:
            found.add(name)
    return found


def _size(gradient: Tensor) -> float:
    return float(gradient.abs().double().square().sum().sqrt())
