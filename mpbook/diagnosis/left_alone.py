"""The model that was passed stays as it was; what reaches it all the same is put back, and told.

A deep copy takes modules, tensors and methods along.  It does not take what a function remembers:
``self.head = lambda x: self.layer(x)`` in a copy is the original's, and so is a compiled method.
Then the original is what runs, and the copy says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpbook.cost.measure import parts_of

OF_A_STEP = (
    "step: trains the model that it was made with, not the copy that it is given; use its "
    "arguments, step(model, optimizer, batch), throughout"
)
NOT_THE_COPY = (
    "what runs is the original and not the copy that is diagnosed, so nothing can be said of it; a "
    "function that was made with the model itself (lambda x: self.layer(x) or "
    "a compiled self.method in __init__, or a loss that calls the model) keeps the original: "
    "make it a method of the model, and let a loss use its arguments"
)


@dataclass
class Held:
    """A tensor of the original, and what it held; its gradient is kept here and taken off it."""

    tensor: Tensor
    grad: Tensor | None
    version: int | None
    values: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> Held:
        """Of a tensor, whose gradient is None until it is put back."""
        grad = tensor.grad if tensor.is_leaf else None
        held = cls(tensor, grad, _version(tensor), tensor.detach().clone())
        if tensor.is_leaf:
            tensor.grad = None
        return held

    def put_back(self) -> bool:
        """Whether there was anything to put back."""
        cast = self.tensor.dtype != self.values.dtype
        if cast:  # with a gradient of that dtype
            self.tensor.grad, self.tensor.data = None, self.values.clone()
        written = cast or _version(self.tensor) != self.version
        if written or not _same(self.tensor, self.values):
            written = True
            self.tensor.data.copy_(self.values)
        if self.tensor.is_leaf:
            written = written or self.tensor.grad is not None
            self.tensor.grad = self.grad
        return written


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was written to; None for one of inference mode, which does not count."""
    return None if tensor.is_inference() else tensor._version


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether the numbers are, NaN included: a norm's kernel writes and does not count."""
    pairs = zip(parts_of(one.detach()), parts_of(other), strict=True)
    return all(bool(((a == b) | ((a != a) & (b != b))).all()) for a, b in pairs)


@contextmanager
def left_alone(*modules: nn.Module, own_step: bool) -> Iterator[None]:
    """Gradients, weights and buffers are as they were when this ends.

    Args:
        modules: the model, and a loss that is one.
        own_step: whether a step of one's own is run, to be told what it did.

    Raises:
        RuntimeError: a weight or a buffer was written to, or has got a gradient.
    """
    tensors = (t for module in modules for t in (*module.parameters(), *module.buffers()))
    unique = {id(t): t for t in tensors}
    with torch.inference_mode(False):
        held = [Held.of(t) for t in unique.values()]
        written = False
        try:
            yield
        finally:
            written = sum(one.put_back() for one in held) > 0
    if written:
        raise RuntimeError(OF_A_STEP if own_step else f"model: {NOT_THE_COPY}")
