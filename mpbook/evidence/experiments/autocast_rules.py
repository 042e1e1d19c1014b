"""What autocast does to each operator on this device, in both 16-bit formats."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpbook.autocast.policy import measure_policy
from mpbook.evidence.experiments.base import Case, Experiment, Results


@dataclass(frozen=True)
class Config:
    """Which dtypes autocast casts to."""

    dtypes: tuple[str, ...] = ("float16", "bfloat16")


def _cases(config: Config, device: torch.device) -> list[Case]:
    return [{"dtype": dtype} for dtype in config.dtypes]


def _measure(config: Config, case: Case, device: torch.device) -> Results:
    return measure_policy(device, getattr(torch, case["dtype"])).as_dict()


EXPERIMENT = Experiment(
    name="autocast_rules",
    question="Which dtype does each operator compute in under autocast?",
    config=lambda device: Config(),
    cases=_cases,
    measure=_measure,
    predicted_s={"cpu": 5, "cuda": 10},
)
