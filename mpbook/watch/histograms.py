"""Where numbers lie between zero and infinity, and what a format would make of them.

A number format fails at its two ends: what is too small becomes zero, what is too large becomes
infinity.  Whether that happens to a tensor is read off a histogram of log2|x|.

* **Exactly**: its bins (`mpbook.watch.binades`) have an edge wherever a format of up to 10 mantissa
  bits rounds differently on both sides.  What it says about float16, bfloat16, float8 and float4
  are the counts that rounding every value would give.
* **Scaling by a power of two is a shift**: one histogram answers for every loss scale.

"Zero" and "underflows" are two fates: a zero that ReLU made is nobody's loss, and most of the
zeros that a census finds are of that kind (Micikevicius et al. 2018 found 67% of the activation
gradients of a detector to be zero in float32 already).

`mpbook.watch.probe` takes such histograms of a model while it trains.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mpbook.formats import FloatFormat, as_format
from mpbook.formats.checks import check_whole
from mpbook.watch.binades import MIDDLES, PARTS, Bin, BinCounter, borders

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# --- The histogram ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Fates:
    """What becomes of a tensor's values in a format, as shares that sum to 1.

    ``zero`` was zero before; ``underflows`` becomes zero by rounding; ``subnormal`` keeps fewer
    digits; ``overflows`` is rounded beyond the largest number; ``nonfinite`` was infinite or NaN
    before.
    """

    zero: float
    underflows: float
    subnormal: float
    normal: float
    overflows: float
    nonfinite: float

    def percent(self) -> list[float]:
        """The shares in percent, in this order, with three digits."""
        return [float(f"{100 * share:.3g}") for share in vars(self).values()]


@dataclass(frozen=True)
class Histogram:
    """Exact counts of magnitudes, by binade and by part of a binade.

    Histograms add up: ``h1 + h2`` counts both tensors, and ``Histogram()`` is empty.

    Args:
        bins: counts by `Bin`; none is 0.
        zeros, infinities, nans: values that lie in no binade.
    """

    bins: dict[Bin, int] = field(default_factory=dict)
    zeros: int = 0
    infinities: int = 0
    nans: int = 0

    @property
    def nonzero(self) -> int:
        """How many values are finite and not zero."""
        return sum(self.bins.values())

    @property
    def total(self) -> int:
        """How many values were counted."""
        return self.nonzero + self.zeros + self.infinities + self.nans

    @property
    def counts(self) -> dict[int, int]:
        """How many values lie in each binade: ``floor(log2|x|)`` to count, ascending."""
        counts: Counter[int] = Counter()
        for (binade, _), count in self._ascending():
            counts[binade] += count
        return dict(counts)

    def _ascending(self) -> Iterator[tuple[Bin, int]]:
        return iter(sorted(self.bins.items()))

    def __add__(self, other: Histogram) -> Histogram:
        if not isinstance(other, Histogram):
            return NotImplemented
        return Histogram(
            dict(Counter(self.bins) + Counter(other.bins)),
            self.zeros + other.zeros,
            self.infinities + other.infinities,
            self.nans + other.nans,
        )

    def shifted(self, binades: int) -> Histogram:
        """The histogram of the tensor times 2**binades, as if no number were too large or small."""
        bins = {(binade + binades, part): count for (binade, part), count in self.bins.items()}
        return Histogram(bins, self.zeros, self.infinities, self.nans)

    def fates(self, format: str | torch.dtype | FloatFormat) -> Fates:
        """What rounding to the format, to nearest and ties to even, makes of the values.

        Exact for every format of up to 10 mantissa bits.  For a longer one, float32 among them,
        values within one part in 2048 below the border to the normal numbers or to overflow are
        counted as not having reached it; what underflows is exact there too.

        Raises:
            ValueError: an empty histogram, or a format without a sign or a zero.

        >>> log2_histogram(torch.tensor([0.0, 2.0**-25, 1.0, 65519.0, 65520.0])).fates("float16")
        Fates(zero=0.2, underflows=0.2, subnormal=0.0, normal=0.4, overflows=0.2, nonfinite=0.0)
        """
        if not self.total:
            raise ValueError("histogram: empty, so it has no shares")
        limits, sums = borders(as_format(format)), [0, 0, 0, 0]
        ends = (limits.survives, limits.normal, limits.overflows)
        for place, count in self.bins.items():
            sums[bisect_right(ends, place)] += count
        nonfinite = self.infinities + self.nans
        return Fates(*(count / self.total for count in (self.zeros, *sums, nonfinite)))

    def lost(
        self,
        format: str | torch.dtype | FloatFormat,
        *,
        of: Literal["values", "magnitude"] = "values",
    ) -> float:
        """The share of the values that are not zero, or of the sum of ``|x|``, that underflows.

        Infinities and NaN are left out.  The share of values is as exact as `fates`; the share of
        magnitude takes each value for the middle of its bin, and is right to within a quarter of
        itself.  0 if nothing is there to be lost.

        Raises:
            ValueError: a format without a sign or a zero, or another ``of``.
        """
        first, weights = borders(as_format(format)).survives, self._weights(of)
        total = sum(weight for _, weight in weights)
        return sum(weight for place, weight in weights if place < first) / total if total else 0.0

    def _weights(self, of: str) -> list[tuple[Bin, float]]:
        """Count, or sum of magnitudes relative to the highest binade, by bin, ascending."""
        if of not in ("values", "magnitude"):
            raise ValueError(f'of={of!r}: expected "values" or "magnitude"')
        if of == "values" or not self.bins:
            return list(self._ascending())
        top, _ = max(self.bins)
        return [
            ((binade, part), math.ldexp(count * MIDDLES[part], binade - top))
            for (binade, part), count in self._ascending()
        ]

    def window(
        self,
        format: str | torch.dtype | FloatFormat,
        *,
        lost: float = 0.0,
        of: Literal["values", "magnitude"] = "values",
    ) -> tuple[int, int] | None:
        """The scales that fit the values into the format: 2**low to 2**high, both included.

        With each of them nothing overflows, and `lost` is at most ``lost``.  What was zero or not
        finite before is left out: no scale changes it.  None if there is no such scale.

        Raises:
            ValueError: nothing but zeros, infinities and NaN; ``lost`` that is no share below 1;
                a format without a sign or a zero.

        >>> log2_histogram(torch.tensor([2.0**-30, 2.0**-20])).window("float16")
        (6, 35)
        """
        if not 0 <= lost < 1:
            raise ValueError(f"lost={lost}: expected a share, from 0 to less than 1")
        if not self.bins:
            raise ValueError("histogram: has no finite value but zero, which every scale fits")
        limits, weights = borders(as_format(format)), self._weights(of)
        total, below = sum(weight for _, weight in weights), accumulate(w for _, w in weights)
        kept = next(
            place
            for (place, _), lost_so_far in zip(weights, below, strict=True)
            if lost_so_far / total > lost
        )
        low, high = _shift_to(kept, limits.survives), _shift_to(max(self.bins), limits.overflows)
        return (low, high - 1) if low < high else None

    def as_dict(self) -> dict[str, Any]:
        """The histogram as numbers and lists, for JSON; equal histograms give equal text."""
        rows: dict[int, list[int]] = {}
        for (binade, part), count in self._ascending():
            row = rows.setdefault(binade, [])
            row += [0] * (part - len(row)) + [count]
        bins = [[binade, row] for binade, row in rows.items()]
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"bins": bins}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Histogram:
        """The histogram that `as_dict` saved.

        Raises:
            ValueError: anything else.
        """
        names = {f.name for f in fields(cls)}
        if saved.keys() != names:
            raise ValueError(f"saved has {sorted(saved)}, a Histogram needs {sorted(names)}")
        bins = {
            (binade, part): count
            for binade, row in saved["bins"]
            for part, count in enumerate(row)
            if count
        }
        others = {name: saved[name] for name in names - {"bins"}}
        if any(part >= len(PARTS) for _, part in bins):
            raise ValueError(f"bins: a binade with more than {len(PARTS)} parts")
        if any(type(n) is not int or n < 0 for n in (*bins.values(), *others.values())):
            raise ValueError("saved: counts are integers and not negative")
        return cls(bins, **others)

    def __repr__(self) -> str:
        where = ""
        if self.bins:
            low, high = min(self.bins)[0], max(self.bins)[0]
            where = f", {self.nonzero:,} from 2**{low} to below 2**{high + 1}"
        nonfinite = self.infinities + self.nans
        return (
            f"Histogram({self.total:,} values: {self.zeros:,} zero, {nonfinite:,} nonfinite{where})"
        )

    def plot(self, format: str | torch.dtype | FloatFormat | None = None) -> Figure:
        """Shares by binade, with the regions of a format, as a figure to `plots.show`."""
        return plot({"": self}, format)


def _shift_to(place: Bin, border: Bin) -> int:
    """The smallest number of binades that brings a bin to the border or beyond it."""
    return border[0] - place[0] + (place[1] < border[1])


def log2_histogram(x: Tensor) -> Histogram:
    """The histogram of one tensor of any floating-point dtype and shape, on any device.

    Raises:
        TypeError: not a real floating-point tensor, or one of which this rank holds a part.

    >>> log2_histogram(torch.tensor([0.0, 1.0, -1.5, 2.0**-149])).counts
    {-149: 1, 0: 2}
    """
    if isinstance(x, Tensor):
        check_whole(x)
    counter = BinCounter()
    counter.add(x)
    return Histogram(*counter.counts())


# --- Drawing ----------------------------------------------------------------------------------


def plot(
    histograms: Mapping[str, Histogram],
    format: str | torch.dtype | FloatFormat | None = None,
) -> Figure:
    """Histograms below each other, by title, as a figure to `plots.show`."""
    from mpbook import plots

    size = (5.0, 0.5 + 1.9 * len(histograms))
    figure, axes = plots.figure(len(histograms), 1, figsize=size, sharex=True, squeeze=False)
    occupied = sum(histograms.values(), Histogram()).counts or {0: 0}
    for (title, histogram), axis in zip(histograms.items(), axes.flat, strict=True):
        draw(histogram, axis, format, binades=(min(occupied), max(occupied)))
        axis.set_title("\n".join(filter(None, (title, axis.get_title()))))
    axes.flat[-1].set_xlabel(r"$\log_2|x|$")
    return figure


def draw(
    histogram: Histogram,
    axis: Any,
    format: str | torch.dtype | FloatFormat | None = None,
    *,
    binades: tuple[int, int] | None = None,
) -> None:
    """Bars of shares by binade on a matplotlib axis, and a format's regions behind them.

    Args:
        histogram: what to draw.
        axis: where; its title and labels are set, but not the one of x.
        format: whose regions to shade; its zeros, underflows and overflows become the title.
        binades: lowest and highest that must be on the axis; those of the histogram by default.
    """
    from mpbook import plots

    counts, total = histogram.counts, max(histogram.total, 1)
    shares = [count / total for count in counts.values()]
    colour = plots.COLOURS["float32"]
    axis.bar(list(counts), shares, width=1.0, align="edge", color=colour, linewidth=0)
    axis.set(ylabel="share", ylim=(0, 1.3 * max(shares, default=1.0)))
    if format is not None:
        format = as_format(format)
        _draw_regions(axis, format, binades or (min(counts, default=0), max(counts, default=0)))
        if histogram.total:
            axis.set_title(_headline(histogram.fates(format)))


def _headline(fates: Fates) -> str:
    shares = {"zero": fates.zero, "underflow": fates.underflows, "overflow": fates.overflows}
    return ", ".join(f"{percent(share)} {name}" for name, share in shares.items())


def percent(share: float) -> str:
    """A share in percent with two digits, so that only nothing is 0%."""
    return f"{float(f'{100 * share:.2g}'):g}%"


def _draw_regions(axis: Any, format: FloatFormat, binades: tuple[int, int]) -> None:
    """Shade and name what lies outside a format's normal numbers."""
    from mpbook import plots

    smallest = format.lowest_binade - format.mantissa_bits - 1
    low, high = min(binades[0], smallest), max(binades[1] + 1, math.log2(format.max))
    left, right = low - 0.06 * (high - low), high + 0.06 * (high - low)
    colour = plots.COLOURS.get(format.name, plots.COLOURS["float32"])
    regions = (
        ("zero", left, smallest, 0.35, "///"),
        ("subnormal", smallest, format.lowest_binade, 0.15, ""),
        ("overflow", math.log2(format.max), right, 0.35, "\\\\\\"),
    )
    for name, start, end, alpha, hatch in regions:
        shade = {"alpha": alpha, "hatch": hatch, "zorder": 0, "linewidth": 0}
        axis.axvspan(start, end, facecolor=colour, edgecolor="white", **shade)
        is_narrow = end - start < 0.0145 * len(name) * (right - left)
        look = {"fontsize": 8.5, "rotation": 90 if is_narrow else 0, "va": "top", "ha": "center"}
        ground = {"facecolor": "white", "alpha": 0.6, "linewidth": 0, "pad": 0.8}
        place = axis.get_xaxis_transform()
        axis.text((start + end) / 2, 0.97, name, transform=place, bbox=ground, **look)
    axis.set_xlim(left, right)
