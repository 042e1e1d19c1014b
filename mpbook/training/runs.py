"""What a training run is asked to do, and what it did.

`Settings` are everything about a run but its model, its data and its precision; a `Run` is what
`mpbook.training.loop.train` gives back: every loss, norm and loss scale, the time and the memory,
and the exact configuration.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from mpbook.cost.measure import Memory
from mpbook.precision import Precision

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Loss = Callable[[Tensor, Tensor], Tensor]
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits (..., classes) for integer targets (...)."""
    return nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.flatten())


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything about a run but its model, its data and its precision.

    Args:
        steps: updates, the skipped ones counted.
        batch_size: examples of a step.
        learning_rate: after warm-up.
        optimizer: ``"adamw"``, ``"adam"``, ``"sgd"``, or a function from a list of parameters to
            a torch optimizer, which then brings its own learning rate.
        weight_decay, betas, momentum: of that optimizer.
        warmup_steps: over which the rate rises from 0.
        decay: of the rate after warm-up, to 0 at ``steps``.
        clip_norm: largest norm of the unscaled gradients, or None.
        loss: of float32 outputs and targets, to a scalar.
        validate_every: steps between validations; one is always made at the end.
        count_lost_updates_every: steps between those at which the updates that rounding swallows
            are counted, the first of all included; each costs a second update.
        loss_scale_growth_interval: of the dynamic loss scale, in steps.
        stop_on_nan: end the run at the first loss that is not finite.
        deterministic: let CUDA use only kernels that repeat bit for bit.
        seed: of dropout, of the batches and of stochastic rounding.

    Raises:
        ValueError: a setting out of range.
    """

    steps: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    optimizer: str | MakeOptimizer = "adamw"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = 0.0
    warmup_steps: int = 0
    decay: Literal["none", "linear", "cosine"] = "none"
    clip_norm: float | None = None
    loss: Loss = cross_entropy
    validate_every: int | None = None
    count_lost_updates_every: int | None = None
    loss_scale_growth_interval: int = 2000
    stop_on_nan: bool = False
    deterministic: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validate_every", "count_lost_updates_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate={self.learning_rate}: expected a positive number")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm={self.clip_norm}: expected a positive number or None")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps={self.warmup_steps}: expected 0 or more")
        if self.decay not in ("none", "linear", "cosine"):
            raise ValueError(f'decay={self.decay!r}: expected "none", "linear" or "cosine"')
        if isinstance(self.optimizer, str) and self.optimizer not in ("adamw", "adam", "sgd"):
            raise ValueError(
                f'optimizer="{self.optimizer}": expected "adamw", "adam", "sgd" or a function'
            )

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over these parameters."""
        if not isinstance(self.optimizer, str):
            return self.optimizer(parameters)
        rate, decay = self.learning_rate, self.weight_decay
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=rate, momentum=self.momentum, weight_decay=decay)
        make = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[self.optimizer]
        return make(parameters, lr=rate, betas=self.betas, weight_decay=decay)

    def rate_factor(self, step: int) -> float:
        """What multiplies the learning rate at a step, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        through = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        if self.decay == "linear":
            return 1 - through
        return 0.5 * (1 + math.cos(math.pi * through)) if self.decay == "cosine" else 1.0

    def as_dict(self) -> dict[str, Any]:
        """The settings as numbers and strings."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: _name_of(v) if callable(v) else v for k, v in values.items()}


def _name_of(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)


@dataclass
class Run:
    """What one training run did, step by step, and what it cost.

    ``losses`` and ``gradient_norms`` have one number a step, unscaled; ``loss_scales`` the scale
    that each step used, 1.0 without scaling; ``skipped_steps`` the steps whose update was left
    out; ``validation_losses`` pairs of steps done and loss; ``updates_lost`` pairs of step, counted
    from 0, and fraction of `mpbook.watch.lost_updates`, but for steps without any update.
    ``seconds`` covers the training steps only, that counting included.  ``memory`` is counted from
    tensors, by category; ``peak_memory_bytes`` is what CUDA's allocator reports, or on a CPU, which
    keeps no count, the sum of ``memory``.
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
