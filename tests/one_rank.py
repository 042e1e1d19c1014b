"""DDP and FSDP2 in the process of a test: a process group with one rank in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mpbook.many_gpus.launch import cannot_launch


@contextmanager
def group_of_one() -> Iterator[None]:
    """A process group of this process alone, which torch's engines need; skips without gloo."""
    if reason := cannot_launch():
        pytest.skip(reason)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def sharded(module: nn.Module, **policy: Any) -> nn.Module:
    """Each linear layer a unit of its own, and the rest with the module, on all ranks."""
    from torch.distributed.device_mesh import init_device_mesh  # slow, and for few tests
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    chosen = MixedPrecisionPolicy(reduce_dtype=torch.float32, **policy)
    for unit in (*(m for m in module.children() if isinstance(m, nn.Linear)), module):
        fully_shard(unit, mesh=mesh, mp_policy=chosen)
    return module
