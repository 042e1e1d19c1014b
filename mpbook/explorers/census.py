"""Histograms by binade, and what a format makes of them: the arithmetic of two explorers.

A binade holds the numbers from one power of two to the next, and the ends of a format lie at powers
of two, or close by.  So a count by binade, floor(log2|x|), says what rounding to nearest does:

* **Underflow.**  What lies below half the smallest subnormal rounds to zero: whole binades.  That
  half itself is a tie and goes to zero too; it alone is counted with its binade, which survives.
* **Subnormal** is what lies below the smallest normal number and survives: whole binades.
* **Overflow.**  A format overflows half a gap above its largest number, inside that number's
  binade.  What falls there is *doubtful*, a bound, unless the largest magnitude of the tensor is
  known: if that one does not overflow, none does.

Scaling by a power of two moves a histogram by whole binades, so one answers for every loss scale.

``static/census.mjs`` computes the same in the page, and the tests hold the two to each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Context
from itertools import chain
from typing import Any, NamedTuple, TypedDict

from mpbook.formats import FloatFormat

SHIFTS = range(-16, 33)
"""Exponents of the loss scales that are looked at."""


class Census(TypedDict):
    """How many values of a tensor lie where; infinities and NaN are left out.

    ``binades`` are pairs of an exponent, floor(log2|x|), and a count, ascending; ``largest`` is
    the largest magnitude, or None where nobody noted it.
    """

    name: str
    zeros: int
    binades: list[list[int]]
    largest: float | None


class Fates(NamedTuple):
    """What becomes of a tensor's values in a format, as counts.

    ``zeros`` were zero before; ``underflow`` rounds to zero; ``subnormal`` keeps fewer digits;
    ``doubtful`` lies in the binade of the format's largest number and may overflow.
    """

    zeros: int
    underflow: int
    subnormal: int
    normal: int
    doubtful: int
    overflow: int

    @property
    def nonzero(self) -> int:
        """How many values there were to lose."""
        return sum(self) - self.zeros


# --- Taking a histogram ------------------------------------------------------------------------


def as_censuses(histograms: Any) -> list[Census]:
    """Histograms by name as a list of censuses.

    Args:
        histograms: a mapping from a name that reads in a sentence, ``"weight gradients"``, to a
            histogram: a dict ``{"zeros": int, "binades": [[exponent, count], ...]}``, perhaps with
            ``"largest"``; or an object with ``zeros`` and ``counts``, a mapping from exponent to
            count, perhaps with ``largest``.  A list of such dicts with a ``"name"`` is taken too.

    Raises:
        TypeError: something that is no histogram.
        ValueError: no histogram, one without a value but zero, or counts that cannot be.
    """
    if isinstance(histograms, Mapping):
        named = list(histograms.items())
    else:
        named = [(saved["name"], saved) for saved in histograms]
    if not named:
        raise ValueError("histograms: none given; expected a mapping from name to histogram")
    if len({name for name, _ in named}) < len(named):
        raise ValueError(f"histograms: names repeat in {[name for name, _ in named]}")
    return [_as_census(name, histogram) for name, histogram in named]


def _as_census(name: Any, histogram: Any) -> Census:
    if isinstance(histogram, Mapping):
        zeros, rows = histogram.get("zeros", 0), histogram.get("binades")
        largest = histogram.get("largest")
    else:
        zeros, counts = getattr(histogram, "zeros", 0), getattr(histogram, "counts", None)
        rows = counts.items() if isinstance(counts, Mapping) else None
        largest = getattr(histogram, "largest", None)
    if rows is None or not isinstance(name, str):
        raise TypeError(
            f"histograms[{name!r}]={histogram!r}: expected a name and a dict with "
            '"zeros" and "binades", or an object with zeros and counts'
        )
    binades = sorted([exponent, count] for exponent, count in rows if count)
    _check(name, zeros, binades, largest)
    largest = None if largest is None else float(largest)
    return Census(name=name, zeros=zeros, binades=binades, largest=largest)


def _check(name: str, zeros: Any, binades: list[list[int]], largest: Any) -> None:
    where = f"histograms[{name!r}]"
    if not binades:
        raise ValueError(f"{where}: has no value but zero, so nothing to look at")
    if any(type(n) is not int for n in (zeros, *chain.from_iterable(binades))):
        raise ValueError(f"{where}: exponents and counts are integers")
    if min(zeros, *(count for _, count in binades)) < 0:
        raise ValueError(f"{where}: a count is negative")
    if len({exponent for exponent, _ in binades}) < len(binades):
        raise ValueError(f"{where}: a binade occurs twice")
    highest = binades[-1][0]
    if largest is not None and not 2.0**highest <= largest < 2.0 ** (highest + 1):
        raise ValueError(
            f"{where}: largest={largest!r}, expected a magnitude in the highest binade, "
            f"from 2**{highest} to below 2**{highest + 1}"
        )


# --- What a format makes of it -----------------------------------------------------------------


def last_binade(format: FloatFormat) -> int:
    """The binade of the format's largest number, floor(log2(max))."""
    return math.frexp(format.max)[1] - 1


def overflows(magnitude: float, format: FloatFormat) -> bool:
    """Whether rounding to nearest, ties to even, takes a magnitude beyond the largest number.

    >>> overflows(65520.0, FloatFormat("float16", 5, 10))
    True
    """
    limit = format.max + 2.0 ** (last_binade(format) - format.mantissa_bits - 1)
    return magnitude > limit or (magnitude == limit and format.max_code % 2 == 1)


def fates(census: Census, format: FloatFormat, shift: int = 0) -> Fates:
    """What becomes of the tensor times ``2**shift`` in a format with a sign and a zero.

    >>> census = as_censuses({"x": {"zeros": 3, "binades": [[-26, 5], [-25, 2], [15, 1]]}})[0]
    >>> fates(census, FloatFormat("float16", 5, 10))
    Fates(zeros=3, underflow=5, subnormal=2, normal=0, doubtful=1, overflow=0)
    """
    last = last_binade(format)
    survives = format.lowest_binade - format.mantissa_bits - 1
    underflow = subnormal = normal = in_last = overflow = 0
    for exponent, count in census["binades"]:
        binade = exponent + shift
        if binade < survives:
            underflow += count
        elif binade < format.lowest_binade:
            subnormal += count
        elif binade < last:
            normal += count
        elif binade == last:
            in_last += count
        else:
            overflow += count
    largest = census["largest"]
    if in_last and not overflow and largest is not None:
        if overflows(math.ldexp(largest, shift), format):
            in_last, overflow = in_last - 1, 1
        else:
            normal, in_last = normal + in_last, 0
    return Fates(census["zeros"], underflow, subnormal, normal, in_last, overflow)


def fits(census: Census, format: FloatFormat, shift: int, lost: float) -> bool:
    """Whether nothing overflows, for certain, and at most a share of the values underflows."""
    seen = fates(census, format, shift)
    return seen.overflow + seen.doubtful == 0 and seen.underflow <= lost * seen.nonzero


def window(census: Census, format: FloatFormat, lost: float) -> tuple[int, int] | None:
    """Lowest and highest of the `SHIFTS` that fit; all between them do; None if none does."""
    fitting = [shift for shift in SHIFTS if fits(census, format, shift, lost)]
    return (fitting[0], fitting[-1]) if fitting else None


# --- In words ----------------------------------------------------------------------------------


def digits(x: float, count: int) -> str:
    """A number with so many significant digits, halves rounded up, as JavaScript writes it.

    >>> digits(0.0488, 2)
    '0.049'
    """
    rounded = Context(prec=count, rounding=ROUND_HALF_UP).create_decimal(x)
    return f"{float(rounded):g}"


def percent(share: float) -> str:
    """A share in words that do not turn a little into nothing, or nearly all into all.

    >>> percent(0.031), percent(1e-9), percent(0.99999)
    ('3.1%', 'less than 0.01%', 'more than 99.9%')
    """
    x = 100 * share
    if 0 < x < 0.01:
        return "less than 0.01%"
    text = digits(x, 2 if x < 10 else 3)
    return "more than 99.9%" if text == "100" and x < 100 else f"{text}%"


def overflow_share(seen: Fates) -> str:
    """The share of the non-zero values that overflow, or its bounds; empty if there are none."""
    most = percent((seen.overflow + seen.doubtful) / seen.nonzero)
    if not seen.overflow:
        return f"up to {most}" if seen.doubtful else ""
    least = percent(seen.overflow / seen.nonzero)
    return least if least == most else f"{least} to {most}"


def listed(names: list[str]) -> str:
    """Names in a sentence.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
