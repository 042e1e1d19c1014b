"""The exercises of the chapter "Master weights", and the ways people get them wrong."""

from __future__ import annotations

import math
from collections.abc import Callable

from mpbook.exercises._checking import Exercise
from mpbook.exercises.rounding_and_sums import to_bfloat16
from mpbook.formats import FORMATS, decode, encode, neighbours
from mpbook.precision import CURES

Round = Callable[[float], float]

# --- frozen_above: which weights an optimizer of a given step can no longer move ----------------

_RATES = [
    (2.0**-10, "bfloat16"),
    (2.0**-17, "bfloat16"),
    (2.0**-13, "float16"),
    (2.0**-20, "float32"),
]


def _frozen_above(learning_rate: float, format: str) -> float:
    return learning_rate * 2.0 ** (FORMATS[format].mantissa_bits + 2)


# --- arrives: does rounding swallow this update? -----------------------------------------------

_UPDATES = [
    (1.0, 0.01, "bfloat16"),
    (1.0, 0.003, "bfloat16"),
    (1.0, 0.003, "float16"),
    (1.0, 0.005, "bfloat16"),
    (0.25, 0.002, "bfloat16"),
    (96.0, 0.1, "bfloat16"),
    (1.0, -0.003, "bfloat16"),
    (1.0, -0.0015, "bfloat16"),
    (1.5, -0.003, "bfloat16"),
    (2.0**-20, 1e-7, "float16"),
]


def _arrives(weight: float, update: float, format: str) -> bool:
    return decode(encode(weight + update, format, overflow="nan"), format) != weight


def _gap_above(weight: float, format: str) -> float:
    return float(neighbours(weight, format)[1] or math.inf) - weight


def _takes_a_whole_gap(weight: float, update: float, format: str) -> bool:
    return abs(update) > _gap_above(weight, format)


def _gap_of_one(weight: float, update: float, format: str) -> bool:
    return abs(update) > FORMATS[format].eps / 2


def _same_gap_on_both_sides(weight: float, update: float, format: str) -> bool:
    return abs(update) > _gap_above(weight, format) / 2


def _underflow_is_the_limit(weight: float, update: float, format: str) -> bool:
    return abs(update) > (FORMATS[format].smallest_subnormal or 0.0) / 2


# --- bytes_per_parameter: AdamW between two steps ----------------------------------------------

_WAYS = [
    ("float32", "none"),
    ("bfloat16", "none"),
    *(("bfloat16", cure) for cure in CURES),
]
_BESIDE = {"none": 0} | {name: cure.kept_bytes for name, cure in CURES.items()}


def _bytes_per_parameter(
    weights: str, cure: str, *, gradient: bool = True, state: int | None = None
) -> int:
    size = 4 if weights == "float32" else 2
    moment = size if cure == "none" else 4
    held = size + (size if gradient else 0) + _BESIDE[cure]
    return held + 2 * (moment if state is None else state)


def _narrow_state(weights: str, cure: str) -> int:
    return _bytes_per_parameter(weights, cure, state=4 if weights == "float32" else 2)


# --- kahan_update: one weight, one step --------------------------------------------------------

_STEPS = [
    (1.0, 0.0, 0.0078125),
    (1.0, 0.0, 0.0009765625),
    (1.0, 0.0029296875, 0.0009765625),
    (1.0, 0.00341796875, 0.0009765625),
    (1.0, -0.00146484375, -0.0009765625),
    (-2.0, 0.0048828125, 0.001953125),
]


def _kahan_update(
    weight: float, lost: float, update: float, rounded: Round, *, sign: float = 1.0
) -> tuple[float, float]:
    wanted = weight + sign * lost + update
    new = rounded(wanted)
    return new, rounded(sign * (wanted - new))


def _without_what_was_lost(
    weight: float, lost: float, update: float, rounded: Round
) -> tuple[float, float]:
    return _kahan_update(weight, 0.0, update, rounded)


def _all_or_nothing(
    weight: float, lost: float, update: float, rounded: Round
) -> tuple[float, float]:
    new = rounded(weight + lost + update)
    return new, (rounded(lost + update) if new == weight else 0.0)


# --- vanishes: the second moment of a first step in float16 ------------------------------------

_GRADIENTS = [
    (0.0, 0.999),
    (1.0, 0.999),
    (1e-5, 0.999),
    (1e-4, 0.999),
    (1e-3, 0.999),
    (5e-3, 0.999),
    (2e-2, 0.999),
    (6e-3, 0.999),
    (6e-4, 0.9),
    (5e-4, 0.9),
]


def _vanishes(gradient: float, beta2: float) -> bool:
    return (1 - beta2) * gradient**2 <= 2.0**-25


# --- expected_steps: how long stochastic rounding takes ----------------------------------------

_WAITS = [
    (1.0, 2.0**-10, "bfloat16"),
    (4.0, 2.0**-10, "bfloat16"),
    (0.75, 2.0**-10, "bfloat16"),
    (1.0, 2.0**-13, "float16"),
]


def _expected_steps(weight: float, update: float, format: str) -> float:
    return _gap_above(weight, format) / update


# A wrong answer is put down to the first misconception that predicts it, so where two agree on an
# input the one that goes wrong later stands first.
EXERCISES = {
    "frozen_above": Exercise(
        inputs=lambda: _RATES,
        solution=_frozen_above,
        misconceptions={
            "There an update is exactly half a gap: a tie, which goes to even and so moves every "
            "other weight. One power of two further, none moves.": (
                lambda rate, format: _frozen_above(rate, format) / 2
            ),
            "There the update is a whole gap, and everything moves. It is lost below half a gap.": (
                lambda rate, format: _frozen_above(rate, format) / 4
            ),
            "Weights are frozen well before that: two more bits than the mantissa has.": (
                lambda rate, format: _frozen_above(rate, format) * 2
            ),
            "The limit is relative: it is the learning rate times a power of two.": (
                lambda rate, format: 2.0 ** (FORMATS[format].mantissa_bits + 2)
            ),
        },
        describe=lambda rate, format: f"a rate of {rate:g} in {format}",
    ),
    "arrives": Exercise(
        inputs=lambda: _UPDATES,
        solution=_arrives,
        misconceptions={
            "Below a power of two the gap is half as wide as above it.": _same_gap_on_both_sides,
            "eps is the gap at 1. Elsewhere it grows and shrinks with the weight.": _gap_of_one,
            "Half a gap is enough: rounding goes to the nearest number.": _takes_a_whole_gap,
            "It is not underflow. The update is a fine number; the sum has no room for it.": (
                _underflow_is_the_limit
            ),
        },
        describe=lambda weight, update, format: f"{weight:g} and {update:+g} in {format}",
    ),
    "bytes_per_parameter": Exercise(
        inputs=lambda: _WAYS,
        solution=_bytes_per_parameter,
        misconceptions={
            "The cures keep the optimizer's two moments in float32.": _narrow_state,
            "The gradient is there too, in the dtype of the weight.": (
                lambda weights, cure: _bytes_per_parameter(weights, cure, gradient=False)
            ),
            "AdamW keeps two moments for each parameter.": (
                lambda weights, cure: _bytes_per_parameter(weights, cure, state=0)
            ),
        },
        describe=lambda weights, cure: f"{weights} weights, cure {cure!r},",
    ),
    "kahan_update": Exercise(
        inputs=lambda: [(*step, to_bfloat16) for step in _STEPS],
        solution=_kahan_update,
        misconceptions={
            "What was lost before has to be added to this update.": _without_what_was_lost,
            "The sign: lost is what is wanted minus what is stored, and it is added.": (
                lambda *arguments: _kahan_update(*arguments, sign=-1.0)
            ),
            "An update that arrives leaves a remainder too: what is wanted minus the new weight.": (
                _all_or_nothing
            ),
        },
        describe=lambda weight, lost, update, rounded: (
            f"weight {weight:g}, lost {lost:g}, update {update:g}"
        ),
    ),
    "vanishes": Exercise(
        inputs=lambda: _GRADIENTS,
        solution=_vanishes,
        misconceptions={
            "Values between 2**-25 and 2**-24 round up to 2**-24, the smallest subnormal.": (
                lambda gradient, beta2: (1 - beta2) * gradient**2 < 2.0**-24
            ),
            "The factor 1 - beta2 makes the square smaller still.": (
                lambda gradient, beta2: gradient**2 <= 2.0**-25
            ),
            "6.1e-5 is the smallest normal number. Subnormals go on to 2**-24.": (
                lambda gradient, beta2: (1 - beta2) * gradient**2 < 2.0**-14
            ),
            "It is the square that has to fit, not the gradient.": (
                lambda gradient, beta2: gradient <= 2.0**-25
            ),
        },
        describe=lambda gradient, beta2: f"a gradient of {gradient:g} and beta2 = {beta2:g}",
    ),
    "expected_steps": Exercise(
        inputs=lambda: _WAITS,
        solution=_expected_steps,
        misconceptions={
            "The gap grows with the weight.": (
                lambda weight, update, format: FORMATS[format].eps / update
            ),
            "It moves a whole gap, with a probability of update / gap. Half a gap is the limit of "
            "rounding to nearest.": (
                lambda weight, update, format: _expected_steps(weight, update, format) / 2
            ),
            "That is rounding to nearest. By chance a small update arrives now and then.": (
                lambda *arguments: math.inf
            ),
        },
        describe=lambda weight, update, format: f"{weight:g} and updates of {update:g} in {format}",
    ),
}
