"""Ask the engine how it adds: the sums of all ranks, against the replay, bit for bit.

Every rank knows the parts of all, adds its own through the engine, and compares.  The replay
agrees where the ranks talk through gloo; NCCL chooses its own algorithm and order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from mpbook.many_gpus.rank import device, run_rank
from mpbook.many_gpus.reductions import DTYPES, all_reduce, reduce_scatter

SIZES = (1, 2, 3, 5, 8, 17, 1000, 4096, 300_001)


def main(sizes: Sequence[int] = SIZES, seed: int = 0) -> list[dict[str, object]]:
    """Whether the engine's all-reduce and reduce-scatter equal the replay, by dtype and size."""
    found: list[dict[str, object]] = []
    for dtype in DTYPES:
        for size in sizes:
            parts = _parts(size, dtype, seed)
            row = {"dtype": str(dtype)[6:], "elements": size, "equal": _added(parts)}
            found.append(row | {"scattered": _scattered(parts)})
    return found


def _parts(size: int, dtype: torch.dtype, seed: int) -> Tensor:
    """The parts of all ranks, of magnitudes that differ, so that the order matters."""
    generator = torch.Generator().manual_seed(seed)
    shape = (dist.get_world_size(), size)
    magnitudes = torch.randint(-3, 4, shape, generator=generator).float().exp2()
    return (torch.randn(shape, generator=generator) * magnitudes).to(dtype)


def _added(parts: Tensor) -> bool:
    ours = parts[dist.get_rank()].to(device(), copy=True)  # it is added to in place
    dist.all_reduce(ours)
    return torch.equal(ours.cpu(), all_reduce(parts, dtype=parts.dtype, average="no"))


def _scattered(parts: Tensor) -> bool | None:
    """None where the ranks do not divide the elements."""
    ranks, elements = parts.shape
    if elements % ranks:
        return None
    rank = dist.get_rank()
    ours = torch.empty(elements // ranks, dtype=parts.dtype, device=device())
    _reduce_scatter(ours, parts[rank].to(device()))
    return torch.equal(ours.cpu(), reduce_scatter(parts, dtype=parts.dtype, average="no")[rank])


def _reduce_scatter(ours: Tensor, whole: Tensor) -> None:
    # Newer releases renamed it, and warn of the old name.
    renamed = getattr(dist, "reduce_scatter_single", None)
    (renamed or dist.reduce_scatter_tensor)(ours, whole)


if __name__ == "__main__":
    run_rank(main)
