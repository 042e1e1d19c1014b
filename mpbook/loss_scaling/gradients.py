"""The gradients of an optimizer or a model: which there are, and whether they are finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mpbook.shards import groups_of, own_part


class AnyOptimizer(Protocol):
    """A `torch.optim.Optimizer`, or a wrapper that looks like one.

    A wrapper that updates float32 copies of 16-bit weights has the copies in ``param_groups`` and
    a method ``take_gradients()``, which gives them the gradients of the weights, in float32.
    """

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of parameters, each with a list ``"params"``."""

    def step(self, *arguments: Any, **options: Any) -> Any:
        """Update the parameters."""


def gradients_of(optimizer: AnyOptimizer) -> list[Tensor]:
    """The gradients that an optimizer will use, without those that are None.

    Raises:
        TypeError: not an optimizer.
    """
    if not hasattr(optimizer, "param_groups"):
        raise TypeError(
            f"optimizer: a {type(optimizer).__name__}; expected a torch.optim.Optimizer, or a "
            "wrapper with its param_groups"
        )
    groups = optimizer.param_groups
    return [p.grad for group in groups for p in group["params"] if p.grad is not None]


def nonfinite_gradients(model: nn.Module) -> list[str]:
    """The names of the parameters with an infinite or NaN gradient, in the model's order.

    Call it after ``backward`` and before ``zero_grad``; unscaling makes no difference, and the
    scaler may be torch's.  The backward pass comes from the loss and hands an infinity on to
    everything before, so look at the *last* name first.  If it is the last layer of the model, so
    that every name is there, look at the loss: the forward pass may have overflowed already.

    It waits for the device once.  Under `fully_shard` all ranks have to call it, and get the same.

    Raises:
        ValueError: a model without any gradient.

    >>> layers = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1, bias=False))
    >>> for parameter in layers.parameters():
    ...     parameter.grad = torch.ones_like(parameter)
    >>> layers[0].bias.grad /= 0
    >>> nonfinite_gradients(layers)
    ['0.bias']
    """
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if not named:
        raise ValueError(
            f"model: no parameter of this {type(model).__name__} has a gradient; expected a call "
            "between backward() and zero_grad()"
        )
    finite = _are_finite(list(named.values())).tolist()
    return [name for name, good in zip(named, finite, strict=True) if not good]


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether no element is infinite or NaN, as a tensor on the first one's device.

    Of tensors that ranks hold parts of, whether none is on any rank: all of them have to ask, and
    get the same answer.

    >>> all_finite([torch.ones(2), torch.tensor([[1.0, -torch.inf]])])
    tensor(False)
    """
    return _are_finite(tensors).all() if tensors else torch.tensor(True)


def numbers_of(gradient: Tensor) -> Tensor:
    """A gradient as a dense tensor of real numbers: of a sparse or shared one, those that it holds.

    A shared gradient holds this rank's part (`mpbook.shards`).  A sparse one may hold several
    numbers for one place; they are added up.

    >>> numbers_of(torch.tensor([3 + 4j]))
    tensor([[3., 4.]])
    """
    gradient = own_part(gradient)
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    return torch.view_as_real(gradient) if gradient.is_complex() else gradient


def _are_finite(tensors: Sequence[Tensor]) -> Tensor:
    """One bool for each tensor, on the first one's device."""
    # A tensor's smallest and largest element show every infinity, and NaN is passed on.  This is
    # one pass, and several times as fast on a CPU as isfinite().all(), which stores what it finds.
    values = [numbers_of(t) for t in tensors]
    extremes = [(t if t.numel() else t.new_zeros(1)).aminmax() for t in values]
    device = tensors[0].device
    flat = torch.stack([value.to(device) for pair in extremes for value in pair])
    finite = flat.isfinite().view(-1, 2).all(dim=1)
    for group in groups_of(tensors):  # one rank's infinity is everybody's
        flags = finite.int()
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MIN, group=group)
        finite = flags.bool()
    return finite
