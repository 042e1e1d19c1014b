"""What an experiment is, and the training step that several of them time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mpbook.cost.measure import peak_memory, time_calls
from mpbook.low_precision.recipes import RECIPES
from mpbook.models import GPT, GPTConfig, parameter_count
from mpbook.precision import Precision, as_precision
from mpbook.training import Settings, Trainer, environment, prepare

Case = dict[str, Any]
"""What one case varies, in numbers and strings."""

Results = dict[str, Any]
"""What was measured, in numbers, strings, lists and dictionaries: raw samples, no verdicts."""


@dataclass(frozen=True)
class Experiment:
    """One question to a device.

    ``config`` makes the frozen dataclass that a device of this kind gets, ``cases`` lists what is
    measured under it, and ``measure`` measures one case.  ``predicted_s`` is about how long all
    of it takes, by type of device.  ``cannot`` says why a device of this machine cannot run it at
    all, or None.
    """

    name: str
    question: str
    config: Callable[[torch.device], Any]
    cases: Callable[[Any, torch.device], list[Case]]
    measure: Callable[[Any, Case, torch.device], Results]
    predicted_s: Mapping[str, float]
    cannot: Callable[[torch.device], str | None] = lambda device: None


FP8_NATIVE = Precision(
    "float8_tensorwise-native",
    compute_dtype=torch.bfloat16,
    recipe=replace(RECIPES["float8_tensorwise"], engine="native"),
)
"""FP8 on the units that a GPU has for it."""

NAMED: dict[str, Precision] = {
    FP8_NATIVE.name: FP8_NATIVE,
    "bf16-true-stochastic": Precision(
        "bf16-true-stochastic",
        parameter_dtype=torch.bfloat16,
        compute_dtype=torch.bfloat16,
        weight_update="stochastic_rounding",
    ),
}
"""Precisions that experiments compare and that have no name elsewhere."""


def precision_of(name: str) -> Precision:
    """The precision that a case names."""
    return NAMED[name] if name in NAMED else as_precision(name)


def model_flops_per_token(config: GPTConfig) -> int:
    """Operations to train a GPT on one token of a full context: nanoGPT's formula.

    ``6 (N - positions) + 12 layers width context``: two operations for each weight in forward and
    four in backward, N counting the matrix shared with the output once, and attention as if it
    were not causal.  Source: Chowdhery et al. 2022 (PaLM), appendix B.
    """
    with torch.device("meta"):
        weights = parameter_count(GPT(config)) - config.context * config.width
    return 6 * weights + 12 * config.layers * config.width * config.context


def random_batches(
    config: GPTConfig, batch: int, device: torch.device, *, sets: int = 4
) -> list[tuple[Tensor, Tensor]]:
    """Batches of random tokens and of their successors, int64 (batch, context)."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, config.context + 1)
    drawn = (torch.randint(config.vocabulary, shape, generator=generator) for _ in range(sets))
    return [(t[:, :-1].to(device), t[:, 1:].to(device)) for t in drawn]


@contextmanager
def gpt_trainer(
    config: GPTConfig,
    precision: Precision,
    device: torch.device,
    *,
    compile: bool,
    fused: bool,
) -> Iterator[Trainer]:
    """A GPT ready to train in a precision, with AdamW, as the book's loop trains it."""
    fresh_compiler()
    adamw = partial(torch.optim.AdamW, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=fused)
    settings = Settings(steps=1, optimizer=adamw, clip_norm=1.0, deterministic=False)
    with environment(precision, settings, device):
        with torch.device(device):
            model = GPT(config)
        trainer = prepare(model, precision, settings, device, compile=compile)
        del model
        yield trainer


def timed_steps(
    step: Callable[[Tensor, Tensor], Any],
    config: GPTConfig,
    batch: int,
    device: torch.device,
    *,
    readings: int,
) -> Results:
    """Seconds and memory of training steps on random batches, as records keep them."""
    batches = random_batches(config, batch, device)
    for turn in range(5):  # a compiler tries kernels out, whose memory is not the step's
        step(*batches[turn % len(batches)])
    with peak_memory(device) as peak:
        spread = time_calls(step, batches, device=device, readings=readings, warm_up=0)
    return {
        "seconds": list(spread.readings),
        "tokens": batch * config.context,
        "flops_per_token": model_flops_per_token(config),
        "peak_memory": peak(),
        "wide": spread.is_wide,
    }


def fresh_compiler() -> None:
    """Forget compiled code: beyond a few versions of a function torch falls back to eager."""
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
