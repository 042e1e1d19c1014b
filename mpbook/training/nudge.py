"""The smallest change of a model: one weight, moved to the next number.

Training amplifies small differences, whatever made them.  So a run from a nudged start is the
control for a comparison of precisions: how far the loss moves when nothing changed but one last bit
is chaos, and a precision that moves it no further has shown nothing of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mpbook.copies import deep_copy


def nudged(model: nn.Module, *, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy of the model in which one weight is one ulp further from 0.

    It is the largest weight of the last trainable matrix, near the output, where every example
    passes; of the last trainable tensor if there is no matrix.

    Args:
        model: stays as it is.
        dtype: whose ulp: that of the weights in training; the weight's own if None.

    Raises:
        ValueError: no trainable weight that is not 0.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(layer.weight, -1.0)
    >>> nudged(layer, dtype=torch.bfloat16).weight.item()
    -1.0078125
    """
    ours = deep_copy(model, what="model")
    trainable = [p for p in ours.parameters() if p.requires_grad and p.count_nonzero()]
    if not trainable:
        raise ValueError(f"model: {type(model).__name__} has no trainable weight that is not 0")
    parameter = ([p for p in trainable if p.dim() > 1] or trainable)[-1]
    with torch.no_grad():
        place = torch.unravel_index(parameter.abs().argmax(), parameter.shape)
        parameter[place] = _next_number(parameter[place].to(dtype or parameter.dtype))
    return ours


def _next_number(x: Tensor) -> Tensor:
    """The neighbour away from 0: the bits of a float, read as an integer, plus 1."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return (x.view(integers[x.element_size()]) + 1).view(x.dtype)
