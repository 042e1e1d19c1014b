"""What 16-bit weights lose, and what the cures give back, at several learning rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mpbook.device import sized
from mpbook.evidence.experiments.base import Case, Experiment, Results
from mpbook.evidence.experiments.byte_gpt import ByteGPT, loss_results, sizes
from mpbook.precision import CURES, Precision, as_precision


@dataclass(frozen=True, kw_only=True)
class Config(ByteGPT):
    """A GPT on bytes, how long it trains, and what is varied."""

    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    updates: tuple[str, ...] = ("plain", *CURES)


def _config(device: torch.device) -> Config:
    if sized(cpu=True, gpu=False, device=device):
        return Config(**sizes(device), steps=10, seeds=(0,), learning_rates=(1e-3,))
    rates = (1e-3, 1e-4, 3e-5)
    return Config(**sizes(device), steps=300, seeds=(0, 1, 2), learning_rates=rates)


def _cases(config: Config, device: torch.device) -> list[Case]:
    names = ["32-true", *config.updates]
    return [
        {"weights": name, "learning_rate": rate, "seed": seed}
        for rate in config.learning_rates
        for seed in config.seeds
        for name in names
    ]


def _measure(config: Config, case: Case, device: torch.device) -> Results:
    run = config.train(
        config.model(case["seed"]),
        _precision(case["weights"]),
        learning_rate=case["learning_rate"],
        optimizer="adam",
        seed=case["seed"],
        count_lost_updates_every=max(1, config.steps // 5),
        device=device,
    )
    return loss_results(run) | {"updates_lost": [list(pair) for pair in run.updates_lost]}


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
