"""How far bfloat16 and float16 end from float32, in pairs of one seed and one order of batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mpbook.device import sized
from mpbook.evidence.experiments.base import Case, Experiment, Results
from mpbook.evidence.experiments.byte_gpt import ByteGPT, loss_results, sizes
from mpbook.training.nudge import nudged


@dataclass(frozen=True, kw_only=True)
class Config(ByteGPT):
    """A GPT on bytes, how long it trains, and from how many seeds."""

    seeds: int
    precisions: tuple[str, ...] = ("32-true", "1-ulp nudge", "tf32", "bf16-mixed", "16-mixed")


def _config(device: torch.device) -> Config:
    if sized(cpu=True, gpu=False, device=device):
        pair = ("32-true", "bf16-mixed")
        return Config(**sizes(device), steps=5, seeds=1, precisions=pair)
    return Config(**sizes(device), steps=400, seeds=10)


def _cases(config: Config, device: torch.device) -> list[Case]:
    return [{"precision": p, "seed": s} for s in range(config.seeds) for p in config.precisions]


def _measure(config: Config, case: Case, device: torch.device) -> Results:
    model: nn.Module = config.model(case["seed"])
    precision = case["precision"]
    if precision == "1-ulp nudge":  # float32 again, from a start that differs in the last digit
        model, precision = nudged(model, dtype=torch.float32), "32-true"
    run = config.train(
        model,
        precision,
        learning_rate=1e-3,
        warmup_steps=min(20, config.steps),
        decay="cosine",
        seed=case["seed"],
        device=device,
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
