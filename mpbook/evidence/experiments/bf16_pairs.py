"""How far bfloat16 and float16 end from float32, in pairs of one seed and one order of batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpbook.device import sized
from mpbook.evidence.experiments.base import Experiment
from mpbook.evidence.experiments.byte_gpt import NUDGE, Pairs, sizes


@dataclass(frozen=True, kw_only=True)
class Config(Pairs):
    """A GPT on bytes, how long it trains, and from how many seeds."""

    precisions: tuple[str, ...] = ("32-true", NUDGE, "tf32", "bf16-mixed", "16-mixed")


def _config(device: torch.device) -> Config:
    if sized(cpu=True, gpu=False, device=device):
        pair = ("32-true", "bf16-mixed")
        return Config(**sizes(device), steps=5, seeds=1, precisions=pair)
    return Config(**sizes(device), steps=400, seeds=10)


EXPERIMENT = Experiment(
    name="bf16_pairs",
    question="How far from float32 does a 16-bit precision end, seed by seed?",
    config=_config,
    cases=lambda config, device: config.cases(),
    measure=lambda config, case, device: config.measure(case, device),
    predicted_s={"cpu": 10, "cuda": 240},
)
