"""Does a run need loss scaling?  The verdict, from histograms of its unscaled gradients.

What matters is not how many gradients underflow but how much of their magnitude does: most of the
gradients of an attention's queries and keys may be lost, and hardly anything of their sum.  The
other question is where.  Averages over the model hide it: where a small GPT begins to train worse,
one layer loses half of its magnitude, and all weight gradients together a ten-thousandth.  So the
layer that is worst off decides.

The criterion is this book's and errs on the safe side: "not needed" means that no layer loses
anything to speak of; "needed" that one does, not that training must fail.

Source: Micikevicius et al. 2018, section 3.2, for the question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from mpbook.formats import FloatFormat, as_format
from mpbook.watch.histograms import Histogram, percent

Place = tuple[str, str]
"""A kind of gradients, and the layer that they belong to."""


@dataclass(frozen=True)
class Loss:
    """What the gradients of one layer lose without loss scaling: the shares that underflow.

    ``values`` is a share of the gradients that are not zero; ``magnitude``, the share of the sum
    of their ``|x|``, is what training misses, and is right to within a quarter of itself.
    """

    kind: str
    layer: str
    values: float
    magnitude: float


@dataclass(frozen=True)
class ScalingVerdict:
    """Whether a format needs loss scaling, why, and with which scale.

    ``verdict`` is ``"not needed"``, ``"needed"``, ``"does not help"`` or ``"not known"``.

    * It does not help where no scale keeps both ends of the gradients, or where weights,
      activations or what modules compute inside overflow, which no loss scale moves.
    * It is not known where the gradients need none, and something else was not seen, or overflows
      unless it is computed in float32.

    ``scale`` is the power of two in the middle of those that fit; 1 if the gradients need none,
    None if none fits.  ``worst`` has, for each kind of gradients, the layer that loses most of its
    magnitude.
    """

    verdict: Literal["not needed", "needed", "does not help", "not known"]
    reason: str
    scale: float | None
    worst: dict[str, Loss]


def judge(
    gradients: Mapping[Place, Histogram],
    format: str | torch.dtype | FloatFormat,
    *,
    lost: float = 0.1,
    overflowing: Sequence[str] = (),
    overflowing_weights: Sequence[str] = (),
    inside: Sequence[str] = (),
    perhaps: Sequence[str] = (),
    unseen: Sequence[str] = (),
    flushed: Sequence[str] = (),
) -> ScalingVerdict:
    """Whether gradients of this format need a loss scale, and which one would do.

    A scale fits if nothing overflows in any layer, and none loses more than ``lost`` of its
    magnitude.  Rounding in the subnormal range, which loses digits, is not counted as loss.

    Args:
        gradients: histograms of unscaled gradients, by kind and layer; one without a finite value
            but zero has no say.
        format: what the gradients, and the activations, would be computed in.
        lost: the share of a layer's sum of ``|gradient|`` that may underflow.
        overflowing: layers whose activations overflow the format.
        overflowing_weights: parameters that overflow it.
        inside: operators inside of modules whose results or operands overflow it, in words.
        perhaps: what overflows it unless it is computed in float32, in words.
        unseen: what was not seen and may overflow, in words.
        flushed: dtypes of the gradients in which they may have underflowed before they were seen.

    Raises:
        ValueError: no gradient that is finite and not zero, ``lost`` that is no share below 1, or
            a format without a sign or a zero.
    """
    format = as_format(format)
    seen = {place: h for place, h in gradients.items() if h.nonzero}
    if not seen:
        raise ValueError("gradients: none that is finite and not zero, so nothing to judge")
    worst = _worst(seen, format)
    windows = [h.window(format, lost=lost, of="magnitude") for h in seen.values()]
    ails = _overflows(format.name, overflowing, overflowing_weights, inside)
    verdict = _verdict(format.name, worst, _common(windows), ails, lost)
    verdict = _with_doubts(verdict, format.name, perhaps, unseen)
    if not flushed:
        return verdict
    caution = (
        f"; but the gradients seen were {listed(flushed)}, whose zeros may be underflows: "
        "watch a float32 run to be sure"
    )
    return replace(verdict, reason=verdict.reason + caution)


def _overflows(
    format: str, activations: Sequence[str], weights: Sequence[str], inside: Sequence[str]
) -> str:
    """What overflows that no loss scale moves, as a reason; empty if nothing does."""
    if activations:
        what = f"activations of {listed(activations)} overflow {format}"
        return f"{what}, and no loss scale moves activations"
    if weights:
        what = f"weights of {listed(weights)} overflow {format}"
        return f"{what}, and no loss scale moves weights"
    if inside:
        what = f"{listed(inside)}, which overflows {format}"
        return f"{what}, and no loss scale moves what the forward pass computes"
    return ""


def _with_doubts(
    verdict: ScalingVerdict, format: str, perhaps: Sequence[str], unseen: Sequence[str]
) -> ScalingVerdict:
    """The verdict with what may overflow, and what was not seen; then nothing is "not needed"."""
    doubts = []
    if perhaps:
        doubts.append(f"{listed(perhaps)}, which overflows {format} unless computed in float32")
    if unseen:
        doubts.append(f"not seen: {listed(unseen)}")
    if not doubts or verdict.verdict == "does not help":
        return verdict
    found = "not known" if verdict.verdict == "not needed" else verdict.verdict
    return replace(verdict, verdict=found, reason="; ".join([verdict.reason, *doubts]))


def _worst(seen: Mapping[Place, Histogram], format: FloatFormat) -> dict[str, Loss]:
    """The layer that loses most, of each kind."""
    worst: dict[str, Loss] = {}
    for (kind, layer), histogram in seen.items():
        values, magnitude = histogram.lost(format), histogram.lost(format, of="magnitude")
        if kind not in worst or magnitude > worst[kind].magnitude:
            worst[kind] = Loss(kind, layer, values, magnitude)
    return worst


def _common(windows: Sequence[tuple[int, int] | None]) -> tuple[int, int] | None:
    """The powers of two that fit every layer, lowest and highest."""
    found = [window for window in windows if window is not None]
    low, high = max(low for low, _ in found or [(1, 0)]), min(high for _, high in found or [(1, 0)])
    return (low, high) if low <= high and len(found) == len(windows) else None


def _verdict(
    format: str,
    worst: dict[str, Loss],
    window: tuple[int, int] | None,
    ails: str,
    lost: float,
) -> ScalingVerdict:
    """The verdict from what the layers lose and from the scales that fit them all."""
    loss = max(worst.values(), key=lambda loss: loss.magnitude)
    loses = (
        f"unscaled, the {words(loss.kind)} of {loss.layer} lose {percent(loss.magnitude)} of "
        f"their magnitude, and {percent(loss.values)} of their values, to underflow in {format}"
    )
    if ails:
        return ScalingVerdict("does not help", ails, None, worst)
    if window is None:
        reason = f"{loses}; no scale keeps every layer between underflow and overflow"
        return ScalingVerdict("does not help", reason, None, worst)
    low, high = window
    fits = f"scales from 2**{low} to 2**{high} lose at most {percent(lost)} in every layer"
    if low <= 0 <= high:
        return ScalingVerdict("not needed", f"{loses}, and none overflow; {fits}", 1.0, worst)
    ails = loses if low > 0 else f"unscaled, gradients overflow {format}"
    return ScalingVerdict("needed", f"{ails}; {fits}", 2.0 ** ((low + high) // 2), worst)


def words(name: str) -> str:
    """The name of a kind as prose."""
    return name.replace("_", " ")


def listed(names: Sequence[str]) -> str:
    """Names in a sentence, at most eight of them."""
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
