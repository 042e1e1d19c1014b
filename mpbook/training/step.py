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

On several ranks every micro-batch is cut into a part for each (`mpbook.training.parallel`), and the
gradients are averaged once, after the last.
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
from mpbook.shards import groups_of, own_part
from mpbook.training.parallel import (
    ALONE,
    Parallel,
    Ranks,
    check_not_parallel_yet,
    check_optimizer,
    share_among_ranks,
)
from mpbook.training.settings import Loss, Settings


@dataclass
class Trainer:
    """What changes during a run: the model, the optimizer, the loss scale, the random states.

    On several ranks ``model`` is the module itself, without DDP's wrapper, and ``autocast`` the
    precision that is left for it where a policy of `fully_shard` casts.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: StaticLossScaler
    precision: Precision
    settings: Settings
    device: torch.device
    generator: torch.Generator
    compiled: bool = False
    ranks: Ranks = ALONE
    autocast: Precision | None = None

    def __post_init__(self) -> None:
        # The loss function too: float32 logits are the largest tensor of a language model.
        self._loss_of = compiled(loss_of) if self.compiled else loss_of

    def loss(self, inputs: Any, targets: Any) -> Tensor:
        """The loss of a batch: the model in its precision, the loss function in float32."""
        model, precision = self.ranks.engine or self.model, self.autocast or self.precision
        return self._loss_of(model, precision, self.settings.loss, inputs, targets)


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

    Args:
        trainer: of `prepare`.
        inputs: of the batch; on several ranks of the whole one, of which each takes its part.
        targets: of the same batch.

    Returns:
        The loss, a mean over the micro-batches and the ranks, and the norm of the unscaled
        gradients, as 0-dimensional float32 tensors, and whether the weights were updated.

    Raises:
        ValueError: a batch that does not divide into the micro-batches, or one of those that does
            not divide among the ranks.
    """
    scaler, optimizer, ranks = trainer.scaler, trainer.optimizer, trainer.ranks
    micro_batches = split(inputs, targets, trainer.settings.accumulation_steps)
    optimizer.zero_grad()

    total = torch.zeros((), device=trainer.device)
    for number, micro_batch in enumerate(micro_batches, 1):
        with ranks.accumulating(last=number == len(micro_batches)):
            loss = trainer.loss(*ranks.share(*micro_batch)) / len(micro_batches)  # in 16 bits
            scaler.scale(loss).backward()  # in 16 bits
        total += loss.detach()

    scaler.unscale_(optimizer)  # in float32
    gradients = gradients_of(optimizer)
    norm = gradient_norm(gradients)
    if trainer.settings.clip_norm is not None:
        clip(gradients, norm, trainer.settings.clip_norm)

    updated = scaler.step(optimizer)  # in float32, if the weights are
    scaler.update()
    ranks.agree_on_amax(trainer.model)
    advance(trainer.model)  # the delayed scales of quantised layers, if there are any
    return ranks.total(total) / ranks.count, norm, updated


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
    """Euclidean norm of all gradients together, computed in float32; of all parts on all ranks."""
    numbers = map(numbers_of, gradients)
    norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in numbers]
    norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.tensor(0.0)
    for group in groups_of(gradients):
        square = norm.double().square()  # of any float32 number without overflow
        torch.distributed.all_reduce(square, group=group)
        norm = square.sqrt().float()
    return norm


def clip(gradients: Sequence[Tensor], norm: Tensor, largest: float) -> None:
    """Scale the gradients down in place so that their norm is at most ``largest``."""
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        values = gradient._values() if gradient.is_sparse else own_part(gradient)
        values.mul_(factor.to(values.dtype))


def prepare(
    model: nn.Module,
    precision: Precision,
    settings: Settings,
    device: torch.device,
    *,
    compile: bool = False,
    parallel: Parallel | None = None,
) -> Trainer:
    """A copy of the model in its precision, with optimizer, loss scaler and generators.

    For a loop of your own around `training_step`; run it inside `environment`.

    Raises:
        ValueError: a model with nothing to train; with ``parallel``, as `share_among_ranks`.
        RuntimeError, TypeError: as `share_among_ranks`.
    """
    check_not_parallel_yet(model)
    copied = deep_copy(model, what="model")
    ours = cast_module(copied.to(device), precision.parameter_dtype).train()
    if not any(p.requires_grad for p in ours.parameters()):
        raise ValueError(f"model: {type(model).__name__} has no trainable parameters")
    if precision.recipe is not None:
        ours = convert(ours, precision.recipe)
    ranks, left = ALONE, precision
    if parallel is not None:
        ranks, left = share_among_ranks(ours, parallel, precision)
        ranks.seed(settings.seed)
    made = settings.make_optimizer(ours)
    check_optimizer(made, ranks)
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
        ranks=ranks,
        autocast=left,
    )


def _prepare_scaler(precision: Precision, settings: Settings) -> StaticLossScaler:
    if precision.loss_scale is None:
        return NoLossScaler()
    if precision.loss_scale == "dynamic":
        return DynamicLossScaler(growth_interval=settings.loss_scale_growth_interval)
    return StaticLossScaler(float(precision.loss_scale))
