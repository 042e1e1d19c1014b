"""`diagnose`: run the steps in float32, forecast each format, run it, and say what follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mpbook.diagnosis import verdicts
from mpbook.diagnosis.batches import as_batches
from mpbook.diagnosis.noise_floor import noise
from mpbook.diagnosis.report import Diagnosis
from mpbook.diagnosis.verdicts import FormatVerdict
from mpbook.diagnosis.workload import Run, Step, Target, Workload

FORMATS = ("float16", "bfloat16")


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
) -> Diagnosis:
    """What 16-bit training would do to this model, before it is trained.

    Runs a few steps on copies: in float32 as the reference, then in each format under autocast.
    The model, its optimizer, its gradients and the random numbers stay as they are.

    Args:
        model: any module, on a CPU or a GPU.
        batches: a batch, or a list, generator or loader of them.  A tuple is ``(inputs..., target)``
            or what ``forward`` takes; a mapping goes in by keyword.
        loss: a function of ``(output, batch)``, ``(output, target)`` or ``(output)``; None where
            the model returns its loss.
        optimizer: the one of the training, a class or function of parameters, or None: then nothing
            is updated and nothing said of updates.
        step: a loop of one's own, ``step(model, optimizer, batch)``, which runs forward, backward
            and the optimizers on what it is given; in place of ``loss``.
        formats: ``"float16"``, ``"bfloat16"`` or both.
        steps: how many to run.
        target: whose autocast: ``"cuda"``, whose rules a CPU imitates, or ``"cpu"``.

    Raises:
        TypeError: a model or an optimizer that is none.
        ValueError: no batch, a loss that is no scalar, an unknown format.
        Exception: what the model raises in float32.
    """
    for format in formats:
        if format not in FORMATS:
            raise ValueError(f'formats: "{format}"; expected some of {", ".join(FORMATS)}')
    workload = Workload(
        model,
        as_batches(batches, steps),
        loss=loss,
        step=step,
        optimizer=optimizer,
        target=target,
    )
    workload.find_call()
    reference = workload.run(torch.float32, steps=steps)
    if reference.error is not None:
        raise reference.error
    if not reference.sound:
        found = [verdicts.judge_broken_reference(format, reference) for format in formats]
        return Diagnosis(workload, reference, None, {v.format: v for v in found})
    without_vote = noise(workload, reference)
    wide = workload.run(torch.bfloat16, steps=steps, histograms=True)
    judged = {
        format: _judged(format, workload, reference, wide, without_vote, steps)
        for format in formats
    }
    return Diagnosis(workload, reference, wide, judged, without_vote)


def _judged(
    format: str, workload: Workload, reference: Run, wide: Run, noise: set[str], steps: int
) -> FormatVerdict:
    if format == "bfloat16":
        return verdicts.judge_bfloat16(wide, reference, noise)
    unscaled = workload.run(torch.float16, steps=1)
    run = _with_a_scale(workload, wide, steps)
    return verdicts.judge_float16(run, unscaled, wide, reference, noise)


def _with_a_scale(workload: Workload, wide: Run, steps: int) -> Run:
    """float16 at a loss scale that fits; lower, where gradients overflow, as a scaler goes."""
    scale = verdicts.suggested_scale(wide)
    run = workload.run(torch.float16, steps=steps, loss_scale=scale)
    while run.skipped and run.finite_losses and run.error is None and scale > 2.0**-8:
        scale = scale / 2**6
        run = workload.run(torch.float16, steps=steps, loss_scale=scale)
    return run


