"""What a model asks of "cuda" by name, answered for the CPU whose tensors stand in for a GPU's.

A model that was written for a GPU says so: ``torch.autocast("cuda", enabled=False)``,
``torch.cuda.amp.autocast``, ``custom_fwd(device_type="cuda")``, ``torch.is_autocast_enabled()``.
On CPU tensors none of them does anything.  Inside `cuda_means_cpu` they switch, and ask, the
autocast that the tensors have.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.amp import autocast_mode


@contextmanager
def cuda_means_cpu() -> Iterator[None]:
    """Autocast that is named "cuda" is a CPU's, also in contexts that were made before."""
    with ExitStack() as stack:
        for owner, name, function in _redirected():
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, function)
        yield


def _redirected() -> list[tuple[Any, str, Callable[..., Any]]]:
    """Owner and name of each function that takes a device's name, and what stands in for it.

    Setters are among them, because a decorator's context was made before and remembers "cuda".
    """
    context: Any = autocast_mode.autocast
    places = [
        *((torch, name, 0) for name in ("is_autocast_enabled", "set_autocast_enabled")),
        *((torch, name, 0) for name in ("get_autocast_dtype", "set_autocast_dtype")),
        (context, "__init__", 1),
        (autocast_mode, "_cast", 1),
    ]
    found = [(owner, name, _with_cpu(getattr(owner, name), at)) for owner, name, at in places]
    return [
        *found,
        (torch, "get_autocast_gpu_dtype", functools.partial(torch.get_autocast_dtype, "cpu")),
    ]


def _with_cpu(function: Callable[..., Any], at: int) -> Callable[..., Any]:
    """The function, told "cpu" where its argument number ``at`` is "cuda", or no device's name."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("device_type") == "cuda":
            kwargs["device_type"] = "cpu"
        elif "device_type" not in kwargs and not isinstance((*args, None)[at], str):
            args = (*args[:at], "cpu", *args[at:])
        elif (*args, None)[at] == "cuda":
            args = (*args[:at], "cpu", *args[at + 1 :])
        return function(*args, **kwargs)

    return run
