"""What 16-bit weights lose, and what the cures give back, at several learning rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mpbook.data import standard_library
from mpbook.experiments.base import Case, Experiment, Results
from mpbook.models import GPT, GPTConfig
from mpbook.precision import Precision, as_precision
from mpbook.training import train


@dataclass(frozen=True)
class Config:
    """A GPT on bytes, how long it trains, and what is varied."""

    layers: int
    width: int
    context: int
    batch_size: int
    steps: int
    megabytes: float | None
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    updates: tuple[str, ...] = ("plain", "master_weights", "stochastic_rounding", "kahan_summation")


def _config(device: torch.device) -> Config:
    if device.type != "cuda":
        return Config(1, 32, 32, 8, 10, 0.5, (0,), (1e-3,))
    return Config(4, 256, 256, 32, 300, None, (0, 1, 2), (1e-3, 1e-4, 3e-5))


def _cases(config: Config, device: torch.device) -> list[Case]:
    names = ["32-true", *config.updates]
    return [
        {"weights": name, "learning_rate": rate, "seed": seed}
        for rate in config.learning_rates
        for seed in config.seeds
        for name in names
    ]


def _measure(config: Config, case: Case, device: torch.device) -> Results:
    torch.manual_seed(case["seed"])
    shape = GPTConfig(context=config.context, layers=config.layers, width=config.width)
    run = train(
        GPT(shape),
        standard_library(sequence_length=config.context, megabytes=config.megabytes),
        precision=_precision(case["weights"]),
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=case["learning_rate"],
        optimizer="adam",
        seed=case["seed"],
        count_lost_updates_every=max(1, config.steps // 5),
        device=device,
        progress=False,
    )
    return loss_results(run) | {"updates_lost": [list(pair) for pair in run.updates_lost]}


def loss_results(run: Any) -> Results:
    """The losses of a run, as a record keeps them: NaN and infinity become None."""
    finite = torch.tensor(run.losses, dtype=torch.float64).isfinite().tolist()
    losses = [x if ok else None for x, ok in zip(run.losses, finite, strict=True)]
    validation = run.validation_loss
    return {
        "losses": losses,
        "validation_loss": validation if abs(validation) < float("inf") else None,
    }


def _precision(weights: str) -> Precision:
    if weights == "32-true":
        return as_precision(weights)
    bfloat16: dict[str, Any] = dict(parameter_dtype=torch.bfloat16, compute_dtype=torch.bfloat16)
    return Precision(f"bf16, {weights}", weight_update=weights, **bfloat16)  # type: ignore[arg-type]


EXPERIMENT = Experiment(
    name="lost_weight_updates",
    question="What do 16-bit weights lose by rounding, and what do the cures give back?",
    config=_config,
    cases=_cases,
    measure=_measure,
    predicted_s={"cpu": 10, "cuda": 150},
)
