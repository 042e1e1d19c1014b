"""The exercises of the chapter "Precision formats", and the ways people get them wrong."""

from __future__ import annotations

import math

from mpbook.exercises._checking import Exercise
from mpbook.formats import FORMATS, FloatFormat, as_format, decode, encode, fields, ulp
from mpbook.formats.sums import overflow_rule

E4M3 = FORMATS["float8_e4m3fn"]

# --- decode_e4m3: the value of a code ---------------------------------------------------------


def _codes() -> list[tuple[int]]:
    """1, 2 and 1.5 first, then every code: the normal numbers are the easier ones."""
    first = (0b0_0111_000, 0b0_1000_000, 0b0_0111_100)
    return [(code,) for code in dict.fromkeys((*first, *range(256)))]


def _e4m3(
    code: int, *, bias: int = 7, hidden: int = 1, hidden_if_subnormal: int = 0, lowest: int = 1
) -> float:
    """Decode e4m3fn with one thing wrong."""
    sign, exponent, mantissa = fields(code, E4M3)
    if (exponent, mantissa) == (15, 7):
        return math.nan
    leading = hidden if exponent else hidden_if_subnormal
    power = exponent if exponent else lowest
    return float((-1) ** sign * (leading + mantissa / 8) * 2.0 ** (power - bias))


def _e4m3_with_infinity(code: int) -> float:
    return decode(code, FloatFormat("ieee_e4m3", 4, 3))


def _e4m3_without_nan(code: int) -> float:
    return decode(code, FloatFormat("e4m3_all_numbers", 4, 3, specials="none"))


# --- largest: the largest finite number of a format -------------------------------------------


def _by_name(*names: str) -> list[tuple[FloatFormat]]:
    return [(FORMATS[name],) for name in names]


def _largest_of(format: FloatFormat, specials: str) -> float:
    changed = {"specials": specials}
    if specials == "inf_nan" and format.mantissa_bits == 0:
        return format.max
    return FloatFormat(**{**_description(format), **changed}).max  # type: ignore[arg-type]


def _description(format: FloatFormat) -> dict[str, object]:
    names = ("name", "exponent_bits", "mantissa_bits", "bias", "specials", "signed", "subnormals")
    return {name: getattr(format, name) for name in names}


def _top_power(format: FloatFormat) -> float:
    return 2.0 ** math.floor(math.log2(format.max))


# --- fate: what becomes of a value ------------------------------------------------------------

_FATES = [
    (1.0, "float16"),
    (0.1, "float16"),
    (3e-5, "float16"),
    (2.0**-20, "float16"),
    (4e-8, "float16"),
    (2.0**-25, "float16"),
    (1e-8, "float16"),
    (65504.0, "float16"),
    (65519.0, "float16"),
    (65520.0, "float16"),
    (1e-8, "bfloat16"),
    (1e5, "bfloat16"),
    (1e-40, "bfloat16"),
    (257.0, "bfloat16"),
    (57344.0, "float8_e5m2"),
    (60000.0, "float8_e5m2"),
    (61440.0, "float8_e5m2"),
    (5e-6, "float8_e5m2"),
    (448.0, "float8_e4m3fn"),
    (463.0, "float8_e4m3fn"),
    (464.0, "float8_e4m3fn"),
    (465.0, "float8_e4m3fn"),
]


def _fate(value: float, format: str) -> str:
    """Underflows, overflows, subnormal, exact or rounded, in this order."""
    description = as_format(format)
    code = encode(value, description, overflow=overflow_rule(description))
    result = decode(code, description)
    if result == 0 != value:
        return "underflows"
    if not math.isfinite(result):
        return "overflows"
    if abs(result) < description.smallest_normal:
        return "subnormal"
    return "exact" if result == value else "rounded"


def _underflows_below(limit: str, value: float, format: str) -> str:
    return "underflows" if value < getattr(FORMATS[format], limit) else _fate(value, format)


def _overflows_above_max(value: float, format: str) -> str:
    return "overflows" if value > FORMATS[format].max else _fate(value, format)


def _ties_away_from_zero(value: float, format: str) -> str:
    subnormal = FORMATS[format].smallest_subnormal or 0.0
    return "subnormal" if value == subnormal / 2 else _fate(value, format)


def _is_the_last_tie(value: float, format: str) -> bool:
    """Whether a value lies half a gap above the largest number."""
    largest = FORMATS[format].max
    return value == largest + _gap(largest, format) / 2


def _the_tie_belongs_to_max(value: float, format: str) -> str:
    return "rounded" if _is_the_last_tie(value, format) else _fate(value, format)


def _the_tie_overflows(value: float, format: str) -> str:
    return "overflows" if _is_the_last_tie(value, format) else _fate(value, format)


# --- gap: the distance to the next number -----------------------------------------------------

_GAPS = [
    (1.0, "float16"),
    (2.0, "float16"),
    (3.0, "float16"),
    (0.1, "bfloat16"),
    (1000.0, "bfloat16"),
    (60000.0, "float16"),
    (2.0**-14, "float16"),
    (2.0**-20, "float16"),
    (0.01, "float8_e4m3fn"),
    (300.0, "float8_e4m3fn"),
    (math.nextafter(8.0, 0.0), "float16"),
]


def _gap(value: float, format: str) -> float:
    import torch

    return float(ulp(torch.tensor(value, dtype=torch.float64), format))


def _gap_without_subnormals(value: float, format: str) -> float:
    return 2.0 ** (math.floor(math.log2(value)) - FORMATS[format].mantissa_bits)


def _gap_by_a_rounded_logarithm(value: float, format: str) -> float:
    binade = max(math.floor(math.log2(value)), FORMATS[format].lowest_binade)
    return 2.0 ** (binade - FORMATS[format].mantissa_bits)


def _gap_counting_the_hidden_bit(value: float, format: str) -> float:
    return _gap(value, format) / 2


# --- design: the cheapest range that is enough ------------------------------------------------

_DEMANDS = [
    (8, 0.02, 200.0),
    (8, 0.02, 400.0),
    (16, 1e-6, 6e4),
    (16, 1e-30, 1e30),
    (12, 2.0**-20, 2.0**20),
    (10, 0.1, 10.0),
]


def _design(
    bits: int,
    smallest: float,
    largest: float,
    *,
    sign_bits: int = 1,
    specials: str = "inf_nan",
    subnormals_count: bool = False,
) -> tuple[int, int]:
    """The fewest exponent bits whose range is enough; the rest is resolution."""
    for exponent_bits in range(2, bits - sign_bits):
        mantissa_bits = bits - sign_bits - exponent_bits
        format = FloatFormat("mine", exponent_bits, mantissa_bits, specials=specials)  # type: ignore[arg-type]
        lowest = format.smallest_subnormal if subnormals_count else format.smallest_normal
        if lowest is not None and lowest <= smallest and format.max >= largest:
            return exponent_bits, mantissa_bits
    raise ValueError(f"no format of {bits} bits reaches from {smallest} to {largest}")


def _demand(bits: int, smallest: float, largest: float) -> str:
    return f"{bits} bits, {smallest:g} to {largest:g},"


# A wrong answer is put down to the first misconception that predicts it, so where two agree on an
# input the one that goes wrong later stands first.
EXERCISES = {
    "decode_e4m3": Exercise(
        inputs=_codes,
        solution=lambda code: decode(code, E4M3),
        misconceptions={
            "Subnormals use the exponent of field 1, not of field 0, so that no gap opens between "
            "the largest subnormal and the smallest normal number.": (
                lambda code: _e4m3(code, lowest=0)
            ),
            "The bias of 4 exponent bits is 2**3 - 1 = 7.": lambda code: _e4m3(code, bias=8),
            "A normal number has a hidden leading 1: its significand is 1 + mantissa/8.": (
                lambda code: _e4m3(code, hidden=0)
            ),
            "Exponent field 0 has no hidden 1: otherwise there would be no zero.": (
                lambda code: _e4m3(code, hidden_if_subnormal=1, lowest=0)
            ),
            "fn stands for finite: e4m3fn has no infinity, and the top exponent holds numbers.": (
                _e4m3_with_infinity
            ),
            "The code of all ones is the NaN of its sign.": _e4m3_without_nan,
            "The first bit is the sign.": lambda code: abs(decode(code, E4M3)),
        },
        describe=lambda code: f"code 0b{code >> 7:b}_{code >> 3 & 15:04b}_{code & 7:03b}",
    ),
    "largest": Exercise(
        inputs=lambda: _by_name(
            "float16",
            "bfloat16",
            "float8_e5m2",
            "float8_e4m3fn",
            "float4_e2m1fn",
            "float8_e8m0fnu",
        ),
        solution=lambda format: format.max,
        misconceptions={
            "The code of all ones is NaN where `specials` is 'nan'; the largest number is one "
            "code below.": lambda format: (
                format.max if format.has_inf else _largest_of(format, "none")
            ),
            "That is the largest power of two; the mantissa adds almost another one.": _top_power,
            "That is the first number too large: where the next binade would begin.": (
                lambda format: 2 * _top_power(format)
            ),
            "Here the top exponent is reserved for infinity and NaN.": (
                lambda format: _largest_of(format, "none")
            ),
            "Only IEEE-style formats reserve the whole top exponent. In an fn format it holds "
            "numbers.": lambda format: _largest_of(format, "inf_nan"),
        },
        describe=lambda format: format.name,
    ),
    "fate": Exercise(
        inputs=lambda: _FATES,
        solution=_fate,
        misconceptions={
            "More than half of the smallest subnormal rounds up to it.": (
                lambda value, format: _underflows_below("smallest_subnormal", value, format)
            ),
            "Below the smallest normal number come the subnormals, down to half the smallest of "
            "them: that is where numbers become 0.": (
                lambda value, format: _underflows_below("smallest_normal", value, format)
            ),
            "Exactly half of the smallest subnormal is a tie, and 0 is even.": _ties_away_from_zero,
            "A value above the largest number overflows only from half a gap on: below, the "
            "largest number is the nearest.": _overflows_above_max,
            "Half a gap above the largest number is a tie. The code of the largest number is odd "
            "in an IEEE-style format, so the tie goes up.": _the_tie_belongs_to_max,
            "Half a gap above the largest number is a tie, and in e4m3fn the largest number has an "
            "even code: the tie goes down to it.": _the_tie_overflows,
        },
        describe=lambda value, format: f"{value!r} in {format}",
    ),
    "gap": Exercise(
        inputs=lambda: _GAPS,
        solution=_gap,
        misconceptions={
            "The gap stops shrinking at the smallest normal number: subnormals share its gap.": (
                _gap_without_subnormals
            ),
            "eps is the gap after 1. Each binade has its own, twice that of the one below.": (
                lambda value, format: FORMATS[format].eps
            ),
            "The gap does not grow with the number but with its binade: round the number down to "
            "a power of two first.": lambda value, format: FORMATS[format].eps * value,
            "Only the stored mantissa bits divide a binade; the hidden bit is always 1.": (
                _gap_counting_the_hidden_bit
            ),
            "Just below a power of two math.log2 rounds up; math.frexp is exact.": (
                _gap_by_a_rounded_logarithm
            ),
        },
        describe=lambda value, format: f"{value!r} in {format}",
    ),
    "first_missing_integer": Exercise(
        inputs=lambda: [()],
        solution=lambda: 257,
        misconceptions={
            "256 is a power of two, and those are all there.": lambda: 256,
            "128 is a power of two, and those are all there.": lambda: 128,
            "With the hidden bit there are 8 significant bits, not 7.": lambda: 129,
            "That is float16's.": lambda: 2049,
            "All integers up to 255 fit into 8 bits, and 256 is a power of two.": lambda: 255,
        },
    ),
    "design": Exercise(
        inputs=lambda: _DEMANDS,
        solution=_design,
        misconceptions={
            "The sign takes a bit too.": lambda *demand: _design(*demand, sign_bits=0),
            "The top exponent is spent on infinity and NaN.": (
                lambda *demand: _design(*demand, specials="none")
            ),
            "Subnormals reach further down, but not at full resolution.": (
                lambda *demand: _design(*demand, subnormals_count=True)
            ),
            "That is more range than was asked for; each exponent bit costs half the resolution.": (
                lambda bits, *_: (8, bits - 9) if bits > 9 else (5, 2)
            ),
        },
        describe=_demand,
    ),
}
"""Exercise by name; `mpbook.exercises.check` looks them up here."""
