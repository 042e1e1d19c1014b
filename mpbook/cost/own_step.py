"""One training step of any model, on a copy: what a measured plan and a counted step run.

`mpbook.training.train` trains; this makes one step of a given size, so that it can be watched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpbook.copies import deep_copy
from mpbook.distributed import BEFORE_SHARDING, is_data_parallel, refuse_sharded
from mpbook.master_weights import Float32Updates, cured
from mpbook.nests import called, length, mapped, real_floats_to, tensors
from mpbook.optimizers import Hyperparameters, build
from mpbook.precision import Precision, autocast, cast_module

Loss = Callable[[Any, Any], Tensor]
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass
class OwnStep:
    """A copy of a model in a precision, with its optimizer and a batch, ready to make a step.

    ``batch`` is a pair of inputs and targets; the loss takes the model's float32 outputs and the
    targets.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision
    loss: Loss
    batch: tuple[Any, Any]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def forward(self) -> Tensor:
        """The loss of the batch."""
        inputs, targets = self.batch
        inputs = mapped(real_floats_to(self.precision.parameter_dtype), inputs)
        with autocast(self.precision, self.device):
            outputs = called(self.model, inputs)
        return self.loss(mapped(real_floats_to(torch.float32), outputs), targets)

    def kept(self) -> dict[str, list[Tensor]]:
        """The tensors that stay from step to step, by category."""
        copies = self.optimizer.kept.values() if isinstance(self.optimizer, Float32Updates) else ()
        return {
            "parameters": [*self.model.parameters(), *self.model.buffers()],
            "master copies": list(copies),
            "optimizer state": list(tensors(dict(self.optimizer.state))),
            "batch": list(tensors(self.batch)),
        }


def prepare_step(
    model: nn.Module,
    batch: tuple[Any, Any],
    loss: Loss,
    *,
    batch_size: int,
    precision: Precision,
    optimizer: str | MakeOptimizer = "adamw",
) -> OwnStep:
    """A copy of a model with a batch of so many examples.

    Args:
        model: stays as it is.
        batch: inputs and targets, whose examples are repeated or left out to make the size.
        loss: of float32 outputs and targets, to a scalar.
        batch_size: examples.
        precision: which.
        optimizer: a name of `mpbook.optimizers.OPTIMIZERS`, or a function from parameters.

    Raises:
        TypeError: a batch that is no pair.
        ValueError: a size below 1, a model with nothing to train, or one that ranks share.
    """
    refuse_sharded(model, instead=BEFORE_SHARDING)
    if is_data_parallel(model):
        raise ValueError(
            f"model: a {type(model).__name__}, whose buckets and all-reduce are not a step's own; "
            "expected model.module, and what lies between the ranks planned by mpbook.many_gpus"
        )
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise TypeError(f"batch: a {type(batch).__name__}, expected a pair (inputs, targets)")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"model: {type(model).__name__} has no trainable parameters")
    ours = cast_module(deep_copy(model, what="model"), precision.parameter_dtype).train()
    order = torch.arange(batch_size) % length(batch)
    sized = mapped(lambda t: t[order.to(t.device)] if t.dim() else t, (batch[0], batch[1]))
    made = (
        build(optimizer, ours, Hyperparameters())
        if isinstance(optimizer, str)
        else optimizer([p for p in ours.parameters() if p.requires_grad])
    )
    return OwnStep(ours, cured(made, precision.weight_update, seed=0), precision, loss, sized)
