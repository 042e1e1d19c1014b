"""`mpbook.training.train` under DDP and FSDP2: the losses that each rank reports.

Alone, the same function trains without any other rank, so that the losses can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from mpbook.data import digits
from mpbook.many_gpus.rank import device, run_rank
from mpbook.models import MLP
from mpbook.precision import Precision, as_precision
from mpbook.training import train
from mpbook.training.parallel import Parallel

Engine = Literal["alone", "ddp", "fsdp2", "fsdp2 autocast"]

_FOUND = (
    "losses",
    "gradient_norms",
    "loss_scales",
    "skipped_steps",
    "validation_losses",
    "updates_lost",
)


def main(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `train_digits` finds for each case, a dictionary of its arguments."""
    return [train_digits(**case) for case in cases]


def train_digits(
    *,
    engine: Engine,
    precision: str = "32-true",
    changes: dict[str, Any] | None = None,
    steps: int = 20,
    batch_size: int = 64,
    dropout: float = 0.0,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Train a small net on handwritten digits.

    Args:
        engine: ``"alone"``, which needs no process group; ``"ddp"``; ``"fsdp2"``, whose policy
            computes as the precision says; ``"fsdp2 autocast"``, whose policy leaves that to
            autocast.
        precision: a name.
        changes: other fields of that `Precision`.
        steps: updates, those before a checkpoint counted.
        batch_size: examples of all ranks together.
        dropout: after the first layer.
        seed: of the net and the run.
        **options: more arguments of `mpbook.training.train`.

    Returns:
        The lists of the `mpbook.training.Run`, and the bytes that this rank held in a step.
    """
    chosen = replace(as_precision(precision), **changes or {})
    torch.manual_seed(seed)
    first, *rest = MLP(64, 128, 128, 10)
    run = train(
        nn.Sequential(first, nn.Dropout(dropout), *rest),
        digits(validation_examples=361),  # which no even number of ranks divides
        precision=chosen,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        parallel=parallel_of(engine, chosen),
        device="cpu" if engine == "alone" else device(),
        progress=False,
        **options,
    )
    return {name: getattr(run, name) for name in _FOUND} | {"bytes": asdict(run.memory)}


def parallel_of(engine: Engine, precision: Precision) -> Parallel | None:
    """What `train` takes as ``parallel``."""
    if engine == "alone":
        return None
    if engine == "ddp":
        return DistributedDataParallel
    casts = precision.is_mixed and engine == "fsdp2"
    policy = MixedPrecisionPolicy(
        param_dtype=precision.compute_dtype if casts else None, reduce_dtype=torch.float32
    )
    mesh = init_device_mesh(device().type, (dist.get_world_size(),))

    def sharded(model: nn.Module) -> nn.Module:
        for layer in model.children():
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        return model

    return sharded


if __name__ == "__main__":
    run_rank(main)
