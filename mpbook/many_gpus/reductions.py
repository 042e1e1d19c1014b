"""The sum of many ranks' gradients, replayed on one machine, addition by addition.

Data parallelism adds up one gradient from each rank, and floating-point addition is not
associative: the result depends on the dtype and on the order.  The order is the algorithm's:

* **Ring.**  The gradient is cut into one chunk a rank.  Chunk ``c`` starts at rank ``c - 1``,
  visits rank ``c - 2``, and so on round the ring until rank ``c`` adds the last part and owns the
  sum.  So each number is a running sum over all ranks, and each chunk begins at another rank.
* **Tree.**  Rank 0 adds rank 1, rank 2 adds rank 3; then 0 adds 2; then 0 adds 4.  Any number of
  ranks, and only ``ceil(log2(ranks))`` additions from a part to the sum.
* **Halving.**  Recursive halving: rank ``r`` and rank ``r + ranks/2`` first, then a quarter apart,
  down to neighbours.  As short as the tree; the number of ranks is a power of two.

`all_reduce` gives what every rank then holds, `reduce_scatter` what each rank keeps of it.  After
every addition the result is rounded to the dtype, because that is what goes over the wire.  With
the chunks of `ring_chunks` the ring is gloo's, bit for bit; the tests ask gloo.

Taught in the chapter "Many GPUs".
"""

from __future__ import annotations

import itertools
import math
from typing import Literal, get_args

import torch
from torch import Tensor

Algorithm = Literal["ring", "tree", "halving"]
"""In which order the parts of the ranks are added."""

Average = Literal["before", "after", "split", "no"]
"""Where the sum is divided by the number of ranks: see `divisors`."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SEGMENT_BYTES = 2**20  # gloo sends at most a mebibyte at once


def all_reduce(
    parts: Tensor,
    *,
    dtype: torch.dtype,
    algorithm: Algorithm = "ring",
    average: Average = "after",
) -> Tensor:
    """What every rank holds after an all-reduce of one part from each.

    Args:
        parts: float32 or the dtype itself, of shape (ranks, elements).
        dtype: float32, bfloat16 or float16: what is sent, and what each addition is rounded to.
        algorithm: the order of the additions.
        average: where to divide by the number of ranks: ``"before"`` (DDP), ``"after"``,
            ``"split"`` (FSDP2 in float16), or ``"no"``, which leaves the sum.

    Returns:
        The sum or the mean, of shape (elements,), in the dtype.

    Raises:
        ValueError: parts that are not a matrix, another dtype, an unknown option, or halving over
            a number of ranks that is no power of two.

    Source: Thakur, Rabenseifner and Gropp 2005, sections 4.4 and 4.5, for the algorithms.

    >>> ones = torch.ones(1024, 1)
    >>> all_reduce(ones, dtype=torch.bfloat16, algorithm="ring", average="no").item()
    256.0
    >>> all_reduce(ones, dtype=torch.bfloat16, algorithm="tree", average="no").item()
    1024.0
    """
    _check(parts, dtype, algorithm)
    before, after = divisors(len(parts), average)
    sent = parts.detach().to(dtype)
    if before != 1:
        sent = sent / before
    total = _ADD[algorithm](sent)
    return total / after if after != 1 else total


def reduce_scatter(
    parts: Tensor,
    *,
    dtype: torch.dtype,
    algorithm: Algorithm = "ring",
    average: Average = "after",
) -> Tensor:
    """What each rank keeps after a reduce-scatter: the same sums, an equal share for each rank.

    Args:
        parts: as for `all_reduce`, with a number of elements that the ranks divide.
        dtype: as for `all_reduce`.
        algorithm: as for `all_reduce`.
        average: as for `all_reduce`.

    Returns:
        Shape (ranks, elements / ranks): row ``r`` is what rank ``r`` holds.

    Raises:
        ValueError: as for `all_reduce`, or elements that do not divide.

    >>> reduce_scatter(torch.ones(2, 4), dtype=torch.float32, average="no")
    tensor([[2., 2.],
            [2., 2.]])
    """
    _check(parts, dtype, algorithm)
    if parts.shape[1] % len(parts):
        raise ValueError(
            f"parts: {parts.shape[1]} elements do not divide among {len(parts)} ranks; pad them"
        )
    total = all_reduce(parts, dtype=dtype, algorithm=algorithm, average=average)
    return total.view(len(parts), -1)


def divisors(ranks: int, average: Average) -> tuple[float, float]:
    """By what the parts are divided before they are sent, and the sum afterwards.

    ``"split"`` divides by about the square root of the ranks on both sides, by a power of two
    before, so that neither a part of float16 underflows nor their sum overflows.

    Raises:
        ValueError: less than one rank, or an unknown option.

    Source: ``_get_gradient_divide_factors`` of FSDP2 in torch, for ``"split"``.

    >>> divisors(64, "before"), divisors(64, "after"), divisors(64, "split")
    ((64, 1), (1, 64), (8, 8.0))
    """
    if ranks < 1:
        raise ValueError(f"ranks={ranks}: expected at least 1")
    match average:
        case "no":
            return 1, 1
        case "before":
            return ranks, 1
        case "after":
            return 1, ranks
        case "split":
            before = 1
            while ranks % before == 0 and ranks / before > before:
                before *= 2
            return before, ranks / before
    raise ValueError(f"average={average!r}: expected one of {', '.join(get_args(Average))}")


def additions(ranks: int, algorithm: Algorithm) -> int:
    """The most additions between one rank's part and the sum: what an error bound grows with.

    Raises:
        ValueError: an unknown algorithm, or one that does not run on so many ranks.

    >>> additions(1024, "ring"), additions(1024, "tree")
    (1023, 10)
    """
    _check_algorithm(ranks, algorithm)
    return ranks - 1 if algorithm == "ring" else math.ceil(math.log2(ranks))


def ring_chunks(elements: int, ranks: int, *, element_bytes: int) -> list[slice]:
    """The chunks into which gloo's ring cuts a tensor, one a rank; the last ones may be empty.

    A chunk is a whole number of segments, at least two and of at most a mebibyte each, so that one
    can travel while another is added.  So the chunks are not quite equal.

    Raises:
        ValueError: less than one rank or byte, or a negative number of elements.

    Source: found by asking gloo, as in the tests; ``gloo/allreduce.cc`` has the idea.

    >>> [(chunk.start, chunk.stop) for chunk in ring_chunks(10, 4, element_bytes=4)]
    [(0, 4), (4, 8), (8, 10), (10, 10)]
    """
    if elements < 0 or ranks < 1 or element_bytes < 1:
        raise ValueError(
            f"elements={elements}, ranks={ranks}, element_bytes={element_bytes}: expected at least "
            "0, 1 and 1"
        )
    total = elements * element_bytes
    segments = max(2, _divided_up(total, ranks * _SEGMENT_BYTES))
    segment = _divided_up(_divided_up(total, ranks * segments), element_bytes)
    size = segments * segment
    edges = [min(rank * size, elements) for rank in range(ranks + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def ring_order(chunk: int, ranks: int) -> list[int]:
    """The ranks in the order in which a ring adds their parts of a chunk; the last one owns it.

    >>> ring_order(0, 4), ring_order(2, 4)
    ([3, 2, 1, 0], [1, 0, 3, 2])
    """
    return [(chunk - step) % ranks for step in range(1, ranks + 1)]


def _ring(sent: Tensor) -> Tensor:
    """All chunks at once: at each step the rank that every element has come to adds its part."""
    ranks, elements = sent.shape
    chunks = ring_chunks(elements, ranks, element_bytes=sent.element_size())
    lengths = torch.tensor([chunk.stop - chunk.start for chunk in chunks], device=sent.device)
    ends = torch.arange(ranks, device=sent.device).repeat_interleave(lengths)  # who owns the sum
    steps = torch.arange(1, ranks + 1, device=sent.device)[:, None]
    total, *others = sent.gather(0, (ends - steps) % ranks)
    for part in others:
        total += part  # rounded to the dtype each time
    return total


def _tree(sent: Tensor) -> Tensor:
    """Neighbours first; a rank without a partner waits for the next level."""
    while len(sent) > 1:
        pairs = len(sent) // 2 * 2
        sent = torch.cat([sent[0:pairs:2] + sent[1:pairs:2], sent[pairs:]])
    return sent[0]


def _halving(sent: Tensor) -> Tensor:
    """The ranks that are half of all apart first."""
    while len(sent) > 1:
        half = len(sent) // 2
        sent = sent[:half] + sent[half:]
    return sent[0]


_ADD = {"ring": _ring, "tree": _tree, "halving": _halving}


def _divided_up(number: int, by: int) -> int:
    return -(-number // by)


def _check(parts: Tensor, dtype: torch.dtype, algorithm: Algorithm) -> None:
    if parts.dim() != 2 or not len(parts):
        raise ValueError(
            f"parts: shape {tuple(parts.shape)}, expected (ranks, elements) of at least one rank"
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype}: expected torch.float32, bfloat16 or float16")
    if parts.dtype not in (torch.float32, dtype):
        raise ValueError(f"parts: {parts.dtype}, expected torch.float32 or {dtype}")
    _check_algorithm(len(parts), algorithm)


def _check_algorithm(ranks: int, algorithm: Algorithm) -> None:
    if algorithm not in _ADD:
        raise ValueError(f"algorithm={algorithm!r}: expected one of {', '.join(_ADD)}")
    if ranks < 1:
        raise ValueError(f"ranks={ranks}: expected at least 1")
    if algorithm == "halving" and ranks & (ranks - 1):
        raise ValueError(f'algorithm="halving": {ranks} ranks are no power of two; take "tree"')
