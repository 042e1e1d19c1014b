"""`diagnose`: run the steps in float32, forecast each format, run it, and say what follows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from mpbook.cost.roofline import Roof
from mpbook.diagnosis import verdicts
from mpbook.diagnosis.advice import NOTICED, advise
from mpbook.diagnosis.batches import as_batches
from mpbook.diagnosis.choices import flipped
from mpbook.diagnosis.copies import round_weights
from mpbook.diagnosis.costs import find_roof, memory, seconds
from mpbook.diagnosis.failures import suggested_scale
from mpbook.diagnosis.format_report import FormatReport
from mpbook.diagnosis.gradients import total_error
from mpbook.diagnosis.noise_floor import noise
from mpbook.diagnosis.report import Diagnosis
from mpbook.diagnosis.rescue import rescue as _rescue
from mpbook.diagnosis.state import StateLedger, Write
from mpbook.diagnosis.stepping import Run
from mpbook.diagnosis.unseen import unseen
from mpbook.diagnosis.verdicts import WRONG, FormatVerdict
from mpbook.diagnosis.workload import Step, Target, Workload
from mpbook.synonyms import meant

Format = Literal["float16", "bfloat16"]
FORMATS: tuple[Format, ...] = ("float16", "bfloat16")


_WIDENED = (
    "diagnose: weights that were passed in 16 bits are in float32 here, as the reference has them; "
    "expected a model, or a step, that takes its dtype from its weights"
)


def diagnose(
    model: nn.Module,
    batches: Any,
    *,
    loss: Any = None,
    optimizer: Any = None,
    step: Step | None = None,
    formats: Sequence[str] = FORMATS,
    steps: int = 3,
    target: Target = "cuda",
    roof: str | Roof = "A100 SXM 80GB",
    rescue: bool = True,
) -> Diagnosis:
    """What 16-bit training would do to this model, before it is trained.

    Runs a few steps on copies: in float32 as the reference, then in each format under autocast.
    The model, its optimizer, its gradients and the random numbers stay as they are.

    Args:
        model: any module, on a CPU or a GPU; of DistributedDataParallel, the one inside.
        batches: a batch, or a list, generator or loader of them.  A tuple is ``(inputs...,
            target)`` or what ``forward`` takes, and so is a list of tensors as a loader gives it; a
            mapping goes in by keyword.
        loss: a function of ``(output, batch)``, ``(output, target)`` or ``(output)``; None where
            the model returns its loss.
        optimizer: the one of the training, a class or function of parameters, or None: then nothing
            is updated and nothing said of updates.
        step: a loop of one's own, ``step(model, optimizer, batch)``, which runs forward, backward
            and the optimizers on what it is given; in place of ``loss``.
        formats: ``"float16"``, ``"bfloat16"`` or both.
        steps: how many to run.
        target: whose autocast: ``"cuda"``, whose rules a CPU imitates, or ``"cpu"``.
        roof: the card whose speed is expected, by its name in `mpbook.cost.roofline.STATED`.
        rescue: whether to search for the fewest parts to keep in float32 where a format fails.

    Raises:
        TypeError: a model, an optimizer, a loss or a step that is none.
        ValueError: no batch, a loss that is no scalar, an unknown format or card, a sharded model.
        RuntimeError: a step, or a function in the model, that reaches past its arguments and trains
            or runs the model itself; a step that draws from an iterator that comes to its end.
        Exception: what the model raises in float32.
    """
    _check(formats, target, loss, step)
    card = find_roof(roof)
    given = as_batches(batches, steps, loss)
    workload = Workload(model, given, loss=loss, step=step, optimizer=optimizer, target=target)
    with workload.left_alone():
        return _diagnosed(workload, tuple(formats), steps, card, rescued=rescue)


def _check(formats: Sequence[str], target: str, loss: Any, step: Any) -> None:
    wanted = [formats] if isinstance(formats, str) else list(formats)
    for format in wanted:
        if format not in FORMATS or isinstance(formats, str):
            near = meant(format, FORMATS)
            hint = f'; did you mean ["{near}"]?' if near else ""
            raise ValueError(f"formats={formats!r}: expected a list, of {', '.join(FORMATS)}{hint}")
    if not wanted:
        raise ValueError(f"formats={formats!r}: expected at least one of {', '.join(FORMATS)}")
    if target not in ("cuda", "cpu"):
        raise ValueError(f'target="{target}": expected "cuda" or "cpu", whose autocast is meant')
    for name, function in (("loss", loss), ("step", step)):
        if function is not None and not callable(function):
            raise TypeError(f"{name}: a {type(function).__name__}; expected a function, or None")
    if loss is not None and step is not None:
        raise ValueError(
            "loss, step: a step of your own computes its loss itself; pass one of them"
        )


def _diagnosed(
    workload: Workload, formats: tuple[str, ...], steps: int, roof: Roof, *, rescued: bool
) -> Diagnosis:
    workload.find_call()
    ledger = StateLedger()
    reference = workload.run(torch.float32, steps=steps, writes=ledger)
    if reference.error is not None:
        if workload.narrow:
            reference.error.add_note(_WIDENED)
        raise reference.error
    workload.must_have_reached_the_copy(reference)
    workload.limit_operators(reference)
    writes = ledger.by_state() if workload.optimizer is not None else []
    report = Diagnosis(roof=roof.name, steps=steps, writes=tuple(writes))
    if not reference.sound:
        given = workload.not_finite(steps)
        found = {f: verdicts.judge_broken_reference(f, reference, given) for f in formats}
        report.formats = {f: FormatReport(v) for f, v in found.items()}
    else:
        report.repeatable = workload.is_repeatable(reference)
        silent = noise(workload, reference)
        report.without_vote = tuple(sorted(silent))
        by_format = partial(_by_format, repeatable=report.repeatable, rescued=rescued)
        report.formats = by_format(workload, formats, steps, roof, reference, silent)
        report.memory_float32 = memory(workload, reference)
        report.writes += _writes_as_given(workload, steps)
    report.unseen = tuple(unseen(workload, reference))
    report.advice = tuple(
        advise(
            report.formats,
            list(report.writes),
            repeatable=report.repeatable,
            loss=workload.written_loss,
        )
    )
    return report


def _writes_as_given(workload: Workload, steps: int) -> tuple[Write, ...]:
    """Of a model whose weights are in 16 bits: the writes that really changed nothing."""
    if not workload.narrow or workload.optimizer is None:
        return ()
    ledger = StateLedger()
    workload.run(torch.float32, steps=steps, weights=None, writes=ledger)
    return tuple(w for w in ledger.by_state() if w.really_swallowed)


def _by_format(
    workload: Workload,
    formats: tuple[str, ...],
    steps: int,
    roof: Roof,
    reference: Run,
    silent: set[str],
    *,
    repeatable: bool,
    rescued: bool,
) -> dict[str, FormatReport]:
    wide = workload.run(torch.bfloat16, steps=steps, histograms=True)
    found = {}
    for format in formats:
        verdict, run = _judged(format, workload, reference, wide, silent, steps)
        part = FormatReport(verdict)
        if rescued and (verdict.survives == "no" or (verdict.total > WRONG and repeatable)):
            part.rescue = _rescue(
                workload, run, reference, silent, steps=steps, sensitive=verdict.sensitive
            )
        if run.error is None:
            part.flipped = tuple(flipped(run, reference))
            part.rounded = dict(run.recorder.rounded)
            if verdict.survives != "no" and verdict.total > NOTICED:
                part.total_without = _total_without_rounding(workload, run, reference, silent)
            part.memory = memory(workload, run)
            part.speed = seconds(reference, roof) / max(seconds(run, roof), 1e-12)
        dtype = getattr(torch, format)
        pure = workload.run(torch.float32, steps=steps, weights=dtype)
        part.given = dtype in workload.narrow
        part.pure = verdicts.judge_without_scale(format, pure, reference, silent, verdict.sensitive)
        found[format] = part
    return found


def _judged(
    format: str, workload: Workload, reference: Run, wide: Run, noise: set[str], steps: int
) -> tuple[FormatVerdict, Run]:
    sensitive = _sensitivity(workload, reference, noise, getattr(torch, format))
    if format == "bfloat16":
        return verdicts.judge_without_scale(format, wide, reference, noise, sensitive), wide
    unscaled = workload.run(torch.float16, steps=reference.steps_to_gradients)
    run = workload.run_scaled(torch.float16, steps=steps, loss_scale=suggested_scale(wide))
    return verdicts.judge_float16(run, unscaled, wide, reference, noise, sensitive), run


def _total_without_rounding(
    workload: Workload, run: Run, reference: Run, noise: set[str]
) -> float | None:
    """How far off gradients are where whole numbers stay in float32; None if none was rounded."""
    if not run.recorder.rounded:
        return None
    places = list(run.recorder.rounded)
    few = reference.steps_to_gradients
    kept = workload.run(run.dtype, steps=few, loss_scale=run.loss_scale, in_float32=places)
    return total_error(kept, reference, noise) if kept.sound else None


def _sensitivity(workload: Workload, reference: Run, noise: set[str], dtype: torch.dtype) -> float:
    """How far float32's gradients move when nothing but the weights is rounded."""
    few = reference.steps_to_gradients
    to_dtype = partial(round_weights, dtype=dtype)
    rounded = workload.run(torch.float32, steps=few, changed=to_dtype, watched=False)
    return total_error(rounded, reference, noise)
