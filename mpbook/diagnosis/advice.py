"""What to do about a verdict: ranked, each with lines to paste and the section that explains it.

When something is said is here; what mends it, in `cures`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from mpbook.autocast.policy import dtype_name
from mpbook.diagnosis.batches import WITH_A_LOSS
from mpbook.diagnosis.choices import Flipped
from mpbook.diagnosis.cures import (
    BECAUSE,
    BEYOND,
    BFLOAT16,
    BY_MESSAGE,
    DIFFERENCE,
    ELSE,
    EPS,
    LOOP,
    TOO_LARGE,
    WHOLE_NUMBERS,
    divides_by_0,
    of_an_operator,
)
from mpbook.diagnosis.format_report import FormatReport
from mpbook.diagnosis.places import LOSS, Seen
from mpbook.diagnosis.rescue import OF_THE_LOSS, Rescue
from mpbook.diagnosis.state import STANDS_STILL, Write
from mpbook.diagnosis.verdicts import NEAR, WRONG, FormatVerdict
from mpbook.master_weights import SIXTEEN_BIT


@dataclass(frozen=True)
class Advice:
    """One thing to do.  ``page`` is the section of the book, below its root."""

    format: str
    what: str
    lines: str = ""
    page: str = ""


STATES = "if weights or states were in 16 bits"
"""What is said of states that are not."""
PASSED = "weights or states in 16 bits, as passed"
"""And of those that are."""

NOTICED = 0.05
"""Relative error of all gradients that is worth a word where it can be halved."""

_CHOOSE = ("argmax", "argmin")
OTHERS = 0.5
"""Share of an ``argmax``'s rows that choose something else from which on it is worth a word."""

_UNEQUAL_RUNS = Advice(
    "every format",
    "make the step repeatable first: two float32 runs differ, so nothing that compares a format's "
    "gradients with float32's means anything here; a step that draws its own data wants it in "
    "batches=, and random numbers from torch, numpy or random",
)


def advise(
    reports: dict[str, FormatReport],
    writes: list[Write],
    *,
    repeatable: bool = True,
    loss: str = WITH_A_LOSS,
) -> list[Advice]:
    """What to do, most urgent first: what fails, what needs a scale, what stands still.

    ``loss`` is how the loss is written in the lines to paste.
    """
    first = []
    if not repeatable:  # then what was compared says nothing
        first = [_UNEQUAL_RUNS]
        reports = {f: _without_comparisons(r) for f, r in reports.items()}
    for report in reports.values():
        found = list(_for_a_format(report, reports, loss))
        if found and found[0].what.startswith("or "):
            found[0] = replace(found[0], what=found[0].what.removeprefix("or "))
        first += found
    return [*first, *_for_states(writes)]


def _without_comparisons(report: FormatReport) -> FormatReport:
    verdict = replace(report.verdict, wrong=False, total=0.0, loss_error=0.0, without_gradient=())
    return replace(report, verdict=verdict, total_without=None, flipped=())


def _for_a_format(
    report: FormatReport, reports: dict[str, FormatReport], loss: str
) -> Iterator[Advice]:
    v = report.verdict
    if v.survives == "fails in float32 too":
        if v.format == next(iter(reports)):
            what = "mend the float32 run first: no format is to blame for what begins there"
            if v.failure is not None and v.failure.dtype in SIXTEEN_BIT:
                what = f"the model casts to 16 bits itself, without autocast too: {v.failure}"
            if v.given:
                what = f"mend what was passed first: {v.given}"
            yield Advice("every format", what, "", "recipe/loss_scaling_traps.html#ls-nan")
        return
    if v.survives == "no":
        known = [*_cures(v, report, reports), *_rescues(v, report.rescue)]
        yield from known
        other = reports["bfloat16"].verdict if "bfloat16" in reports else None
        holds = other is not None and other.survives == "yes" and other.total <= WRONG
        if v.format == "float16" and holds:
            yield Advice(v.format, "or train in bfloat16, which survives these steps",
                         BFLOAT16.format(loss=loss),
                         "formats_that_need_less/bf16.html#bf16-or-fp16")  # fmt: skip
        elif not known:
            yield Advice(v.format, f"no few lines are known to mend it: {v.reason}")
    if v.survives == "with a loss scale":
        what = "scale the loss" if v.loss_scale >= 1 else TOO_LARGE
        yield Advice(v.format, what,
                     LOOP.format(exponent=math.log2(v.loss_scale), loss=loss),
                     "recipe/loss_scaling.html#ls-window")  # fmt: skip
    if v.survives != "no":
        yield from _for_what_survives(v, report.total_without, report.flipped)
    if v.survives != "no" and v.total > WRONG:
        known = list(_rescues(v, report.rescue))
        what = f"finite, with gradients {v.total:.0%} off float32's: rounding the weights alone "
        what += f"moves them by {v.sensitive:.0%}, so compare a longer run with float32's"
        yield from known or [Advice(v.format, what)]
    if v.survives != "no" and 0 <= v.headroom < NEAR:
        yield Advice(v.format, f"watch {v.tightest[0]}: {v.headroom:.1f} binades below overflow",
                     "", "recipe/loss_scaling_traps.html#ls-forward")  # fmt: skip
    pure = report.pure
    if report.given and pure is not None and pure.survives == "no":
        yield Advice(f"{v.format} weights", f"they were passed so, and training them without "
                     f"autocast fails ({pure.reason}): keep them in float32, and let autocast cast",
                     "model = model.float()  # before the optimizer is made",
                     "recipe/master_weights_traps.html#mw-adam-nan")  # fmt: skip
    if any(name.endswith(("running_mean", "running_var")) for name in v.nonfinite_after):
        what = "a skipped step has written to a batch norm's buffers already: reset or recompute "
        yield Advice(v.format, f"{what}them", "model.apply(lambda m: m.reset_running_stats() if "
                     "hasattr(m, 'reset_running_stats') else None)",
                     "recipe/autocast_traps.html#autocast-batch-norm")  # fmt: skip


def _for_what_survives(
    v: FormatVerdict, total_without: float | None, flipped: Iterable[Flipped]
) -> Iterator[Advice]:
    if v.failure is not None:
        outside = v.failure.key.place.module == LOSS
        yield Advice(v.format, "training goes on, but the loss that is printed is not finite, and "
                     f"a loop that stops for it stops: compute it in float32 ({v.failure})",
                     OF_THE_LOSS if outside else ELSE[1],
                     "recipe/autocast_traps.html#autocast-island")  # fmt: skip
    if v.without_gradient:
        named = ", ".join(v.without_gradient[:4])
        yield Advice(v.format, f"no gradient reaches {named}, as one does in float32: look for "
                     "what rounds to 0 before, as 1 - 0.999 in bfloat16, and keep it in float32",
                     "", "numbers/rounding_and_sums_traps.html#sums-variance")  # fmt: skip
    for one in flipped:
        if one.operator in _CHOOSE and one.share > OTHERS:
            yield Advice(v.format, f"{one.operator} chooses differently in {one.share:.0%} of its "
                         f"rows: compute what it compares in float32 ({one.place})",
                         "with torch.autocast(device_type, enabled=False):\n    ...  "
                         "# what is compared, its 16-bit tensors as .float()",
                         "practice/own_model_traps.html#own-router")  # fmt: skip
    if v.loss_error > WRONG >= v.total:
        yield Advice(v.format, f"the loss is {v.loss_error:.0%} off float32's, though the first "
                     "gradients are not: add up, and subtract, in float32 what it is made of",
                     "loss = losses.float().sum()  # a difference too: of sums in float32",
                     "numbers/rounding_and_sums.html#sums-float32")  # fmt: skip
    if total_without is not None and v.total > max(NOTICED, 2 * total_without):
        yield Advice(
            v.format,
            f"{WHOLE_NUMBERS[0]}: gradients are {v.total:.0%} off float32's, "
            f"and {total_without:.1%} with them in float32",
            *WHOLE_NUMBERS[1:],
        )


def _rescues(v: FormatVerdict, found: Rescue | None) -> Iterator[Advice]:
    """The fewest parts to keep in float32: all that is known where nothing was infinite."""
    if found is not None and found.holds:
        parts = ", ".join(map(str, found.places))
        if found.because == "overflow":
            yield Advice(v.format, f"or keep in float32, and nothing else: {parts}", found.code,
                         "recipe/autocast_traps.html#autocast-island")  # fmt: skip
            return
        what, page = BECAUSE[found.because]
        left = f"; gradients are {found.total:.1%} off float32's then"
        yield Advice(v.format, f"{what}: keep in float32 {parts}{left}", found.code, page)
    elif found is not None and v.wrong and v.failure is None:
        what = "no few places are to blame: rounding moves these gradients wherever it happens, so "
        yield Advice(v.format, f"{what}compare a longer run with float32's")


def _cures(
    v: FormatVerdict, report: FormatReport, reports: dict[str, FormatReport]
) -> Iterator[Advice]:
    _, raises, message = v.reason.partition(" raises ")
    told = (cure for words, cure in BY_MESSAGE if raises and words in message)
    for what, lines, page in dict.fromkeys(told):
        yield Advice(v.format, what, lines, page)
    seen = v.failure
    if seen is None:
        return
    what, lines, page = of_an_operator(seen, v.behind)
    if what == EPS[0]:
        found = report.rescue
        if found is not None and found.holds and seen.key.place not in found.places:
            return  # another line made the divisor 0, and no eps mends that
        if _is_0_in_bfloat16(seen, reports):
            what, lines, page = DIFFERENCE
    if seen.operator == "_to_copy" and seen.key.place in report.rounded:
        what, lines, page = BEYOND
    yield Advice(v.format, f"{what} ({seen.key.place})", lines, page)


def _is_0_in_bfloat16(seen: Seen, reports: dict[str, FormatReport]) -> bool:
    other = reports["bfloat16"].verdict.failure if "bfloat16" in reports else None
    return other is not None and divides_by_0(other) and other.key.place == seen.key.place


def _for_states(writes: list[Write]) -> Iterator[Advice]:
    """Of states that are in 16 bits what they do, and of those in float32 what they would do."""
    passed = [w for w in writes if w.stored in SIXTEEN_BIT]
    still = [w for w in passed if w.lost_share(w.stored) > STANDS_STILL]
    for dtype in dict.fromkeys(w.stored for w in still):
        yield from _that_stand_still([w for w in still if w.stored == dtype], PASSED, dtype)
    if any(w.state == "weights" and w.operator == "mul_" for w in still):
        yield Advice(PASSED, "weight decay changes nothing: 1 - lr * weight_decay rounds to 1",
                     "model = model.float()  # before the optimizer is made",
                     "recipe/master_weights.html#mw-which")  # fmt: skip
    told = {w.state for w in still}
    wide = [w for w in writes if w.stored not in SIXTEEN_BIT and w.state not in told]
    still = [w for w in wide if w.lost_share(torch.bfloat16) > STANDS_STILL]
    yield from _that_stand_still(still, STATES, torch.bfloat16)


def _that_stand_still(still: list[Write], format: str, dtype: torch.dtype) -> Iterator[Advice]:
    states = {w.state for w in still if w.operator != "mul_"}
    name = dtype_name(dtype)
    if "weights" in states:
        yield Advice(format, "keep the weights in float32 and let autocast cast them: "
                     "16-bit ones lose most of these updates",
                     "model = model.float()  # and torch.autocast around the forward pass\n"
                     "# or: optimizer = mpbook.master_weights.MasterWeights(optimizer)",
                     "recipe/master_weights.html#mw-which")  # fmt: skip
    if any(w.state == "exp_avg_sq" for w in still):
        yield Advice(
            format,
            f"keep Adam's second moment in float32: in {name} it can grow and not fall",
            "",
            "recipe/master_weights_traps.html#mw-beta2",
        )
    others = states - {"weights", "exp_avg_sq", "exp_avg"}
    if others:
        yield Advice(
            format,
            f"keep {', '.join(sorted(others))} in float32: in {name} they stand still",
            "",
            "recipe/master_weights_traps.html#mw-ema",
        )
