"""Small models to watch, and steps of training them: for the tests of `mpbook.watch`."""

import torch
from torch import nn

from mpbook.models import MLP
from mpbook.watch.histograms import Histogram, log2_histogram

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def small_mlp(device: str = "cpu") -> nn.Sequential:
    torch.manual_seed(0)
    return MLP(6, 8, 8, 3).to(device)


def batch(seed: int = 0, device: str = "cpu") -> torch.Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(seed)).to(device)


def backward(model: nn.Module, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    loss = model(x).square().mean()
    (loss * scale).backward()
    return loss


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> torch.Tensor:
    optimizer.zero_grad()
    loss = backward(model, x)
    optimizer.step()
    return loss


def together(tensors) -> Histogram:
    return sum(map(log2_histogram, tensors), Histogram())


class Wrapped(nn.Module):
    """Calls one module in a way of its own."""

    def __init__(self, inner: nn.Module, forward):
        super().__init__()
        self.inner = inner
        self.way = forward

    def forward(self, x):
        return self.way(self.inner, x)


class Puts(nn.Module):
    """A module without parameters that puts out what a function makes of its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)
