"""Gradients that are nothing but rounding: their size says nothing about a format.

A bias before a batch norm, a key's bias before a softmax, have a gradient of exactly zero; what is
computed is the rounding of a sum that should vanish, some 1e-9 in float32 and no number in float64.
Whether a format keeps it makes no difference, so it has no vote.

A model that casts to float32 itself, as many do to times or positions, does not run in float64.  Of
such a one the rounding is changed: each weight becomes the next larger number, and what that moves
as much as its own size was rounding.
"""

from __future__ import annotations

import torch

from mpbook.diagnosis.copies import to_next_numbers
from mpbook.diagnosis.stepping import Run
from mpbook.diagnosis.workload import Workload

SHARE = 0.25
"""Of a gradient: what float32 may be off by before the gradient counts as rounding."""


def noise(workload: Workload, reference: Run) -> set[str]:
    """Names of the parameters whose float32 gradient is mostly rounding, by float64's."""
    few = reference.steps_to_gradients
    exact = workload.run(torch.float64, steps=few, weights=torch.float64, watched=False)
    if exact.error is not None:
        exact = workload.run(torch.float32, steps=few, changed=to_next_numbers, watched=False)
    found = set()
    for name, got in reference.gradients.items():
        expected = exact.gradients.get(name)
        if expected is None or not bool(got.isfinite().all()):
            continue
        difference = float((got.to(expected.dtype) - expected).abs().square().sum())
        if difference > SHARE**2 * float(got.abs().double().square().sum()):
            found.add(name)
    return found
