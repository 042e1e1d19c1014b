"""Gradients that are nothing but rounding: their size says nothing about a format.

A bias before a batch norm, a key's bias before a softmax, have a gradient of exactly zero; what is
computed is the rounding of a sum that should vanish, some 1e-9 in float32 and no number in float64.
Whether a format keeps it makes no difference, so it has no vote.
"""

from __future__ import annotations

import torch

from mpbook.diagnosis.stepping import Run
from mpbook.diagnosis.workload import Workload

SHARE = 0.25
"""Of a gradient: what float32 may be off by before the gradient counts as rounding."""


def noise(workload: Workload, reference: Run) -> set[str]:
    """Names of the parameters whose float32 gradient is mostly rounding, by float64's.

    Empty where the model does not run in float64.
    """
    exact = workload.run(
        torch.float64, steps=reference.steps_to_gradients, weights=torch.float64, watched=False
    )
    if exact.error is not None:
        return set()
    found = set()
    for name, got in reference.gradients.items():
        expected = exact.gradients.get(name)
        if expected is None or not bool(got.isfinite().all()):
            continue
        difference = float((got.to(expected.dtype) - expected).abs().square().sum())
        if difference > SHARE**2 * float(got.abs().double().square().sum()):
            found.add(name)
    return found
