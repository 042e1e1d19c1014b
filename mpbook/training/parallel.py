"""A run that several ranks share: each takes its part of every batch, and torch's engine adds up.

Every rank runs `mpbook.training.train` with the same arguments.  Each draws the same batch and
takes its own part of it, so that an update sees the same examples on any number of ranks; DDP or
FSDP2 averages the gradients.  What a run reports is of the whole batch: losses and held-out losses
are means over the ranks, the norm is that of the averaged gradients.  (A loss function is taken to
be a mean over examples, as it is for micro-batches.)  Loss scale and skipped steps are the same on
all ranks: DDP's gradients are, and of FSDP2's parts `mpbook.loss_scaling` asks all ranks whether
they are finite.

A rank takes the mean over fewer examples than one process, so the gradient of each of them is
larger until the ranks are averaged.  Float16 may overflow at another step for it, and a dynamic
loss scale back off there: from then on runs on different numbers of ranks differ as other seeds do.

Taught in the chapter "Many GPUs".
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from mpbook.distributed import gathered
from mpbook.low_precision.linear import QuantizedLinear
from mpbook.nests import chunks, length, rows
from mpbook.precision import Precision
from mpbook.shards import is_shared

Parallel = Callable[[nn.Module], nn.Module]
"""From a module to what torch's engine makes of it: DDP, or the same module, fully sharded."""

_STRIDE = 1_000_003  # between the seeds of ranks: those of runs are small numbers, often neighbours


@dataclass(frozen=True)
class Ranks:
    """The ranks of a run: which one this is, and what torch's engine made of the model.

    One process alone is rank 0 of 1, without an engine.
    """

    number: int = 0
    count: int = 1
    engine: nn.Module | None = None

    @property
    def kind(self) -> str:
        """``"DDP"``, ``"FSDP2"`` or ``"none"``."""
        if self.engine is None:
            return "none"
        return "DDP" if isinstance(self.engine, DistributedDataParallel) else "FSDP2"

    def share(self, inputs: Any, targets: Any) -> tuple[Any, Any]:
        """This rank's part of a batch.

        Raises:
            ValueError: a batch that does not divide into parts of one size.
        """
        if self.count == 1:
            return inputs, targets
        if (examples := length((inputs, targets))) % self.count:
            raise ValueError(
                f"batch_size: {examples} examples go through the model at once, which {self.count} "
                "ranks do not divide; their parts have to be of one size, or the mean of their "
                "losses is not the mean over all"
            )
        return tuple(chunks(nest, self.count)[self.number] for nest in (inputs, targets))

    def held_out_share(self, inputs: Any, targets: Any) -> tuple[Any, Any, int]:
        """This rank's part of a batch that need not divide, and how many of its examples count.

        Every rank has to run the model, so one for which nothing is left takes an example that
        does not count.
        """
        examples = length((inputs, targets))
        if self.count == 1:
            return inputs, targets, examples
        start, stop = (examples * n // self.count for n in (self.number, self.number + 1))
        chosen = slice(start, stop) if stop > start else slice(0, 1)
        return rows(inputs, chosen), rows(targets, chosen), stop - start

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over all ranks, which all of them get."""
        if self.count > 1:
            numbers = numbers.clone()
            dist.all_reduce(numbers)
        return numbers

    def accumulating(self, *, last: bool) -> AbstractContextManager[Any]:
        """Around a micro-batch of a step: gradients are averaged over the ranks after the last."""
        engine: Any = self.engine
        if self.kind == "DDP" and not last:
            return engine.no_sync()
        if self.kind == "FSDP2":
            engine.set_requires_gradient_sync(last)
        return nullcontext()

    def agree_on_amax(self, model: nn.Module) -> None:
        """Let the amax of delayed scales be that of the whole batch, so that all scales agree."""
        if self.count == 1:
            return
        layers = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
        noted = [m.amax_history[0] for m in layers if m.amax_history is not None]
        if noted:
            found = torch.stack(noted)
            dist.all_reduce(found, dist.ReduceOp.MAX)
            for row, largest in zip(noted, found, strict=True):
                row.copy_(largest)

    def seed(self, seed: int) -> None:
        """Let each rank draw other random numbers: its examples need a dropout of their own."""
        if self.count > 1:
            torch.manual_seed(seed + _STRIDE * self.number)

    def gather(self, value: Any) -> list[Any]:
        """What each rank has, on all of them; a value that can be pickled."""
        return [value] if self.engine is None else gathered(value)


ALONE = Ranks()
"""One process."""


def share_among_ranks(
    model: nn.Module, parallel: Parallel, precision: Precision
) -> tuple[Ranks, Precision]:
    """Give a model to torch's engine.

    Args:
        model: on this rank's device and in its dtype; every rank gets the weights of rank 0.
        parallel: makes the engine, such as `torch.nn.parallel.DistributedDataParallel`.
        precision: of the run.

    Returns:
        The ranks, and the precision that is left for autocast: under FSDP2 the policy casts, if it
        has a ``param_dtype``.

    Raises:
        RuntimeError: no process group.
        TypeError: ``parallel`` is no function, or returns something else than DDP or FSDP2.
        ValueError: a model, a precision or a policy with which ranks would not train the same.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "parallel: there is no process group; start the program with torchrun, and call "
            "torch.distributed.init_process_group() first; mpbook.many_gpus.launch does both"
        )
    if not callable(parallel):
        raise TypeError(
            f"parallel={parallel!r}: expected a function from a module to a module, such as "
            "torch.nn.parallel.DistributedDataParallel, or one that calls fully_shard"
        )
    _check_statistics(model)
    for tensor in (*model.parameters(), *model.buffers()):
        _broadcast(tensor.detach())  # fully_shard would mix the weights of all ranks
    engine = parallel(model)
    count = dist.get_world_size()
    ranks = Ranks(dist.get_rank(), count, engine)
    if isinstance(engine, DistributedDataParallel):
        _check_replicated(engine, model)
        return ranks, precision
    _check_sharded(engine, model, count)
    return ranks, _left_for_autocast(engine, precision)


def _broadcast(tensor: Tensor) -> None:
    """Give a tensor of any dtype and any strides the numbers of rank 0, as bytes."""
    flat = tensor.contiguous().flatten()
    dist.broadcast(flat.view(torch.uint8), src=0)
    tensor.copy_(flat.view(tensor.shape))


def check_not_parallel_yet(model: nn.Module) -> None:
    """Refuse a model that an engine has already: a run trains a copy, in a dtype of its own.

    Raises:
        ValueError: DDP, or parameters that ranks share.
    """
    is_ddp = isinstance(model, DistributedDataParallel)
    if is_ddp or any(is_shared(p) for p in model.parameters()):
        engine = "wrapped in DistributedDataParallel" if is_ddp else "sharded"
        makes = "DistributedDataParallel" if is_ddp else "a function that calls fully_shard"
        raise ValueError(
            f"model: is {engine} already, and train copies and casts the model before that; pass "
            f"the plain model, and parallel={makes}"
        )


def check_optimizer(optimizer: torch.optim.Optimizer, ranks: Ranks) -> None:
    """Refuse an optimizer that cannot update parts of weights.

    Raises:
        ValueError: Adafactor under `fully_shard`: it needs the mean of whole rows and columns.
    """
    if ranks.kind == "FSDP2" and isinstance(optimizer, torch.optim.Adafactor):
        raise ValueError(
            "optimizer: torch.optim.Adafactor takes means of whole rows and columns, and has only "
            'parts of them under fully_shard; use "adamw", or parallel=DistributedDataParallel'
        )


def _check_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            raise ValueError(
                f'model: "{name}" is a {type(module).__name__}, whose statistics would be those '
                "of each rank's part of a batch; use GroupNorm or LayerNorm, or on GPUs "
                "nn.SyncBatchNorm.convert_sync_batchnorm(model)"
            )


def _check_replicated(engine: DistributedDataParallel, model: nn.Module) -> None:
    if engine.module is not model:
        raise TypeError("parallel: wraps another module than the one it was given")
    if engine.process_group.size() != dist.get_world_size():
        raise ValueError(
            f"parallel: a process group of {engine.process_group.size()} of "
            f"{dist.get_world_size()} ranks; train shares each batch among all of them"
        )


def _check_sharded(engine: nn.Module, model: nn.Module, count: int) -> None:
    if engine is not model or not hasattr(engine, "set_requires_gradient_sync"):
        raise TypeError(
            f"parallel: returns a {type(engine).__name__}; expected DistributedDataParallel(model)"
            ", or the model after fully_shard(model), which is called on its blocks first"
        )
    for name, parameter in model.named_parameters():
        if not is_shared(parameter):
            raise ValueError(
                f'parallel: "{name}" is in no unit of fully_shard, so that its gradients would not '
                "be averaged; shard the whole model too, after its blocks"
            )
        mesh = parameter.device_mesh  # type: ignore[attr-defined]
        if mesh.ndim != 1 or mesh.size() != count:
            raise ValueError(
                f'parallel: "{name}" lies on a mesh of shape {tuple(mesh.shape)}; train shares '
                f"each batch among all ranks, so it expects one dimension of {count}"
            )


def _left_for_autocast(engine: nn.Module, precision: Precision) -> Precision:
    """The precision without what the policy of `fully_shard` does already."""
    if precision.recipe is not None:
        raise ValueError(
            f'precision="{precision.name}": under fully_shard its layers would quantise weights '
            "that the policy has rounded already; use parallel=DistributedDataParallel"
        )
    found = _dtypes_of_units(engine)
    if found == {precision.parameter_dtype}:
        return precision  # autocast casts
    if found == {precision.compute_dtype}:
        return replace(precision, compute_dtype=precision.parameter_dtype)
    names = " and ".join(sorted(str(dtype) for dtype in found))
    raise ValueError(
        f"parallel: the policy of fully_shard computes in {names}, and "
        f'precision="{precision.name}" in {precision.compute_dtype}; expected '
        f"MixedPrecisionPolicy(param_dtype={precision.compute_dtype}, reduce_dtype=torch.float32) "
        "for every unit, or none"
    )


def _dtypes_of_units(engine: nn.Module) -> set[torch.dtype]:
    """The dtypes in which units gather their floating-point parameters."""
    found = set()
    for module in engine.modules():
        unit: Any = module
        if hasattr(unit, "unshard"):
            unit.unshard()
            found |= {
                p.dtype for p in unit.parameters() if p.is_floating_point() and not is_shared(p)
            }
            unit.reshard()
    return found
