"""What rounding to a format has to compute: everything that is known before the first number is.

A `Plan` holds the options and what follows from them: where inputs are cut off, the range of the
powers of two, and which of the ways in `mpbook.formats.rounding_steps` is right.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from mpbook.formats.description import (
    FloatFormat,
    Overflow,
    Rounding,
    as_format,
    never_overflows,
)

EXPONENT_BIAS = {torch.float32: 127, torch.float64: 1023}
"""Of the dtypes that compute."""


@dataclass(frozen=True)
class Plan:
    """How to round: the options, and what follows from them."""

    format: FloatFormat
    rounding: Rounding
    overflow: Overflow
    dtype: torch.dtype  # computes
    native: torch.dtype | None  # the hardware rounds to it in this way
    carries: bool  # see `_round_by_carry_`
    low: float  # where inputs are cut off
    high: float
    powers: tuple[float, float]  # of two, in the lowest and the highest binade
    headroom: int  # binades of the computing dtype above those of the format

    @property
    def beyond(self) -> float:
        """What all that overflows is rounded to, before `overflow` applies."""
        return max(self.high, -self.low)

    @property
    def infinities_differ(self) -> bool:
        """Whether infinities overflow where large finite numbers stop at `max`."""
        stops = any(never_overflows(self.rounding, negative) for negative in (False, True))
        return stops and self.overflow != "saturate"


def find_plan(
    format: FloatFormat, rounding: Rounding, overflow: Overflow, result: torch.dtype
) -> Plan:
    """The steps to a result of this dtype."""
    # The compiler looks through a cache, with a warning, and evaluates all this at compile time.
    find = _find_plan if torch.compiler.is_compiling() else _cached_plan
    return find(format, rounding, overflow, result)


def _find_plan(
    format: FloatFormat, rounding: Rounding, overflow: Overflow, result: torch.dtype
) -> Plan:
    lowest, highest = format.lowest_binade, math.frexp(format.max)[1] - 1
    smallest, largest = (binade - format.mantissa_bits for binade in (lowest, highest))  # ulps
    carries = result == torch.float32 and lowest == -126 and format.mantissa_bits > 0
    # Float32 computes where its powers of two, the ulps and what comes after max, are normal.
    dtype = result if carries or (smallest >= -126 and highest < 127) else torch.float64
    low, high = _cut_offs(format, rounding, overflow, math.ldexp(1.0, largest), dtype)
    return Plan(
        format=format,
        rounding=rounding,
        overflow=overflow,
        dtype=dtype,
        native=_native(format, rounding, dtype),
        carries=carries,
        low=low,
        high=high,
        powers=(math.ldexp(1.0, lowest), math.ldexp(1.0, highest)),
        headroom=EXPONENT_BIAS[dtype] - highest,
    )


_cached_plan = functools.cache(_find_plan)


def _cut_offs(
    format: FloatFormat, rounding: Rounding, overflow: Overflow, ulp: float, dtype: torch.dtype
) -> tuple[float, float]:
    """The range outside of which inputs round like its ends; only infinities may differ."""
    beyond = format.max + ulp  # the number that would come after max
    beyond = beyond if beyond <= torch.finfo(dtype).max else math.inf
    down, up = (
        format.max if overflow == "saturate" or never_overflows(rounding, negative) else beyond
        for negative in (True, False)
    )
    if format.signed:
        return -down, up
    return (0.0 if format.subnormals else format.smallest_normal), up


def _native(format: FloatFormat, rounding: Rounding, dtype: torch.dtype) -> torch.dtype | None:
    natives = {as_format(native): native for native in (torch.float16, torch.bfloat16)}
    return natives.get(format) if (rounding, dtype) == ("nearest-even", torch.float32) else None
