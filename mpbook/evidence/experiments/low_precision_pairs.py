"""How far training in eight and four bits ends from bfloat16, in pairs of one seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mpbook.device import sized
from mpbook.evidence.experiments.base import Case, Experiment, Results
from mpbook.evidence.experiments.byte_gpt import ByteGPT, loss_results, sizes
from mpbook.training.nudge import nudged

BASELINE = "bf16-mixed"
NUDGE = "1-ulp nudge"


@dataclass(frozen=True, kw_only=True)
class Config(ByteGPT):
    """A GPT on bytes, how long it trains, and from how many seeds."""

    seeds: int = 13  # a side, as the largest published comparison of this kind has
    precisions: tuple[str, ...] = (
        BASELINE,
        NUDGE,
        "float8_tensorwise-mixed",
        "float8_blockwise-mixed",
        "mxfp8-mixed",
        "mxfp4-mixed",
        "nvfp4-mixed",
    )


def _config(device: torch.device) -> Config:
    if sized(cpu=True, gpu=False, device=device):
        pair = (BASELINE, "mxfp8-mixed")
        return Config(**sizes(device), steps=5, seeds=1, precisions=pair)
    return Config(**sizes(device), steps=400)


def _cases(config: Config, device: torch.device) -> list[Case]:
    return [{"precision": p, "seed": s} for s in range(config.seeds) for p in config.precisions]


def _measure(config: Config, case: Case, device: torch.device) -> Results:
    model: nn.Module = config.model(case["seed"])
    precision = case["precision"]
    if precision == NUDGE:  # the baseline again, from a start that differs in the last digit
        model, precision = nudged(model, dtype=torch.float32), BASELINE
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
    name="low_precision_pairs",
    question="How far from bfloat16 does training in 8 or 4 bits end, seed by seed?",
    config=_config,
    cases=_cases,
    measure=_measure,
    predicted_s={"cpu": 10, "cuda": 600},
)
