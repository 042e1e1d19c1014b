"""What follows from the runs: does a format survive, with which loss scale, and what fails first.

Two kinds of evidence stand side by side.  The *forecast* comes from magnitudes
(`mpbook.diagnosis.failures`).  The *run* in the format itself says what happens.  Where they
disagree the verdict is the run's, and the disagreement is kept in ``contradictions``.

A run may be finite and still be wrong: its gradients point somewhere else.  That is laid to the
format only if it is much more than what rounding the weights alone does to them; else the model is
ill-conditioned, and 16 bits are no worse than a small change of its weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from mpbook.diagnosis.failures import (
    first_nan,
    infinities,
    overflowing,
    overflows,
    scale_window,
    suspects,
    tightest,
    where_it_began,
)
from mpbook.diagnosis.gradients import (
    loss_error,
    losses_without_scale,
    relative_errors,
    total_error,
    without_gradient,
)
from mpbook.diagnosis.places import Place, Seen
from mpbook.diagnosis.stepping import Run

Survives = Literal["yes", "with a loss scale", "no", "fails in float32 too"]

WRONG = 0.3
"""Relative error of all gradients together, or of one behind an overflow, that counts as wrong."""
CHAOTIC = 10.0
"""Times the error that rounding the weights alone makes: below, the model and not an operator."""
NEEDED = 0.2
"""Of a parameter's gradient: what may be wrong before a loss scale counts as needed."""
NEAR = 2.0
"""Binades of headroom below which an operator counts as near to overflow."""


@dataclass(frozen=True)
class FormatVerdict:
    """What a format does to the steps, with its evidence.

    ``survives`` is the verdict and ``reason`` says why.  ``failure`` is the operator that fails
    first, ``behind`` where NaN began after it, ``forecast`` the one that was said to before the
    run.  ``headroom`` is in binades, of the results in 16 bits; ``window`` has the lowest and
    highest power of two that fit as loss scales; ``given`` is what was not finite as passed.
    """

    format: str
    survives: Survives
    reason: str
    failure: Seen | None = None
    behind: Seen | None = None
    forecast: Seen | None = None
    headroom: float = math.inf
    tightest: tuple[Seen, ...] = ()
    wrong: bool = False
    total: float = 0.0
    sensitive: float = 0.0
    loss_scale_needed: bool = False
    loss_scale: float = 1.0
    window: tuple[int, int] | None = None
    lost: dict[str, float] = field(default_factory=dict)
    gradient_error: dict[str, float] = field(default_factory=dict)
    without_gradient: tuple[str, ...] = ()
    loss_error: float = 0.0
    nonfinite_after: tuple[str, ...] = ()
    suspects: tuple[Place, ...] = ()
    contradictions: tuple[str, ...] = ()
    given: str = ""


# --- The verdict ------------------------------------------------------------------------------


def judge_float16(
    run: Run, unscaled: Run, wide: Run, reference: Run, noise: set[str], sensitive: float
) -> FormatVerdict:
    """float16 from its forecast and its runs, with a loss scale and without.

    Args:
        run: in float16 at a loss scale.
        unscaled: one step of it without.
        wide: the run whose magnitudes are the forecast.
        reference: the run in float32.
        noise: parameters whose gradients have no say.
        sensitive: how far float32's gradients move when the weights are rounded.
    """
    # A run without infinities has measured what the wider run foretells, with its own rounding.
    near = tightest(run if run.sound and not infinities(run, reference) else wide)
    lost = losses_without_scale(unscaled, run, reference, noise)
    found = replace(
        _evidence("float16", run, reference, noise, sensitive),
        forecast=next(iter(overflowing(wide)), None),
        headroom=near[0].headroom if near else math.inf,
        tightest=near,
        loss_scale=run.loss_scale,
        window=scale_window(wide),
        lost=lost,
        loss_scale_needed=run.trains and any(share > NEEDED for share in lost.values()),
    )
    if not (run.sound or _only_its_loss(found, run)):
        failed = _failed(found, run, reference)
        unsaid = "the run fails; magnitudes alone did not say so"
        return failed if found.forecast else replace(failed, contradictions=(unsaid,))
    infinite = next(iter(overflows(run, reference)), None)
    if found.total > WRONG and (infinite or found.total > CHAOTIC * sensitive):
        reason = _is_wrong(found.total, infinite)
        return replace(found, survives="no", reason=reason, failure=infinite, wrong=True)
    silenced = _silenced(found.gradient_error, sensitive)
    if infinite and silenced:
        reason = _is_wrong(found.gradient_error[silenced], infinite, silenced)
        return replace(found, survives="no", reason=reason, failure=infinite, wrong=True)
    said = _contradictions(found.forecast, run, reference)
    found = replace(found, contradictions=said, failure=None if run.sound else infinite)
    if found.loss_scale_needed:
        reason = _underflow(lost) + ("" if run.sound else f"; {_LOSS_ALONE}")
        return replace(found, survives="with a loss scale", reason=reason)
    return replace(found, survives="yes", reason=_is_finite(run))


def judge_without_scale(
    format: str, run: Run, reference: Run, noise: set[str], sensitive: float
) -> FormatVerdict:
    """bfloat16, or weights in 16 bits themselves: a run that no loss scale helps.

    bfloat16 has float32's range: what fails in it fails by its eps, or in float32 too.
    """
    found = _evidence(format, run, reference, noise, sensitive)
    if not (run.sound or _only_its_loss(found, run)):
        return _failed(found, run, reference)
    if found.total > max(WRONG, CHAOTIC * sensitive):
        return replace(found, survives="no", reason=_is_wrong(found.total), wrong=True)
    return replace(found, survives="yes", reason=_is_finite(run))


def is_right(run: Run, reference: Run, noise: set[str], sensitive: float) -> bool:
    """Whether a run is finite, and no gradient points somewhere else, of all or behind an overflow.

    All gradients as one vector say nothing of a layer whose own are small.
    """
    if not run.sound or total_error(run, reference, noise) > WRONG:
        return False
    errors = relative_errors(run, reference, noise)
    return not (overflows(run, reference) and _silenced(errors, sensitive))


def _silenced(errors: dict[str, float], sensitive: float) -> str:
    """The parameter whose gradient is off most, if it is wrong; else nothing."""
    worst = max(errors, key=lambda name: errors[name], default="")
    return worst if errors.get(worst, 0.0) > max(WRONG, CHAOTIC * sensitive) else ""


def judge_broken_reference(format: str, reference: Run, given: str = "") -> FormatVerdict:
    """A run that is NaN in float32 already: by what was ``given``, or by no format's fault."""
    failure = where_it_began(reference)
    if given and failure is None:
        return FormatVerdict(format, "fails in float32 too", given, given=given)
    reason = _fails(failure, reference)
    return FormatVerdict(format, "fails in float32 too", reason, failure=failure)


def _evidence(
    format: str, run: Run, reference: Run, noise: set[str], sensitive: float
) -> FormatVerdict:
    """What every verdict rests on; whether the format survives is yet to be said."""
    return FormatVerdict(
        format,
        survives="no",
        reason="",
        gradient_error=relative_errors(run, reference, noise),
        without_gradient=without_gradient(run, reference, noise),
        total=total_error(run, reference, noise),
        sensitive=sensitive,
        loss_error=loss_error(run, reference),
        nonfinite_after=(*run.nonfinite_weights, *run.nonfinite_buffers),
        suspects=suspects(run, reference),
    )


def _only_its_loss(found: FormatVerdict, run: Run) -> bool:
    """Whether nothing but a loss's own value is not finite: no gradient depends on that."""
    return run.trains and bool(found.gradient_error) and found.total <= WRONG


def _failed(found: FormatVerdict, run: Run, reference: Run) -> FormatVerdict:
    if run.error is None:
        failure = where_it_began(run, reference)
        reason = _fails(failure, run)
    else:  # an overflow before it may be why
        failure = next(iter(overflows(run, reference)), None)
        reason = (f"{_fails(failure, run)}; then " if failure else "") + _raised(run)
    return replace(found, survives="no", reason=reason, failure=failure, behind=first_nan(run))


def _contradictions(forecast: Seen | None, run: Run, reference: Run) -> tuple[str, ...]:
    if forecast is None:
        return ()
    if not infinities(run, reference):
        return (f"{forecast} was said to overflow, and the run has no infinity",)
    return (f"{forecast} overflows, and nothing behind it is infinite or NaN",)


def _raised(run: Run) -> str:
    lines = str(run.error).strip().splitlines() or [""]
    return f"{run.error_place} raises {type(run.error).__name__}: {lines[0]}"


def _fails(failure: Seen | None, run: Run) -> str:
    nan = first_nan(run)
    behind = f"; NaN first in {nan}" if nan and nan is not failure else ""
    if failure is None:
        said = "a loss, a gradient or a weight is not finite; no single operator began it"
        return said + behind
    sort = "NaN" if failure.signs == {"nan"} else "infinite"
    cause = f": {failure.cause}" if failure.cause else ""
    largest = f", largest finite result {failure.largest:.3g}" if failure.largest else ""
    return f"{failure} is {sort} at step {failure.step + 1}{cause}{largest}{behind}"


def _is_wrong(error: float, suspect: Seen | None = None, parameter: str = "") -> str:
    where = f"; {suspect} overflows, and what is divided by it is 0" if suspect else ""
    which = f"gradient of {parameter} is" if parameter else "gradients are"
    return f"finite, and wrong: the {which} {error:.0%} off float32's{where}"


_LOSS_ALONE = "the loss's own value is not finite, and no gradient depends on it"


def _is_finite(run: Run) -> str:
    if not run.finite_losses:
        return f"gradients and weights are finite in {run.steps} steps; {_LOSS_ALONE}"
    return f"losses, gradients and weights are finite in {run.steps} steps"


def _underflow(lost: dict[str, float]) -> str:
    worst = max(lost, key=lambda name: lost[name])
    if not math.isfinite(lost[worst]):
        return "without a loss scale, one below 1, gradients overflow"
    return f"without a loss scale {lost[worst]:.0%} of the gradient of {worst} is wrong"
