"""What a training run is asked to do, apart from its model, its data and its precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mpbook import optimizers
from mpbook.loss_scaling import GROWTH_INTERVAL
from mpbook.nests import kind
from mpbook.optimizers import Hyperparameters
from mpbook.training.description import describe

Loss = Callable[[Any, Any], Tensor]
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


_COUNTS = (
    "steps",
    "batch_size",
    "accumulation_steps",
    "validate_every",
    "count_lost_updates_every",
)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits (..., classes) for integer targets (...).

    Raises:
        TypeError: anything but tensors.
    """
    for name, value in {"outputs": logits, "targets": targets}.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"loss: cross_entropy takes tensors, and the {name} are a {kind(value)}; expected "
                "a function of both, such as loss=lambda outputs, targets: outputs['loss']"
            )
    return nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.flatten())


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything about a run but its model, its data and its precision.

    Args:
        steps: updates, the skipped ones counted.
        batch_size: examples that go through the model at once: a micro-batch.
        accumulation_steps: micro-batches of an update, whose gradients are added up; the examples
            of an update are ``batch_size * accumulation_steps``.  See `mpbook.training.step`.
        learning_rate: after warm-up.
        optimizer: a name of `mpbook.optimizers.OPTIMIZERS`, or a function from a list of parameters
            to a torch optimizer, which then brings its own learning rate.
        weight_decay, betas, momentum: of that optimizer; its own default for a momentum of None.
        warmup_steps: over which the rate rises from 0.
        decay: of the rate after warm-up, to 0 at ``steps``.
        clip_norm: largest norm of the unscaled gradients, or None.
        loss: of the model's outputs, in float32, and the targets, to a scalar.
        validate_every: steps between validations; one is always made at the end.
        count_lost_updates_every: steps between those at which the updates that rounding swallows
            are counted, the first of all included; each costs a second update.
        loss_scale_growth_interval: of the dynamic loss scale, in steps.
        stop_on_nan: end the run at the first loss that is not finite.
        deterministic: let CUDA use only kernels that repeat bit for bit; an operator without one
            (`torch.use_deterministic_algorithms` lists them) raises a RuntimeError.
        seed: of dropout, of the batches and of stochastic rounding.

    Raises:
        ValueError: a setting out of range.
    """

    steps: int
    batch_size: int = 64
    accumulation_steps: int = 1
    learning_rate: float = Hyperparameters.learning_rate
    optimizer: str | MakeOptimizer = "adamw"
    weight_decay: float = Hyperparameters.weight_decay
    betas: tuple[float, float] = Hyperparameters.betas
    momentum: float | None = Hyperparameters.momentum
    warmup_steps: int = 0
    decay: Literal["none", "linear", "cosine"] = "none"
    clip_norm: float | None = None
    loss: Loss = cross_entropy
    validate_every: int | None = None
    count_lost_updates_every: int | None = None
    loss_scale_growth_interval: int = GROWTH_INTERVAL
    stop_on_nan: bool = False
    deterministic: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in _COUNTS:
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
        if isinstance(self.optimizer, str):
            optimizers.named(self.optimizer)

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer over the model's trainable parameters."""
        if not isinstance(self.optimizer, str):
            return self.optimizer([p for p in model.parameters() if p.requires_grad])
        chosen = Hyperparameters(
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            betas=self.betas,
            momentum=self.momentum,
        )
        return optimizers.build(self.optimizer, model, chosen)

    def rate_factor(self, step: int) -> float:
        """What multiplies the learning rate at a step, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        through = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        if self.decay == "linear":
            return 1 - through
        return 0.5 * (1 + math.cos(math.pi * through)) if self.decay == "cosine" else 1.0

    def as_dict(self) -> dict[str, Any]:
        """The settings as numbers and strings; functions as `describe` has them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: describe(v) if callable(v) else v for k, v in values.items()}
