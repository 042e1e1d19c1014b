"""The global switches that a run needs, set back afterwards."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

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
            stack.enter_context(_deterministic(device))
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
def _deterministic(device: torch.device) -> Iterator[None]:
    """Only kernels that repeat bit for bit: an operator that has none raises, and says so.

    Torch's own ``warn_only`` would leave the backward pass of attention as it is.  It is used only
    where cuBLAS had started without the workspace that makes products repeat, and then its warnings
    reach the caller.  New tensors are not filled with NaN: that finds bugs, and repeats nothing.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    memory.fill_uninitialized_memory = False
    try:
        torch.use_deterministic_algorithms(True, warn_only=not _products_repeat(device))
        yield
    except RuntimeError as error:
        if "deterministic" in str(error):
            error.add_note("train(..., deterministic=False) lets it run, and may not repeat.")
        raise
    finally:
        memory.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before, warn_only=warned_only)


def _products_repeat(device: torch.device) -> bool:
    """Whether cuBLAS can be asked to; it reads its workspace at a process's first product."""
    torch.use_deterministic_algorithms(True)
    one = torch.ones(1, 1, device=device)
    try:
        torch.mm(one, one)
    except RuntimeError:
        return False
    return True
