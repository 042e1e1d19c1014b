"""Activation checkpointing: keep a block's input, and compute the rest a second time.

The forward pass runs without autograd and saves only the input.  The backward pass runs the block
again, this time with autograd, and goes through the graph that it has just made.  So the
activations of one block at a time are held, not of all, for one more forward pass.

`Recompute` is the idea on one screen; `torch.utils.checkpoint` is what to ship, which also restores
random numbers for dropout and takes any number of arguments.

Source: Chen et al. 2016.  Taught in the chapter "Memory".
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Recompute(torch.autograd.Function):
    """A block that is run again in the backward pass.

    Use ``Recompute.apply(block, x)``.  The block has one input and one
    output, and the input has to require a gradient.

    >>> block = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    >>> x = torch.ones(1, 2, requires_grad=True)
    >>> _ = Recompute.apply(block, x).sum().backward()
    >>> x.grad.shape, block[0].weight.grad.shape
    (torch.Size([1, 2]), torch.Size([2, 2]))
    """

    @staticmethod
    def forward(ctx: Any, block: nn.Module, x: Tensor) -> Tensor:
        """Run the block, and keep only its input and how autocast was set."""
        kind = x.device.type
        enabled = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind)
        ctx.autocast = torch.autocast(kind, dtype, enabled)
        ctx.block = block
        ctx.save_for_backward(x)
        return block(x)  # autograd is off in here

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor | None]:
        """Run it again, with autograd this time, and go back through it."""
        (saved,) = ctx.saved_tensors
        x = saved.detach().requires_grad_()
        with torch.enable_grad(), ctx.autocast:
            again = ctx.block(x)
        again.backward(*gradients)  # adds to the parameters' gradients
        return None, x.grad


def checkpoint_blocks(
    model: nn.Module, *, by: Literal["torch", "recompute"] = "torch"
) -> nn.Module:
    """Let each of ``model.blocks`` keep only its input, and compute the rest again when needed.

    Changes the model, and returns it; its parameters get longer names.

    Args:
        model: one whose ``blocks`` are an ``nn.ModuleList``, as those of `mpbook.models.GPT`.
        by: `torch.utils.checkpoint`, or `Recompute`.

    Raises:
        ValueError: a model without blocks, or another way.
    """
    if by not in ("torch", "recompute"):
        raise ValueError(f'by={by!r}: expected "torch" or "recompute"')
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise ValueError(f"model: {type(model).__name__} has no blocks, expected an nn.ModuleList")
    model.blocks = nn.ModuleList(Checkpointed(block, by=by) for block in blocks)
    return model


class Checkpointed(nn.Module):
    """A block that is run again in the backward pass."""

    def __init__(self, block: nn.Module, *, by: Literal["torch", "recompute"] = "torch"):
        super().__init__()
        self.block, self.by = block, by

    def forward(self, x: Tensor) -> Any:
        """What the block returns."""
        if self.by == "recompute":
            return Recompute.apply(self.block, x)
        return checkpoint(self.block, x, use_reentrant=False)
