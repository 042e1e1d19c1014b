"""What each rank holds of a small transformer, by strategy: between two steps, and at the peak.

Between steps it counts the storages of weights, gradients and optimizer state, padding included.
Within a step the profiler hears of every allocation, those of torch's own C++ included.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._profiler import _EventType
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.distributed.tensor.parallel.style import ParallelStyle
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

from mpbook.decoder import Decoder, DecoderConfig
from mpbook.many_gpus.rank import run_rank
from mpbook.models import GPT, GPTConfig


def main(cases: Sequence[dict[str, Any]]) -> list[dict[str, int]]:
    """What `held` finds for each case, a dictionary of its arguments."""
    return [held(**case) for case in cases]


def held(
    *,
    strategy: str,
    shape: dict[str, Any],
    compute: str = "bfloat16",
    loaded: str = "float32",
    reduce: str = "float32",
    optimizer: str = "AdamW",
    batch_size: int = 4,
    bucket_view: bool = False,
) -> dict[str, int]:
    """Take two steps, and say what this rank holds.

    Args:
        strategy: a name of `mpbook.cost.parallelism.STRATEGIES`, or ``"tensor"``: every matrix
            shared by all ranks.
        shape: the fields of a `DecoderConfig`, or of a `GPTConfig` if it has no ``hidden``.
        compute: the dtype to compute in, by name.
        loaded: that of the model.
        reduce: that in which ``fully_shard`` adds gradients up.
        optimizer: the name of a class in `torch.optim`.
        batch_size: sequences on this rank, each as long as the context.
        bucket_view: DDP's ``gradient_as_bucket_view``.

    Returns:
        Bytes: ``parameters``, ``gradients``, ``optimizer_state`` between two steps; and counted by
        the profiler, ``buckets`` that DDP made, and ``peak`` within a step, the median of a few.
    """
    torch.manual_seed(0)
    model = _model(shape).to(getattr(torch, loaded))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(getattr(torch, compute), getattr(torch, reduce))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as wrapping:
        wrapped = _wrapped(model, strategy, mesh, policy, bucket_view)
    made = _optimizer(model, optimizer, strategy)
    step = _Step(wrapped, made, shape, batch_size, None if strategy in _SHARDS else policy)
    step.run()
    between = {
        "parameters": _bytes(model.parameters()),
        "gradients": _bytes(p.grad for p in model.parameters() if p.grad is not None),
        "optimizer_state": _bytes(_state(made)),
    }
    peaks = [max(_alive(step.run_in_profiler())) for _ in range(_PROFILED)]
    buckets = _alive(wrapping)[-1] if isinstance(wrapped, DistributedDataParallel) else 0
    kept = between["parameters"] + between["optimizer_state"] + buckets
    # A thread of gloo's may allocate or free something unheard, so one step may be off.
    return between | {"buckets": buckets, "peak": kept + int(statistics.median(peaks))}


_PROFILED = 3  # steps
_SHARDS = ("zero2", "fsdp2")


def _model(shape: dict[str, Any]) -> nn.Module:
    return Decoder(DecoderConfig(**shape)) if "hidden" in shape else GPT(GPTConfig(**shape))


def _wrapped(
    model: nn.Module, strategy: str, mesh: DeviceMesh, policy: MixedPrecisionPolicy, view: bool
) -> nn.Module:
    """The model as the strategy wants it."""
    if strategy in ("ddp", "zero1"):
        return DistributedDataParallel(model, gradient_as_bucket_view=view, init_sync=False)
    if strategy == "tensor":
        return _tensor_parallel(model, mesh)
    options = {"mesh": mesh, "mp_policy": policy}
    if strategy == "zero2":
        options["reshard_after_forward"] = False
    for block in model.blocks:  # type: ignore[union-attr]
        fully_shard(block, **options)  # type: ignore[call-overload]
    fully_shard(model, **options)  # type: ignore[call-overload]
    return model


def _tensor_parallel(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """A decoder whose matrices all ranks share, as the method is usually applied to Llama."""
    wide = ("attention.query", "attention.key", "attention.value", "mlp.gate", "mlp.up")
    narrow = ("attention.project", "mlp.down")
    plan: dict[str, ParallelStyle] = {name: ColwiseParallel() for name in wide}
    plan |= {name: RowwiseParallel() for name in narrow}
    for block in model.blocks:  # type: ignore[union-attr]
        parallelize_module(block, mesh, plan)
    ends = {
        "token_embedding": RowwiseParallel(input_layouts=Replicate()),
        "head": ColwiseParallel(output_layouts=Replicate()),
    }
    return parallelize_module(model, mesh, ends)


def _optimizer(model: nn.Module, name: str, strategy: str) -> torch.optim.Optimizer:
    kind = getattr(torch.optim, name)
    options: dict[str, Any] = {"lr": 1e-3, "foreach": strategy != "tensor"}
    if strategy == "zero1":
        return ZeroRedundancyOptimizer(model.parameters(), kind, **options)
    made: torch.optim.Optimizer = kind(model.parameters(), **options)
    return made


def _state(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    """The state that this rank keeps."""
    own = optimizer.optim if isinstance(optimizer, ZeroRedundancyOptimizer) else optimizer
    return (tensor for state in own.state.values() for tensor in state.values())


class _Step:
    """Forward, backward and update, on this rank's batch; with a policy, under autocast."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        shape: dict[str, Any],
        batch_size: int,
        policy: MixedPrecisionPolicy | None,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.tokens = torch.randint(shape["vocabulary"], (batch_size, shape["context"]))
        self.dtype = None if policy is None else policy.param_dtype
        self.mixed = self.dtype not in (None, next(model.parameters()).dtype)

    def run_in_profiler(self) -> profile:
        """One step, without gradients before it."""
        self.optimizer.zero_grad()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            self.run()
        return profiled

    def run(self) -> None:
        """One step; the gradients stay."""
        with torch.autocast("cpu", dtype=self.dtype, enabled=self.mixed):
            logits = self.model(self.tokens)
        loss = cross_entropy(logits.float().flatten(0, 1), self.tokens.flatten())
        del logits
        loss.backward()
        self.optimizer.step()


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of the storages of this rank's parts, each counted once."""
    own = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in own}
    return sum(storages.values())


def _alive(profiled: profile) -> list[int]:
    """Bytes allocated since the beginning and not freed, after each allocation.

    Without what gloo allocates to talk: NCCL has buffers of its own instead.
    """
    alive, known = [0], dict[int, int]()
    for event, is_gloos in sorted(_allocations(profiled), key=lambda pair: pair[0].start_time_ns):
        pointer, size = event.extra_fields.ptr, event.extra_fields.alloc_size
        # What is there already was freed by a thread that the profiler does not hear.
        change = -known.pop(pointer, 0 if size > 0 else -size)
        if size > 0:
            known[pointer] = 0 if is_gloos else size
            change += known[pointer]
        alive.append(alive[-1] + change)
    return alive


def _allocations(profiled: profile) -> Iterator[tuple[Any, bool]]:
    """What the profiler heard: each event, and whether it was within a collective."""
    results: Any = profiled.profiler.kineto_results  # type: ignore[union-attr]
    left = [(root, False) for root in results.experimental_event_tree()]
    while left:
        event, is_gloos = left.pop()
        if event.tag == _EventType.Allocation:
            yield event, is_gloos
        inside = is_gloos or event.name.startswith(("c10d::", "gloo:"))
        left += [(child, inside) for child in event.children]


if __name__ == "__main__":
    run_rank(main, at_least=2)
