"""What `round_to` and its relatives refuse: tensors that are none, and memory that does not fit."""

from __future__ import annotations

import torch
from torch import Tensor

from mpbook.shards import is_shared


def check_tensor(x: Tensor, generator: torch.Generator | None = None) -> None:
    """Refuse what is no real floating-point tensor, or is not on the generator's device."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}: expected a torch.Tensor")
    check_whole(x)
    if not x.is_floating_point():
        raise TypeError(f"x has dtype {x.dtype}: expected a real floating-point tensor")
    if generator is not None and generator.device.type != x.device.type:
        raise ValueError(f"generator is on {generator.device}, x on {x.device}: use one device")


def check_whole(x: Tensor, name: str = "x") -> None:
    """Refuse a tensor of which this rank holds a part."""
    if is_shared(x):
        raise TypeError(
            f"{name} is a {type(x).__name__}, of which this rank holds a part: expected "
            f"{name}.to_local(), that part, or {name}.full_tensor(), which all ranks have to call"
        )


def check_out(out: Tensor, x: Tensor, dtype: torch.dtype) -> None:
    """Refuse an ``out`` that cannot take the result for ``x``, which has this dtype."""
    if not isinstance(out, Tensor):
        raise TypeError(f"out is a {type(out).__name__}: expected a torch.Tensor")
    wanted = {"shape": x.shape, "dtype": dtype, "device": x.device}
    for name, value in wanted.items():
        if getattr(out, name) != value:
            actual = getattr(out, name)
            raise ValueError(f"out has {name} {actual}: expected {value}, that of the result")
    if torch.compiler.is_compiling():
        return  # compiled code has no addresses yet, and reads all of x before it writes
    if any(size > 1 and not stride for size, stride in zip(out.shape, out.stride(), strict=True)):
        raise ValueError("out has elements that share memory: expand()ed tensors cannot be written")
    is_x = out.data_ptr() == x.data_ptr() and out.stride() == x.stride()
    if _overlap(out, x) and not (is_x and out.dtype == x.dtype):
        raise ValueError("out overlaps x in memory: pass x itself, or memory apart from it")


def _overlap(left: Tensor, right: Tensor) -> bool:
    """Whether the memory that two tensors span has a byte in common."""
    (left_start, left_end), (right_start, right_end) = map(_span, (left, right))
    return left_start < right_end and right_start < left_end


def _span(x: Tensor) -> tuple[int, int]:
    """First byte of a tensor, and the byte after its last."""
    sizes = zip(x.shape, x.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in sizes)
    length = (last + 1) * x.element_size() if x.numel() else 0
    return x.data_ptr(), x.data_ptr() + length
