"""Runs that nobody trained, and a model and data that train at once: for tests of comparisons."""

from dataclasses import replace

import torch
from torch import nn

from mpbook.data import Examples
from mpbook.models import MLP
from mpbook.precision import PRECISIONS
from mpbook.training.comparison import Comparison
from mpbook.training.run import Run

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
SETTINGS = dict(steps=4, batch_size=8, learning_rate=0.01, device="cpu")


def data(*, held_out: int = 16) -> Examples:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=generator)
    y = (x[:, 0] > 0).long()
    split = 64 - held_out
    return Examples(x[:split], y[:split], x[split:], y[split:], name="made up")


def model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return MLP(6, 8, 2)


def run(
    loss: float, *, name: str = "32-true", steps: int = 20, speed: float = 100.0, **options
) -> Run:
    """A run that ended on this loss, and validated on one tenth more."""
    made = Run(PRECISIONS[name], {"data": "made up"}, losses=[loss] * steps, items_per_second=speed)
    made.validation_losses = [(steps, 1.1 * loss)]
    return replace(made, **options)


def made_up(seeds: int = 3, **runs: list[Run]) -> Comparison:
    """A comparison with a baseline of 2.0, 4.0, 6.0 ... and the runs given."""
    base = [run(2.0 * (seed + 1)) for seed in range(seeds)]
    named = {name.replace("_", "-"): made for name, made in runs.items()}
    return Comparison({"32-true": base, **named}, tuple(range(seeds)), "32-true")


def bf16(*losses: float, **options) -> list[Run]:
    return [run(loss, name="bf16-mixed", **options) for loss in losses]


def rows(table) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
