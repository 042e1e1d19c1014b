"""How many bytes a second memory gives to work that is not products: the slope of the roofline.

Each operation reads its tensor once and writes one of the same size, so the bytes are known and the
time tells the rate.  Half the bytes in half the time is all that 16 bits can do here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpbook.cost.measure import time_calls
from mpbook.device import sized
from mpbook.evidence.experiments.base import Case, Experiment, Results


@dataclass(frozen=True)
class Config:
    """Elements of each tensor, more than the caches hold, and readings."""

    elements: int
    readings: int = 20
    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16")
    operations: tuple[str, ...] = ("copy", "add", "gelu", "softmax", "layer_norm")


def _config(device: torch.device) -> Config:
    small = Config(elements=2**22, readings=5)
    return sized(cpu=small, gpu=Config(elements=2**28), device=device)


def _cases(config: Config, device: torch.device) -> list[Case]:
    return [{"dtype": d, "operation": o} for d in config.dtypes for o in config.operations]


def _measure(config: Config, case: Case, device: torch.device) -> Results:
    functional = torch.nn.functional
    dtype = getattr(torch, case["dtype"])
    x = torch.randn(config.elements // 1024, 1024, device=device, dtype=dtype)
    out = torch.empty_like(x)
    work = {
        "copy": lambda: out.copy_(x),
        "add": lambda: torch.add(x, x, out=out),
        "gelu": lambda: functional.gelu(x),
        "softmax": lambda: torch.softmax(x, -1),
        "layer_norm": lambda: functional.layer_norm(x, (1024,)),
    }[case["operation"]]
    spread = time_calls(work, [()], device=device, readings=config.readings)
    return {"seconds": list(spread.readings), "bytes": 2 * x.nbytes, "wide": spread.is_wide}


EXPERIMENT = Experiment(
    name="bandwidth",
    question="How many bytes a second does memory give to elementwise work?",
    config=_config,
    cases=_cases,
    measure=_measure,
    predicted_s={"cpu": 10, "cuda": 10},
)
