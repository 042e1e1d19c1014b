"""What a floating-point format is, as data, and what rounding to it does.

A `FloatFormat` is a frozen description: how many exponent and mantissa bits, the bias, and what
the top exponent encodes.  Everything else here is a free function over such a description: the
**reference path**, which works on one number and its integer code, in exact rational arithmetic
(`decode`, `encode`, `neighbours`).  The same for whole tensors is in `mpbook.formats.rounding`.

It rests on one fact: written as integers, the codes of the positive numbers count upward with
their values.  Code = (binade - lowest binade) * 2**mantissa_bits + significand, and a significand
that rounds up into the next power of two carries into the exponent by itself.

Taught in the chapter "Precision formats".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, cast, get_args

import torch

from mpbook.formats.counter_hash import draw_keys, hash_counters_
from mpbook.synonyms import did_you_mean

Specials = Literal["inf_nan", "nan", "none", "nan_is_negative_zero"]
Rounding = Literal["nearest-even", "toward-zero", "up", "down", "stochastic"]
Overflow = Literal["inf", "saturate", "nan"]

DRAW_BITS = 23
"""Random bits of one stochastic rounding: all that a float32 can discard."""


# --- Describing a format ---------------------------------------------------------------------


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format: sign, exponent and mantissa bits, and their meaning.

    Args:
        name: as torch and ml_dtypes spell it, e.g. ``"float16"``.
        exponent_bits: width of the exponent field, 1 to 11.
        mantissa_bits: stored fraction bits, without the hidden bit, 0 to 52.
        bias: subtracted from the exponent field; ``2**(exponent_bits-1) - 1`` when not given.
        specials: what the top codes encode.  ``"inf_nan"``: the whole top exponent is infinity
            and NaN (IEEE 754).  ``"nan"``: only the all-ones code is NaN (the *fn* formats of
            OCP).  ``"none"``: every code is a number (OCP's FP4 and FP6).
            ``"nan_is_negative_zero"``: every code is a number but -0, which is NaN (*fnuz*).
        signed: whether there is a sign bit.
        subnormals: whether exponent field 0 holds zero and the subnormals.  If not, it is a power
            of two like any other and the format has no zero (``float8_e8m0fnu``).

    Raises:
        TypeError: a field that is not an integer.
        ValueError: no exponent bits, or fields that no float64 can represent exactly.

    Source: IEEE 754-2019, section 3.3; OCP Microscaling Formats specification v1.0, section 5.3.

    >>> FloatFormat("float16", exponent_bits=5, mantissa_bits=10).max
    65504.0
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int = cast(int, None)
    specials: Specials = "inf_nan"
    signed: bool = True
    subnormals: bool = True

    def __post_init__(self) -> None:
        if cast(object, self.bias) is None:
            default = 2 ** max(_integer(self, "exponent_bits") - 1, 0) - 1
            object.__setattr__(self, "bias", default)
        for field in ("exponent_bits", "mantissa_bits", "bias"):
            _integer(self, field)
        _check_fields(self)

    @property
    def bits(self) -> int:
        """Total width, sign included."""
        return int(self.signed) + self.exponent_bits + self.mantissa_bits

    @property
    def precision(self) -> int:
        """Significant bits, the hidden one included."""
        return self.mantissa_bits + 1

    @property
    def eps(self) -> float:
        """Gap between 1 and the next larger number."""
        return 2.0**-self.mantissa_bits

    @property
    def lowest_binade(self) -> int:
        """Exponent of the smallest normal number, ``log2(smallest_normal)``."""
        return int(self.subnormals) - self.bias

    @property
    def max_code(self) -> int:
        """Code of the largest finite number."""
        all_ones = 2 ** (self.exponent_bits + self.mantissa_bits) - 1
        if self.specials == "inf_nan":
            return all_ones - 2**self.mantissa_bits
        return all_ones - 1 if self.specials == "nan" else all_ones

    @property
    def max(self) -> float:
        """Largest finite number."""
        return decode(self.max_code, self)

    @property
    def smallest_normal(self) -> float:
        """Smallest positive number with full precision."""
        return 2.0**self.lowest_binade

    @property
    def smallest_subnormal(self) -> float | None:
        """Smallest positive number, or None in a format that has no subnormals."""
        if not self.subnormals or self.mantissa_bits == 0:
            return None
        return 2.0 ** (self.lowest_binade - self.mantissa_bits)

    @property
    def has_inf(self) -> bool:
        """Whether a code stands for infinity."""
        return self.specials == "inf_nan"

    @property
    def has_nan(self) -> bool:
        """Whether a code stands for NaN."""
        return self.specials != "none"

    @property
    def has_negative_zero(self) -> bool:
        """Whether -0 is a number of its own."""
        return self.signed and self.subnormals and self.specials != "nan_is_negative_zero"

    def __str__(self) -> str:
        sign = "1 sign + " if self.signed else ""
        layout = f"{sign}{self.exponent_bits} exponent + {self.mantissa_bits} mantissa bits"
        return f"{self.name}: {layout}, bias {self.bias}, max {self.max:.6g}"


def _integer(format: FloatFormat, field: str) -> int:
    value = getattr(format, field)
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{field}={value!r}: expected an integer")
    return value


def _check_fields(format: FloatFormat) -> None:
    """Refuse descriptions that are not a floating-point format, or not exact in float64."""
    exponent_bits, mantissa_bits = format.exponent_bits, format.mantissa_bits
    if not 1 <= exponent_bits <= 11:
        raise ValueError(
            f"exponent_bits={exponent_bits}: expected 1 to 11; "
            "without exponent bits a format is fixed-point, not floating-point"
        )
    if not 0 <= mantissa_bits <= 52:
        raise ValueError(f"mantissa_bits={mantissa_bits}: expected 0 to 52")
    if format.specials not in get_args(Specials):
        raise ValueError(f"specials={format.specials!r}: expected one of {get_args(Specials)}")
    if format.specials == "inf_nan" and (exponent_bits < 2 or mantissa_bits < 1):
        raise ValueError('specials="inf_nan" needs 2 exponent bits and 1 mantissa bit or more')
    if format.specials == "nan_is_negative_zero" and not (format.signed and format.subnormals):
        raise ValueError('specials="nan_is_negative_zero" needs a sign bit and a zero')
    if format.signed and not format.subnormals:
        raise ValueError("subnormals=False: a format without a zero has signed=False")
    if format.max_code < 1:
        raise ValueError(f"{format.name}: no positive number is left beside the special codes")
    highest_binade = (format.max_code >> mantissa_bits) - format.bias
    if format.lowest_binade - mantissa_bits < -1022 or highest_binade > 1022:
        raise ValueError(f"bias={format.bias}: the numbers lie outside the range of float64")


def _formats() -> dict[str, FloatFormat]:
    # IEEE 754-2019; NVIDIA's TF32; bfloat16 and the formats of the OCP's specifications OFP8 v1.0
    # and MX v1.0; "fnuz": Noune et al., arXiv:2206.02915 (2022), as in LLVM and on AMD's MI300.
    described = (
        FloatFormat("float32", 8, 23),
        FloatFormat("tfloat32", 8, 10),
        FloatFormat("float16", 5, 10),
        FloatFormat("bfloat16", 8, 7),
        FloatFormat("float8_e4m3fn", 4, 3, specials="nan"),
        FloatFormat("float8_e5m2", 5, 2),
        FloatFormat("float8_e4m3fnuz", 4, 3, bias=8, specials="nan_is_negative_zero"),
        FloatFormat("float8_e5m2fnuz", 5, 2, bias=16, specials="nan_is_negative_zero"),
        FloatFormat("float6_e2m3fn", 2, 3, specials="none"),
        FloatFormat("float6_e3m2fn", 3, 2, specials="none"),
        FloatFormat("float4_e2m1fn", 2, 1, specials="none"),
        FloatFormat("float8_e8m0fnu", 8, 0, specials="nan", signed=False, subnormals=False),
    )
    return {format.name: format for format in described}


FORMATS: dict[str, FloatFormat] = _formats()
"""The formats of this book by name, wide ones first; explorers and benchmarks offer these.

A format that is added here wants a colour and a word in the glossary; CONTRIBUTING.md says where.
"""


def as_format(format: str | torch.dtype | FloatFormat) -> FloatFormat:
    """The `FloatFormat` that a name, a torch dtype or a format stands for.

    Raises:
        ValueError: a name that is not in `FORMATS`.
        TypeError: anything that is not a name, a dtype or a format.

    >>> as_format(torch.bfloat16).mantissa_bits
    7
    """
    if isinstance(format, FloatFormat):
        return format
    if not isinstance(format, str | torch.dtype):
        raise TypeError(f"format={format!r}: expected a name, a torch.dtype or a FloatFormat")
    name = str(format).removeprefix("torch.")
    if name not in FORMATS:
        hint = did_you_mean(name, FORMATS)
        raise ValueError(f"format={name!r}: expected one of {', '.join(FORMATS)}{hint}")
    return FORMATS[name]


# --- The reference path: one number and its integer code --------------------------------------


def fields(code: int, format: str | torch.dtype | FloatFormat) -> tuple[int, int, int]:
    """The sign, exponent and mantissa fields of a code, as stored.

    Raises:
        ValueError: a code outside ``0 ... 2**bits - 1``.

    >>> fields(0b0_01111_0000000000, "float16")
    (0, 15, 0)
    """
    format = as_format(format)
    if not 0 <= code < 2**format.bits:
        raise ValueError(f"code={code}: {format.name} has codes 0 to {2**format.bits - 1}")
    exponent, mantissa = divmod(code, 2**format.mantissa_bits)
    sign, exponent = divmod(exponent, 2**format.exponent_bits)
    return sign, exponent, mantissa


def decode(code: int, format: str | torch.dtype | FloatFormat) -> float:
    """The value of one code.

    Raises:
        ValueError: a code outside ``0 ... 2**bits - 1``.

    >>> decode(0b0_00000_0000000001, "float16") == 2**-24
    True
    """
    format = as_format(format)
    sign, exponent, mantissa = fields(code, format)
    magnitude = code - (sign << (format.bits - 1))
    negative_zero = sign == 1 and magnitude == 0
    if negative_zero and format.specials == "nan_is_negative_zero":
        return math.nan
    if magnitude > format.max_code:
        return _special(magnitude, sign, format)
    if format.subnormals and exponent == 0:
        significand, binade = mantissa, format.lowest_binade
    else:  # the hidden bit
        significand = 2**format.mantissa_bits + mantissa
        binade = exponent - format.bias
    value = math.ldexp(significand, binade - format.mantissa_bits)
    return (-1) ** sign * value


def _special(magnitude: int, sign: int, format: FloatFormat) -> float:
    is_infinity = format.has_inf and magnitude == format.max_code + 1
    return (-1) ** sign * math.inf if is_infinity else math.nan


def encode(
    value: float | Fraction,
    format: str | torch.dtype | FloatFormat,
    *,
    rounding: Rounding = "nearest-even",
    overflow: Overflow,
    generator: torch.Generator | None = None,
) -> int:
    """The code that a number rounds to, in exact rational arithmetic.

    Arguments, special values and errors are those of `round_to`; here a NaN, or a negative number
    in an unsigned format, raises ``ValueError`` when the format has no NaN to stand for it.

    >>> encode(1.0, "bfloat16", overflow="inf") == 0b0_01111111_0000000
    True
    """
    format = as_format(format)
    check_options(format, rounding, overflow, generator)
    negative = math.copysign(1.0, value) < 0
    if math.isnan(value) or (negative and value != 0 and not format.signed):
        return nan_code(format)
    sign = int(negative and format.signed) << (format.bits - 1)
    if math.isinf(value):
        return _overflow_code(sign, overflow, format)
    away = _rounds_away(rounding, negative, generator)
    magnitude = _magnitude_code(abs(Fraction(value)), format, away)
    if magnitude > format.max_code:
        if never_overflows(rounding, negative):
            return sign | format.max_code
        return _overflow_code(sign, overflow, format)
    return sign | magnitude if magnitude or format.has_negative_zero else 0


def _magnitude_code(
    magnitude: Fraction, format: FloatFormat, away: Callable[[int, Fraction], bool]
) -> int:
    """Code of a magnitude >= 0 as if the exponent could grow without end."""
    if magnitude < Fraction(format.smallest_normal) and not format.subnormals:
        return 0  # nothing smaller exists, not even zero
    binade = max(_floor_log2(magnitude), format.lowest_binade)
    significand, rest = divmod(magnitude, Fraction(2) ** (binade - format.mantissa_bits))
    if rest:
        significand += away(significand, rest / Fraction(2) ** (binade - format.mantissa_bits))
    hidden = 0 if format.subnormals else 2**format.mantissa_bits
    return (binade - format.lowest_binade) * 2**format.mantissa_bits + significand - hidden


def _floor_log2(magnitude: Fraction) -> int:
    if magnitude == 0:
        return -(10**6)
    guess = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    return guess if Fraction(2) ** guess <= magnitude else guess - 1


def _rounds_away(
    rounding: Rounding, negative: bool, generator: torch.Generator | None
) -> Callable[[int, Fraction], bool]:
    """Whether a significand with a rest in (0, 1) steps away from zero."""
    if rounding == "nearest-even":
        return lambda significand, rest: (rest, significand % 2) > (Fraction(1, 2), 0)
    if rounding == "stochastic":
        draw = _first_draw(generator)
        return lambda significand, rest: rest + draw > 1
    away = rounding == ("down" if negative else "up")
    return lambda significand, rest: away


def _first_draw(generator: torch.Generator | None) -> Fraction:
    """What stochastic rounding adds to element 0 of a tensor, in units of the last place."""
    assert generator is not None  # check_options
    keys, counter = draw_keys(generator).cpu(), torch.zeros(1, dtype=torch.int32)
    bits = hash_counters_(counter, keys, scratch=torch.empty_like(counter)).item()
    top = int(bits) % 2**32 >> (32 - DRAW_BITS)
    return (top + Fraction(1, 2)) / 2**DRAW_BITS


def never_overflows(rounding: Rounding, negative: bool) -> bool:
    """A finite number that is rounded toward zero stops at max (IEEE 754-2019, section 7.4)."""
    return rounding in ("toward-zero", "up" if negative else "down")


def nan_code(format: FloatFormat) -> int:
    """The code of NaN; a format without one raises ValueError."""
    if not format.has_nan:
        raise ValueError(f"{format.name} has no NaN and this value has no code in it")
    if format.specials == "nan_is_negative_zero":
        return 1 << (format.bits - 1)
    top = 2 ** (format.exponent_bits + format.mantissa_bits) - 1
    quiet = top & -(2 ** max(format.mantissa_bits - 1, 0))  # IEEE's quiet NaN: leading bit set
    return quiet if format.has_inf else top


def _overflow_code(sign: int, overflow: Overflow, format: FloatFormat) -> int:
    if overflow == "nan":
        return nan_code(format)
    return sign | (format.max_code + (overflow == "inf"))


def check_rounding(rounding: str) -> None:
    """Refuse a rounding that does not exist."""
    if rounding not in get_args(Rounding):
        raise ValueError(f"rounding={rounding!r}: expected one of {get_args(Rounding)}")


def check_options(
    format: FloatFormat, rounding: str, overflow: str, generator: torch.Generator | None
) -> None:
    """Refuse what `encode` and `round_to` have no meaning for."""
    check_rounding(rounding)
    if overflow not in get_args(Overflow):
        raise ValueError(f"overflow={overflow!r}: expected one of {get_args(Overflow)}")
    if overflow == "inf" and not format.has_inf:
        raise ValueError(f'overflow="inf": {format.name} has no infinity; use "saturate" or "nan"')
    if overflow == "nan" and not format.has_nan:
        raise ValueError(f'overflow="nan": {format.name} has no NaN; use "saturate"')
    if rounding == "stochastic" and not isinstance(generator, torch.Generator):
        raise ValueError('rounding="stochastic" needs generator=torch.Generator(), seeded by you')


def neighbours(
    value: float, format: str | torch.dtype | FloatFormat
) -> tuple[float | None, float | None]:
    """The nearest numbers of the format strictly below and strictly above ``value``.

    Infinity counts as a number where the format has it; None stands where there is nothing.

    Raises:
        ValueError: ``value`` is NaN.

    >>> neighbours(65504.0, "float16")
    (65472.0, inf)
    >>> neighbours(448.0, "float8_e4m3fn")
    (416.0, None)
    """
    format = as_format(format)
    if math.isnan(value):
        raise ValueError("value=nan: NaN has no neighbours")
    below = _ordinal(value, "up", format) - 1
    above = _ordinal(value, "down", format) + 1
    return _at_ordinal(below, format), _at_ordinal(above, format)


def _ordinal(value: float, rounding: Literal["up", "down"], format: FloatFormat) -> int:
    """Signed position of a value, rounded up or down, among all numbers of the format."""
    beyond = format.max_code + 1
    if value > format.max:
        return beyond if rounding == "up" or math.isinf(value) else format.max_code
    if not format.signed and value < decode(0, format):
        return 0 if rounding == "up" else -1
    if value < -format.max:
        return -beyond if rounding == "down" or math.isinf(value) else -format.max_code
    code = encode(value, format, rounding=rounding, overflow="saturate")
    sign, magnitude = divmod(code, 2 ** (format.exponent_bits + format.mantissa_bits))
    return -magnitude if sign else magnitude


def _at_ordinal(ordinal: int, format: FloatFormat) -> float | None:
    if abs(ordinal) == format.max_code + 1 and format.has_inf:
        return math.copysign(math.inf, ordinal)
    if abs(ordinal) > format.max_code or (ordinal < 0 and not format.signed):
        return None
    return math.copysign(1, ordinal) * decode(abs(ordinal), format)
