"""The exercises of the chapter "Your own model", and the ways people get them wrong."""

from __future__ import annotations

import math

from mpbook.exercises._checking import Exercise

_MAX = 65504.0
_INFINITE = 65520.0
"""From here on float16 rounds to infinity."""

# --- headroom: binades below overflow -------------------------------------------------------------

_LARGEST = [(1.0,), (16376.0,), (65504.0,), (131008.0,), (2.5,), (1e6,)]


def _headroom(largest: float) -> float:
    return math.log2(_MAX / largest)


# --- window: the loss scales that fit -------------------------------------------------------------

# The smallest and the largest gradient; in the last case no power of two fits both.
_GRADIENTS = [
    (2.0**-14, 1.0),
    (2.0**-20, 0.5),
    (1e-7, 1e-2),
    (2.0**-10, 70000.0),
    (2.0**-40, 2.0**-20),
    (2.0**-40, 1.0),
]


def _exponents(smallest: float, largest: float, least: float = 2.0**-14) -> tuple[int, int]:
    """The least power of two that lifts the smallest far enough, and the most without overflow."""
    return math.ceil(math.log2(least / smallest)), math.floor(math.log2(_MAX / largest))


def _window(smallest: float, largest: float, least: float = 2.0**-14) -> tuple[int, int] | None:
    low, high = _exponents(smallest, largest, least)
    return (low, high) if low <= high else None


def _only_upwards(smallest: float, largest: float) -> tuple[int, int] | None:
    found = _window(smallest, largest)
    return found and (max(found[0], 0), found[1])


# --- overflows: a mean of products ----------------------------------------------------------------

_MEANS = [(1.0, 10), (300.0, 4), (10.0, 1024), (255.0, 1), (255.0, 2), (200.0, 1)]


def _overflows(size: float, count: int) -> str:
    if size * size >= _INFINITE:
        return "term"
    return "sum" if count * size * size >= _INFINITE else "nothing"


def _after_division(size: float, count: int) -> str:
    return "term" if size * size >= _INFINITE else "nothing"


def _by_size(size: float, count: int) -> str:
    if size >= _INFINITE:
        return "term"
    return "sum" if count * size >= _INFINITE else "nothing"


# --- graded: misses and false alarms --------------------------------------------------------------

_PAIRS = [
    ([(True, True), (False, False)],),
    ([(False, True), (True, True)],),
    ([(True, False), (True, False), (False, True)],),
    ([],),
    ([(True, False)] * 3 + [(False, True)] * 2 + [(True, True)],),
]


def _graded(pairs: list[tuple[bool, bool]]) -> tuple[int, int]:
    missed = sum(truth and not said for said, truth in pairs)
    return missed, sum(said and not truth for said, truth in pairs)


# A wrong answer is put down to the first misconception that predicts it, so where two agree on an
# input the one that goes wrong later stands first.
EXERCISES = {
    "headroom": Exercise(
        inputs=lambda: _LARGEST,
        solution=_headroom,
        misconceptions={
            "That is the factor. A binade is a factor of 2: take its logarithm to base 2.": (
                lambda largest: _MAX / largest
            ),
            "Binades count powers of 2, not of 10.": lambda largest: math.log10(_MAX / largest),
            "The sign is the other way round: headroom is positive while the number fits.": (
                lambda largest: math.log2(largest / _MAX)
            ),
            "A number beyond 65504 has negative headroom: by that much you would have to scale.": (
                lambda largest: max(math.log2(_MAX / largest), 0.0)
            ),
        },
        describe=lambda largest: f"a largest number of {largest:g}",
    ),
    "window": Exercise(
        inputs=lambda: _GRADIENTS,
        solution=_window,
        misconceptions={
            "A loss scale may be below 1, where the largest gradient asks for it.": _only_upwards,
            "2**-24 is the smallest subnormal number; with full precision it is 2**-14.": (
                lambda smallest, largest: _window(smallest, largest, least=2.0**-24)
            ),
            "Where the lowest is above the highest, no power of two fits: return None.": _exponents,
        },
        describe=lambda smallest, largest: f"gradients from {smallest:g} to {largest:g}",
    ),
    "overflows": Exercise(
        inputs=lambda: _MEANS,
        solution=_overflows,
        misconceptions={
            "The division comes after the sum: the sum has to fit first.": _after_division,
            "The terms are products, size times size.": _by_size,
        },
        describe=lambda size, count: f"{count} products of {size:g} * {size:g}",
    ),
    "graded": Exercise(
        inputs=lambda: _PAIRS,
        solution=_graded,
        misconceptions={
            "Misses come first: a failure that was not said.": lambda pairs: _graded(pairs)[::-1],
            "A failure that was said is a hit, not a miss.": (
                lambda pairs: (sum(t for _, t in pairs), _graded(pairs)[1])
            ),
            "An alarm that came true is a hit, not a false alarm.": (
                lambda pairs: (_graded(pairs)[0], sum(s for s, _ in pairs))
            ),
        },
        describe=lambda pairs: f"(said, truth) = {pairs}",
    ),
}
