"""The exercises of the chapter "Loss scaling", and the ways people get them wrong."""

from __future__ import annotations

import math

from mpbook.exercises._checking import Exercise
from mpbook.formats import FORMATS

_FLOAT16 = FORMATS["float16"]

# --- floor: which probabilities a mean over B x V labels can still push down --------------------

_BATCHES = [
    (1024, 4096, 1.0),
    (64, 4096, 1.0),
    (8, 21 * 128 * 128, 1.0),
    (1024, 4096, 1024.0),
    (64, 4096, 65536.0),
]


def _floor(batch_size: int, labels: int, loss_scale: float) -> float:
    return batch_size * labels / (loss_scale * 2**25)


# --- largest_exponent: the largest loss scale that does not overflow ----------------------------

_GRADIENTS = [(100.0,), (3.0,), (0.75,), (1.0,), (0.5,), (2.0**-20,), (1e-3,), (65504.0,), (1e5,)]


def _largest_exponent(largest: float) -> int:
    exponent = math.floor(math.log2(65520 / largest))
    return exponent - 1 if largest * 2.0**exponent >= 65520 else exponent


# --- after_step: the state machine of dynamic loss scaling --------------------------------------

_STATES = [
    (1024.0, 0, True, 3),
    (1024.0, 2, True, 3),
    (1024.0, 1, True, 3),
    (1024.0, 0, False, 3),
    (1024.0, 2, False, 3),
    (1.0, 0, False, 3),
    (1024.0, 0, True, 1),
]


def _after_step(scale: float, clean: int, finite: bool, interval: int) -> tuple[float, int]:
    if not finite:
        return scale / 2, 0
    if clean + 1 == interval:
        return scale * 2, 0
    return scale, clean + 1


def _counter_survives(scale: float, clean: int, finite: bool, interval: int) -> tuple[float, int]:
    return _after_step(scale, clean, finite, interval) if finite else (scale / 2, clean)


def _counter_goes_on(scale: float, clean: int, finite: bool, interval: int) -> tuple[float, int]:
    grows = finite and clean + 1 == interval
    return (scale * 2, clean + 1) if grows else _after_step(scale, clean, finite, interval)


def _one_step_late(scale: float, clean: int, finite: bool, interval: int) -> tuple[float, int]:
    return _after_step(scale, clean, finite, interval + 1)


def _never_below_one(scale: float, clean: int, finite: bool, interval: int) -> tuple[float, int]:
    new, counted = _after_step(scale, clean, finite, interval)
    return max(new, 1.0), counted


# --- drift: what a bad batch every so often does to the scale -----------------------------------

_BAD_BATCHES = [(4001, 2000), (2001, 2000), (1000, 2000), (2000, 2000), (6001, 2000), (50, 20)]


def _drift(every: int, interval: int) -> int:
    return (every - 1) // interval - 1


# --- in_order: the calls of one step ------------------------------------------------------------

_ORDER = ("scale", "backward", "unscale_", "clip", "step", "update")


# A wrong answer is put down to the first misconception that predicts it, so where two agree on an
# input the one that goes wrong later stands first.
EXERCISES = {
    "floor": Exercise(
        inputs=lambda: _BATCHES,
        solution=_floor,
        misconceptions={
            "The loss scale moves the gradients up, so it moves the floor down: divide by it.": (
                lambda batch_size, labels, loss_scale: batch_size * labels * loss_scale / 2**25
            ),
            "Without loss scaling that is right. With it, the floor is lower by the scale.": (
                lambda batch_size, labels, loss_scale: batch_size * labels / 2**25
            ),
            "2**-24 is the smallest number of float16. What is more than half of it still rounds "
            "up to it.": lambda batch_size, labels, loss_scale: (
                2 * _floor(batch_size, labels, loss_scale)
            ),
            "2**-14 is the smallest normal number. Below it there are subnormal ones: a gradient "
            "loses digits there, and is not zero.": lambda batch_size, labels, loss_scale: (
                2**11 * _floor(batch_size, labels, loss_scale)
            ),
            "The mean runs over the labels too, not only over the batch.": (
                lambda batch_size, labels, loss_scale: batch_size / (loss_scale * 2**25)
            ),
        },
        describe=lambda batch_size, labels, loss_scale: (
            f"a batch of {batch_size} with {labels} labels and a loss scale of {loss_scale:g}"
        ),
    ),
    "largest_exponent": Exercise(
        inputs=lambda: _GRADIENTS,
        solution=_largest_exponent,
        misconceptions={
            "Take the floor: one power of two further, and the largest gradient is infinite.": (
                lambda largest: math.ceil(math.log2(_FLOAT16.max / largest))
            ),
            "A loss scale may be smaller than 1: gradients that are too large need that.": (
                lambda largest: max(0, _largest_exponent(largest))
            ),
            "The largest gradient overflows first, not the loss scale itself.": lambda largest: 15,
            "65536 is where GradScaler starts. It is already more than float16 holds.": (
                lambda largest: 16
            ),
            "Divide by the largest gradient: the larger it is, the smaller the scale must be.": (
                lambda largest: math.floor(math.log2(_FLOAT16.max * largest))
            ),
        },
        describe=lambda largest: f"a largest gradient of {largest:g}",
    ),
    "after_step": Exercise(
        inputs=lambda: _STATES,
        solution=_after_step,
        misconceptions={
            "GradScaler has no lower limit: the scale may fall below 1.": _never_below_one,
            "An overflow begins the count anew: growth needs that many clean steps in a row.": (
                _counter_survives
            ),
            "After growing, the count begins anew.": _counter_goes_on,
            "The step that completes the interval counts too.": _one_step_late,
        },
        describe=lambda scale, clean, finite, interval: (
            f"scale {scale:g}, {clean} clean steps so far, interval {interval} and a step that is "
            f"{'finite' if finite else 'not finite'}"
        ),
    ),
    "drift": Exercise(
        inputs=lambda: _BAD_BATCHES,
        solution=_drift,
        misconceptions={
            "The bad step itself is not clean: between two of them lie every - 1 clean steps.": (
                lambda every, interval: every // interval - 1
            ),
            "And the halving? Each bad step costs one doubling.": (
                lambda every, interval: (every - 1) // interval
            ),
            "The count of clean steps is lost at the bad one: a part of an interval counts for "
            "nothing.": lambda every, interval: (every - 1) / interval - 1,
            "Growth is not for ever: the bad steps take it back.": (
                lambda every, interval: max(0, _drift(every, interval))
            ),
        },
        describe=lambda every, interval: (
            f"a bad batch every {every} steps and an interval of {interval}"
        ),
    ),
    "in_order": Exercise(
        inputs=lambda: [()],
        solution=lambda: _ORDER,
        misconceptions={
            "Clipping before unscaling: the threshold then means something else at every scale.": (
                lambda: ("scale", "backward", "clip", "unscale_", "step", "update")
            ),
            "The step uses the gradients as they are when it comes: clip before it.": (
                lambda: ("scale", "backward", "unscale_", "step", "clip", "update")
            ),
            "update() changes the scale, so it comes last: unscaling must divide by the scale that "
            "the loss was multiplied by.": (
                lambda: ("scale", "backward", "update", "unscale_", "clip", "step")
            ),
            "step() looks at what unscale_ found; update() then closes the step.": (
                lambda: ("scale", "backward", "unscale_", "clip", "update", "step")
            ),
            "The backward pass is what makes the gradients: scale the loss before it.": (
                lambda: ("backward", "scale", "unscale_", "clip", "step", "update")
            ),
        },
    ),
}
