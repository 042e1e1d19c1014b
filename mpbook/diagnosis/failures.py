"""What fails first, and what will: from a run in the format, and from magnitudes of a wider one.

A run in bfloat16 has the dtypes of a float16 run and float32's range.  So it says of each result in
16 bits how large it becomes, before float16 turns any of them into infinity.
"""

from __future__ import annotations

import math

from mpbook.diagnosis.places import OVERFLOWS, Key, Place, Seen, is_like_a_mask
from mpbook.diagnosis.stepping import Run
from mpbook.formats import as_format
from mpbook.master_weights import SIXTEEN_BIT

LOST = 0.1
"""Of a layer's gradients: what may underflow at a scale that fits."""


def in_order(run: Run) -> list[Seen]:
    """What a run saw, in the order of the first step's execution."""
    return sorted(run.recorder.seen.values(), key=lambda seen: (seen.step, seen.order))


def where_it_began(run: Run, reference: Run | None = None) -> Seen | None:
    """The first result that is not finite though its operands are, and is not in the reference.

    Infinities that somebody wrote (a mask filled with -inf) come last, and so do a mask's that
    became minus infinity by a cast or a sum: they are named where nothing else began.
    """
    began = infinities(run, reference)
    unmeant = overflows(run, reference)
    if unmeant or not began:
        return next(iter(unmeant), None)
    nan = first_nan(run)
    before = [s for s in began if nan is None or (s.step, s.order) <= (nan.step, nan.order)]
    return (before or began)[-1]


def first_nan(run: Run) -> Seen | None:
    """The first result that is NaN though no operand is."""
    return next((s for s in in_order(run) if s.began_nan), None)


def _as_before(seen: Seen, known: dict[Key, Seen]) -> bool:
    before = known.get(seen.key)
    return before is not None and before.signs >= seen.signs


def infinities(run: Run, reference: Run | None = None) -> tuple[Seen, ...]:
    """Results that are not finite in this run alone, and began so, in order."""
    known = reference.recorder.seen if reference else {}
    return tuple(s for s in in_order(run) if s.began and not _as_before(s, known))


def overflows(run: Run, reference: Run | None = None) -> tuple[Seen, ...]:
    """The infinities that no mask is, in order."""
    return tuple(s for s in infinities(run, reference) if not is_like_a_mask(s))


def suspects(run: Run, reference: Run) -> tuple[Place, ...]:
    """Places to keep in float32, the first to be tried first: what raised, began or was rounded."""
    raised = [run.error_place] if run.error_place else []
    began = where_it_began(run, reference)
    infinite = overflows(run, reference)
    others = [p for s in infinite for p in (s.key.place, s.caller) if p is not None]
    found = [*raised, *([began.key.place] if began else []), *others, *run.recorder.rounded]
    return tuple(dict.fromkeys(found))


# --- Forecasts from magnitudes ---------------------------------------------------------------


def in_16_bit(run: Run, *, phase: str) -> list[Seen]:
    """Results in 16 bits of one phase, in the order of execution; inner ones count as forward."""
    phases = {phase, "inner"} if phase == "forward" else {phase}
    return [s for s in in_order(run) if s.key.phase in phases and s.dtype in SIXTEEN_BIT]


def overflowing(wide: Run) -> list[Seen]:
    """Results of the forward pass that will be beyond float16's largest number, in order."""
    found = in_16_bit(wide, phase="forward")
    over = [s for s in found if s.largest >= OVERFLOWS and not is_like_a_mask(s)]
    return sorted(over, key=lambda seen: (seen.overflows_at, seen.order))


def tightest(wide: Run, count: int = 3) -> tuple[Seen, ...]:
    """The results of the forward pass that are nearest to float16's largest number."""
    found = [s for s in in_16_bit(wide, phase="forward") if s.largest and not is_like_a_mask(s)]
    return tuple(sorted(found, key=lambda seen: seen.headroom)[:count])


def scale_window(wide: Run) -> tuple[int, int] | None:
    """The powers of two that keep every gradient in 16 bits between underflow and overflow.

    A gradient that is nothing but the rounding of its own sum has no vote.  None where no scale
    fits all; (0, 127) where no gradient is in 16 bits.
    """
    half = as_format("float16")
    votes = [s for s in in_16_bit(wide, phase="backward") if not s.cancelled]
    windows = [s.histogram.window(half, lost=LOST, of="magnitude") for s in votes
               if s.histogram and s.histogram.nonzero]  # fmt: skip
    found = [w for w in windows if w is not None]
    low, high = max((w[0] for w in found), default=0), highest_scale(wide)
    high = min([high, *(w[1] for w in found)])
    return (low, high) if low <= high else None


def highest_scale(wide: Run) -> int:
    """The largest power of two at which no gradient overflows, 127 at most."""
    largest = max((s.largest for s in in_16_bit(wide, phase="backward")), default=0.0)
    return math.floor(math.log2(65504 / largest)) if largest else 127


def suggested_scale(wide: Run) -> float:
    """A power of two to run float16 with: the middle of the window, or one below overflow."""
    if not in_16_bit(wide, phase="backward"):
        return 2.0**10  # it has not come to a backward pass
    window, high = scale_window(wide), highest_scale(wide)
    exponent = (max(window[0], 0) + window[1]) // 2 if window else high - 1
    return 2.0 ** max(min(exponent, 24, high - 1), -24)
