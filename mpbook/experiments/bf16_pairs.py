"""How far bfloat16 and float16 end from float32, in pairs of one seed and one order of batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mpbook.data import standard_library
from mpbook.experiments.base import Case, Experiment, Results
from mpbook.experiments.lost_weight_updates import loss_results
from mpbook.models import GPT, GPTConfig
from mpbook.nudge import nudged
from mpbook.training import train


@dataclass(frozen=True)
class Config:
    """A GPT on bytes, how long it trains, and from how many seeds."""

    layers: int
    width: int
    context: int
    batch_size: int
    steps: int
    megabytes: float | None
    seeds: int
    precisions: tuple[str, ...] = ("32-true", "1-ulp nudge", "tf32", "bf16-mixed", "16-mixed")


def _config(device: torch.device) -> Config:
    if device.type != "cuda":
        return Config(1, 32, 32, 8, 5, 0.5, seeds=1, precisions=("32-true", "bf16-mixed"))
    return Config(4, 256, 256, 32, 400, None, seeds=10)


def _cases(config: Config, device: torch.device) -> list[Case]:
    return [{"precision": p, "seed": s} for s in range(config.seeds) for p in config.precisions]


def _measure(config: Config, case: Case, device: torch.device) -> Results:
    torch.manual_seed(case["seed"])
    shape = GPTConfig(context=config.context, layers=config.layers, width=config.width)
    model: nn.Module = GPT(shape)
    precision = case["precision"]
    if precision == "1-ulp nudge":  # float32 again, from a start that differs in the last digit
        model, precision = nudged(model, dtype=torch.float32), "32-true"
    run = train(
        model,
        standard_library(sequence_length=config.context, megabytes=config.megabytes),
        precision=precision,
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=1e-3,
        warmup_steps=min(20, config.steps),
        decay="cosine",
        seed=case["seed"],
        device=device,
        progress=False,
    )
    return loss_results(run) | {"seconds": run.seconds}


EXPERIMENT = Experiment(
    name="bf16_pairs",
    question="How far from float32 does a 16-bit precision end, seed by seed?",
    config=_config,
    cases=_cases,
    measure=_measure,
    predicted_s={"cpu": 10, "cuda": 240},
)
