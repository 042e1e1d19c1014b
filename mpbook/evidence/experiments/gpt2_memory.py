"""What training GPT-2 holds in memory, by precision and by batch, counted and as CUDA counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch

from mpbook.cost.measure import Memory, count_bytes, peak_memory, saved_for_backward, state_tensors
from mpbook.device import sized
from mpbook.evidence.experiments.base import (
    Case,
    Experiment,
    Results,
    gpt_trainer,
    precision_of,
    random_batches,
)
from mpbook.models import GPT2_124M, GPTConfig
from mpbook.training import training_step


@dataclass(frozen=True)
class Config:
    """The model and what is varied."""

    model: GPTConfig
    batches: tuple[int, ...]
    precisions: tuple[str, ...] = ("32-true", "16-mixed", "bf16-mixed", "bf16-true", "16-true")


def _config(device: torch.device) -> Config:
    if sized(cpu=True, gpu=False, device=device):
        small = GPTConfig(vocabulary=512, context=32, layers=2, width=64)
        return Config(small, (1, 2), ("32-true", "bf16-mixed", "bf16-true"))
    return Config(GPT2_124M, (1, 2, 4, 8, 16, 32, 64))


def _cases(config: Config, device: torch.device) -> list[Case]:
    return [{"precision": p, "batch": b} for p in config.precisions for b in config.batches]


def _measure(config: Config, case: Case, device: torch.device) -> Results:
    precision = precision_of(case["precision"])
    fused = device.type == "cuda"
    with gpt_trainer(config.model, precision, device, compile=False, fused=fused) as trainer:
        batches = random_batches(config.model, case["batch"], device, sets=2)
        with saved_for_backward(trainer.model) as saved:
            training_step(trainer, *batches[0])
        with peak_memory(device) as peak:
            training_step(trainer, *batches[1])
        parameters = list(trainer.model.parameters())
        memory = Memory(
            parameters=count_bytes(parameters),
            gradients=count_bytes(p.grad for p in parameters if p.grad is not None),
            optimizer_state=count_bytes(state_tensors(trainer.optimizer.state_dict()["state"])),
        )
        memory = replace(memory, saved_for_backward=saved())
        return {"memory": asdict(memory), "peak": peak()}


EXPERIMENT = Experiment(
    name="gpt2_memory",
    question="How much memory does training GPT-2 take, by precision and by batch?",
    config=_config,
    cases=_cases,
    measure=_measure,
    predicted_s={"cpu": 5, "cuda": 60},
)
