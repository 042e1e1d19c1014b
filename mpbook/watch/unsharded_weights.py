"""The whole weight that `fully_shard` puts in the place of a sharded one while a module runs.

The sharded weight of FSDP2 takes no part in a forward pass, so no hook of it ever runs: before a
module runs, its weights are put together in tensors of their own.  Autograd gives those this rank's
gradients, and the sharded weights have the mean over the ranks later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from mpbook.shards import is_shared


def await_unsharded(
    model: nn.Module, parameters: Mapping[str, Tensor], found: Callable[[str, Tensor], None]
) -> list[Any]:
    """Be told of the whole weights before each call of the module that has them.

    Args:
        model: any; without sharded weights, nothing happens.
        parameters: those to watch, by name.
        found: called with the name and the whole weight, which is the same tensor each time.

    Returns:
        Handles with a ``remove()``.
    """
    names = {id(p): name for name, p in parameters.items() if is_shared(p)}
    handles: list[Any] = []
    for module in model.modules():
        own = {name: names[id(p)] for name, p in module._parameters.items() if id(p) in names}
        if own:
            handles.append(module.register_forward_pre_hook(_hook(module, own, found)))
    return handles


def _hook(
    module: nn.Module, names: dict[str, str], found: Callable[[str, Tensor], None]
) -> Callable[..., None]:
    def hook(called: nn.Module, _arguments: Any) -> None:
        for own, name in names.items():
            whole = called._parameters[own]
            if called is module and whole is not None and not is_shared(whole):
                found(name, whole)

    return hook
