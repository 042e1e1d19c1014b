"""How fast several GPUs reduce in each dtype, and what a policy of FSDP2 makes of a step.

The ranks are processes of their own, which `mpbook.many_gpus.launch` starts: through NCCL on GPUs,
through gloo on a CPU, where two of them only show that the experiment runs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

import torch

from mpbook.cost.measure import Spread
from mpbook.device import sized
from mpbook.evidence.experiments.base import Case, Experiment, Results
from mpbook.many_gpus.launch import cannot_launch, launch
from mpbook.models import GPT2_124M, GPTConfig

POLICIES = {
    "float32": ("float32", "float32"),
    "bfloat16, reduced in float32": ("bfloat16", "float32"),
    "bfloat16, reduced in bfloat16": ("bfloat16", "bfloat16"),
}
"""The param_dtype and the reduce_dtype of each."""


@dataclass(frozen=True)
class Config:
    """How many ranks, what they reduce and train, and readings.

    ``batch`` is the sequences of a rank, and ``ranks`` the powers of two that this machine has.
    """

    ranks: tuple[int, ...]
    elements: tuple[int, ...]
    model: GPTConfig
    batch: int
    readings: int
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    policies: dict[str, tuple[str, str]] = field(default_factory=lambda: dict(POLICIES))


def _config(device: torch.device) -> Config:
    if sized(cpu=True, gpu=False, device=device):
        tiny = GPTConfig(vocabulary=64, context=16, layers=2, width=32)
        return Config((2,), (2**10, 2**18), tiny, batch=2, readings=3)
    ranks = tuple(2**k for k in range(1, 7) if 2**k <= torch.cuda.device_count())
    elements = tuple(2**k for k in range(12, 29, 4))
    return Config(ranks or (2,), elements, GPT2_124M, batch=8, readings=20)


def _measure(config: Config, case: Case, device: torch.device) -> Results:
    options = {
        "dtypes": config.dtypes,
        "elements": config.elements,
        "policies": config.policies,
        "model": asdict(config.model),
        "batch": config.batch,
        "readings": config.readings,
    }
    kind: Literal["cpu", "cuda"] = "cuda" if device.type == "cuda" else "cpu"
    found = launch("speed", ranks=case["ranks"], options=options, device=kind, patience_s=600)[0]
    for row in (*found["all_reduce"], *found["fsdp2_step"]):
        row["wide"] = Spread(tuple(row["seconds"])).is_wide
    return dict(found)


def _cannot(device: torch.device) -> str | None:
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        return f"it needs two GPUs or more, and torch sees {torch.cuda.device_count()}"
    return cannot_launch()


EXPERIMENT = Experiment(
    name="many_gpus",
    question="How fast do several GPUs reduce by dtype, and step under FSDP2 by policy?",
    config=_config,
    cases=lambda config, device: [{"ranks": ranks} for ranks in config.ranks],
    measure=_measure,
    predicted_s={"cpu": 10, "cuda": 120},
    cannot=_cannot,
)
