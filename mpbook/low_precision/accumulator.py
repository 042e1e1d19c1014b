"""Sums that keep fewer bits than float32: how Hopper's tensor cores add up in eight bits.

A tensor core does not add floats one by one.  It takes some products at a time, aligns them and the
sum so far to the largest exponent among them, and cuts off what lies below the last bit it keeps:
24 bits would be a float32, Hopper keeps about 14.  So a long sum stops taking in what is
2**-14 of it, and always errs towards zero.  The cure is to move the sum into a real float32 every
128 terms: *promotion*.

Source: DeepSeek-V3, arXiv:2412.19437, sections 3.3.2 and 3.5.2.

Taught in the chapter "FP8 and below: traps".
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpbook.low_precision.operands import Accumulation

_AT_ONCE = 2**22  # products that are held in memory


def accumulated(left: Tensor, right: Tensor, accumulation: Accumulation) -> Tensor:
    """``left @ right.T`` with the sums of a tensor core.

    Args:
        left: (m, k), numbers of few bits, so that their products are exact.
        right: (n, k).
        accumulation: how many bits are kept, and how often the sum is promoted.

    Returns:
        (m, n) in float32.

    >>> ones = torch.ones(1, 40_000)
    >>> [accumulated(ones, ones, Accumulation(14, promote_every=p)).item() for p in (None, 128)]
    [16384.0, 40000.0]
    """
    rows = max(1, _AT_ONCE // max(1, len(right) * accumulation.step))
    parts = [_of_rows(part, right, accumulation) for part in left.split(rows)]
    return torch.cat(parts) if parts else left.new_zeros(0, len(right))


def _of_rows(left: Tensor, right: Tensor, accumulation: Accumulation) -> Tensor:
    total = torch.zeros(len(left), len(right), device=left.device)
    partial, since = total.double(), 0
    step, every = accumulation.step, accumulation.promote_every
    for some, others in zip(left.split(step, 1), right.split(step, 1), strict=True):
        products = some.double()[:, None, :] * others.double()
        terms = torch.cat([partial[..., None], products], 2)
        partial, since = sum_aligned(terms, accumulation.bits), since + step
        if every is not None and since >= every:
            total, partial, since = total + partial.float(), torch.zeros_like(partial), 0
    return total + partial.float()


def sum_aligned(terms: Tensor, bits: int) -> Tensor:
    """The sum over the last dimension, of what each term has above the last bit that is kept.

    Args:
        terms: float64.
        bits: that the largest of them keeps.

    >>> sum_aligned(torch.tensor([4.0, 0.5, 0.5, 1.5], dtype=torch.float64), 3)
    tensor(5., dtype=torch.float64)
    """
    _, exponent = torch.frexp(terms.abs().amax(-1, keepdim=True))  # amax < 2**exponent
    unit = torch.ldexp(torch.ones_like(terms[..., :1]), exponent - bits)
    return ((terms / unit).trunc() * unit).sum(-1)
