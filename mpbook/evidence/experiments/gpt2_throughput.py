"""How many tokens a second GPT-2 trains on, by precision, eager and compiled.

A plain loop of PyTorch's own parts (autocast, GradScaler, fused AdamW, the compiled loss), written
as nanoGPT's is, runs beside the book's on the same card, so that the book's is held to something.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from mpbook.device import compiled, sized
from mpbook.device import name as device_name
from mpbook.device_facts import dense_peak
from mpbook.evidence.experiments.base import (
    FP8_NATIVE,
    Case,
    Experiment,
    Results,
    gpt_trainer,
    precision_of,
    timed_steps,
)
from mpbook.models import GPT2_124M, GPTConfig
from mpbook.precision import Precision
from mpbook.training import Trainer, training_step


@dataclass(frozen=True)
class Config:
    """The model, the batch, and what is varied."""

    model: GPTConfig
    batch: int
    readings: int
    vocabularies: tuple[int, ...]
    modes: tuple[str, ...]
    precisions: tuple[str, ...] = (
        "32-true",
        "tf32",
        "16-mixed",
        "bf16-mixed",
        "bf16-true",
        "bf16-true-stochastic",
        FP8_NATIVE.name,
    )


def _config(device: torch.device) -> Config:
    if sized(cpu=True, gpu=False, device=device):
        small = GPTConfig(vocabulary=512, context=32, layers=2, width=64)
        precisions = ("32-true", "bf16-mixed", "bf16-true-stochastic")
        return Config(small, 2, 3, (512,), ("eager", "plain, eager"), precisions)
    return Config(GPT2_124M, 16, 15, (50257, 50304), ("eager", "compiled", "plain, compiled"))


def _cases(config: Config, device: torch.device) -> list[Case]:
    return [
        {"precision": p, "mode": mode, "vocabulary": vocabulary}
        for vocabulary in config.vocabularies
        for mode in config.modes
        for p in config.precisions
        if "plain" not in mode or precision_of(p).weight_update == "plain"
    ]


def _measure(config: Config, case: Case, device: torch.device) -> Results:
    model = replace(config.model, vocabulary=case["vocabulary"])
    precision = precision_of(case["precision"])
    compiled, fused = "compiled" in case["mode"], device.type == "cuda"
    with gpt_trainer(model, precision, device, compile=compiled, fused=fused) as trainer:
        step = plain_step(trainer) if "plain" in case["mode"] else partial(training_step, trainer)
        timed = timed_steps(step, model, config.batch, device, readings=config.readings)
    return timed | {"stated_peak": dense_peak(device_name(device), products_in(precision))}


def plain_step(trainer: Trainer) -> Callable[[Tensor, Tensor], Tensor]:
    """A step by PyTorch's own parts alone, on the trainer's model and optimizer."""
    optimizer, precision = trainer.optimizer, trainer.precision
    kind, scaled = trainer.device.type, precision.loss_scale is not None
    scaler = torch.amp.GradScaler(kind, enabled=scaled)
    region = partial(
        torch.autocast, kind, dtype=precision.compute_dtype, enabled=precision.is_mixed
    )

    run = compiled(plain_loss) if trainer.compiled else plain_loss

    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        with region():
            loss = run(trainer.model, inputs, targets)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def plain_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of a model's logits, (batch, time, vocabulary), in float32.

    The logits are cast by hand: inside CUDA's autocast `cross_entropy` computes the softmax of
    16-bit logits in 16 bits and casts the result.
    """
    logits = model(inputs).float()
    return nn.functional.cross_entropy(logits.view(-1, logits.size(-1)), targets.flatten())


def products_in(precision: Precision) -> str:
    """The format in which a precision multiplies the matrices of its linear layers."""
    if precision.recipe is not None and precision.recipe.engine == "native":
        return "float8_e4m3fn"
    if precision.compute_dtype == torch.float32 and precision.float32_matmul == "tf32":
        return "tfloat32"
    return str(precision.compute_dtype).removeprefix("torch.")


EXPERIMENT = Experiment(
    name="gpt2_throughput",
    question="How many tokens a second does GPT-2 train on, by precision?",
    config=_config,
    cases=_cases,
    measure=_measure,
    predicted_s={"cpu": 5, "cuda": 300},
)
