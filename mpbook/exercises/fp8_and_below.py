"""The exercises of the chapter "FP8 and below", and the ways people get them wrong."""

from __future__ import annotations

import math

from mpbook.exercises._checking import Exercise
from mpbook.formats import FORMATS

_LARGEST = FORMATS["float8_e4m3fn"].max

# --- scale: what a tensor is divided by ----------------------------------------------------------

_AMAXES = [(448.0,), (1.0,), (0.001,), (1e5,), (0.0,)]


def _scale(amax: float) -> float:
    return amax / _LARGEST if amax > 0 else 1.0


def _multiplier(amax: float) -> float:
    return _LARGEST / amax if amax > 0 else 1.0


# --- bits: of a number with its share of a scale -------------------------------------------------

_BLOCKS = [(8, 8, 32), (4, 8, 32), (4, 8, 16), (8, 32, 128), (6, 8, 32)]

# --- exponent: of a scale that clips nothing -----------------------------------------------------

_TOPS = [(448.0, 448.0), (449.0, 448.0), (6.0, 6.0), (6.5, 6.0), (1.0, 6.0), (1000.0, 448.0)]


def _exponent(amax: float, largest: float) -> int:
    below = math.frexp(amax / largest)[1] - 1
    return below if amax / 2.0**below <= largest else below + 1


def _floor(amax: float, largest: float) -> int:
    return math.frexp(amax)[1] - math.frexp(largest)[1]


EXERCISES = {
    "scale": Exercise(
        inputs=lambda: _AMAXES,
        solution=_scale,
        misconceptions={
            "That is what the tensor is multiplied by; divided by it, amax leaves the range.": (
                _multiplier
            ),
            "A tensor of zeros has amax 0, and 0 / 0 is NaN.": lambda amax: amax / _LARGEST,
            "57344 is the largest number of E5M2; E4M3 ends at 448.": (
                lambda amax: amax / FORMATS["float8_e5m2"].max if amax > 0 else 1.0
            ),
        },
        describe=lambda amax: f"an amax of {amax:g}",
    ),
    "bits": Exercise(
        inputs=lambda: _BLOCKS,
        solution=lambda element_bits, scale_bits, block: element_bits + scale_bits / block,
        misconceptions={
            "The scale takes memory too, shared by the numbers of its block.": (
                lambda element_bits, scale_bits, block: float(element_bits)
            ),
            "A block has one scale, not one for each number.": (
                lambda element_bits, scale_bits, block: float(element_bits + scale_bits)
            ),
        },
        describe=lambda element_bits, scale_bits, block: (
            f"elements of {element_bits} bits, a scale of {scale_bits} bits for {block}"
        ),
    ),
    "exponent": Exercise(
        inputs=lambda: _TOPS,
        solution=_exponent,
        misconceptions={
            "That is OCP's floor: amax is clipped where its mantissa exceeds the largest's.": (
                _floor
            ),
            "That is one binade more than needed where the quotient is a power of two.": (
                lambda amax, largest: math.floor(math.log2(amax / largest)) + 1
            ),
        },
        describe=lambda amax, largest: f"an amax of {amax:g} and a largest number of {largest:g}",
    ),
}
