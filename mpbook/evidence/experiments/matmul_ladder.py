"""How fast matrices multiply, by format and by shape: tensor cores, and when they are missed.

Square products from small to large show where arithmetic takes over from memory and from the
launch of the kernel; a size that is no multiple of 8 shows what alignment is worth; GPT-2's own
shapes show what a model can hope for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mpbook.cost.measure import time_calls
from mpbook.device import matmul_emulation, sized
from mpbook.device import name as device_name
from mpbook.device_facts import dense_peak
from mpbook.evidence.experiments.base import Case, Experiment, Results
from mpbook.tf32 import float32_products

_CACHE_BYTES = 256 * 2**20  # more than the last cache of any GPU here


@dataclass(frozen=True)
class Config:
    """Shapes (m, k, n) of products of (m, k) and (k, n), and readings of each."""

    shapes: tuple[tuple[int, int, int], ...]
    readings: int
    formats: tuple[str, ...] = ("float32", "tfloat32", "float16", "bfloat16", "float8_e4m3fn")


def _config(device: torch.device) -> Config:
    if sized(cpu=True, gpu=False, device=device):
        return Config(tuple((n, n, n) for n in (64, 128, 256, 512)), readings=5)
    squares = [(n, n, n) for n in (256, 512, 1024, 2048, 4096, 8192, 16384)]
    unaligned = [(n, n, n) for n in (4095, 4097, 4100, 4104)]
    gpt2 = [(16384, 768, 2304), (16384, 768, 3072), (16384, 3072, 768)]
    vocabularies = [(16384, 768, 50257), (16384, 768, 50304)]
    return Config((*squares, *unaligned, *gpt2, *vocabularies), readings=20)


def _cases(config: Config, device: torch.device) -> list[Case]:
    return [
        {"format": format, "m": m, "k": k, "n": n}
        for format in config.formats
        if device.type == "cuda" or format not in _GPU_ONLY
        for m, k, n in config.shapes
        if format != "float8_e4m3fn" or (_multiplies_float8(device) and not any(_odd(m, k, n)))
    ]


_GPU_ONLY = {"tfloat32", "float8_e4m3fn"}


def _odd(*sizes: int) -> list[bool]:
    """Which sizes the kernels for float8 refuse: those that are no multiple of 16."""
    return [size % 16 != 0 for size in sizes]


def _multiplies_float8(device: torch.device) -> bool:
    """Whether the GPU has units for it; of one that is not there, that it has."""
    return not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= (8, 9)


def _measure(config: Config, case: Case, device: torch.device) -> Results:
    m, k, n, format = case["m"], case["k"], case["n"], case["format"]
    sets = max(2, min(8, _CACHE_BYTES // (4 * (m * k + k * n))))
    inputs = [_operands(format, m, k, n, device) for _ in range(sets)]
    flops = 2 * m * k * n
    calls = max(1, min(200, round(2e9 / flops))) if device.type == "cpu" else 5
    emulation = matmul_emulation(_dtype(format), device)
    with float32_products(tf32=format == "tfloat32"), emulation:
        spread = time_calls(
            _product(format), inputs, device=device, readings=config.readings, calls=calls
        )
    return {
        "seconds": list(spread.readings),
        "flops": flops,
        "stated_peak": dense_peak(device_name(device), format),
        "wide": spread.is_wide,
    }


def _operands(format: str, m: int, k: int, n: int, device: torch.device) -> tuple[Tensor, ...]:
    a, b = torch.randn(m, k, device=device), torch.randn(n, k, device=device)
    if format == "float8_e4m3fn":  # its kernels want the second operand by columns
        return a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
    return a.to(_dtype(format)), b.t().contiguous().to(_dtype(format))


def _dtype(format: str) -> torch.dtype:
    return torch.float32 if format == "tfloat32" else getattr(torch, format)


def _product(format: str) -> Callable[..., Any]:
    if format != "float8_e4m3fn":
        return torch.matmul
    one: dict[torch.device, Tensor] = {}

    def scaled(a: Tensor, b: Tensor) -> Tensor:
        scale = one.setdefault(a.device, torch.ones((), device=a.device))
        return torch._scaled_mm(a, b, scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16)

    return scaled


EXPERIMENT = Experiment(
    name="matmul_ladder",
    question="How many operations a second does a matrix product reach, by format and shape?",
    config=_config,
    cases=_cases,
    measure=_measure,
    predicted_s={"cpu": 10, "cuda": 40},
)
