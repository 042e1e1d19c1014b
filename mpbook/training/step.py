"""One step of training in a precision: the whole of mixed-precision training on one screen.

`training_step` is autocast, scale, backward, unscale, and an update that is skipped when a gradient
is not finite.

With ``accumulation_steps=N`` the batch goes through the model in N micro-batches.  Each one's mean
loss is divided by N, so that the gradients add up to those of the whole batch, and all of them are
scaled alike; unscale, clip, step and update come once, after the last, and an infinity in any of
them skips the step.  The gradients add up in ``parameter.grad``, which has the parameter's dtype
unless ``parameter.grad_dtype`` says otherwise:

* float32 weights, autocast included: float32.  (Autocast casts the weights anew each time.)
* 16-bit weights, with master weights or without: 16 bits, and every addition rounds.  The
  relative error grows with their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpbook.copies import deep_copy
from mpbook.device import compiled
from mpbook.loss_scaling import DynamicLossScaler, NoLossScaler, StaticLossScaler, gradients_of
from mpbook.loss_scaling.gradients import numbers_of
from mpbook.low_precision import advance, convert
from mpbook.master_weights import cured
from mpbook.nests import called, chunks, length, mapped, real_floats_to, tensors
from mpbook.precision import Precision, autocast, cast_module
from mpbook.training.settings import Loss, Settings


@dataclass
class Trainer:
    """What changes during a run: the model, the optimizer, the loss scale, the random states."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: StaticLossScaler
    precision: Precision
    settings: Settings
    device: torch.device
    generator: torch.Generator
    compiled: bool = False

    def __post_init__(self) -> None:
        # The loss function too: float32 logits are the largest tensor of a language model.
        self._loss_of = compiled(loss_of) if self.compiled else loss_of

    def loss(self, inputs: Any, targets: Any) -> Tensor:
        """The loss of a batch: the model in its precision, the loss function in float32."""
        return self._loss_of(self.model, self.precision, self.settings.loss, inputs, targets)


def loss_of(
    model: nn.Module, precision: Precision, loss: Loss, inputs: Any, targets: Any
) -> Tensor:
    """The loss of a batch: the model in a precision, the loss function in float32.

    Inputs, outputs and targets may be nests (`mpbook.nests`): a tuple of inputs goes to the model
    by position, a mapping by name.  Complex numbers stay as they are.
    """
    device = next(tensors((inputs, targets))).device
    inputs = mapped(real_floats_to(precision.parameter_dtype), inputs)
    with autocast(precision, device):
        outputs = called(model, inputs)
    return loss(mapped(real_floats_to(torch.float32), outputs), targets)


def training_step(
    trainer: Trainer,
    inputs: Any,
    targets: Any,
) -> tuple[Tensor, Tensor, bool]:
    """One step of training: the recipe of this book.

    Returns:
        The loss, a mean over the micro-batches, and the norm of the unscaled gradients, as
        0-dimensional float32 tensors, and whether the weights were updated.

    Raises:
        ValueError: a batch that does not divide into the micro-batches.
    """
    scaler, optimizer = trainer.scaler, trainer.optimizer
    micro_batches = split(inputs, targets, trainer.settings.accumulation_steps)
    optimizer.zero_grad()

    total = torch.zeros((), device=trainer.device)
    for some_inputs, some_targets in micro_batches:
        loss = trainer.loss(some_inputs, some_targets) / len(micro_batches)  # forward in 16 bits
        scaler.scale(loss).backward()  # backward in 16 bits
        total += loss.detach()

    scaler.unscale_(optimizer)  # in float32
    gradients = gradients_of(optimizer)
    norm = gradient_norm(gradients)
    if trainer.settings.clip_norm is not None:
        clip(gradients, norm, trainer.settings.clip_norm)

    updated = scaler.step(optimizer)  # in float32, if the weights are
    scaler.update()
    advance(trainer.model)  # the delayed scales of quantised layers, if there are any
    return total, norm, updated


def split(inputs: Any, targets: Any, parts: int) -> list[tuple[Any, Any]]:
    """A batch as micro-batches of one size.

    Raises:
        ValueError: a batch that does not divide, or whose tensors differ in their length.
    """
    if parts == 1:
        return [(inputs, targets)]
    examples = length((inputs, targets))
    if examples % parts:
        raise ValueError(
            f"accumulation_steps={parts}: a batch of {examples} does not divide into as many "
            "micro-batches of one size"
        )
    return list(zip(chunks(inputs, parts), chunks(targets, parts), strict=True))


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together, computed in float32."""
    numbers = map(numbers_of, gradients)
    norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in numbers]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.tensor(0.0)


def clip(gradients: Sequence[Tensor], norm: Tensor, largest: float) -> None:
    """Scale the gradients down in place so that their norm is at most ``largest``."""
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        values = gradient._values() if gradient.is_sparse else gradient
        values.mul_(factor.to(values.dtype))


def prepare(
    model: nn.Module,
    precision: Precision,
    settings: Settings,
    device: torch.device,
    *,
    compile: bool = False,
) -> Trainer:
    """A copy of the model in its precision, with optimizer, loss scaler and generators.

    For a loop of your own around `training_step`; run it inside `environment`.

    Raises:
        ValueError: a model with nothing to train.
    """
    copied = deep_copy(model, what="model")
    ours = cast_module(copied.to(device), precision.parameter_dtype).train()
    if not any(p.requires_grad for p in ours.parameters()):
        raise ValueError(f"model: {type(model).__name__} has no trainable parameters")
    if precision.recipe is not None:
        ours = convert(ours, precision.recipe)
    made = settings.make_optimizer(ours)
    optimizer = cured(made, precision.weight_update, seed=settings.seed + 1)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return Trainer(
        model=ours,
        optimizer=optimizer,
        scaler=_prepare_scaler(precision, settings),
        precision=precision,
        settings=settings,
        device=device,
        generator=torch.Generator().manual_seed(settings.seed),
        compiled=compile,
    )


def _prepare_scaler(precision: Precision, settings: Settings) -> StaticLossScaler:
    if precision.loss_scale is None:
        return NoLossScaler()
    if precision.loss_scale == "dynamic":
        return DynamicLossScaler(growth_interval=settings.loss_scale_growth_interval)
    return StaticLossScaler(float(precision.loss_scale))
