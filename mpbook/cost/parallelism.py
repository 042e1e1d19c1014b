"""Which rank holds which part of a model: data as `Parallelism`, and the cuts that follow from it.

Data parallel ranks take a share of the batch each.  DDP gives each of them all weights, gradients
and optimizer state; the strategies named ZeRO cut more and more of these.  Tensor parallelism cuts
each matrix instead, so that several GPUs together play one such rank.

Sources: Rajbhandari et al. 2020 (ZeRO), Shoeybi et al. 2019 (tensor parallelism), and torch's
``fully_shard`` and ``ZeroRedundancyOptimizer``, whose cuts these are.

Taught in the chapter "Many GPUs".
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from mpbook.precision import Precision

Shape = tuple[int, ...]

STRATEGIES: dict[str, str] = {
    "ddp": "DistributedDataParallel: every rank holds everything",
    "zero1": "DistributedDataParallel with ZeroRedundancyOptimizer: each rank has the optimizer "
    "state of some of the parameters",
    "zero2": "fully_shard(reshard_after_forward=False): shards, and all gathered weights from the "
    "forward to the backward pass",
    "fsdp2": "fully_shard, ZeRO-3: shards, and the gathered weights of one block or two",
}
"""What data parallel ranks can be called, and what each means in torch."""

_ALSO = {"zero3": "fsdp2"}


@dataclass(frozen=True, kw_only=True)
class Parallelism:
    """How a training is spread over GPUs: ``ranks`` times ``tensor_parallel`` of them.

    Args:
        ranks: data parallel ranks, each with a batch of its own.  One rank is a training without
            others: nothing is gathered or sent.
        strategy: a name of `STRATEGIES`; ``"zero3"`` is ``"fsdp2"``.
        tensor_parallel: GPUs that share each rank's matrices and heads.
        reduce_dtype: in which ``fully_shard`` adds gradients up; DDP does in their own.
        gradient_as_bucket_view: whether DDP's gradients lie in its buckets.  By default they do
            not, and it holds them twice.

    Raises:
        ValueError: a number below 1, or an unknown strategy.

    >>> Parallelism(ranks=8, strategy="zero3").strategy
    'fsdp2'
    """

    ranks: int = 1
    strategy: str = "fsdp2"
    tensor_parallel: int = 1
    reduce_dtype: torch.dtype = torch.float32
    gradient_as_bucket_view: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategy", _ALSO.get(self.strategy, self.strategy))
        if self.strategy not in STRATEGIES:
            known = ", ".join((*STRATEGIES, *_ALSO))
            raise ValueError(f"strategy={self.strategy!r}: expected one of {known}")
        for name in ("ranks", "tensor_parallel"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")

    @property
    def shards(self) -> bool:
        """Whether weights and gradients are cut between the ranks, as ``fully_shard`` does."""
        return self.ranks > 1 and self.strategy in ("zero2", "fsdp2")

    def computes_in(self, precision: Precision) -> Precision:
        """The precision whose activations a rank holds.

        The policy of ``fully_shard`` casts whole blocks, where autocast leaves the residual stream
        in float32: the activations are those of a model in the dtype to compute in.
        """
        if not (self.shards and precision.is_mixed):
            return precision
        narrow = precision.compute_dtype
        return replace(precision, parameter_dtype=narrow, weight_update="master_weights")


class Weight(NamedTuple):
    """The shape of a parameter, and along which dimension tensor parallelism cuts it, if it does.

    Matrices that widen are cut by rows of the weight, those that narrow again by columns, embedding
    and output by the vocabulary.
    """

    shape: Shape
    cut: int | None = None


@dataclass(frozen=True)
class Weights:
    """The parameters of a transformer: those of one block, and those outside of the blocks."""

    outside: tuple[Weight, ...]
    block: tuple[Weight, ...]
    layers: int

    @property
    def shapes(self) -> list[Shape]:
        """Of all parameters."""
        return [weight.shape for weight in (*self.outside, *self.block * self.layers)]

    @property
    def hidden(self) -> list[Shape]:
        """Of the matrices between embedding and output."""
        return [weight.shape for weight in self.block * self.layers if len(weight.shape) > 1]

    def on_one_of(self, tensor_parallel: int) -> Weights:
        """What the first of so many GPUs has, which share every matrix."""
        first = [
            tuple(_cut(w, tensor_parallel) for w in part) for part in (self.outside, self.block)
        ]
        return replace(self, outside=first[0], block=first[1])


def _cut(weight: Weight, parts: int) -> Weight:
    if weight.cut is None:
        return weight
    shape = list(weight.shape)
    shape[weight.cut] = chunk(shape[weight.cut], parts)
    return Weight(tuple(shape), weight.cut)


def chunk(size: int, parts: int, index: int = 0) -> int:
    """The length of one chunk of `torch.chunk`: all are as long as the first, but for the last.

    There may be fewer chunks than parts; what is left over has length 0.

    >>> [chunk(10, 4, i) for i in range(4)], [chunk(5, 4, i) for i in range(4)]
    ([3, 3, 3, 1], [2, 2, 1, 0])
    """
    length = -(-size // parts)
    return min(max(size - index * length, 0), length)


def shard(shape: Shape, ranks: int, rank: int = 0) -> Shape:
    """A rank's part under ``fully_shard``: a chunk of the first dimension.

    >>> shard((10, 3), 4, 3)
    (1, 3)
    """
    return (chunk(shape[0], ranks, rank), *shape[1:])


def padded(shapes: Sequence[Shape], ranks: int) -> int:
    """Numbers in each rank's shards with their padding: what the first rank has."""
    return sum(math.prod(shard(shape, ranks)) for shape in shapes)


def assigned(sizes: Sequence[int], ranks: int, rank: int) -> list[int]:
    """Which parameters a rank has the state of under ``ZeroRedundancyOptimizer``, by position.

    The largest that is left goes to the rank with the fewest numbers so far.

    >>> assigned([4, 10, 5], 2, 0), assigned([4, 10, 5], 2, 1)
    ([1], [2, 0])
    """
    loads = [(0, other) for other in range(ranks)]  # a heap: the least first, then the lowest rank
    found = []
    for position in sorted(range(len(sizes)), key=lambda i: sizes[i], reverse=True):
        load, least = loads[0]
        heapq.heapreplace(loads, (load + sizes[position], least))
        if least == rank:
            found.append(position)
    return found
