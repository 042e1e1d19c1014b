"""How far a sum over ranks may be off, and how far it is.

`error_bound` is the worst case in closed form: a part is rounded when it is cast, once in every
addition on its way to the sum, and when it is divided.  `errors_by_ranks` replays reductions of
`mpbook.many_gpus.reductions` over more and more ranks and measures.

Taught in the chapter "Many GPUs".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpbook.many_gpus.reductions import Algorithm, Average, additions, all_reduce, divisors


def error_bound(
    parts: Tensor,
    *,
    dtype: torch.dtype,
    algorithm: Algorithm = "ring",
    average: Average = "after",
) -> Tensor:
    r"""The most by which `all_reduce` of these parts can differ from the exact result.

    With unit roundoff :math:`u` (half of ``eps``) and ``k`` roundings on the way of a part to the
    result, the error is at most :math:`((1 + u)^k - 1) \sum_i |x_i|`, divided as the result is.
    Casts and divisions below the smallest normal number add half a smallest subnormal each;
    additions do not, because a sum of subnormal numbers is exact.

    Args:
        parts: as for `all_reduce`.
        dtype: as for `all_reduce`.
        algorithm: as for `all_reduce`.
        average: as for `all_reduce`.

    Returns:
        Shape (elements,), float64.  It holds where nothing overflows.

    Raises:
        ValueError: an algorithm that does not run on so many ranks.

    Source: Higham 2002, sections 2.2 and 4.2.

    >>> error_bound(torch.ones(2, 1), dtype=torch.float32, average="no").item() < 3e-7
    True
    """
    ranks = len(parts)
    before, after = divisors(ranks, average)
    limits = torch.finfo(dtype)
    half_ulp, half_subnormal = limits.eps / 2, limits.smallest_normal * limits.eps / 2
    casts = int(parts.dtype != dtype)
    roundings = casts + int(before != 1) + additions(ranks, algorithm) + int(after != 1)
    grown = (1 + half_ulp) ** roundings
    total = parts.double().abs().sum(0) / (before * after)
    tiny = ranks * half_subnormal * (casts / before + int(before != 1)) / after
    return (grown - 1) * total + grown * tiny + half_subnormal * int(after != 1)


@dataclass(frozen=True)
class Found:
    """One replayed reduction: the relative errors are norms over all elements."""

    ranks: int
    dtype: torch.dtype
    algorithm: Algorithm
    error: float
    bound: float


def errors_by_ranks(
    ranks: Sequence[int] = (2, 4, 16, 64, 256, 1024, 4096),
    *,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    algorithms: Sequence[Algorithm] = ("ring", "tree"),
    noise: float = 1.0,
    elements: int = 256,
    seed: int = 0,
) -> Iterator[Found]:
    """The error of the mean gradient against the number of ranks.

    The gradient of a rank is a signal that all ranks share, drawn from a normal distribution, and
    noise of its own from another, ``noise`` times as wide.  All cases see the same parts, and the
    parts of few ranks are the first of those of many.

    Raises:
        ValueError: an option that `all_reduce` refuses.
    """
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(elements, generator=generator)
    parts = signal + noise * torch.randn(max(ranks), elements, generator=generator)
    for count in ranks:
        exact = parts[:count].double().mean(0)
        for dtype in dtypes:
            for algorithm in algorithms:
                mean = all_reduce(parts[:count], dtype=dtype, algorithm=algorithm)
                bound = error_bound(parts[:count], dtype=dtype, algorithm=algorithm)
                error = _relative(mean.double() - exact, exact)
                yield Found(count, dtype, algorithm, error, _relative(bound, exact))


def _relative(difference: Tensor, to: Tensor) -> float:
    return float(torch.linalg.vector_norm(difference) / torch.linalg.vector_norm(to))
