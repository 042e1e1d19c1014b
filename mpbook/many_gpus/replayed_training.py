"""A training whose gradients are added up over many ranks, replayed on one machine.

Every rank has its share of the same batch, and `mpbook.many_gpus.reductions.all_reduce` adds the
gradients up as the ranks would: in a dtype, in an order, rounded after each addition.  All else is
float32 and alike, so two trainings from the same seed differ by nothing but the reduction.

Taught in the chapter "Many GPUs".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from mpbook.data import Data
from mpbook.many_gpus.reductions import Algorithm, Average, all_reduce


@dataclass(frozen=True)
class Replayed:
    """What became of a training, and of its gradients on the way.

    ``losses`` has a mean over the ranks for each step; ``validation_loss`` is NaN without held-out
    data.  For each step ``errors`` has the relative error of the reduced gradient, and ``lengths``
    its norm over that of the exact mean.
    """

    losses: tuple[float, ...]
    validation_loss: float
    errors: tuple[float, ...]
    lengths: tuple[float, ...]


def rank_gradients(
    model: nn.Module, inputs: Tensor, targets: Tensor, *, ranks: int
) -> tuple[Tensor, Tensor]:
    """What each rank would send: the gradients of its share of a batch.

    Args:
        model: gives logits, the classes last; without dropout or batch norm, which no two ranks
            would have alike.
        inputs: a batch, its examples first.
        targets: a class for each row of logits, int64.
        ranks: how many share the batch, each an equal number of examples in order.

    Returns:
        Gradients of the mean cross-entropy, float32 of shape (ranks, parameters) in the order of
        ``model.parameters()``, and the losses, of shape (ranks,).

    Raises:
        ValueError: examples that the ranks do not divide.
    """
    examples = len(inputs)
    if ranks < 1 or examples % ranks:
        raise ValueError(f"ranks={ranks}: expected a divisor of the {examples} examples")
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(model, weights, (x,))
        return cross_entropy(logits.flatten(0, -2), y.flatten())

    shares = inputs.unflatten(0, (ranks, -1)), targets.unflatten(0, (ranks, -1))
    with sdpa_kernel(SDPBackend.MATH):  # the kernel that vmap has a rule for
        gradients, losses = vmap(grad_and_value(loss), in_dims=(None, 0, 0))(weights, *shares)
    return torch.cat([gradients[name].flatten(1) for name in weights], dim=1), losses


def train_over_ranks(
    model: nn.Module,
    data: Data,
    *,
    ranks: int,
    dtype: torch.dtype,
    algorithm: Algorithm = "ring",
    average: Average = "after",
    steps: int = 40,
    batch_size: int = 1024,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
    seed: int = 0,
) -> Replayed:
    """Train in float32, with gradients that are reduced in a dtype over replayed ranks.

    Args:
        model: float32; it is trained in place.
        data: examples with classes.
        ranks: of the data-parallel group.
        dtype: float32, bfloat16 or float16: what gradients are sent and added up in.
        algorithm: in which order, as for `all_reduce`.
        average: where to divide by the number of ranks, as for `all_reduce`.
        steps: updates.
        batch_size: examples a step, of all ranks together; the ranks divide it.
        optimizer: made of the parameters; AdamW at a rate of 3e-3 when not given.
        seed: of the batches.

    Raises:
        ValueError: a batch that the ranks do not divide, or what `all_reduce` refuses.
    """
    parameters = list(model.parameters())
    update = (optimizer or _adamw)(parameters)
    generator = torch.Generator().manual_seed(seed)
    losses, errors, lengths = [], [], []
    for _ in range(steps):
        inputs, targets = data.sample(batch_size, generator)
        sent, of_ranks = rank_gradients(model, inputs, targets, ranks=ranks)
        mean = all_reduce(sent, dtype=dtype, algorithm=algorithm, average=average).float()
        for p, gradient in zip(
            parameters, mean.split([p.numel() for p in parameters]), strict=True
        ):
            p.grad = gradient.view_as(p)
        update.step()
        losses.append(of_ranks.mean().item())
        exact = sent.double().mean(0)
        errors.append(((mean - exact).norm() / exact.norm()).item())
        lengths.append((mean.norm() / exact.norm()).item())
    held_out = _validation_loss(model, data, batch_size)
    return Replayed(tuple(losses), held_out, tuple(errors), tuple(lengths))


def _adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3)


@torch.no_grad()
def _validation_loss(model: nn.Module, data: Data, batch_size: int) -> float:
    total, count = 0.0, 0
    for inputs, targets in data.validation(batch_size):
        loss = cross_entropy(model(inputs).flatten(0, -2), targets.flatten(), reduction="sum")
        total, count = total + loss.item(), count + targets.numel()
    return total / count if count else math.nan
