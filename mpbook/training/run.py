"""What a training run did: every loss, norm and loss scale, the time and the memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mpbook.cost.measure import Memory
from mpbook.precision import Precision

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Run:
    """What one training run did, step by step, and what it cost.

    ``losses`` and ``gradient_norms`` have one number a step, unscaled; ``loss_scales`` the scale
    that each step used, 1.0 without scaling; ``skipped_steps`` the steps whose update was left
    out; ``validation_losses`` pairs of steps done and loss; ``updates_lost`` pairs of step, counted
    from 0, and fraction of `mpbook.watch.lost_updates`, but for steps without any update.
    ``seconds`` covers the training steps only, that counting included.  ``memory`` is counted from
    tensors, by category; ``peak_memory_bytes`` is what CUDA's allocator reports, or on a CPU, which
    keeps no count, the sum of ``memory``.  On several ranks time and memory are this rank's, and
    under `fully_shard` the gathered weights are part of what is saved for the backward pass.
    """

    precision: Precision
    config: dict[str, Any]
    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    loss_scales: list[float] = field(default_factory=list)
    skipped_steps: list[int] = field(default_factory=list)
    validation_losses: list[tuple[int, float]] = field(default_factory=list)
    updates_lost: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    items_per_second: float = math.nan
    memory: Memory = field(default_factory=Memory)
    peak_memory_bytes: int = 0
    stopped_on_nan: bool = False
    model: nn.Module = field(default_factory=nn.Module, repr=False)

    @property
    def steps(self) -> int:
        """Steps done."""
        return len(self.losses)

    @property
    def loss(self) -> float:
        """Mean training loss over the last tenth of the steps; NaN before the first."""
        if not self.losses:
            return math.nan
        last = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(last) / len(last)

    @property
    def validation_loss(self) -> float:
        """The last validation loss; NaN if the data holds nothing out."""
        return self.validation_losses[-1][1] if self.validation_losses else math.nan

    @property
    def tokens_per_second(self) -> float:
        """Throughput: tokens of a text, or examples of other data, in each second."""
        return self.items_per_second

    def __repr__(self) -> str:
        parts = [
            self.precision.name,
            f"{self.config['model']} of {self.config['parameters']:,} parameters",
            f"{self.steps} steps",
            f"loss {self.losses[0]:.3f} to {self.loss:.3f}" if self.losses else "no step",
            f"validation {self.validation_loss:.3f}",
            f"{len(self.skipped_steps)} skipped",
            f"{self.seconds:.1f} s",
            f"{self.items_per_second:,.0f} {self.config['item']}s/s",
            f"{self.peak_memory_bytes / 1e6:.1f} MB",
        ]
        return "Run(" + ", ".join(parts + ["stopped on NaN"] * self.stopped_on_nan) + ")"

    def plot(self) -> Figure:
        """Loss, gradient norm and loss scale over the steps, as a figure to `plots.show`."""
        from mpbook import plots

        kinds = ["loss", "gradient norm"]
        kinds += ["loss scale"] if self.precision.loss_scale is not None else []
        figure, axes = plots.figure(1, len(kinds), figsize=(3.4 * len(kinds), 3.0))
        series = (self.losses, self.gradient_norms, self.loss_scales)
        for axis, kind, values in zip(axes, kinds, series, strict=False):
            axis.plot(values, **plots.line(self.precision.name))
            axis.set(title=kind, xlabel="step")
        if len(kinds) == 3:
            axes[2].set_yscale("log", base=2)
        return figure


class History:
    """Appends to a `Run` without waiting for the device at every step."""

    def __init__(self, run: Run):
        self.run = run
        self.pending: list[Tensor] = []

    def add(self, loss: Tensor, norm: Tensor, loss_scale: float, *, updated: bool) -> None:
        """Note one step."""
        if not updated:
            self.run.skipped_steps.append(len(self.run.loss_scales))
        self.run.loss_scales.append(loss_scale)
        self.pending.append(torch.stack([loss.float(), norm.float()]))
        if len(self.pending) == 100:
            self.flush()

    def flush(self) -> None:
        """Bring what is pending into the run."""
        if self.pending:
            losses, norms = torch.stack(self.pending).T.tolist()
            self.run.losses += losses
            self.run.gradient_norms += norms
            self.pending = []
