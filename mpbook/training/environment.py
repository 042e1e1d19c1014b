"""The global switches that a run needs, set back afterwards."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from mpbook.device import matmul_emulation
from mpbook.precision import Precision
from mpbook.tf32 import float32_products
from mpbook.training.settings import Settings


@contextmanager
def environment(precision: Precision, settings: Settings, device: torch.device) -> Iterator[None]:
    """The global switches that a run needs, set back afterwards."""
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        torch.manual_seed(settings.seed)
        stack.enter_context(_float32_matmul(precision, device))
        stack.enter_context(matmul_emulation(precision.compute_dtype, device))
        if settings.deterministic and device.type == "cuda":
            stack.enter_context(_deterministic())
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        yield


@contextmanager
def _float32_matmul(precision: Precision, device: torch.device) -> Iterator[None]:
    """Whether float32 products of matrices and convolutions may run in TF32."""
    tf32 = precision.float32_matmul == "tf32"
    if tf32 and device.type == "cpu":
        warnings.warn(
            'precision="tf32": a CPU has no TF32; its float32 products run in full float32',
            stacklevel=4,
        )
    with float32_products(tf32=tf32):
        yield


@contextmanager
def _deterministic() -> Iterator[None]:
    """Only kernels that repeat bit for bit, where CUDA has them."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic.*")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warned_only)
