"""One case of the zoo: a model, its batches, its loss and its optimizer, made anew at each call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

Make = Callable[[], nn.Module]
Optimizer = Callable[[Any], Any]


def sgd(lr: float = 0.05) -> Optimizer:
    """SGD with momentum."""
    return partial(torch.optim.SGD, lr=lr, momentum=0.9)


def adam(lr: float = 1e-3) -> Optimizer:
    """AdamW."""
    return partial(torch.optim.AdamW, lr=lr)


_SGD = sgd()


@dataclass(frozen=True)
class Case:
    """A model that is to be diagnosed, and how it is trained.

    ``make`` and ``batch`` draw from torch's global generator; ``loss`` takes output and batch.
    """

    name: str
    make: Make
    batch: Callable[[], Any]
    loss: Callable[[Any, Any], Tensor] | None
    optimizer: Optimizer = _SGD
    steps: int = 3

    def built(self) -> tuple[nn.Module, list[Any]]:
        """The model and its batches, the same at each call."""
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return self.make(), [self.batch() for _ in range(self.steps)]

    def objective(self, model: nn.Module, batch: Any) -> Tensor:
        """The scalar loss of a batch."""
        output = model(**batch) if isinstance(batch, dict) else model(batch[0])
        return output.loss if self.loss is None else self.loss(output, batch)


def classes(*shape: int, n: int = 5, scale: float = 1.0) -> Callable[[], tuple[Tensor, Tensor]]:
    """Normal inputs of this shape and class numbers."""
    return lambda: (torch.randn(*shape) * scale, torch.randint(0, n, (shape[0],)))


def tokens(batch: int, time: int, n: int = 32) -> Callable[[], tuple[Tensor, Tensor]]:
    """Token numbers, and the numbers that follow."""

    def make() -> tuple[Tensor, Tensor]:
        drawn = torch.randint(0, n, (batch, time + 1))
        return drawn[:, :-1], drawn[:, 1:]

    return make


def cross_entropy(output: Tensor, batch: Any) -> Tensor:
    """Of logits whose classes are last."""
    return F.cross_entropy(output.reshape(-1, output.shape[-1]), batch[1].reshape(-1))


def to_itself(output: Tensor, batch: Any) -> Tensor:
    """The squared error of a reconstruction."""
    return F.mse_loss(output, batch[0])


def contrast(temperature: float, *, normalised: bool) -> Callable[[Tensor, Any], Tensor]:
    """Each row against the others, turned by one: cross-entropy of their products."""

    def loss(output: Tensor, batch: Any) -> Tensor:
        features = F.normalize(output, dim=-1) if normalised else output
        logits = features @ features.roll(1, 1).mT / temperature
        return F.cross_entropy(logits, torch.arange(len(logits)))

    return loss


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """The function of ``x``."""
        return self.function(x)


def mlp(*middle: nn.Module, inputs: int = 16, width: int = 32, outputs: int = 5) -> nn.Module:
    """A perceptron with modules of one's own in the middle."""
    return nn.Sequential(
        nn.Linear(inputs, width), *(middle or (nn.ReLU(),)), nn.Linear(width, outputs)
    )
