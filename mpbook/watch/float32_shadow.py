"""What an optimizer's coming step would do in float32: found out on a copy of it.

The *shadow* of an optimizer has the same gradients, the same state and the same options, all in
float32, and takes the step first.  `mpbook.watch.lost_updates` compares.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mpbook.copies import deep_copy
from mpbook.master_weights import SIXTEEN_BIT, in_float32, parameters_of, without_hooks
from mpbook.shards import own_part


def moves_in_float32(
    optimizer: torch.optim.Optimizer, parameters: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Where the coming step would move a float32 weight, and where that would be finite.

    Of weights that ranks share, this rank's parts.
    """
    shadow, stands_in = _float32_shadow(optimizer)
    step: Any = type(optimizer).step
    if hasattr(step, "hooked"):  # hooks on all optimizers are not meant for shadows
        step = step.__wrapped__
    devices = {p.device for p in parameters if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        step(shadow)
    moved = [own_part(stands_in[p]) for p in parameters]
    parts = map(own_part, parameters)
    moves = [differ(new, p.to(new.dtype)) for new, p in zip(moved, parts, strict=True)]
    return moves, [new.isfinite() for new in moved]


def _float32_shadow(
    optimizer: torch.optim.Optimizer,
) -> tuple[torch.optim.Optimizer, dict[Tensor, Tensor]]:
    """A copy of the optimizer over float32 copies of its parameters, with gradients and state.

    Whatever the optimizer refers to is copied with it; the memo of `copy.deepcopy` puts the float32
    copies wherever the parameters stood.
    """
    stands_in = {p: _in_float32_with_gradient(p) for p in parameters_of(optimizer)}
    memo: dict[int, Any] = {id(p): stand_in for p, stand_in in stands_in.items()}
    shadow = object.__new__(type(optimizer))
    shadow.__dict__.update(deep_copy(without_hooks(optimizer), what="optimizer", memo=memo))
    torch.optim.Optimizer.__setstate__(shadow, {})  # no hooks
    for parameter in shadow.state:
        shadow.state[parameter] = in_float32(shadow.state[parameter])
    return shadow, stands_in


def _in_float32_with_gradient(parameter: Tensor) -> Tensor:
    dtype = torch.float32 if parameter.dtype in SIXTEEN_BIT else parameter.dtype
    stand_in = nn.Parameter(parameter.detach().to(dtype, copy=True), parameter.requires_grad)
    if parameter.grad is not None:
        stand_in.grad = parameter.grad.to(dtype, copy=True)
    return stand_in


def differ(left: Tensor, right: Tensor) -> Tensor:
    """Where two tensors differ; NaN does not differ from NaN, nor 0 from -0."""
    return (left != right) & ~(left.isnan() & right.isnan())
