"""CUDA's autocast on a machine without a GPU: shapes and dtypes alone, forward alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


class Operators(TorchDispatchMode):
    """Note the dtype of the first operand of each operator."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, torch.dtype] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator."""
        if args and isinstance(args[0], torch.Tensor):
            self.first[str(func)] = args[0].dtype
        return func(*args, **(kwargs or {}))


@contextmanager
def cuda_autocast(dtype: torch.dtype) -> Iterator[None]:
    """`torch.autocast("cuda")`, which turns itself off where there is no GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        torch.clear_autocast_cache()


def operators_under_autocast(
    work: Callable[[torch.device], torch.Tensor], dtype: torch.dtype
) -> tuple[torch.dtype, dict[str, torch.dtype]]:
    """Run the work on fake CUDA tensors under autocast.

    Returns:
        The dtype of its result, and that of the first operand of each operator.
    """
    with FakeTensorMode(), torch.no_grad(), Operators() as seen, cuda_autocast(dtype):
        result = work(torch.device("cuda"))
    return result.dtype, seen.first
