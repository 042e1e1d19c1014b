"""Where a GPT's gradients lie, and which static loss scales float16 trains with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpbook.data import Data
from mpbook.device import sized
from mpbook.evidence.experiments.base import Case, Experiment, Results
from mpbook.evidence.experiments.byte_gpt import ByteGPT, loss_results, sizes
from mpbook.models import GPT
from mpbook.precision import Precision, as_precision
from mpbook.training import cross_entropy
from mpbook.watch.probe import Probe


@dataclass(frozen=True, kw_only=True)
class Config(ByteGPT):
    """A GPT on bytes, how long it trains, and the powers of two to scale by."""

    seeds: tuple[int, ...]
    exponents: tuple[int, ...]


def _config(device: torch.device) -> Config:
    if sized(cpu=True, gpu=False, device=device):
        return Config(**sizes(device), steps=5, seeds=(0,), exponents=(0, 30))
    exponents = (-16, -12, -8, -4, 0, 4, 8, 12, 16, 20, 24)
    return Config(**sizes(device), steps=150, seeds=(0, 1, 2), exponents=exponents)


def _cases(config: Config, device: torch.device) -> list[Case]:
    scales = ["none", "dynamic", *(f"2^{exponent}" for exponent in config.exponents)]
    runs = [{"kind": "run", "scale": s, "seed": seed} for s in scales for seed in config.seeds]
    return [{"kind": "census", "scale": "none", "seed": config.seeds[0]}, *runs]


def _measure(config: Config, case: Case, device: torch.device) -> Results:
    model = config.model(case["seed"])
    if case["kind"] == "census":
        return _census(model.to(device), config.data().to(device), config)
    run = config.train(
        model,
        _precision(case["scale"]),
        learning_rate=2e-3,
        optimizer="adam",
        seed=case["seed"],
        device=device,
    )
    return loss_results(run) | {"skipped_steps": run.skipped_steps}


def _census(model: GPT, data: Data, config: Config) -> Results:
    """Histograms of every kind of tensor over one step in float32, by kind and layer."""
    inputs, targets = data.sample(config.batch_size, torch.Generator().manual_seed(0))
    with Probe(model) as probe:
        cross_entropy(model(inputs), targets).backward()
    return {
        kind: {layer: probe.histogram(kind, layer).as_dict() for layer in probe.layers(kind)}
        for kind in probe.kinds
    }


def _precision(scale: str) -> Precision:
    if scale == "none":
        return as_precision("32-true")
    power = "dynamic" if scale == "dynamic" else 2.0 ** int(scale.removeprefix("2^"))
    return Precision(f"16-mixed, {scale}", compute_dtype=torch.float16, loss_scale=power)  # type: ignore[arg-type]


EXPERIMENT = Experiment(
    name="loss_scales",
    question="Where do a GPT's gradients lie, and which loss scales does float16 train with?",
    config=_config,
    cases=_cases,
    measure=_measure,
    predicted_s={"cpu": 10, "cuda": 120},
)
