"""What a `mpbook.watch.probe.Probe` can watch: its checks, and the modules that it chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from mpbook.distributed import is_fully_sharded, refuse_sharded
from mpbook.nests import tensors
from mpbook.precision import checked_loss_scale
from mpbook.shards import is_shared
from mpbook.watch.operators_within import OperatorsWithin
from mpbook.watch.optimizer_steps import grouped, held_besides, is_optimizer

Scale = float | Tensor


def check_model(model: nn.Module) -> None:
    """Refuse a model whose hooks do not run, or that has no weights yet."""
    scripted = any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
    if scripted or hasattr(model, "_orig_mod") or model._compiled_call_impl is not None:
        raise ValueError(
            "model: compiled, and hooks of modules do not run in compiled code; watch a model "
            "that is not, and call that one"
        )
    lazy = [n for n, p in model.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise ValueError(
            f"model: {lazy[0]} has no shape yet, because a lazy module has not been called; call "
            "the model once first"
        )


def check_sharding(model: nn.Module) -> None:
    """Refuse a model that is sharded by anything but `fully_shard` along one dimension.

    Tensor parallelism computes with parts, and FSDP1 keeps its weights joined in one tensor.
    """
    instead = (
        "one under fully_shard or DistributedDataParallel alone; activations of tensor parallelism "
        "would count once for each rank that holds them"
    )
    if not is_fully_sharded(model):
        refuse_sharded(model, instead=instead)
    for parameter in model.parameters():
        if is_shared(parameter):
            shared: Any = parameter
            if sum(not placement.is_replicate() for placement in shared.placements) > 1:
                refuse_sharded(model, instead=instead)


class Entered:
    """A mode that was entered, as a handle to remove."""

    def __init__(self, mode: OperatorsWithin):
        self.mode = mode

    def remove(self) -> None:
        """Leave it."""
        self.mode.__exit__(None, None, None)


def compiled_parts(model: nn.Module) -> list[str]:
    """The modules inside of a model that are compiled, whose operators and hooks do not show."""
    return [
        name.removesuffix("._orig_mod")
        for name, module in model.named_modules()
        if module is not model
        and (hasattr(module, "_orig_mod") or module._compiled_call_impl is not None)
    ]


def check_optimizer(optimizer: Any, model: nn.Module) -> None:
    """Refuse what is no optimizer, and one that updates anything but the model."""
    if not is_optimizer(optimizer):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}: expected a torch.optim.Optimizer over the "
            "model's parameters, or what wraps one"
        )
    own = {id(parameter) for parameter in model.parameters()}
    if own & held_besides(optimizer):
        return  # what else is in the groups are copies of the model's
    for parameter in grouped(optimizer):
        if id(parameter) not in own:
            raise ValueError(
                f"optimizer: holds a parameter of shape {tuple(parameter.shape)} that is not "
                "the model's; expected one built from model.parameters() of this very model"
            )


def check_scale(scale: Scale) -> None:
    """Refuse a number that is no loss scale; a tensor is not waited for."""
    if not isinstance(scale, Tensor):
        checked_loss_scale("loss_scale", scale)


def chosen_modules(
    model: nn.Module, chosen: Callable[[str, nn.Module], bool] | None
) -> dict[str, nn.Module]:
    """The modules whose outputs to watch, by name, each once."""
    named = {name or "(model)": module for name, module in model.named_modules()}
    inner = {
        id(part)
        for module in named.values()
        if isinstance(module, ParametrizationList)
        for part in module.modules()
    }
    if chosen is None:  # what a parametrization puts out is a weight
        named = {name: module for name, module in named.items() if id(module) not in inner}
        return {name: module for name, module in named.items() if _computes_itself(module)}
    found = {name: module for name, module in named.items() if chosen(name, module)}
    if not found:
        raise ValueError("modules: chooses none of the model's modules")
    return found


def _computes_itself(module: nn.Module) -> bool:
    """Whether a module does more than to call others: it has none, or has weights of its own."""
    parameters = any(parameter is not None for parameter in module._parameters.values())
    return parameters or is_parametrized(module) or not list(module.children())


def floating_tensors(output: Any) -> Iterator[Tensor]:
    """Every real floating-point tensor in a nest."""
    return (x for x in tensors(output) if x.is_floating_point())


def out_of_reach() -> bool:
    """Whether a compiler or a transform of `torch.func` runs the model, on tensors of its own."""
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    return torch.compiler.is_compiling() or transformed


def is_replay() -> bool:
    """Whether a module runs inside a backward pass, as checkpointing makes it."""
    return bool(torch._C._current_graph_task_id() != -1)
