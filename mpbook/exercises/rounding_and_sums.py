"""The exercises of the chapter "Rounding and sums", and the ways people get them wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from mpbook.exercises._checking import Exercise
from mpbook.formats import FORMATS, decode, encode, neighbours

Round = Callable[[float], float]

# --- stall: where a running sum of ones stops growing ------------------------------------------


def _formats(*names: str) -> list[tuple[str]]:
    return [(name,) for name in names]


def _stall(format: str) -> int:
    return 2 ** FORMATS[format].precision


# --- nearest_even: rounding to whole numbers ---------------------------------------------------

_NUMBERS = [(x,) for x in (2.2, 3.0, -0.7, 0.7, 1.5, -1.5, 2.5, 0.5, -1.2, -2.5)]


def _away_from_zero(x: float) -> int:
    return int(math.copysign(math.floor(abs(x) + 0.5), x))


# --- up_probability: stochastic rounding -------------------------------------------------------

_STOCHASTIC = [
    (257.0, "bfloat16"),
    (256.0, "bfloat16"),
    (256.5, "bfloat16"),
    (2049.5, "float16"),
    (17.0, "float8_e4m3fn"),
    (-256.5, "bfloat16"),
]


def _between(x: float, format: str) -> tuple[float, float]:
    """The numbers of the format that enclose one it does not hold."""
    below, above = neighbours(x, format)
    return float(below or 0.0), float(above or 0.0)


def _is_representable(x: float, format: str) -> bool:
    return decode(encode(x, format, overflow="nan"), format) == x


def _up_probability(x: float, format: str) -> float:
    if _is_representable(x, format):
        return 0.0
    below, above = _between(x, format)
    return (x - below) / (above - below)


def _even_chance(x: float, format: str) -> float:
    return 0.0 if _is_representable(x, format) else 0.5


def _the_farther_the_likelier(x: float, format: str) -> float:
    return 0.0 if _is_representable(x, format) else 1.0 - _up_probability(x, format)


def _moves_what_is_representable(x: float, format: str) -> float:
    return 0.5 if _is_representable(x, format) else _up_probability(x, format)


def _away_probability(x: float, format: str) -> float:
    up = _up_probability(x, format)
    return 1.0 - up if x < 0 and not _is_representable(x, format) else up


# --- compensated: Kahan's sum, with a rounding function ----------------------------------------


def to_bfloat16(x: float) -> float:
    """A number rounded to bfloat16: the function that `compensated` is tried with."""
    return torch.tensor(x, dtype=torch.float32).to(torch.bfloat16).item()


_TERMS = [
    [1.0, 2.0, 3.0],
    [256.0, 1.0],
    [256.0, 1.0, 2.0],
    [256.0, 1.0, 1.0],
    [256.0, *[1.0] * 44],
    [1.0] * 1000,
    [0.125 * (k % 7) for k in range(2000)],
]


def _compensated(terms: Sequence[float], rounded: Round, *, sign: float = 1.0) -> float:
    total = lost = 0.0
    for term in terms:
        wanted = rounded(term + sign * lost)
        new = rounded(total + wanted)
        lost = rounded(wanted - rounded(new - total))
        total = new
    return total


def _plain(terms: Sequence[float], rounded: Round) -> float:
    total = 0.0
    for term in terms:
        total = rounded(total + term)
    return total


# --- frozen: does an exponential moving average still move? ------------------------------------

_DECAYS = [
    (1.0, 0.9, "bfloat16"),
    (1.0, 0.999, "float32"),
    (1.0, 0.999, "bfloat16"),
    (1.0, 0.9999, "float16"),
    (2.0**-7, 0.999, "bfloat16"),
    (2.0**-7, 0.9, "bfloat16"),
    (1.0, 0.995, "bfloat16"),
    (1.0, 0.997, "bfloat16"),
    (1.0078125, 0.997, "bfloat16"),
    (1.9921875, 0.9975, "bfloat16"),
    (1.0, 1 - 2.0**-9, "bfloat16"),
    (1.0, 1 - 2.0**-12, "float16"),
    (1.0078125, 257 / 258, "bfloat16"),
]


def _frozen(value: float, decay: float, format: str) -> bool:
    return decode(encode(value * decay, format, overflow="nan"), format) == value


def _eps_is_the_limit(value: float, decay: float, format: str) -> bool:
    return 1 - decay < FORMATS[format].eps


def _half_an_eps_is_the_limit(value: float, decay: float, format: str) -> bool:
    return 1 - decay < FORMATS[format].eps / 2


def _a_quarter_is_the_limit(value: float, decay: float, format: str) -> bool:
    return 1 - decay < FORMATS[format].eps / 4


def _a_tie_moves(value: float, decay: float, format: str) -> bool:
    below, _ = _between(value, format)
    return value - value * decay < (value - below) / 2


def _a_tie_is_lost(value: float, decay: float, format: str) -> bool:
    below, _ = _between(value, format)
    return value - value * decay <= (value - below) / 2


def _absolute(value: float, decay: float, format: str) -> bool:
    return value * (1 - decay) < FORMATS[format].eps / 4


# A wrong answer is put down to the first misconception that predicts it, so where two agree on an
# input the one that goes wrong later stands first.
EXERCISES = {
    "stall": Exercise(
        inputs=lambda: _formats("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float32"),
        solution=_stall,
        misconceptions={
            "There the gap becomes 1, so a 1 still counts. It is lost where the gap is 2: the "
            "hidden bit is a digit too.": lambda format: 2 ** FORMATS[format].mantissa_bits,
            "There the gap becomes 4. At a gap of 2 a term of 1 is exactly half of it: a tie, "
            "and the total is even.": lambda format: 2 * _stall(format),
            "It is not overflow that stops the sum: it stalls long before.": (
                lambda format: FORMATS[format].max
            ),
            "That is the first integer that is missing. The sum does not reach it.": (
                lambda format: _stall(format) + 1
            ),
        },
        describe=str,
    ),
    "nearest_even": Exercise(
        inputs=lambda: _NUMBERS,
        solution=round,
        misconceptions={
            "A tie goes to the even neighbour: 2.5 lies between 2 and 3, and 2 is even.": (
                _away_from_zero
            ),
            "floor(x + 0.5) sends every tie up.": lambda x: math.floor(x + 0.5),
            "That is rounding toward zero: it drops the fraction, however large.": math.trunc,
            "That is rounding down.": math.floor,
        },
    ),
    "up_probability": Exercise(
        inputs=lambda: _STOCHASTIC,
        solution=_up_probability,
        misconceptions={
            "A fair coin is right on average only at the middle. The nearer a neighbour, the more "
            "often it must be taken.": _even_chance,
            "A number that the format holds never moves.": _moves_what_is_representable,
            "The other way round: the nearer neighbour is the likelier one.": (
                _the_farther_the_likelier
            ),
            "Up is toward plus infinity, for negative numbers too.": _away_probability,
        },
        describe=lambda x, format: f"{x!r} in {format}",
    ),
    "compensated": Exercise(
        # With the sign wrong and without compensation the sums agree on many inputs.
        inputs=lambda: [(terms, to_bfloat16) for terms in _TERMS],
        solution=_compensated,
        misconceptions={
            "That is the plain running sum: what an addition loses has to go into the next.": (
                _plain
            ),
            "The sign: what was lost is to be added to the next term.": (
                lambda terms, rounded: _compensated(terms, rounded, sign=-1.0)
            ),
        },
        describe=lambda terms, rounded: (
            str(terms) if len(terms) < 5 else f"{len(terms)} terms, the last {terms[-1]:g},"
        ),
    ),
    "softmax_limit": Exercise(
        inputs=lambda: [()],
        solution=lambda: 12,
        misconceptions={
            "exp(11) is 59874, and float16 reaches 65504.": lambda: 11,
            "89 is the limit of float32 and bfloat16, which have 8 exponent bits.": lambda: 89,
            "65504 limits exp(z), not z.": lambda: 65504,
        },
    ),
    "frozen": Exercise(
        inputs=lambda: _DECAYS,
        solution=_frozen,
        misconceptions={
            "eps is the gap above 1. Rounding back takes less than half a gap, and below a power "
            "of two the gap is half as wide.": _eps_is_the_limit,
            "Half of eps is the limit just above 1. Just below a power of two the gap, and so the "
            "limit, is half of that.": _half_an_eps_is_the_limit,
            "A quarter of eps is the limit just below a power of two. Just above it the gap is "
            "twice as wide, and so is the limit.": _a_quarter_is_the_limit,
            "The limit grows with the value: what counts is the decay relative to the gap there, "
            "so a small value freezes as well.": _absolute,
            "Exactly half a gap is a tie, and goes to the neighbour whose code is even: a value "
            "with an even code stays.": _a_tie_moves,
            "Exactly half a gap is a tie, and goes to the neighbour whose code is even: a value "
            "with an odd code moves.": _a_tie_is_lost,
        },
        describe=lambda value, decay, format: f"{value:g} times {decay:g} in {format}",
    ),
}
