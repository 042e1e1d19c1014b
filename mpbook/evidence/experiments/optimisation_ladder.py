"""From float32 to what the device can do, one change a rung: what each change is worth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch

from mpbook.device import sized
from mpbook.evidence.experiments.base import (
    Case,
    Experiment,
    Results,
    gpt_trainer,
    precision_of,
    timed_steps,
)
from mpbook.models import GPT2_124M, GPTConfig
from mpbook.training import training_step

_RUNGS: dict[str, Case] = {
    "float32": {"precision": "32-true", "fused": False, "compile": False, "padded": False},
    "tf32": {"precision": "tf32"},
    "bf16 autocast": {"precision": "bf16-mixed"},
    "compiled": {"compile": True},
    "fused AdamW": {"fused": True},
    "vocabulary of 50304": {"padded": True},
    "twice the batch": {"doubled": True},
}
"""Each rung changes what it names and keeps all before it."""


@dataclass(frozen=True)
class Config:
    """The model, the vocabulary padded to a multiple of 64, the batch, and the rungs."""

    model: GPTConfig
    padded_vocabulary: int
    batch: int
    readings: int
    rungs: tuple[str, ...] = tuple(_RUNGS)


def _config(device: torch.device) -> Config:
    if sized(cpu=True, gpu=False, device=device):
        small = GPTConfig(vocabulary=500, context=32, layers=1, width=32)
        rungs = ("float32", "bf16 autocast", "vocabulary of 50304")
        return Config(small, 512, 2, 3, rungs)
    return Config(GPT2_124M, 50304, 16, 15)


def _cases(config: Config, device: torch.device) -> list[Case]:
    cases: list[Case] = []
    settings: Case = {"doubled": False}
    for rung, change in _RUNGS.items():
        settings = {**settings, **change}
        if rung in config.rungs:
            cases.append({"rung": rung, **settings})
    return cases


def _measure(config: Config, case: Case, device: torch.device) -> Results:
    vocabulary = config.padded_vocabulary if case["padded"] else config.model.vocabulary
    model = replace(config.model, vocabulary=vocabulary)
    batch = config.batch * (2 if case["doubled"] else 1)
    precision = precision_of(case["precision"])
    options = {"compile": case["compile"], "fused": case["fused"]}
    with gpt_trainer(model, precision, device, **options) as trainer:
        step = partial(training_step, trainer)
        return timed_steps(step, model, batch, device, readings=config.readings)


EXPERIMENT = Experiment(
    name="optimisation_ladder",
    question="What is each change worth on the way from float32 to what the device can do?",
    config=_config,
    cases=_cases,
    measure=_measure,
    predicted_s={"cpu": 5, "cuda": 120},
)
