"""Parts of a model kept in float32: whole modules, or single lines of its code.

Under autocast a part runs in float32 if autocast is off in it and what comes in is cast up.  For a
module that is a wrapper around its ``forward``.  For a line a function mode does to its calls what
an edit of it would do, so that a rescue can be tried before anything is edited.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from mpbook.diagnosis.places import line_of_the_caller
from mpbook.master_weights import SIXTEEN_BIT
from mpbook.nests import tensors


def keep_in_float32(model: nn.Module, names: Collection[str]) -> None:
    """Change the model so that these modules, and all within them, compute in float32.

    Args:
        model: changed in place.
        names: as ``named_modules`` has them.

    Raises:
        ValueError: a name that is no module's.
    """
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise ValueError(f'names: "{name}" is no module; expected some of {list(modules)}')
        module: Any = modules[name]
        module.forward = functools.partial(_in_float32, module.forward)


def _in_float32(forward: Any, *args: Any, **kwargs: Any) -> Any:
    return _outside_autocast(forward, *tree_map(widened, (args, kwargs)))


def _outside_autocast(function: Any, args: Any, kwargs: Any) -> Any:
    device = next((t.device.type for t in tensors((args, kwargs))), "cpu")
    with torch.autocast(device, enabled=False):
        return function(*args, **kwargs)


def widened(value: Any) -> Any:
    """A 16-bit tensor in float32; anything else as it is."""
    is_narrow = isinstance(value, Tensor) and value.dtype in SIXTEEN_BIT
    return value.float() if is_narrow else value


class Float32Lines(TorchFunctionMode):
    """Inside, calls that stand on one of these lines run in float32.

    Args:
        lines: file and line of each.
    """

    def __init__(self, lines: Collection[tuple[str, int]]) -> None:
        super().__init__()
        self.lines = set(lines)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one function of torch."""
        kwargs = kwargs or {}
        if line_of_the_caller() not in self.lines:
            return func(*args, **kwargs)
        return _outside_autocast(func, *tree_map(_wide, (args, kwargs)))


def _wide(value: Any) -> Any:
    is_dtype = isinstance(value, torch.dtype) and value in SIXTEEN_BIT
    return torch.float32 if is_dtype else widened(value)
