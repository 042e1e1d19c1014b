"""What a model is to one rank of several, and what is known only from all of them.

Under ``DistributedDataParallel`` each rank has the whole model and a batch of its own.  Under
``fully_shard`` (FSDP2), FSDP1 and tensor parallelism it has a part of each weight, gradient and
state as well.  What one rank counts of either is no number of the model.  So a tool of this package
asks all ranks (`gathered`), or works on this rank's part where the parts need nothing of each other
(`mpbook.shards`), or refuses (`refuse_sharded`) and says what would work.

Nothing of ``torch.distributed`` is imported for it: where nobody has, nothing is distributed.

Taught in the chapter "Many GPUs".
"""

from __future__ import annotations

import sys
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mpbook.shards import is_shared

T = TypeVar("T")


def rank_and_ranks(group: Any = None) -> tuple[int, int]:
    """This process's rank in a group, and how many there are; 0 of 1 without any.

    >>> rank_and_ranks()
    (0, 1)
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(group), distributed.get_world_size(group)


def gathered(value: T, group: Any = None) -> list[T]:
    """The value of each rank, in their order; every rank has to call it.

    >>> gathered(3)
    [3]
    """
    ranks = rank_and_ranks(group)[1]
    if ranks == 1:
        return [value]
    found: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(found, value, group=group)
    return found


def is_another_copy(tensor: Tensor, rank: int) -> bool:
    """Whether an earlier rank holds the same numbers, so that a count over ranks leaves them out.

    A weight that is not shared is taken to be the same on every rank, as DDP keeps it.

    >>> [is_another_copy(torch.ones(2), rank) for rank in range(3)]
    [False, True, True]
    """
    if not is_shared(tensor):
        return rank > 0
    shared: Any = tensor
    place = shared.device_mesh.get_coordinate() or ()
    return any(p.is_replicate() and at for p, at in zip(shared.placements, place, strict=False))


# --- Models -------------------------------------------------------------------------------------


def is_data_parallel(model: object) -> bool:
    """Whether a model is wrapped so that each rank, or each GPU, has the whole of it."""
    return isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel)


def without_data_parallel(model: nn.Module) -> nn.Module:
    """The model inside of ``DistributedDataParallel`` or ``DataParallel``."""
    inner: Any = model
    while is_data_parallel(inner):
        inner = inner.module
    return inner


def is_fully_sharded(model: nn.Module) -> bool:
    """Whether ``fully_shard`` (FSDP2) was called on a model or on a module in it."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    return kind is not None and any(isinstance(part, kind) for part in model.modules())


def sharded_by(model: nn.Module) -> str:
    """What sharded a model, in words; empty if nothing did.

    >>> sharded_by(nn.Linear(1, 1))
    ''
    """
    if is_fully_sharded(model):
        return "fully_shard (FSDP2)"
    first: Any = sys.modules.get("torch.distributed.fsdp.fully_sharded_data_parallel")
    if first is not None and any(
        isinstance(part, first.FullyShardedDataParallel) for part in model.modules()
    ):
        return "FullyShardedDataParallel (FSDP1)"  # its parameters are plain tensors, joined
    names = [n for n, t in (*model.named_parameters(), *model.named_buffers()) if is_shared(t)]
    return f"a DTensor, as its {names[0]} is one" if names else ""


def refuse_sharded(model: nn.Module, *, what: str = "model", instead: str) -> None:
    """Refuse a model of which this rank holds only parts.

    Args:
        model: any module.
        what: the argument's name.
        instead: what would work.

    Raises:
        ValueError: a parameter or buffer that is sharded.
    """
    engine = sharded_by(model)
    if engine:
        rank, ranks = rank_and_ranks()
        raise ValueError(
            f"{what}: sharded by {engine}, so that rank {rank} of {ranks} holds its part of it; "
            f"expected {instead}"
        )


BEFORE_SHARDING = "the model as it was before that, with the same weights, on one rank"
"""What a tool wants that runs copies of a model: no copy of one rank has the other parts."""
