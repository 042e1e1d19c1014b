"""What autocast did to *your* model: which dtype each module met, and which casts were put in.

Autocast leaves no mark in the code of a model.  `trace_dtypes` runs one batch forward and backward
and watches from below, where every operator of torch arrives with its operands already cast.  So
it sees what a reader of the code does not:

* the dtypes in which each module *computed*, beside those it was given, holds and returned;
* every cast that was inserted, with the bytes that it read and wrote.  Casts are the price of mixed
  precision: in a small model they cost more than the faster products save;
* the weight cache.  The 16-bit copy of a float32 weight is made once, at its first use, and kept
  until the outermost autocast region ends.  A weight that is frozen (``requires_grad=False``) or
  reached through a view is not cached, and cast again at every use.

Backward runs in the dtypes that forward chose: the gradient of a cast is the cast back.

A dtype is what an operator's operands have.  It does not tell TF32 from float32, nor in which dtype
a kernel adds up.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mpbook.autocast.policy import autocast_set, dtype_name
from mpbook.autocast.trace_recorder import Recorder
from mpbook.autocast.trace_report import LOSS, Trace
from mpbook.copies import deep_copy
from mpbook.device import matmul_emulation, pick
from mpbook.distributed import BEFORE_SHARDING, refuse_sharded, without_data_parallel
from mpbook.nests import mapped, real_floats_to, tensors
from mpbook.precision import Precision, as_precision, autocast, cast_module


def trace_dtypes(
    model: nn.Module,
    batch: Any,
    precision: str | Precision = "16-mixed",
    *,
    loss: Callable[[Any], Tensor] | None = None,
    backward: bool = True,
) -> Trace:
    """Run one batch through a copy of the model, and note every dtype and every cast.

    As in `mpbook.training.train`, the model runs inside autocast, and the loss outside of it.  The
    model that is passed is not run: its weights, gradients, buffers and mode stay as they are, and
    so do the random numbers to come.

    Args:
        model: any module, on a CPU or a CUDA GPU.  A compiled one is traced as it was before, and
            so is the one inside of DistributedDataParallel: dtypes are the same on every rank.
        batch: a tensor, a tuple of positional or a mapping of keyword arguments, or any other
            nest as one argument, on the model's device.
        precision: a `Precision` or the name of one.
        loss: from the model's output to a scalar; the sum of the output if None.
        backward: run the backward pass too.  Without it the model runs under ``no_grad``, as in
            validation.

    Warns:
        UserWarning: 16-bit parameters under a mixed precision, which has float32 ones.

    Raises:
        ValueError: a device that is neither, an unknown precision, a sharded model.
        RuntimeError: a GPU without bfloat16, asked for it.
        Exception: whatever the model raises.
    """
    precision = as_precision(precision)
    if precision.recipe is not None:
        raise ValueError(
            f'precision="{precision.name}": a trace says what autocast casts, and its recipe '
            'quantises after that; trace "bf16-mixed", of the model as it is or converted'
        )
    original = _unwrapped(model)
    refuse_sharded(original, instead=BEFORE_SHARDING)
    device = pick(_device(original, batch))
    _warn_of_narrow_weights(original, precision)
    ours = _uncompiled(deep_copy(original, what="model"))
    if not precision.is_mixed:
        ours = cast_module(ours, precision.parameter_dtype)
    args, kwargs = _arguments(batch, precision)
    recorder = Recorder(ours, precision)
    with _watching(recorder, precision, device, backward):
        with autocast(precision, device):
            output = ours(*args, **kwargs)
        if backward:
            recorder.enter(LOSS)
            scalar = (loss or _sum)(output)
            recorder.leave()
            recorder.phase = "backward"
            scalar.backward()
    return recorder.trace(with_loss=backward)


@contextmanager
def _watching(
    recorder: Recorder, precision: Precision, device: torch.device, backward: bool
) -> Iterator[None]:
    """The switches under which a model is traced, set back afterwards."""
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        # The caller's own autocast goes off by its switch: one more region around ours would keep
        # the weight cache alive into the backward pass.
        lower = torch.get_autocast_dtype(device.type)
        stack.enter_context(autocast_set(device.type, lower, enabled=False))
        stack.enter_context(torch.set_grad_enabled(backward))
        # A GPU's backward has a thread, and numbers of nodes, of its own unless it is told not to.
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(matmul_emulation(precision.compute_dtype, device))
        stack.enter_context(recorder.hooks())
        stack.enter_context(recorder)
        yield


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of what compiles it or shares it among ranks, in either order."""
    while (inner := getattr(without_data_parallel(model), "_orig_mod", None)) is not None:
        model = inner
    return without_data_parallel(model)


def _uncompiled(model: nn.Module) -> nn.Module:
    """The model with its compiled parts as they were before: their hooks would not run."""
    for module in list(model.modules()):
        module._compiled_call_impl = None
        for name, child in list(module.named_children()):
            if hasattr(child, "_orig_mod") and isinstance(child._orig_mod, nn.Module):
                module._modules[name] = child._orig_mod
    return model


def _device(model: nn.Module, batch: Any) -> torch.device:
    held = [*model.parameters(), *model.buffers(), *tensors(batch)]
    return held[0].device if held else torch.device("cpu")


def _warn_of_narrow_weights(model: nn.Module, precision: Precision) -> None:
    narrow = {p.dtype for p in model.parameters()} & {torch.float16, torch.bfloat16}
    if precision.is_mixed and narrow:
        held = " and ".join(sorted(map(dtype_name, narrow)))
        warnings.warn(
            f'model: holds {held} parameters, and "{precision.name}" means float32 ones that '
            'autocast casts; call model.float() first, or trace it as "16-true" or "bf16-true"',
            stacklevel=3,
        )


def _arguments(batch: Any, precision: Precision) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments; floating ones in the dtype of the parameters."""
    batch = mapped(real_floats_to(precision.parameter_dtype), batch)
    if isinstance(batch, Mapping):
        return (), dict(batch)
    by_position = isinstance(batch, tuple | list) and not hasattr(batch, "_fields")
    return tuple(batch) if by_position else (batch,), {}


def _sum(output: Any) -> Tensor:
    """The sum of everything in the output that has a gradient, in float32."""
    parts = [_real(t).float().sum() for t in tensors(output) if t.requires_grad]
    if not parts:
        raise ValueError("model: its output has no gradient; pass backward=False")
    return torch.stack(parts).sum()


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
