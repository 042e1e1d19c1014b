"""A training on many simulated ranks, in which nothing but the reduction of the gradients differs.

Each step draws one batch, whatever the number of ranks, and every rank has an equal share of it.
Gradients and weights are float32; `mpbook.many_gpus.reductions` adds the gradients up in a dtype
and an order.  In exact arithmetic all of these trainings are the same one.

Taught in the chapter "Many GPUs".
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from mpbook.data import digits
from mpbook.many_gpus.reductions import Algorithm, all_reduce
from mpbook.models import MLP


@dataclass(frozen=True)
class Trained:
    """Where it ended, and how the reduced gradients compared with exact means of the same parts.

    ``loss`` is on held-out digits.  ``error`` is the relative error of a step's gradient and
    ``length`` its length as a multiple of the exact one's, both as means over the steps.
    """

    loss: float
    error: float
    length: float


def train_on_ranks(
    ranks: int,
    *,
    dtype: torch.dtype,
    algorithm: Algorithm = "ring",
    seed: int = 0,
    steps: int = 20,
    batch_size: int = 1024,
    learning_rate: float = 0.5,
) -> Trained:
    """Train a net on handwritten digits by plain SGD.

    Args:
        ranks: among whom each batch is shared.
        dtype: float32, bfloat16 or float16, of the reduction alone.
        algorithm: the order of the additions.
        seed: of the weights and the batches.
        steps: updates.
        batch_size: examples a step, of all ranks together; they divide it.
        learning_rate: of SGD.

    Raises:
        ValueError: a batch that the ranks do not divide, or what `all_reduce` refuses.
    """
    if ranks < 1 or batch_size % ranks:
        raise ValueError(f"ranks={ranks}: expected a divisor of batch_size={batch_size}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MLP(64, 16, 10)
    weights, data = _flat(net), digits()
    generator = torch.Generator().manual_seed(seed)
    gradient = vmap(grad(lambda w, x, y: _loss(net, w, x, y)), in_dims=(None, 0, 0))
    errors, lengths = [], []
    for _ in range(steps):
        inputs, targets = data.sample(batch_size, generator)
        parts = gradient(weights, inputs.view(ranks, -1, 64), targets.view(ranks, -1))
        mean = all_reduce(parts, dtype=dtype, algorithm=algorithm).float()
        exact = parts.double().mean(0)
        errors.append(float((mean - exact).norm() / exact.norm()))
        lengths.append(float(mean.norm() / exact.norm()))
        weights = weights - learning_rate * mean
    ((inputs, targets),) = data.validation(1000)
    loss = float(_loss(net, weights, inputs, targets))
    return Trained(loss, statistics.fmean(errors), statistics.fmean(lengths))


def _flat(net: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def _loss(net: nn.Module, weights: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """Of the net with all its weights in one vector, as gradients travel."""
    named = dict(net.named_parameters())
    parts = weights.split([parameter.numel() for parameter in named.values()])
    tensors = {
        name: part.view(parameter.shape)
        for (name, parameter), part in zip(named.items(), parts, strict=True)
    }
    return cross_entropy(functional_call(net, tensors, inputs), targets)
