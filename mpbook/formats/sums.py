"""Sums that round after every addition, in any format.

A sum of n numbers is n - 1 additions, and each of them rounds.  What becomes of the total depends
on the format it is kept in, on how it is rounded, and on the order of the additions:

* `running_sum`: one after the other, into one accumulator;
* `pairwise_sum`: neighbours first, then the sums of neighbours, as a tree;
* `kahan_sum`: one after the other, with the rounding error of each step carried along.

`torch.sum` hides all this, because its kernels accumulate float16 and bfloat16 in float32.

The last dimension is summed.  Terms are rounded to the format first, to nearest.  A total that
overflows is infinity, NaN in a format without infinity, the largest number in one without either.
An addition happens in float64 and is then rounded once; it is exact there unless one number is more
than 2**45 times the other (2**29 in float32).

Taught in the chapter "Rounding and sums".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from mpbook.formats.checks import check_whole
from mpbook.formats.description import FloatFormat, Overflow, Rounding, as_format
from mpbook.formats.rounding import round_to

Format = str | torch.dtype | FloatFormat
Round = Callable[[Tensor], Tensor]


def sum_rounder(
    format: Format,
    rounding: Rounding = "nearest-even",
    generator: torch.Generator | None = None,
) -> Round:
    """A function that rounds a sum of two numbers of the format, in float64, back to the format.

    Raises:
        ValueError, TypeError: as `mpbook.formats.round_to`, when the function is called.

    >>> sum_rounder("bfloat16")(torch.tensor([256.0 + 1.0], dtype=torch.float64))
    tensor([256.], dtype=torch.float64)
    """
    format = as_format(format)
    if rounding == "nearest-even" and format in _NATIVE:
        return lambda x: x.to(_NATIVE[format]).double()
    options: Any = dict(rounding=rounding, overflow=overflow_rule(format), generator=generator)
    return lambda x: round_to(x, format, **options)


# Torch's own cast, where there is one: the same numbers, sooner.  From float64 it passes through
# float32 on the way to 16 bits, which never shows in a sum or difference of two 16-bit numbers,
# because float32 has more than twice their digits and two more.
_NATIVE = {as_format(t): t for t in (torch.float32, torch.float16, torch.bfloat16)}


def overflow_rule(format: FloatFormat) -> Overflow:
    """What becomes of a total that is too large: infinity, else NaN, else the largest number."""
    if format.has_inf:
        return "inf"
    return "nan" if format.has_nan else "saturate"


def _terms(terms: Tensor, format: Format) -> Tensor:
    """The terms as numbers of the format, in float64."""
    if not isinstance(terms, Tensor) or not terms.is_floating_point():
        kind = terms.dtype if isinstance(terms, Tensor) else type(terms).__name__
        raise TypeError(f"terms is {kind}: expected a real floating-point tensor")
    check_whole(terms, "terms")
    if terms.dim() == 0:
        raise ValueError("terms has no dimension to sum over: expected shape (..., n)")
    format = as_format(format)
    return round_to(terms.double(), format, overflow=overflow_rule(format))


def running_sum(
    terms: Tensor,
    format: Format,
    *,
    rounding: Rounding = "nearest-even",
    generator: torch.Generator | None = None,
) -> Tensor:
    """The sum over the last dimension, term by term, each new total rounded to the format.

    Args:
        terms: a real floating-point tensor of shape (..., n).
        format: name, torch dtype or `FloatFormat` of the total; the terms are rounded to it first.
        rounding: how each addition rounds, as for `mpbook.formats.round_to`.
        generator: draws the bits of stochastic rounding; required there.

    Returns:
        float64 tensor of shape (...).

    Raises:
        TypeError, ValueError: as `mpbook.formats.round_to`; ``terms`` without a dimension.

    >>> running_sum(torch.ones(1000), "bfloat16")
    tensor(256., dtype=torch.float64)
    """
    return running_sums(terms, format, rounding=rounding, generator=generator)[..., -1:].sum(-1)


def running_sums(
    terms: Tensor,
    format: Format,
    *,
    rounding: Rounding = "nearest-even",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Every total on the way of `running_sum`, in the shape of the terms, as `torch.cumsum`.

    >>> running_sums(torch.tensor([255.0, 1, 1, 2]), "bfloat16").tolist()
    [255.0, 256.0, 256.0, 258.0]
    """
    add = sum_rounder(format, rounding, generator)
    terms = _terms(terms, format)
    totals, total = [terms[..., :0]], torch.zeros_like(terms[..., :1])
    for term in terms.split(1, -1):
        total = add(total + term)
        totals.append(total)
    return torch.cat(totals, -1)


def pairwise_sum(
    terms: Tensor,
    format: Format,
    *,
    rounding: Rounding = "nearest-even",
    generator: torch.Generator | None = None,
) -> Tensor:
    """The sum over the last dimension as a tree: neighbours, then sums of neighbours, and so on.

    A term passes through about log2(n) additions instead of up to n, and each of them adds two
    numbers of about the same size.  Arguments, result and errors are those of `running_sum`.

    >>> pairwise_sum(torch.ones(1000), "bfloat16")
    tensor(1000., dtype=torch.float64)
    """
    add = sum_rounder(format, rounding, generator)
    totals = _terms(terms, format)
    while totals.shape[-1] > 1:
        if totals.shape[-1] % 2:
            totals = pad(totals, (0, 1))
        totals = add(totals[..., 0::2] + totals[..., 1::2])
    return totals.sum(-1)  # of one number, or of none


def kahan_sum(
    terms: Tensor,
    format: Format,
    *,
    rounding: Rounding = "nearest-even",
    generator: torch.Generator | None = None,
) -> Tensor:
    """The sum over the last dimension with the error of each addition put back into the next.

    The error is carried in the format too, so a sum of ones stalls in the end, at
    2**(2 * precision).  Arguments, result and errors are those of `running_sum`.  Source: Kahan,
    "Further remarks on reducing truncation errors", Communications of the ACM 8 (1965).

    >>> kahan_sum(torch.ones(1000), "bfloat16")
    tensor(1000., dtype=torch.float64)
    """
    return kahan_sums(terms, format, rounding=rounding, generator=generator)[..., -1:].sum(-1)


def kahan_sums(
    terms: Tensor,
    format: Format,
    *,
    rounding: Rounding = "nearest-even",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Every total on the way of `kahan_sum`, in the shape of the terms."""
    add = sum_rounder(format, rounding, generator)
    terms = _terms(terms, format)
    totals, total = [terms[..., :0]], torch.zeros_like(terms[..., :1])
    lost = torch.zeros_like(total)  # what the total owes
    for term in terms.split(1, -1):
        wanted = add(term + lost)
        new = add(total + wanted)
        arrived = add(new - total)  # how much of it the total took in
        lost = add(wanted - arrived)
        total = new
        totals.append(total)
    return torch.cat(totals, -1)


def exact_sum(terms: Tensor) -> float:
    """The sum of a one-dimensional tensor, rounded once, to float64.

    Raises:
        ValueError: a tensor of another shape.

    >>> exact_sum(torch.tensor([1e8, 1.0, -1e8]))
    1.0
    """
    check_whole(terms, "terms")
    if terms.dim() != 1:
        raise ValueError(f"terms has shape {tuple(terms.shape)}: expected one dimension")
    return math.fsum(terms.tolist())
