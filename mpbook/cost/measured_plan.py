"""The memory of a training step of any model: measured at two batch sizes, and told for others.

What a step holds is a constant (weights, gradients, optimizer state) and a part that grows with the
examples.  Two real steps, watched operator by operator (`mpbook.cost.live_memory`), give both after
each operation: a straight line in the batch size.  At any other size the highest of these lines is
the peak.  Where the two steps run different operations, so that they cannot be paired, the lines
are those of the peaks of the forward pass, the backward pass and the update instead.

It holds where a step's tensors grow in proportion to the batch.  It does not see what kernels
allocate inside, nor CUDA's context; and kernels differ, so that a plan measured on a CPU is one for
a GPU as far as both save the same tensors.

Taught in the chapter "Memory".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mpbook.cost.at_peak import AtPeak
from mpbook.cost.live_memory import LiveMemory
from mpbook.cost.measure import count_bytes, saved_for_backward
from mpbook.cost.own_step import Loss, MakeOptimizer, OwnStep, prepare_step
from mpbook.precision import Precision, as_precision

Found = Literal["measured", "extrapolated"]
MOMENTS = ("forward", "backward", "update")


@dataclass(frozen=True)
class MeasuredStep:
    """What one real step held.

    ``kept`` are bytes that stay from step to step, by category; ``timelines``, by moment, the bytes
    alive after each operation, with what is kept; ``saved_for_backward`` and ``gradients`` come and
    go.
    """

    batch_size: int
    kept: Mapping[str, int]
    gradients: int
    saved_for_backward: int
    timelines: Mapping[str, tuple[int, ...]]
    operations: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class MeasuredPlan(AtPeak):
    """The bytes of a step of one batch size, from steps of two.

    ``peaks`` are the most bytes alive, by moment, a word of `MOMENTS`.  ``found`` says whether this
    size was measured or is extrapolated from the ``sizes`` that were.
    """

    batch_size: int
    sizes: tuple[int, int]
    parameter_count: int
    kept: Mapping[str, int]
    gradients: int
    saved_for_backward: int
    peaks: Mapping[str, int]
    bytes_per_example: float

    @property
    def found(self) -> Found:
        """Whether these bytes were measured, or told from others."""
        return "measured" if self.batch_size in self.sizes else "extrapolated"

    @property
    def peak(self) -> int:
        """The most bytes alive at once."""
        return max(self.peaks.values())

    @property
    def moment(self) -> str:
        """When that is: a word of `MOMENTS`."""
        return max(self.peaks, key=lambda moment: self.peaks[moment])

    @property
    def at_peak(self) -> dict[str, int]:
        """The categories at the moment of the peak, which sum up to it."""
        parts = {name: count for name, count in self.kept.items() if count}
        rest = self.peak - sum(parts.values())
        if self.moment == "update":
            gradients = min(self.gradients, rest)
            return parts | {"gradients": gradients, "update, for a moment": rest - gradients}
        saved = min(self.saved_for_backward, rest)
        return parts | {"activations": saved, "backward, for a moment": rest - saved}

    def _words(self) -> tuple[str, str]:
        caption = f"A batch of {self.batch_size}, {self.found}"
        if self.found == "extrapolated":
            caption += f" from batches of {self.sizes[0]} and {self.sizes[1]}"
        return f"at the peak, in the {self.moment}", caption


class MemoryMeasurement:
    """Two measured steps of a model, from which `at` plans any batch size."""

    def __init__(self, small: MeasuredStep, large: MeasuredStep, parameter_count: int):
        self.small, self.large, self.parameter_count = small, large, parameter_count

    def at(self, batch_size: int) -> MeasuredPlan:
        """The plan for a batch of this size.

        Raises:
            ValueError: a size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        small, large = self.small, self.large
        peaks = {moment: self._peak(moment, batch_size) for moment in MOMENTS}
        beyond = max(self._peak(moment, batch_size + 1000) for moment in MOMENTS)
        return MeasuredPlan(
            batch_size=batch_size,
            sizes=(small.batch_size, large.batch_size),
            parameter_count=self.parameter_count,
            kept={
                name: self._line(count, large.kept[name], batch_size)
                for name, count in small.kept.items()
            },
            gradients=self._line(small.gradients, large.gradients, batch_size),
            saved_for_backward=self._line(
                small.saved_for_backward, large.saved_for_backward, batch_size
            ),
            peaks=peaks,
            bytes_per_example=(beyond - max(peaks.values())) / 1000,
        )

    def _line(self, small: int, large: int, batch_size: int) -> int:
        """The straight line through what two steps held, at another size."""
        first, second = self.small.batch_size, self.large.batch_size
        slope = (large - small) / (second - first)
        return max(0, round(small + slope * (batch_size - first)))

    def _peak(self, moment: str, batch_size: int) -> int:
        small, large = self.small.timelines[moment], self.large.timelines[moment]
        if self.small.operations != self.large.operations:
            small, large = (max(small, default=0),), (max(large, default=0),)
        return max(self._line(a, b, batch_size) for a, b in zip(small, large, strict=True))

    def largest_batch(self, budget_bytes: float) -> int:
        """The largest batch whose peak fits into so many bytes, 0 if none does."""
        low, high = 0, 1
        while self.at(high).peak <= budget_bytes and high < 2**40:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.at(middle).peak <= budget_bytes else (low, middle)
        return low


def measure_memory(
    model: nn.Module,
    batch: tuple[Any, Any],
    loss: Loss,
    *,
    precision: str | Precision,
    optimizer: str | MakeOptimizer = "adamw",
    sizes: tuple[int, int] = (4, 8),
) -> MemoryMeasurement:
    """Watch training steps of a copy of any model at two batch sizes.

    Args:
        model: stays as it is; measured where it is, on a CPU or a GPU.
        batch: a pair of inputs and targets, of any kind of nest (`mpbook.nests`); its examples are
            repeated or left out to make both sizes.
        loss: of float32 outputs and targets, to a scalar.
        precision: a `Precision` or the name of one.
        optimizer: a name of `mpbook.optimizers.OPTIMIZERS`, or a function from parameters.
        sizes: the two; large enough that what grows with the batch is the larger part.

    Raises:
        TypeError: a batch that is no pair.
        ValueError: two sizes that are none or the same, a model with nothing to train, or one
            that ranks share.

    >>> from mpbook.models import MLP
    >>> batch = torch.randn(8, 16), torch.randint(4, (8,))
    >>> measured = measure_memory(
    ...     MLP(16, 64, 4), batch, nn.functional.cross_entropy, precision="32-true"
    ... )
    >>> measured.at(64).found, measured.at(64).kept["parameters"]
    ('extrapolated', 5392)
    """
    if not 1 <= sizes[0] < sizes[1]:
        raise ValueError(f"sizes={sizes}: expected two batch sizes, the smaller one first")
    chosen = as_precision(precision)
    steps = []
    for size in sizes:
        step = prepare_step(
            model, batch, loss, batch_size=size, precision=chosen, optimizer=optimizer
        )
        with torch.random.fork_rng(_gpus(step.device)):
            steps.append(_measure(step, size))
    count = sum(p.numel() for p in model.parameters())
    return MemoryMeasurement(steps[0], steps[1], count)


def _gpus(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _measure(step: OwnStep, size: int) -> MeasuredStep:
    """Make one step, which creates the optimizer's state, and watch the next."""
    step.forward().backward()
    step.optimizer.step()
    step.optimizer.zero_grad()
    with saved_for_backward(step.model) as saved:
        value = step.forward()
        count = saved()
    del value
    kept = {name: count_bytes(tensors) for name, tensors in step.kept().items()}
    live, ends = LiveMemory(), []
    with live:
        value = step.forward()
        ends.append(len(live.timeline))
        value.backward()
        ends.append(len(live.timeline))
        gradients = count_bytes(_gradients(step.model))
        del value
        step.optimizer.step()
        ends.append(len(live.timeline))
    always = sum(kept.values())
    starts = (0, *ends[:-1])
    timelines = {
        moment: tuple(always + alive for alive in live.timeline[start:end] or [0])
        for moment, start, end in zip(MOMENTS, starts, ends, strict=True)
    }
    return MeasuredStep(size, kept, gradients, count, timelines, tuple(live.operations))


def _gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]
