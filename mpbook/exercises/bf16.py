"""The exercises of the chapter "bfloat16", and the ways people get them wrong."""

from __future__ import annotations

from mpbook.exercises._checking import Exercise
from mpbook.formats import FORMATS

_BFLOAT16 = FORMATS["bfloat16"]

# --- distinct_positions: how many integers survive ----------------------------------------------


def _nearest(position: int) -> int:
    gap = max(1, 2 ** (position.bit_length() - _BFLOAT16.precision))
    return round(position / gap) * gap


def _distinct_positions(count: int) -> int:
    return len({_nearest(position) for position in range(count)})


def _cut_positions(count: int) -> int:
    gaps = [max(1, 2 ** (p.bit_length() - _BFLOAT16.precision)) for p in range(count)]
    return len({p // gap * gap for p, gap in enumerate(gaps)})


# --- cut: the upper half of a float32, rounded --------------------------------------------------

_TOPS = [0x3F80, 0x3F81, 0x0000, 0x3FFF, 0x7F7F, 0xBF81]
_LOWER = [0x0000, 0x7FFF, 0x8001, 0xFFFF, 0x8000, 0x0001]
_BITS = [((top << 16) + low,) for low in _LOWER for top in _TOPS]


def _cut(bits: int) -> int:
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def _without_carry(bits: int) -> int:
    """Round the mantissa alone, so that a carry out of it is lost."""
    rounded = _cut(bits)
    return (bits >> 16 & 0xFF80) | (rounded & 0x7F)


# --- verdict: what a confidence interval says of a margin ---------------------------------------

_INTERVALS = [
    (-0.0002, 0.0004, 0.001),
    (0.002, 0.004, 0.001),
    (-0.004, -0.002, 0.001),
    (-0.0005, 0.0033, 0.001),
    (0.0002, 0.0008, 0.001),
    (0.0005, 0.0030, 0.001),
    (-0.0030, -0.0005, 0.001),
    (-0.0008, -0.0002, 0.001),
]


def _verdict(low: float, high: float, margin: float) -> str:
    if -margin <= low and high <= margin:
        return "within"
    if low > margin:
        return "worse"
    return "better" if high < -margin else "not settled"


def _not_significant_is_within(low: float, high: float, margin: float) -> str:
    return "within" if low <= 0 <= high else _verdict(low, high, margin)


def _significant_is_not_within(low: float, high: float, margin: float) -> str:
    if low <= 0 <= high:
        return _verdict(low, high, margin)
    return "worse" if low > 0 else "better"


def _only_the_mean(low: float, high: float, margin: float) -> str:
    mean = (low + high) / 2
    return _verdict(mean, mean, margin)


def _lower_is_worse(low: float, high: float, margin: float) -> str:
    return _verdict(-high, -low, margin)


# --- rate: a warm-up that a narrow counter drives -----------------------------------------------

_COUNTS = [
    (100, 1000, 7),
    (1000, 1000, 7),
    (256, 1000, 7),
    (3000, 4000, 10),
    (3000, 1000, 10),
    (600, 200, 7),
    (1000, 2000, 10),
]


def _rate(steps: int, warmup: int, mantissa_bits: int) -> float:
    return min(1.0, min(steps, 2 ** (mantissa_bits + 1)) / warmup)


def _rate_stuck_at(steps: int, warmup: int, largest: int) -> float:
    return min(1.0, min(steps, largest) / warmup)


# --- holds: which of the two 16-bit formats -----------------------------------------------------

_TENSORS = [
    (10.0, 1e-3, 7),
    (1e5, 1e-3, 7),
    (10.0, 1e-3, 10),
    (1e5, 1e-3, 10),
    (10.0, 1e-9, 7),
    (10.0, 1e-6, 7),
    (65504.0, 2.0**-14, 8),
    (65519.0, 1e-3, 7),
    (1e-6, 1e-9, 5),
]


def _formats(
    largest: float, smallest: float, mantissa_bits: int, *, needs: tuple[str, ...]
) -> tuple[str, ...]:
    """The formats that pass those of the three tests that are named."""
    found = []
    for name in ("float16", "bfloat16"):
        f = FORMATS[name]
        passed = {
            "largest": largest <= f.max,
            "smallest": smallest >= f.smallest_normal,
            "digits": mantissa_bits <= f.mantissa_bits,
        }
        if all(passed[test] for test in needs):
            found.append(name)
    return tuple(found)


def _holds(largest: float, smallest: float, mantissa_bits: int) -> tuple[str, ...]:
    needs = ("largest", "smallest", "digits")
    return _formats(largest, smallest, mantissa_bits, needs=needs)


def _subnormals_count(largest: float, smallest: float, mantissa_bits: int) -> tuple[str, ...]:
    fits = _formats(largest, smallest, mantissa_bits, needs=("largest", "digits"))
    lowest = {"float16": 2.0**-24, "bfloat16": 2.0**-133}
    return tuple(name for name in fits if smallest >= lowest[name])


# A wrong answer is put down to the first misconception that predicts it, so where two agree on an
# input the one that goes wrong later stands first.
EXERCISES = {
    "distinct_positions": Exercise(
        inputs=lambda: [(1,), (256,), (257,), (258,), (259,), (260,), (512,), (520,), (2048,)],
        solution=_distinct_positions,
        misconceptions={
            "bfloat16 rounds to nearest; it does not cut. 259 becomes 260.": _cut_positions,
            "256 is a bfloat16 number too, and larger ones follow, 2 apart.": (
                lambda count: min(count, 256)
            ),
            "257 positions fit, 0 to 256. Beyond, larger numbers follow, 2 apart.": (
                lambda count: min(count, 257)
            ),
            "That is float16, whose integers reach 2048.": lambda count: count,
        },
        describe=lambda count: f"{count} position{'s' * (count > 1)}",
    ),
    "cut": Exercise(
        inputs=lambda: _BITS,
        solution=_cut,
        misconceptions={
            "A tie goes to the even number: down if the last bit that stays is 0.": (
                lambda bits: (bits + 0x8000) >> 16
            ),
            "A tie goes to the even number: up if the last bit that stays is 1.": (
                lambda bits: (bits + 0x7FFF) >> 16
            ),
            "The carry out of the mantissa belongs into the exponent: it makes the next power of "
            "two.": _without_carry,
            "That cuts the lower half off, which rounds toward zero.": lambda bits: bits >> 16,
            "That is the lower half: sign and exponent are in the upper one.": (
                lambda bits: bits & 0xFFFF
            ),
        },
        describe=lambda bits: f"the bits 0x{bits:08X}",
    ),
    "verdict": Exercise(
        inputs=lambda: _INTERVALS,
        solution=_verdict,
        misconceptions={
            "An interval that holds 0 shows no difference; it does not show that there is none. "
            "This one reaches beyond the margin.": _not_significant_is_within,
            "A difference can be real and still too small to matter: all of this interval lies "
            "within the margin.": _significant_is_not_within,
            "The mean alone says nothing about how sure it is; look at both ends.": _only_the_mean,
            "More loss is worse.": _lower_is_worse,
        },
        describe=lambda low, high, margin: (
            f"an interval from {low:+.2%} to {high:+.2%} and a margin of {margin:.1%}"
        ),
    ),
    "rate": Exercise(
        inputs=lambda: _COUNTS,
        solution=_rate,
        misconceptions={
            "The limit of 256 is bfloat16's. With M mantissa bits it is 2**(M + 1).": (
                lambda steps, warmup, mantissa_bits: _rate_stuck_at(steps, warmup, 256)
            ),
            "The rate stops at 1 when the warm-up is over.": (
                lambda steps, warmup, mantissa_bits: min(steps, 2 ** (mantissa_bits + 1)) / warmup
            ),
            "A counter that cannot hold the next number stops; the warm-up never ends.": (
                lambda steps, warmup, mantissa_bits: min(1.0, steps / warmup)
            ),
            "Remember the hidden bit: there are M + 1 digits, so it stops at 2**(M + 1).": (
                lambda steps, warmup, mantissa_bits: _rate_stuck_at(steps, warmup, 2**mantissa_bits)
            ),
            "It does not wrap around as an integer does: 256 + 1 rounds back to 256.": (
                lambda steps, warmup, mantissa_bits: min(
                    1.0, steps % 2 ** (mantissa_bits + 1) / warmup
                )
            ),
        },
        describe=lambda steps, warmup, mantissa_bits: (
            f"{steps} steps of a warm-up of {warmup} with {mantissa_bits} mantissa bits"
        ),
    ),
    "holds": Exercise(
        inputs=lambda: _TENSORS,
        solution=_holds,
        misconceptions={
            "Below 2**-14 a float16 number is subnormal, and loses digits.": _subnormals_count,
            "And the small ones? Below 2**-14 float16 has no normal numbers.": (
                lambda largest, smallest, mantissa_bits: _formats(
                    largest, smallest, mantissa_bits, needs=("largest", "digits")
                )
            ),
            "And the digits? bfloat16 has 7 mantissa bits, float16 has 10.": (
                lambda largest, smallest, mantissa_bits: _formats(
                    largest, smallest, mantissa_bits, needs=("largest", "smallest")
                )
            ),
            "And the large ones? float16 ends at 65504.": (
                lambda largest, smallest, mantissa_bits: _formats(
                    largest, smallest, mantissa_bits, needs=("smallest", "digits")
                )
            ),
        },
        describe=lambda largest, smallest, mantissa_bits: (
            f"magnitudes from {smallest:g} to {largest:g} and {mantissa_bits} mantissa bits"
        ),
    ),
}
