"""Bins for floating-point magnitudes: exact, cheap, and cut where rounding changes its mind.

* **A binade is an exponent.**  The numbers from 2**e to 2**(e+1) share the exponent field e, so
  the bin of a float is in its bits; no logarithm is taken, none is rounded.
* **A binade has parts.**  Rounding to nearest moves the borders of a format a little off the
  powers of two: float16 overflows from 65520 on, not from 65536, and 2**-25 is zero while anything
  above it is not.  So each binade is cut once more, wherever a format of up to 10 mantissa bits
  can have a border.  `borders` says where a given format has its own.

`BinCounter` counts tensors into these bins; `mpbook.watch.histograms` makes sense of the counts.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from mpbook.formats import FloatFormat, decode
from mpbook.precision import checked_loss_scale

Bin = tuple[int, int]
"""A binade, and a part of it: an index into `PARTS`."""


# --- The parts of a binade --------------------------------------------------------------------

POSITIONS = 4096
"""Positions in a binade: the multiples of 2**-11 at even ones, all between two at the odd ones."""


def _first_positions() -> tuple[int, ...]:
    """The position at which each part begins, in ascending order.

    With m mantissa bits, the border to the normal numbers is 2 - 2**-m, in units of the power of
    two below it, and the border to overflow 2 - 2**-(m+1), or 2 - 3 * 2**-(m+1) where NaN has
    taken the code of the largest number.  A border goes to the neighbour with the even code, so
    it belongs to what lies above it, but for the last kind and for the border to zero, at 1.
    """
    upward = {POSITIONS - POSITIONS // 2**j for j in range(1, 12)}
    downward = {POSITIONS - 3 * POSITIONS // 2**j for j in range(2, 12)} | {0, POSITIONS // 2}
    return tuple(sorted({0} | upward | {position + 1 for position in downward}))


_STARTS = _first_positions()


def _significand(position: int) -> float:
    return 1 + (position // 2) / (POSITIONS // 2)


PARTS: tuple[tuple[float, float], ...] = tuple(
    (_significand(start), _significand(end))
    for start, end in zip(_STARTS, (*_STARTS[1:], POSITIONS), strict=True)
)
"""Lowest and highest significand of each part; the first part is the power of two alone."""

MIDDLES: tuple[float, ...] = tuple((low + high) / 2 for low, high in PARTS)
"""The middle significand of each part; no value of the part is further from it than a ninth."""


def _first_bin_beyond(border: Fraction, *, included: bool) -> Bin:
    """The first bin with nothing below the border, nor, unless it is included, on it."""
    binade = border.numerator.bit_length() - border.denominator.bit_length()
    binade -= border < Fraction(2) ** binade
    steps = (border / Fraction(2) ** binade - 1) * (POSITIONS // 2)
    on_a_position = steps.denominator == 1
    position = 2 * math.ceil(steps) + (on_a_position and not included)
    part = bisect_left(_STARTS, position)
    return (binade, part) if part < len(PARTS) else (binade + 1, 0)


@dataclass(frozen=True)
class Borders:
    """The first bins whose values do not underflow, are normal, and overflow."""

    survives: Bin
    normal: Bin
    overflows: Bin


@functools.cache
def borders(format: FloatFormat) -> Borders:
    """Where rounding to nearest, ties to even, changes a magnitude's fate.

    Exact for a format of up to 10 mantissa bits; a border of a longer one that lies between two
    parts is moved up to the next.

    Raises:
        ValueError: a format without a sign or a zero.
    """
    if not format.signed or not format.subnormals:
        raise ValueError(
            f"format={format.name!r}: has no sign or no zero; a histogram holds magnitudes of "
            "both signs, so expected a format for data, not for scales"
        )
    smallest_normal = Fraction(2) ** format.lowest_binade
    half_gap = smallest_normal / 2 ** (format.mantissa_bits + 1)
    largest = Fraction(decode(format.max_code, format))
    binade = (format.max_code >> format.mantissa_bits) - 1 + format.lowest_binade
    half_last_gap = Fraction(2) ** (binade - format.mantissa_bits - 1)
    return Borders(
        survives=_first_bin_beyond(half_gap, included=False),
        normal=_first_bin_beyond(smallest_normal - half_gap, included=True),
        overflows=_first_bin_beyond(largest + half_last_gap, included=format.max_code % 2 == 1),
    )


# --- Counting ---------------------------------------------------------------------------------

CPU_BLOCK = 2**17
"""Elements that a CPU counts at a time: their indices fit into a core's cache."""

DEVICE_BLOCK = 2**24
"""The same elsewhere: the indices of a block take 8 bytes an element."""

_ZERO, _INFINITE, _NAN, _FIRST = range(4)  # slots of a tensor of counts, then the bins

# Lowest binade and number of binades: all that a dtype has, divided by any float32 loss scale.
_RANGE = (-280, 540)
_FLOAT64_RANGE = (-1210, 2370)


class Counts(NamedTuple):
    """Counts by bin, none of them 0, and of the values that lie in no binade."""

    bins: dict[Bin, int]
    zeros: int
    infinities: int
    nans: int


class BinCounter:
    """Counts tensors on the device where they are, and does not wait for it until it is read.

    It keeps a tensor of int64 counts for each device: 100 kB, and 460 kB if it sees float64.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[torch.device, int], Tensor] = {}

    @torch.inference_mode(False)  # counts made in that mode could not be added to outside it
    def add(self, x: Tensor, *, divisor: float | Tensor = 1.0) -> None:
        """Count the values of ``x / divisor``.

        Args:
            x: a real floating-point tensor; a sparse one counts with its zeros, a nested one
                without what would pad it.
            divisor: a loss scale: see `mpbook.precision.checked_loss_scale`.  A power of two
                costs nothing and rounds nothing; any other divides in float64.  A tensor is not
                waited for and not checked.

        Raises:
            TypeError: not a real floating-point tensor.
            ValueError: a divisor out of range.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            what = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x: {what}, expected a real floating-point tensor")
        divide, binades = _split(divisor)
        lowest, length = _FLOAT64_RANGE if x.dtype == torch.float64 else _RANGE
        key, size = (x.device, lowest), _FIRST + length * len(PARTS)
        if key not in self._counts:
            self._counts[key] = torch.zeros(size, dtype=torch.int64, device=x.device)
        x = x.detach().values() if x.is_nested else x.detach()
        x = x if x.layout is torch.strided else x.to_dense()
        for block in x.reshape(-1).split(CPU_BLOCK if x.device.type == "cpu" else DEVICE_BLOCK):
            counted = _count(block, lowest, size, divide)
            _add_shifted(self._counts[key], counted, -binades * len(PARTS))

    def counts(self) -> Counts:
        """What has been counted so far; waits for the device."""
        bins: Counter[Bin] = Counter()
        special = [0, 0, 0]
        for (_, lowest), counts in self._counts.items():
            host = counts.cpu()
            special = [a + b for a, b in zip(special, host[:_FIRST].tolist(), strict=True)]
            slots = host[_FIRST:].nonzero().flatten()
            for slot, count in zip(slots.tolist(), host[_FIRST:][slots].tolist(), strict=True):
                bins[lowest + slot // len(PARTS), slot % len(PARTS)] += count
        return Counts(dict(bins), *special)


def _split(divisor: float | Tensor) -> tuple[float | Tensor | None, int]:
    """A divisor as something to divide by, if that is needed, and the power of two that remains."""
    if isinstance(divisor, Tensor):
        return divisor, 0
    checked_loss_scale("divisor", divisor)
    mantissa, exponent = math.frexp(divisor)
    return (None if mantissa == 0.5 else 2 * mantissa), exponent - 1


def _add_shifted(counts: Tensor, counted: Tensor, slots: int) -> None:
    """Add counts whose bins lie so many slots higher; what leaves the range is empty."""
    if not slots:
        counts += counted
        return
    counts[:_FIRST] += counted[:_FIRST]
    here, there = counted[_FIRST:], counts[_FIRST:]
    if slots > 0:
        there[slots:] += here[:-slots]
    else:
        there[:slots] += here[-slots:]


def _count(block: Tensor, lowest: int, size: int, divide: float | Tensor | None) -> Tensor:
    """Counts by slot of one block."""
    if block.device.type == "cpu" and divide is None and block.dtype != torch.float64:
        slots = _slots_of_float32(block.float())
        counted = torch.bincount(slots, minlength=size + 1)
        if not counted[size]:  # no float32 subnormals, as nearly always
            return counted[:size]
    values = block.double() if divide is None else block.double() / divide
    return _tally(_slots_of_float64(values, lowest, size), size)


def _tally(slots: Tensor, size: int) -> Tensor:
    """How often each slot occurs."""
    if slots.device.type == "cpu":
        return torch.bincount(slots, minlength=size)
    return _tally_without_waiting(slots, size)


def _tally_without_waiting(slots: Tensor, size: int) -> Tensor:
    """The same; `bincount` would wait for a GPU, to learn how long its result gets."""
    ones = torch.ones(1, dtype=torch.int64, device=slots.device).expand(len(slots))
    return torch.zeros(size, dtype=torch.int64, device=slots.device).scatter_add_(0, slots, ones)


def _positions(bits: Tensor, dropped: int) -> Tensor:
    """Positions of magnitudes from their bits, counted on through the binades.

    Shifting ``dropped`` bits out rounds down; down plus up is even for a multiple of 2**-11, and
    odd between two.
    """
    down = bits >> dropped
    return down.sub_(bits.neg_().bitwise_right_shift_(dropped))


@functools.cache
def _part_of_position(device: torch.device) -> Tensor:
    parts = [bisect_right(_STARTS, position) - 1 for position in range(POSITIONS)]
    return torch.tensor(parts, device=device)


@functools.cache
def _slot_of_position() -> Tensor:
    """Slots by position for float32's exponent fields; its subnormals go to one beyond the last."""
    lowest, length = _RANGE
    cpu = torch.device("cpu")
    binade = torch.arange(256, device=cpu).repeat_interleave(POSITIONS) - 127 - lowest
    slots = _FIRST + binade * len(PARTS) + _part_of_position(cpu).repeat(256)
    slots[:POSITIONS] = _FIRST + length * len(PARTS)
    slots[0] = _ZERO
    slots[255 * POSITIONS :] = _NAN
    slots[255 * POSITIONS] = _INFINITE
    return slots.short()


def _slots_of_float32(values: Tensor) -> Tensor:
    """Slots of float32 values, by one table: the way of a CPU, where arithmetic costs."""
    positions = _positions(values.view(torch.int32) & 0x7FFFFFFF, 12)
    return _slot_of_position().index_select(0, positions)


def _slots_of_float64(values: Tensor, lowest: int, size: int) -> Tensor:
    """Slots of float64 values, subnormals included."""
    bits = values.view(torch.int64) & 0x7FFFFFFFFFFFFFFF
    is_zero, is_nan = bits == 0, bits > 0x7FF << 52
    is_infinite = bits == 0x7FF << 52
    # A subnormal is bits * 2**-1074, and as a float64 the integer has the exponent we look for.
    bits = torch.where(bits < 1 << 52, bits.double().view(torch.int64) - (1074 << 52), bits)
    positions = _positions(bits, 41)
    slots = _part_of_position(values.device).index_select(0, positions & (POSITIONS - 1))
    slots += ((positions >> 12) - 1023 - lowest) * len(PARTS) + _FIRST
    slots.clamp_(_FIRST, size - 1)  # a divisor tensor may be anything
    slots.masked_fill_(is_zero, _ZERO)
    return slots.masked_fill_(is_infinite, _INFINITE).masked_fill_(is_nan, _NAN)
