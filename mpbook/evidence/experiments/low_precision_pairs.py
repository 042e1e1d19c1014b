"""How far training in eight and four bits ends from bfloat16, in pairs of one seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpbook.device import sized
from mpbook.evidence.experiments.base import Experiment
from mpbook.evidence.experiments.byte_gpt import NUDGE, Pairs, sizes

BASELINE = "bf16-mixed"


@dataclass(frozen=True, kw_only=True)
class Config(Pairs):
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


EXPERIMENT = Experiment(
    name="low_precision_pairs",
    question="How far from bfloat16 does training in 8 or 4 bits end, seed by seed?",
    config=_config,
    cases=lambda config, device: config.cases(),
    measure=lambda config, case, device: config.measure(case, device),
    predicted_s={"cpu": 10, "cuda": 600},
)
