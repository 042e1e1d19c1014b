"""Random numbers that do not depend on a dtype: each run draws the same ones.

A generator gives other numbers in float64 or in 16 bits than in float32.  Noise that a model draws
in the dtype of its activations, as ``torch.randn_like`` does, would be other noise in each run, and
whatever differed between two runs would be laid to the format.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

_IN_PLACE = frozenset("normal_ uniform_ bernoulli_ exponential_ log_normal_ cauchy_".split())
_NEW = frozenset("rand rand_like randn randn_like normal bernoulli poisson _standard_gamma".split())


class SameDraws(TorchDispatchMode):
    """Inside, random numbers of every floating dtype are float32's, cast."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operator of torch."""
        return run_drawing_float32(func, args, kwargs or {})


def run_drawing_float32(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator; if it draws numbers of another floating dtype, float32's, cast."""
    name = func._schema.name.removeprefix("aten::")
    if name in _IN_PLACE and _is_other(args[0].dtype):
        drawn = func(torch.empty_like(args[0], dtype=torch.float32), *args[1:], **kwargs)
        return args[0].copy_(drawn)
    if name not in _NEW or "out" in kwargs:
        return func(*args, **kwargs)
    first = next((a for a in args if isinstance(a, Tensor)), None)
    given = torch.get_default_dtype() if first is None else first.dtype
    dtype = kwargs.get("dtype") or given
    if not _is_other(dtype):
        return func(*args, **kwargs)
    if any(argument.name == "dtype" for argument in func._schema.arguments):
        kwargs = {**kwargs, "dtype": torch.float32}
    return func(*tree_map(_in_float32, args), **kwargs).to(dtype)


def _is_other(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype != torch.float32


def _in_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and _is_other(value.dtype) else value
