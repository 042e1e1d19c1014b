"""What people ran into with several GPUs, each a few lines that every rank runs on a CPU.

The page "Many GPUs: traps" shows these functions and what they return.  DDP looks at a hook's
annotations, so these are no strings.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import SequenceParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from mpbook.many_gpus.rank import run_rank

WIDE = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
NARROW = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16)


def main() -> dict[str, Any]:
    """What each trap returns."""
    return {trap.__name__: trap() for trap in TRAPS}


def mesh() -> Any:
    """All ranks in a row."""
    return init_device_mesh("cpu", (dist.get_world_size(),))


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """The same on every rank."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)).to(dtype)


def share(step: int = 0) -> Tensor:
    """A batch of this rank's own."""
    seed = 100 * step + dist.get_rank()
    return torch.randn(16, 32, generator=torch.Generator().manual_seed(seed))


def loaded_in_bfloat16() -> dict[str, str]:
    """The dtypes of a bfloat16 model's shards, gradients and Adam state under a wide policy."""
    model = net(torch.bfloat16)
    fully_shard(model, mesh=mesh(), mp_policy=WIDE)
    optimizer = torch.optim.AdamW(model.parameters())
    model(share()).float().square().mean().backward()
    optimizer.step()
    weight: Any = model[0].weight
    state = optimizer.state[weight]["exp_avg"]
    found = {"shard": weight, "gradient": weight.grad, "state": state}
    return {name: str(tensor.dtype)[6:] for name, tensor in found.items()}


def reduced_in() -> dict[str, float]:
    """The relative error of the gradient that FSDP2 leaves, by reduce_dtype."""
    gradients = {}
    for name, policy in (("float32", WIDE), ("bfloat16", NARROW)):
        model = net()
        fully_shard(model, mesh=mesh(), mp_policy=policy)
        model(share()).float().square().mean().backward()
        weight: Any = model[0].weight
        gradients[name] = weight.grad.full_tensor()
    difference = gradients["bfloat16"] - gradients["float32"]
    return {"relative": float(difference.norm() / gradients["float32"].norm())}


def tensor_parallel_norm(*, by_itself: bool) -> list[str]:
    """The dtypes of the all-reduces in a backward pass of a norm whose sequence is sharded."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(32, bias=False)

        def forward(self, x: Tensor) -> Any:
            return self.norm(x)

    both = init_device_mesh("cpu", (1, dist.get_world_size()), mesh_dim_names=("data", "tensor"))
    model = Normed()
    parallelize_module(model, both["tensor"], {"norm": SequenceParallel()})
    if by_itself:
        exact = MixedPrecisionPolicy(param_dtype=torch.float32, output_dtype=torch.bfloat16)
        fully_shard(model.norm, mesh=both["data"], mp_policy=exact)
    fully_shard(model, mesh=both["data"], mp_policy=WIDE)
    with Reductions() as seen:
        model(share()[None]).to_local().float().square().sum().backward()
    return seen.dtypes


def tensor_parallel_norms() -> dict[str, list[str]]:
    """The norm in the policy of the whole model, and as a unit of its own in float32."""
    cases = {"as the rest": False, "by itself": True}
    return {name: tensor_parallel_norm(by_itself=case) for name, case in cases.items()}


class Reductions(TorchDispatchMode):
    """Write down the dtype of every all-reduce that runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if "_c10d_functional.all_reduce" in str(function):
            self.dtypes.append(str(args[0].dtype)[6:])
        return function(*args, **(kwargs or {}))


def first_used_late() -> str:
    """The error when the last micro-batch is the first to use a layer."""

    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.always, self.late = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor, *, use_late: bool) -> Tensor:
            x = self.always(x)
            return self.late(x) if use_late else x

    model: Any = Sometimes()
    fully_shard(model, mesh=mesh(), mp_policy=WIDE)
    try:
        for last in (False, True):
            model.set_requires_gradient_sync(last)
            model(share(), use_late=last).float().sum().backward()
    except AssertionError as error:
        return str(error)
    return "no error"


def infinity_on_one_rank() -> dict[str, float]:
    """The plain GradScaler's scale after an infinity in one rank's batch; it began at 1024."""
    scales = {}
    for engine in ("DDP", "FSDP2"):
        model: nn.Module = net()
        if engine == "DDP":
            model = DistributedDataParallel(model)
        else:
            fully_shard(model, mesh=mesh())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        inputs = share()
        if dist.get_rank() == 1:
            inputs[0, 0] = torch.inf
        scaler.scale(model(inputs).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        scales[engine] = scaler.get_scale()
    return scales


def scales_that_differ() -> dict[str, float]:
    """How far the weights of the ranks are apart after 3 steps with a loss scale of their own."""
    net_ = net()
    model = DistributedDataParallel(net_)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0 * (1 + dist.get_rank()))
    for step in range(3):
        optimizer.zero_grad()
        scaler.scale(model(share(step)).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
    weight: Any = net_[0].weight
    ours = weight.detach()
    first = ours.clone()
    dist.broadcast(first, 0)
    apart = torch.tensor(float((ours - first).abs().max()))
    dist.all_reduce(apart, op=dist.ReduceOp.MAX)
    return {"apart": apart.item(), "scale": scaler.get_scale()}


def compressed(hook: Callable[..., Any], factor: float = 1.0) -> Any:
    """The gradient of a layer under DDP with a communication hook."""
    layer = nn.Linear(4, 4, bias=False)
    model = DistributedDataParallel(layer)
    model.register_comm_hook(None, hook)
    (model(torch.ones(1, 4)).sum() * factor).backward()
    return layer.weight.grad


def bf16_hook(
    group: dist.ProcessGroup | None,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    """Sum in bfloat16 on any engine: divide, cast, all-reduce, cast back."""
    sent = (bucket.buffer() / dist.get_world_size()).bfloat16()
    future = dist.all_reduce(sent, group=group, async_op=True).get_future()
    return future.then(lambda done: bucket.buffer().copy_(done.value()[0]))


def compression() -> dict[str, Any]:
    """What torch's two compressing hooks do with gradients of 40000 and 80000, and ours."""
    found: dict[str, Any] = {}
    for size in (40_000.0, 80_000.0):
        gradient = compressed(default_hooks.fp16_compress_hook, size)
        found[f"fp16 {size:.0f}"] = str(gradient[0, 0].item())
    try:
        compressed(default_hooks.bf16_compress_hook)
        found["bf16"] = "accepted"  # by a torch that was built with CUDA, on gloo too
    except TypeError as error:
        found["bf16"] = str(error)
    gradient = compressed(bf16_hook, 80_000.0)
    found["ours"] = [str(gradient.dtype)[6:], gradient[0, 0].item()]
    return found


def positions() -> dict[str, Any]:
    """What becomes of float positions, and of a buffer, on the way into a sharded module."""

    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.register_buffer("frequencies", torch.ones(4))

        def forward(self, at: Tensor) -> Tensor:
            self.seen = at
            return at * self.scale

    model: Any = Rotary()
    fully_shard(model, mesh=mesh(), mp_policy=WIDE)
    model(torch.arange(255.0, 260.0))
    return {"seen": model.seen.tolist(), "buffer": str(model.frequencies.dtype)[6:]}


TRAPS: tuple[Callable[[], Any], ...] = (
    loaded_in_bfloat16,
    reduced_in,
    tensor_parallel_norms,
    first_used_late,
    infinity_on_one_rank,
    scales_that_differ,
    compression,
    positions,
)

if __name__ == "__main__":
    run_rank(main, at_least=2)
