"""A scale that is known before the tensor is: fixed, or delayed.

Current scaling reads a tensor twice, once for its largest magnitude, *amax*, and once to quantise
it.  *Delayed* scaling saves the first pass: it takes the scale that earlier steps would have
needed.  For ``x``, ``w`` and ``dy`` a layer keeps the amax of the last steps, and the scale that
follows.  Three rules make that safe:

* During a step amax is only noted, as the largest so far; the scale does not move.  So a forward
  pass that is replayed, for activation checkpointing, computes the same and notes the same.
* At the end of the step `next_scale` follows from the history, and a new row begins.
* An amax of 0, NaN or infinity says nothing, and the scale stays as it was.

The first step knows nothing: its scales are 1, whatever the tensors hold.

Source: TransformerEngine, "FP8 delayed scaling".

Taught in the chapter "FP8 and below".
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpbook.formats.description import FloatFormat
from mpbook.formats.rounding import round_to
from mpbook.low_precision.operands import Delayed, TensorName

COLUMNS: dict[TensorName, int] = {"x": 0, "w": 1, "dy": 2}
"""Where a tensor stands in the scales and histories of a layer."""


def elements_at(x: Tensor, element: FloatFormat, scale: Tensor) -> Tensor:
    """The elements ``x * scale``, rounded to their format; what is too large saturates.

    >>> from mpbook.formats import FORMATS
    >>> elements_at(torch.tensor([1.0, 7.3]), FORMATS["float8_e4m3fn"], torch.tensor(100.0))
    tensor([ 96., 448.])
    """
    return round_to(x.float() * scale, element, overflow="saturate")


@torch.no_grad()
def note_amax(history: Tensor, tensor: TensorName, value: Tensor) -> None:
    """Note the largest magnitude of a tensor in this step's row of a history."""
    if value.numel():  # an expert of a mixture may get no tokens
        row = history[0, COLUMNS[tensor]]
        row.copy_(torch.maximum(row, value.abs().amax()))


@torch.no_grad()
def next_scale(history: Tensor, scale: Tensor, largest: Tensor, scaling: Delayed) -> Tensor:
    """The scales of the next step: ``largest / amax / 2**margin``.

    Args:
        history: (steps, 3), this step's amax first.
        scale: (3,), of this step.
        largest: (3,), the largest number of each tensor's format.
        scaling: which amax counts, and the margin.

    >>> history = torch.tensor([[2.0, 0.0, 1.0], [4.0, 0.0, 1.0]])
    >>> next_scale(history, torch.ones(3), torch.tensor([448.0, 448.0, 57344.0]), Delayed(2))
    tensor([1.1200e+02, 1.0000e+00, 5.7344e+04])
    """
    amax = history[0] if scaling.amax == "most_recent" else history.amax(0)
    found = (largest / amax / 2.0**scaling.margin).clamp(max=torch.finfo(torch.float32).max)
    return torch.where((amax > 0) & amax.isfinite(), found, scale)


@torch.no_grad()
def begin_row_(history: Tensor) -> None:
    """Forget the oldest step of a history, and begin a new one."""
    history.copy_(history.roll(1, 0))
    history[0] = 0
