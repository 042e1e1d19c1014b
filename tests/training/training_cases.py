"""What the tests of training share: data, a model, and the precisions."""

from dataclasses import replace

import torch
from torch import nn

from mpbook.data import Examples
from mpbook.precision import PRECISIONS, Precision

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
NAMES = ["32-true", "16-mixed", "bf16-mixed", "bf16-true"]
CURES = [
    Precision("bf16 master", torch.bfloat16, torch.bfloat16, weight_update="master_weights"),
    Precision("bf16 random", torch.bfloat16, torch.bfloat16, weight_update="stochastic_rounding"),
    Precision("bf16 kahan", torch.bfloat16, torch.bfloat16, weight_update="kahan_summation"),
    replace(PRECISIONS["16-true"], weight_update="master_weights", loss_scale=1024.0),
]


def data(seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(96, 12, generator=generator)
    y = (x @ torch.randn(12, 3, generator=generator)).argmax(-1)
    return Examples(x[:80], y[:80], x[80:], y[80:], name="made up")


def model(dropout: float = 0.0, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(12, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3)]
    return nn.Sequential(*layers)


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().cpu().clone() for p in module.parameters()]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
