"""Copies of what is diagnosed: model, optimizer and batches, in a dtype of one's own."""

from __future__ import annotations

import copy
import inspect
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from mpbook import nests
from mpbook.copies import deep_copy
from mpbook.cost.measure import parts_of
from mpbook.diagnosis.places import MODEL, Place
from mpbook.distributed import is_data_parallel
from mpbook.master_weights import SIXTEEN_BIT
from mpbook.watch.optimizer_steps import is_optimizer, with_wrapped
from mpbook.watch.watchable import compiled_parts


def unwrapped(model: Any) -> tuple[nn.Module, list[str]]:
    """A model without what compiles or distributes it, and the names of compiled parts."""
    is_compiled = False
    while True:
        is_compiled = is_compiled or getattr(model, "_compiled_call_impl", None) is not None
        if hasattr(model, "_orig_mod"):
            model, is_compiled = model._orig_mod, True
        elif is_data_parallel(model):
            model = model.module
        else:
            return model, [*([MODEL] if is_compiled else []), *compiled_parts(model)]


def own_name(place: Place) -> str:
    """As ``named_modules`` has it."""
    return "" if place.module == MODEL else place.module


def checked_optimizer(optimizer: Any, model: nn.Module, *, own_step: bool = False) -> Any:
    """An optimizer, some of them, or none; a class or function is called on the parameters."""
    if optimizer is None:
        return None
    if isinstance(optimizer, Mapping | list | tuple):
        for one in each(optimizer):
            checked_optimizer(one, model, own_step=own_step)
        return optimizer
    if isinstance(optimizer, type) or not is_optimizer(optimizer):
        made = optimizer(model.parameters()) if callable(optimizer) else None
        if made is None or not is_optimizer(made):
            raise TypeError(
                f"optimizer: a {type(optimizer).__name__}; expected a torch.optim.Optimizer, or a "
                "function from parameters to one, such as functools.partial(AdamW, lr=1e-3)"
            )
        optimizer = made
    if not own_step and _needs_a_closure(optimizer):
        raise ValueError(
            f"optimizer: {type(optimizer).__name__}.step() needs a closure; pass step=, a function "
            "step(model, optimizer, batch) that gives it one"
        )
    return optimizer


def without_master_copies(optimizer: Any, model: nn.Module) -> Any:
    """The inner optimizer of a wrapper that keeps float32 copies of a model's 16-bit weights.

    A model that is float32 itself has no use for the copies.
    """
    if optimizer is None or isinstance(optimizer, Mapping | list | tuple):
        return optimizer
    inner = with_wrapped(optimizer)[-1]
    held = [p for group in inner.param_groups for p in group["params"]]
    own = [p for p in model.parameters() if p.requires_grad]
    if {id(p) for p in held} <= {id(p) for p in own}:
        return optimizer
    if [p.shape for p in held] != [p.shape for p in own]:
        return None
    left = iter(own)
    for group in inner.param_groups:
        group["params"] = [next(left) for _ in group["params"]]
    inner.state.clear()
    return inner


def complete(copied: Any, original: Any, memo: dict[int, Any]) -> None:
    """Give a copied optimizer what its pickled state leaves out, such as LBFGS's parameters."""
    for name in vars(original).keys() - vars(copied).keys() - {"step"}:
        with suppress(TypeError):  # a lock, and what else no copy can be made of
            setattr(copied, name, copy.deepcopy(getattr(original, name), memo))


def _needs_a_closure(optimizer: Any) -> bool:
    try:
        parameters = inspect.signature(type(optimizer).step).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.name == "closure" and p.default is p.empty for p in parameters)


def each(optimizer: Any) -> list[Any]:
    """The optimizers in an optimizer, a list, a tuple, a mapping or nothing."""
    if optimizer is None:
        return []
    if isinstance(optimizer, Mapping):
        return list(optimizer.values())
    return list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]


def device_of(model: nn.Module, batches: list[Any]) -> torch.device:
    """The GPU that any tensor is on, else the CPU."""
    tensors = [*model.parameters(), *model.buffers(), *nests.tensors(batches[0])]
    if any(isinstance(t, UninitializedParameter | UninitializedBuffer) for t in tensors):
        raise ValueError(
            "model: has lazy layers without weights yet; call the model on a batch first, and make "
            "the optimizer after that"
        )
    if any(t.is_meta for t in tensors):
        raise ValueError(
            "model: has tensors on the meta device, which have no values; materialise it first "
            "with model.to_empty(device=...) and load its weights"
        )
    gpus = [t.device for t in tensors if t.device.type == "cuda"]
    return gpus[0] if gpus else torch.device("cpu")


def made_by_hooks(model: nn.Module) -> Iterator[Tensor]:
    """Results that a module keeps, such as a weight norm's or the activations of the last call.

    No copy takes them.
    """
    for module in model.modules():
        for tensor in nests.tensors(vars(module)):
            if not tensor.is_leaf:
                yield tensor


def copy_of_module(module: nn.Module, memo: dict[int, Any], *, what: str) -> nn.Module:
    """A deep copy whose weights are leaves, and what they are copies of in the memo.

    A script's copy is made by other ways than Python's: its weights would be results of the
    original's, and an optimizer's copy would not know them.

    Raises:
        ValueError: a copy that has weights or buffers of the original.
    """
    with torch.no_grad():
        copied: nn.Module = deep_copy(module, what=what, memo=memo)
    for held, theirs in (
        (dict(copied.named_parameters()), dict(module.named_parameters())),
        (dict(copied.named_buffers()), dict(module.named_buffers())),
    ):
        for name, original in theirs.items():
            new = held.get(name)
            if new is None:
                continue
            if new is original:
                raise ValueError(
                    f"{what}: its copy has the same {name}, not one of its own (a __deepcopy__ "
                    "that gives what it is asked of?); expected what copy.deepcopy gives"
                )
            memo.setdefault(id(original), new)
            if new.requires_grad != original.requires_grad:
                new.requires_grad_(original.requires_grad)
    return copied


def must_own_weights(optimizer: Any, model: nn.Module) -> None:
    """An optimizer that would update nothing of the model is another's.

    One that keeps copies of 16-bit weights may have the copies alone, and is believed.

    Raises:
        ValueError: none of an optimizer's parameters is the model's.
    """
    inner = [o for one in each(optimizer) for o in with_wrapped(one)]
    held = [p for o in inner for group in o.param_groups for p in group["params"]]
    own = {id(p) for p in model.parameters()}
    is_narrow = any(p.dtype in SIXTEEN_BIT for p in model.parameters())
    if held and not is_narrow and own.isdisjoint(map(id, held)):
        raise ValueError(
            "optimizer: has none of the model's parameters; make it of model.parameters(), after "
            "the model is made and moved"
        )


def convert_states(optimizer: Any, dtype: torch.dtype, given: set[torch.dtype]) -> None:
    """The states of a copied optimizer as ``load_state_dict`` would cast them with its weights."""
    for inner in (o for one in each(optimizer) for o in with_wrapped(one)):
        for kept in dict(getattr(inner, "state", {})).values():
            for kind, state in kept.items() if isinstance(kept, dict) else ():
                if kind != "step" and isinstance(state, Tensor) and state.dtype in given:
                    kept[kind] = state.to(dtype)


def convert(module: nn.Module, dtype: torch.dtype, given: set[torch.dtype]) -> None:
    """Real floating weights and buffers in another dtype; complex ones stay complex.

    A buffer whose dtype no weight has was given it on purpose, and keeps it; so does a part in
    float64 of a model that is not.
    """
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for tensor in held.values():
                if tensor is not None and tensor.dtype in given - {dtype}:
                    tensor.data = tensor.data.to(dtype)


def convertible(given: set[torch.dtype]) -> set[torch.dtype]:
    """Of a model whose weights have these dtypes: those that are converted.

    >>> torch.float64 in convertible({torch.float64})
    True
    >>> torch.float64 in convertible({torch.float32, torch.float64})
    False
    """
    mixed = torch.float64 in given and len(given) > 1
    return (given | {torch.float32, torch.float64}) - ({torch.float64} if mixed else set())


def round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Each weight as the nearest number of the dtype, stored as before; infinities as 0."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.copy_(parameter.to(dtype).to(parameter.dtype).nan_to_num(0.0, 0.0, 0.0))


def to_next_numbers(model: nn.Module) -> None:
    """Each weight as the next larger number of its dtype."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.copy_(parameter.nextafter(torch.full_like(parameter, math.inf)))


def converted(tensor: Tensor, dtype: torch.dtype | None, given: set[torch.dtype]) -> Tensor:
    """A batch's tensor as a copy, so that a model may write to it, in the dtype of its weights."""
    copied = tensor.detach().clone()
    kept = copied.dtype == torch.float64 and torch.float64 not in convertible(given)
    if dtype is not None and copied.is_floating_point() and copied.layout == torch.strided:
        copied = copied if kept else copied.to(dtype)
    return copied.requires_grad_(tensor.requires_grad) if tensor.requires_grad else copied


def nonfinite(named: Any) -> list[str]:
    """The names of the tensors that hold an infinity or NaN."""
    floating = ((n, t.detach()) for n, t in named if t.is_floating_point() or t.is_complex())
    return [n for n, t in floating if not all(bool(p.isfinite().all()) for p in parts_of(t))]


# --- Putting back ---------------------------------------------------------------------------


@contextmanager
def random_numbers_kept(device: torch.device) -> Iterator[None]:
    """Random numbers drawn inside are not drawn for the caller."""
    theirs = random.getstate(), numpy.random.get_state()
    on_gpu = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(on_gpu):
            yield
    finally:
        random.setstate(theirs[0])
        numpy.random.set_state(theirs[1])


@contextmanager
def same_random_numbers(device: torch.device) -> Iterator[None]:
    """The same random numbers inside each time, and those of the caller untouched."""
    with random_numbers_kept(device):
        torch.manual_seed(0)
        random.seed(0)
        numpy.random.seed(0)
        yield


@contextmanager
def eager() -> Iterator[None]:
    """Compiled parts, scripts and `torch.cond` run as written, so that each operator is seen."""
    theirs = torch.cond
    torch.cond = _chosen
    has_compiler = "torch._dynamo" in sys.modules
    as_written = torch.compiler.set_stance("force_eager") if has_compiler else nullcontext()
    try:
        with as_written, torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            yield
    finally:
        torch.cond = theirs


def _chosen(
    pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], operands: Any = ()
) -> Any:
    """What `torch.cond` gives, without a graph of its own."""
    return true_fn(*operands) if pred else false_fn(*operands)
