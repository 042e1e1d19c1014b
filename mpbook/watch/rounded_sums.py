"""Gradients that are nothing but rounding: the noise floor of a sum.

The bias of a convolution before a BatchNorm, and that of attention's keys before the softmax,
change nothing that the model puts out: their gradient is zero.  What comes out instead is the
rounding of a sum whose terms cancel, and a verdict on small gradients must not be taken from it.

The gradient of a bias is a sum over the gradient of its module's output.  Rounding leaves an error
of about the unit roundoff times the root of the sum of the squares of its terms, up to 40 times as
much in the models that the tests try, where other biases were above 70,000 times.  What lies below
`TIMES` this error is called noise; in 16 bits, where the two are nearer, what lies below `AT_MOST`
of the root.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

TIMES, AT_MOST = 512.0, 1 / 32
"""A sum is noise below so many of its own roundings, or that share of the root of its squares."""


class RoundedSums:
    """Tells, parameter by parameter, how much of a gradient is the rounding of its own sum."""

    def __init__(self) -> None:
        self._squares: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    @torch.no_grad()
    def add_terms(self, bias: str, gradient: Tensor, channel: int) -> None:
        """Take in the gradient of an output, of which a bias's is the sum over all but a channel.

        Args:
            bias: the parameter's name.
            gradient: of the output.
            channel: the dimension that is not summed over.
        """
        unit = min(TIMES * torch.finfo(gradient.dtype).eps / 2, AT_MOST)
        others = [d for d in range(gradient.dim()) if d != channel % gradient.dim()]
        errors = gradient.detach().float().mul(unit).square()
        summed = errors.sum(others) if others else errors
        held = self._squares.get(bias)
        self._squares[bias] = summed if held is None else held + summed

    @torch.no_grad()
    def compare(self, bias: str, gradient: Tensor) -> None:
        """Count a parameter's gradient, made of the terms taken in since the last one."""
        squares = self._squares.pop(bias, None)
        if squares is None or squares.numel() != gradient.numel():
            return
        noise = gradient.detach().flatten().float().abs() <= squares.flatten().sqrt()
        moved = gradient.detach().flatten() != 0
        counts = torch.stack([(noise & moved).sum(), moved.sum()])
        self._counts[bias] = self._counts.get(bias, 0) + counts

    def only_noise(self) -> list[str]:
        """The parameters of whose gradients that are not zero at least half were noise."""
        found = []
        for name, counts in self._counts.items():
            noise, moved = counts.tolist()
            if moved and 2 * noise >= moved:
                found.append(name)
        return found


def channel_of(module: nn.Module, output: Tensor, bias: Tensor) -> int | None:
    """The dimension of a module's output along which its bias lies; None if it has none."""
    if bias.dim() != 1 or output.is_nested or output.layout is not torch.strided:
        return None
    first = 1 if output.dim() > 1 else 0
    is_last = isinstance(module, nn.Linear | nn.LayerNorm | nn.Embedding)
    candidates = [-1] if is_last else [first, -1]
    for dim in candidates:
        if output.dim() and output.shape[dim] == bias.numel():
            return dim
    return None
