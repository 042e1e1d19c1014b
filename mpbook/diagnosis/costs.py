"""What the formats would save: memory, measured, and time, by the roofline of a GPU.

Bytes are those that autograd saves for the backward pass, counted on the run itself, and those of
weights, gradients and the optimizer's states.  A second run with half the examples gives the slope;
what follows for another batch is a prediction, and says so.  The time is a model's: every operator
of the run's own trace as bytes moved or products computed, whichever takes longer on that card, and
no time to launch it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from mpbook.cost.roofline import STATED, Roof, Work
from mpbook.diagnosis.stepping import Run
from mpbook.diagnosis.workload import Workload
from mpbook.nests import chunks, length
from mpbook.synonyms import did_you_mean

_NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True)
class Memory:
    """Bytes of one training step in a format.

    ``activations`` are measured; ``for_each_example`` is their slope, None where a batch cannot be
    halved; ``kept`` are weights, gradients and states of the optimizer.
    """

    activations: int
    for_each_example: float | None
    examples: int
    kept: int

    def predicted(self, examples: int) -> float | None:
        """Activations of another batch: a straight line through the two that were measured."""
        if self.for_each_example is None:
            return None
        return self.activations + (examples - self.examples) * self.for_each_example


def memory(workload: Workload, run: Run) -> Memory:
    """What a run held, and how that grows with the batch."""
    batch = workload.batches[0]
    examples = _examples(batch)
    slope = None
    if workload.step is None and examples > 1 and run.activation_bytes:
        with suppress(Exception):  # such as a sparse tensor, which no slice is taken of
            half = workload.of_batches([chunks(batch, 2)[0]])
            less = half.run(run.dtype, steps=1, loss_scale=run.loss_scale, watched=False)
            if less.error is None:
                slope = (run.activation_bytes - less.activation_bytes) / (examples - examples // 2)
    return Memory(run.activation_bytes, slope, examples, run.kept_bytes)


def _examples(batch: Any) -> int:
    """How many there are; 0 where the tensors of the batch do not say."""
    try:
        return length(batch)
    except ValueError:
        return 0


def seconds(run: Run, roof: Roof) -> float:
    """What a step takes by the roofline, operator by operator."""
    total = 0.0
    for dtype, flops, moved in run.recorder.work:
        format = _NAMES.get(dtype, "float32")
        format = format if format in roof.peaks else "float32"
        total += roof.seconds(Work("", flops, max(moved, 1), product=flops > 0), format)
    return total


def find_roof(roof: str | Roof) -> Roof:
    """A roof by the name of its card.

    Raises:
        ValueError: a name that is not known.
    """
    if isinstance(roof, Roof):
        return roof
    if roof not in STATED:
        hint = did_you_mean(roof, STATED)
        raise ValueError(f'roof="{roof}": expected one of {", ".join(STATED)}{hint}')
    return STATED[roof]
