"""What training then does: the ground truth that the verdicts are scored against.

Each case is trained for a few steps in float32, and in the format as PyTorch's recipe has it: under
autocast with CUDA's rules, float16 with `torch.amp.GradScaler` and again without.  Nothing here
knows `mpbook.diagnosis.diagnosing`, its recorder or its verdicts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mpbook.device import matmul_emulation
from mpbook.diagnosis.autocast_of import autocast_of
from mpbook.diagnosis.zoo.cases import Case

Survives = Literal["yes", "with a loss scale", "no", "fails in float32 too"]
CPU = torch.device("cpu")

STEPS = 8
SKIPS = 24
"""That a scaler may make before a training counts as one that it never lets step."""
ASTRAY = 0.5
"""How far the weights may end from float32's, as a share of the way that float32's went."""


@dataclass(frozen=True)
class Outcome:
    """What became of a training: the verdict, and the numbers behind it."""

    survives: Survives
    astray: float
    astray_unscaled: float
    never_made: int
    error: str = ""


def outcome(case: Case, format: Literal["float16", "bfloat16"]) -> Outcome:
    """Train a case, and say how it went.

    A training survives if it ends with finite weights and buffers, not far from where float32's
    ends, and the scaler has let it step.  It needs a loss scale if it strays without one.
    """
    start, ends = _weights(case.built()[0]), _trained(case, torch.float32, scaled=False)
    if isinstance(ends, str) or not _finite(ends[0]):
        return Outcome("fails in float32 too", math.inf, math.inf, 0, str(ends)[:80])
    dtype = getattr(torch, format)
    got = _trained(case, dtype, scaled=format == "float16")
    if isinstance(got, str):
        return Outcome("no", math.inf, math.inf, 0, got)
    astray = _astray(start, ends[0], got[0])
    if astray > ASTRAY or got[1]:
        return Outcome("no", astray, math.inf, got[1])
    if format == "bfloat16":
        return Outcome("yes", astray, astray, 0)
    bare = _trained(case, dtype, scaled=False)
    unscaled = math.inf if isinstance(bare, str) else _astray(start, ends[0], bare[0])
    needed = unscaled > astray + 0.1
    return Outcome("with a loss scale" if needed else "yes", astray, unscaled, got[1])


def _trained(case: Case, dtype: torch.dtype, *, scaled: bool) -> str | tuple[list[Tensor], int]:
    """Weights and buffers at the end, and how many steps were never made; or an error.

    A step that the scaler skips is tried again on the same batch, with the same random numbers.
    """
    model, batches = case.built()
    optimizer = case.optimizer(model.parameters())
    scaled = scaled and not any(p.is_complex() for p in model.parameters())  # it refuses them
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    made = 0
    with torch.random.fork_rng([]), matmul_emulation(dtype, CPU):
        try:
            for _ in range(STEPS + SKIPS if scaled else STEPS):
                torch.manual_seed(made)
                optimizer.zero_grad()
                with autocast_of("cuda", dtype, CPU):
                    loss = case.objective(model, batches[made % len(batches)])
                scaler.scale(loss).backward()
                before = scaler.get_scale()
                scaler.step(optimizer)
                scaler.update()
                made += scaler.get_scale() >= before
                if made == STEPS:
                    break
        except Exception as error:  # a model may raise what it likes, such as an AssertionError
            return f"{type(error).__name__}: {error}"
    return _weights(model), STEPS - made


def _weights(model: nn.Module) -> list[Tensor]:
    named = (*model.parameters(), *model.buffers())
    return [t.detach().clone() for t in named if t.is_floating_point() or t.is_complex()]


def _finite(tensors: list[Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors)


def _astray(start: list[Tensor], expected: list[Tensor], got: list[Tensor]) -> float:
    """How far the end is from float32's, over the way that float32's went."""
    if not _finite(got):
        return math.inf
    pairs: list[Any] = list(zip(start, expected, got, strict=True))
    away = math.sqrt(sum(float((g - e).abs().square().sum()) for _, e, g in pairs))
    way = math.sqrt(sum(float((e - s).abs().square().sum()) for s, e, _ in pairs))
    return away / way if way else away
