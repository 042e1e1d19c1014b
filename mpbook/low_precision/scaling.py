"""Where the scale of a whole tensor comes from when it does not come from the tensor itself.

Current scaling reads a tensor twice: once for its largest magnitude, amax, and once to quantise it.
*Delayed* scaling saves the first pass: it takes the scale that earlier steps would have needed.  For
that each layer keeps, for ``x``, ``w`` and ``dy``, the amax of the last steps and a scale that
follows from them; `advance` makes the next step of all of them.

Source: TransformerEngine, "FP8 delayed scaling".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mpbook.formats.description import FloatFormat
from mpbook.formats.rounding import round_to
from mpbook.low_precision.recipes import Delayed


def scaled_and_rounded(x: Tensor, element: FloatFormat, scale: Tensor) -> Tensor:
    """The numbers that ``x`` becomes under a scale that is given: ``round(x * scale) / scale``."""
    return round_to(x.float() * scale, element, overflow="saturate") * (1 / scale)


def next_scale(history: Tensor, scale: Tensor, largest: Tensor, scaling: Delayed) -> Tensor:
    """The scales of the next step.

    Args:
        history: (steps, tensors), the newest first.
        scale: (tensors,), of this step.
        largest: (tensors,), of the elements' formats.
        scaling: the margin, and which amax counts.
    """
    amax = history[0] if scaling.amax == "most_recent" else history.amax(0)
    found = largest / amax / 2.0**scaling.margin
    found = torch.where(amax > 0, found, scale)
    found = torch.where(amax.isfinite(), found, scale)
    return torch.where(found.isinf(), torch.finfo(torch.float32).max, found)


@torch.no_grad()
def advance(model: nn.Module) -> None:
    """One step of all delayed scales of a model: call it after each ``optimizer.step()``."""
    for module in model.modules():
        if hasattr(module, "advance_scale"):
            module.advance_scale()
