"""What one rank holds of a model, and for a moment to gather weights and add gradients up.

Under ``fully_shard`` each block is a unit, and all that is outside of the blocks another, whose
weights stay gathered from the forward pass to the end of the backward pass.  Read in torch's source
(``torch/distributed/fsdp/_fully_shard``), and held against what two ranks allocate:

* Shards of weights and gradients are padded to the first rank's, which the state is not.
* In the backward pass of a block its weights are gathered, and those of the block before it are on
  their way.
* Its gradients are there in the dtype to compute in, then once more in ``reduce_dtype``, padded;
  and that second copy stays until the gradients of the next block are ready.
* In the forward pass, weights arrive in one piece, are copied out of it, and the piece of the block
  before stays that long.

Taught in the chapter "Many GPUs".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mpbook.cost.parallelism import Parallelism, Shape, Weights, assigned, padded, shard
from mpbook.precision import Precision


@dataclass(frozen=True)
class Exchange:
    """A moment at which weights are gathered or gradients are added up: bytes by category.

    ``blocks`` is how many have their activations.  ``gradients`` are the shards of units that
    are done; ``buffers`` are gradients that are not cut yet, and what is sent and received.
    """

    moment: Literal["the gather", "the reduction"]
    blocks: int
    gathered: int
    gradients: int = 0
    buffers: int = 0


@dataclass(frozen=True)
class RankMemory:
    """What a rank holds of the weights.

    ``weights`` and ``gradients`` count numbers, with padding.  ``owned`` are the shapes that its
    optimizer updates, ``owned_hidden`` those of hidden matrices among them.  ``buckets`` are the
    bytes of DDP's, always there.  The rest are bytes of gathered weights at two moments of the
    backward pass, and the moments of exchange.
    """

    weights: int
    gradients: int
    owned: list[Shape]
    owned_hidden: list[Shape]
    buckets: int = 0
    gathered_at_loss: int = 0
    gathered_at_block: int = 0
    exchanges: tuple[Exchange, ...] = ()


def rank_memory(
    weights: Weights,
    parallelism: Parallelism,
    rank: int,
    precision: Precision,
    *,
    tied_numbers: int,
) -> RankMemory:
    """What a rank holds, and when.

    Args:
        weights: of the model, or of this GPU's part under tensor parallelism.
        parallelism: how it is spread.
        rank: which data parallel rank, from 0.
        precision: of the training.
        tied_numbers: in a matrix that embedding and output share, 0 without.

    Raises:
        ValueError: no such rank.
    """
    ranks = parallelism.ranks
    if not 0 <= rank < ranks:
        raise ValueError(f"rank={rank}: expected 0 to {ranks - 1}")
    shapes, hidden = weights.shapes, weights.hidden
    if parallelism.shards:
        units = _Units(weights, parallelism, precision, tied_numbers)
        return RankMemory(
            padded(shapes, ranks),
            padded(shapes, ranks),
            [shard(shape, ranks, rank) for shape in shapes],
            [shard(shape, ranks, rank) for shape in hidden],
            gathered_at_loss=units.gathered(weights.layers, after_forward=True),
            gathered_at_block=units.gathered(weights.layers),
            exchanges=(units.last_gather(), *units.reductions()),
        )
    count = sum(map(math.prod, shapes))
    if ranks == 1:
        return RankMemory(count, count, shapes, hidden)
    if parallelism.strategy == "zero1":
        own = assigned(list(map(math.prod, shapes)), ranks, rank)
        first = len(weights.outside)  # of the blocks' parameters
        hidden = [shapes[i] for i in own if i >= first and len(shapes[i]) > 1]
        shapes = [shapes[i] for i in own]
    gradients = 0 if parallelism.gradient_as_bucket_view else count
    buckets = precision.parameter_dtype.itemsize * count
    return RankMemory(count, gradients, shapes, hidden, buckets)


class _Units:
    """The units of ``fully_shard``: one for each block, and one for everything else."""

    def __init__(
        self, weights: Weights, parallelism: Parallelism, precision: Precision, tied_numbers: int
    ) -> None:
        self.parallelism, self.layers, self.tied = parallelism, weights.layers, tied_numbers
        self.compute = precision.compute_dtype.itemsize
        self.kept = precision.parameter_dtype.itemsize
        self.reduced = parallelism.reduce_dtype.itemsize
        self.block = [weight.shape for weight in weights.block]
        self.outside = [weight.shape for weight in weights.outside]

    def gathered(self, block: int, *, after_forward: bool = False) -> int:
        """Bytes of gathered weights in the backward pass of the block of this number, from 1.

        0 is what is left after the first block.  After the forward pass only the outer unit is
        there, or everything under ``"zero2"``.
        """
        if self.parallelism.strategy == "zero2":
            blocks = block
        else:
            blocks = 0 if after_forward else min(block, 2)
        ranks = self.parallelism.ranks
        whole = padded(self.outside, ranks) + blocks * padded(self.block, ranks)
        return self.compute * ranks * whole

    def last_gather(self) -> Exchange:
        """When the last block's weights have come, in the forward pass."""
        others = self.gathered(self.layers, after_forward=True)
        if self.parallelism.strategy == "zero2":
            others -= self._whole(self.block)  # its own: counted below
        before = self.block if self.layers > 1 else self.outside
        came = 2 * self._whole(self.block) + self._whole(before)
        return Exchange("the gather", self.layers - 1, others + came)

    def reductions(self) -> Iterator[Exchange]:
        """The moments that can be the largest: of the last two blocks, the first, and the rest."""
        shard_bytes = self.kept * padded(self.block, self.parallelism.ranks)
        outer = self.compute * sum(map(math.prod, self.outside))
        for done in sorted({0, min(1, self.layers - 1), self.layers - 1}):
            block = self.layers - done
            sent_before = self._sent(self.block) if done else 0
            left = self.gathered(block) - self._whole(self.block)
            for gathered, buffers in (
                (self.gathered(block), sent_before + self._unsharded(self.block)),
                (left, self._adding(self.block)),
            ):
                yield Exchange(
                    "the reduction", block - 1, gathered, done * shard_bytes, outer + buffers
                )
        gradients = self.layers * shard_bytes
        outer += 2 * self.compute * self.tied + self._sent(self.block)
        yield Exchange("the reduction", 0, self.gathered(0), gradients, outer)
        yield Exchange("the reduction", 0, 0, gradients, self._adding(self.outside))

    def _whole(self, unit: Sequence[Shape]) -> int:
        """A unit's gathered weights."""
        return self.compute * self.parallelism.ranks * padded(unit, self.parallelism.ranks)

    def _unsharded(self, unit: Sequence[Shape]) -> int:
        """Its gradients as the backward pass makes them."""
        return self.compute * sum(map(math.prod, unit))

    def _sent(self, unit: Sequence[Shape]) -> int:
        """Its gradients as they are sent."""
        return self.reduced * self.parallelism.ranks * padded(unit, self.parallelism.ranks)

    def _adding(self, unit: Sequence[Shape]) -> int:
        """While they are added up: what is sent, with what it is copied from or what comes back."""
        cast = self.kept if self.kept != self.reduced else 0
        received = (self.reduced + cast) * padded(unit, self.parallelism.ranks)
        return self._sent(unit) + max(self._unsharded(unit), received)
