"""Tensors of which each rank holds a part, as `torch.distributed.fsdp.fully_shard` leaves them.

An element-wise operation needs this rank's part alone (`own_part`).  What is said of the whole,
such as a norm or whether all is finite, needs all ranks: `groups_of` has the groups to ask.  A
tensor that is not shared is its own part, and has no group, so that one function serves both.

Taught in the chapter "Many GPUs".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor


def is_shared(tensor: Tensor) -> bool:
    """Whether a tensor is a `torch.distributed.tensor.DTensor`; the class itself is slow to import.

    >>> import torch
    >>> is_shared(torch.ones(2))
    False
    """
    return hasattr(tensor, "to_local")


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, in the same memory; a tensor that is not shared, itself."""
    part: Any = tensor
    return part.to_local() if is_shared(tensor) else tensor


def groups_of(tensors: Iterable[Tensor]) -> list[Any]:
    """The process groups over which some of the tensors are cut into parts; each once."""
    groups = {}
    for tensor in tensors:
        if is_shared(tensor):
            shared: Any = tensor
            mesh = shared.device_mesh
            for dimension, placement in enumerate(shared.placements):
                if placement.is_shard():
                    groups[mesh, dimension] = mesh.get_group(dimension)
    return list(groups.values())
