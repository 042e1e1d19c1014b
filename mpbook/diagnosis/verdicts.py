"""What follows from the runs: does a format survive, with which loss scale, and what fails first.

Two kinds of evidence stand side by side.  The *forecast* comes from magnitudes: a run in bfloat16,
which has the dtypes of a float16 run and float32's range, says how large each result in 16 bits
becomes.  The *run* in the format itself says what happens.  Where they disagree the verdict is the
run's, and the disagreement is kept in ``contradictions``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from mpbook.diagnosis.operators_seen import SIXTEEN_BIT, Key, Place, Seen, is_a_fill, is_like_a_mask
from mpbook.diagnosis.workload import Run
from mpbook.formats import as_format

Survives = Literal["yes", "with a loss scale", "no", "fails in float32 too", "did not run"]

WRONG = 0.3
"""Relative error of all gradients together from which on they point somewhere else."""
LOST = 0.1
"""Of a parameter's gradient: what may be lost before a loss scale counts as needed."""
NEAR = 2.0
"""Binades of headroom below which an operator counts as near to overflow."""


@dataclass(frozen=True)
class FormatVerdict:
    """What a format does to the steps, with its evidence.

    ``survives`` is the verdict and ``reason`` says why.  ``failure`` is the operator that fails
    first, ``forecast`` the one that was said to before the run.  ``headroom`` is in binades, of the
    results in 16 bits; ``window`` has the lowest and highest power of two that fit as loss scales.
    """

    format: str
    survives: Survives
    reason: str
    failure: Seen | None = None
    forecast: Seen | None = None
    headroom: float = math.inf
    tightest: tuple[Seen, ...] = ()
    wrong: bool = False
    total: float = 0.0
    loss_scale_needed: bool = False
    loss_scale: float = 1.0
    window: tuple[int, int] | None = None
    lost: dict[str, float] = field(default_factory=dict)
    gradient_error: dict[str, float] = field(default_factory=dict)
    loss_error: float = 0.0
    harmless: tuple[Seen, ...] = ()
    nonfinite_after: tuple[str, ...] = ()
    suspects: tuple[Place, ...] = ()
    contradictions: tuple[str, ...] = ()
    activation_bytes: int = 0


# --- What fails first -----------------------------------------------------------------------


def in_order(run: Run) -> list[Seen]:
    """What a run saw, in the order of the first step's execution."""
    return sorted(run.recorder.seen.values(), key=lambda seen: (seen.step, seen.order))


def where_it_began(run: Run, reference: Run | None = None) -> Seen | None:
    """The first result that is not finite though its operands are, and is not in the reference.

    Infinities that somebody wrote (a mask filled with -inf) come last, and so do a mask's that
    became minus infinity by a cast or a sum: they are named where nothing else began.
    """
    began = infinities(run, reference)
    suspects = [s for s in began if not is_like_a_mask(s)]
    return next(iter(suspects or began), None)


def _as_before(seen: Seen, known: dict[Key, Seen]) -> bool:
    before = known.get(seen.key)
    return before is not None and before.signs >= seen.signs


def infinities(run: Run, reference: Run | None = None) -> tuple[Seen, ...]:
    """Results that are not finite in this run alone, and began so, in order."""
    known = reference.recorder.seen if reference else {}
    return tuple(s for s in in_order(run) if s.began and not _as_before(s, known))


# --- Forecasts from magnitudes ----------------------------------------------------------------


def in_16_bit(run: Run, *, phase: str) -> list[Seen]:
    """Results in 16 bits of one phase, in the order of execution."""
    return [s for s in in_order(run) if s.key.phase == phase and s.dtype in SIXTEEN_BIT]


def overflowing(wide: Run) -> list[Seen]:
    """Results of the forward pass that will be beyond float16's largest number, in order."""
    return [s for s in in_16_bit(wide, phase="forward") if s.largest >= 65520 and not is_a_fill(s)]


def tightest(wide: Run, count: int = 3) -> tuple[Seen, ...]:
    """The results of the forward pass that are nearest to float16's largest number."""
    found = [s for s in in_16_bit(wide, phase="forward") if s.largest and not is_a_fill(s)]
    return tuple(sorted(found, key=lambda seen: seen.headroom)[:count])


def scale_window(wide: Run) -> tuple[int, int] | None:
    """The powers of two that keep every gradient in 16 bits between underflow and overflow.

    A gradient that is nothing but the rounding of its own sum has no vote.  None where no scale
    fits all; (0, 15) where no gradient is in 16 bits.
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
    window, high = scale_window(wide), highest_scale(wide)
    exponent = (max(window[0], 0) + window[1]) // 2 if window else high - 1
    return 2.0 ** max(min(exponent, 24, high - 1), -24)


# --- Gradients compared -----------------------------------------------------------------------


def relative_errors(run: Run, reference: Run, without: set[str]) -> dict[str, float]:
    """Of each parameter's gradient, ``|difference| / |reference|``, but for those without a say."""
    pairs = (
        (name, run.gradients[name], expected)
        for name, expected in reference.gradients.items()
        if name in run.gradients and name not in without
    )
    return {name: _relative_error(got, expected) for name, got, expected in pairs}


def _real(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double()


def _relative_error(got: Tensor, expected: Tensor) -> float:
    got, expected = _real(got), _real(expected)
    norm = float(expected.norm())
    if not norm or not math.isfinite(norm):
        return 0.0
    error = float((got - expected).norm()) / norm
    return error if math.isfinite(error) else math.inf


def total_error(run: Run, reference: Run, without: set[str]) -> float:
    """The relative error of all gradients as one vector."""
    named = [n for n in reference.gradients if n in run.gradients and n not in without]
    if not named:
        return 0.0
    pairs = [(_real(run.gradients[n]), _real(reference.gradients[n])) for n in named]
    flat = [torch.cat([pair[i].flatten().cpu() for pair in pairs]) for i in range(2)]
    return _relative_error(*flat)


def losses_without_scale(
    unscaled: Run, scaled: Run, reference: Run, without: set[str]
) -> dict[str, float]:
    """How much more of each gradient is wrong without a loss scale than with it."""
    bare, helped = (relative_errors(run, reference, without) for run in (unscaled, scaled))
    return {name: max(bare[name] - helped.get(name, 0.0), 0.0) for name in bare}


def loss_error(run: Run, reference: Run) -> float:
    """The first loss, against float32's."""
    if not run.losses or not reference.losses or not math.isfinite(run.losses[0]):
        return 0.0
    expected = reference.losses[0]
    return abs(run.losses[0] - expected) / max(abs(expected), 1e-12)


def suspects(run: Run, reference: Run) -> tuple[Place, ...]:
    """Places to keep in float32, the first to be tried first: what raised, began or was rounded."""
    raised = [run.error_place] if run.error_place else []
    began = where_it_began(run, reference)
    others = [s.key.place for s in infinities(run, reference) if not is_like_a_mask(s)]
    found = [*raised, *([began.key.place] if began else []), *others, *run.recorder.rounded]
    return tuple(dict.fromkeys(found))


# --- The verdict ------------------------------------------------------------------------------


def judge_bfloat16(run: Run, reference: Run, noise: set[str]) -> FormatVerdict:
    """bfloat16 has float32's range: what fails in it fails by its eps, or in float32 too."""
    common = {
        "format": "bfloat16",
        "gradient_error": relative_errors(run, reference, noise),
        "loss_error": loss_error(run, reference),
        "total": total_error(run, reference, noise),
        "nonfinite_after": (*run.nonfinite_weights, *run.nonfinite_buffers),
        "activation_bytes": run.activation_bytes,
        "suspects": suspects(run, reference),
    }
    if run.error is not None:
        return FormatVerdict(survives="no", reason=_raised(run), **common)
    if run.sound and total_error(run, reference, noise) > WRONG:
        reason = _is_wrong(total_error(run, reference, noise))
        return FormatVerdict(survives="no", reason=reason, wrong=True, **common)
    if run.sound:
        return FormatVerdict(survives="yes", reason=_is_finite(run), **common)
    failure = where_it_began(run, reference)
    return FormatVerdict(survives="no", reason=_fails(failure), failure=failure, **common)


def judge_float16(
    run: Run, unscaled: Run, wide: Run, reference: Run, noise: set[str]
) -> FormatVerdict:
    """float16 from its forecast and its runs, with a loss scale and without."""
    foretold = overflowing(wide)
    forecast = next((s for s in foretold if not s.is_negative), None)
    near = tightest(wide)
    lost = losses_without_scale(unscaled, run, reference, noise)
    needed = run.sound and any(share > LOST for share in lost.values())
    common = {
        "format": "float16",
        "forecast": forecast,
        "headroom": near[0].headroom if near else math.inf,
        "tightest": near,
        "loss_scale": run.loss_scale,
        "window": scale_window(wide),
        "lost": lost,
        "gradient_error": relative_errors(run, reference, noise),
        "loss_error": loss_error(run, reference),
        "total": total_error(run, reference, noise),
        "nonfinite_after": (*run.nonfinite_weights, *run.nonfinite_buffers),
        "activation_bytes": run.activation_bytes,
        "suspects": suspects(run, reference),
        "loss_scale_needed": needed,
    }
    if run.error is not None:
        return FormatVerdict(survives="no", reason=_raised(run), **common)
    if not run.sound:
        failure = where_it_began(run, reference)
        said = () if forecast else ("the run fails; magnitudes alone did not say so",)
        return FormatVerdict(
            survives="no", reason=_fails(failure), failure=failure, contradictions=said, **common
        )
    harmless = infinities(run, reference)
    error = total_error(run, reference, noise)
    if error > WRONG:
        suspect = next((s for s in harmless if not is_like_a_mask(s)), None)
        return FormatVerdict(
            survives="no", reason=_is_wrong(error, suspect), failure=suspect, wrong=True, **common
        )
    said = ()
    if forecast is not None and not harmless:
        said = (f"{forecast} was said to overflow, and the run has no infinity",)
    elif forecast is not None:
        said = (f"{forecast} overflows, and nothing behind it is infinite or NaN",)
    survives: Survives = "with a loss scale" if needed else "yes"
    reason = _underflow(lost) if needed else _is_finite(run)
    return FormatVerdict(
        survives=survives, reason=reason, harmless=harmless, contradictions=said, **common
    )


def judge_pure(run: Run, reference: Run, noise: set[str], format: str) -> FormatVerdict:
    """Weights that are in 16 bits themselves, without autocast and without a loss scale."""
    after = (*run.nonfinite_weights, *run.nonfinite_buffers)
    error = total_error(run, reference, noise)
    common = {"format": format, "nonfinite_after": after, "total": error}
    if run.error is not None:
        return FormatVerdict(survives="no", reason=_raised(run), **common)
    began = where_it_began(run, reference)
    if not run.sound:
        return FormatVerdict(survives="no", reason=_fails(began), failure=began, **common)
    if error > WRONG:
        return FormatVerdict(survives="no", reason=_is_wrong(error), wrong=True, **common)
    return FormatVerdict(survives="yes", reason=_is_finite(run), **common)


def judge_broken_reference(format: str, reference: Run) -> FormatVerdict:
    """A run that is NaN in float32 already: no format is to blame."""
    failure = where_it_began(reference)
    return FormatVerdict(format, "fails in float32 too", _fails(failure), failure=failure)


def _raised(run: Run) -> str:
    lines = str(run.error).strip().splitlines() or [""]
    return f"{run.error_place} raises {type(run.error).__name__}: {lines[0]}"


def _fails(failure: Seen | None) -> str:
    if failure is None:
        return "a loss, a gradient or a weight is not finite; no single operator began it"
    sort = "NaN" if failure.signs == {"nan"} else "infinite"
    cause = f": {failure.cause}" if failure.cause else ""
    largest = f", largest finite result {failure.largest:.3g}" if failure.largest else ""
    return f"{failure} is {sort} at step {failure.step + 1}{cause}{largest}"


def _is_wrong(error: float, suspect: Seen | None = None) -> str:
    where = f"; {suspect} overflows, and what is divided by it is 0" if suspect else ""
    return f"finite, and wrong: the gradients are {error:.0%} off those of float32{where}"


def _is_finite(run: Run) -> str:
    return f"losses, gradients and weights are finite in {max(len(run.losses), 1)} steps"


def _underflow(lost: dict[str, float]) -> str:
    worst = max(lost, key=lambda name: lost[name])
    return f"without a loss scale {lost[worst]:.0%} of the gradient of {worst} is wrong"
