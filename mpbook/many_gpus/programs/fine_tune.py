"""Fine-tune a small net under DDP or FSDP2, each rank on its share of the same batches.

The net has learned handwritten digits, and now learns them transposed: rows for columns.  Alone,
the same function trains on the whole batches without any other rank, so that the losses can be
compared.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from mpbook.data import digits
from mpbook.many_gpus.rank import device, run_rank
from mpbook.models import MLP

Engine = Literal["alone", "ddp", "fsdp2"]


def main(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `fine_tune` finds for each case, a dictionary of its arguments."""
    return [fine_tune(**case) for case in cases]


def fine_tune(
    *,
    engine: Engine,
    compute: str = "bfloat16",
    loaded: str = "float32",
    steps: int = 150,
    learning_rate: float = 3e-5,
    batch_size: int = 64,
    loss_scale: float = 2.0**16,
    seed: int = 0,
) -> dict[str, Any]:
    """Train, and say what became of it.

    Args:
        engine: ``"alone"`` needs no process group; ``"ddp"`` computes under autocast, ``"fsdp2"``
            by the policy of `fully_shard`.
        compute: the dtype to compute in, by name; float16 has a `GradScaler`.
        loaded: the dtype that the trained net is loaded in, by name.
        steps: updates.
        learning_rate: of AdamW, without weight decay.
        batch_size: examples a step, of all ranks together; they divide it.
        loss_scale: where the `GradScaler` begins.
        seed: of the net and the batches.

    Returns:
        The losses (means over all ranks) and the loss scale at each step, the loss on held-out
        digits before and after, the dtypes of parameters, outputs, gradients and optimizer state,
        and the bytes that the rank holds for each parameter.

    Raises:
        ValueError: a batch that the ranks do not divide.
        FloatingPointError: the loss of this rank is not finite.
    """
    rank, ranks = (0, 1) if engine == "alone" else (dist.get_rank(), dist.get_world_size())
    if batch_size % ranks:
        raise ValueError(f"batch_size={batch_size}: {ranks} ranks do not divide it")
    tuner = Tuner(engine, getattr(torch, compute), getattr(torch, loaded), learning_rate, seed)
    scaler = torch.amp.GradScaler(
        tuner.device.type, init_scale=loss_scale, enabled=compute == "float16"
    )
    data, generator = _digits(), torch.Generator().manual_seed(seed)
    held_out = [tuner.held_out()]
    losses, scales = [], []
    for step in range(steps):
        inputs, targets = data.sample(batch_size, generator)
        scales.append(scaler.get_scale())
        loss = tuner.loss(inputs[rank::ranks], targets[rank::ranks])
        if not loss.isfinite():
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
        scaler.scale(loss).backward()
        scaler.step(tuner.optimizer)
        scaler.update()
        tuner.optimizer.zero_grad(set_to_none=step + 1 < steps)
        losses.append(mean_over_ranks(loss.detach(), ranks))
    held_out += [tuner.held_out()]
    found = {"losses": losses, "scales": scales, "held_out": held_out}
    return found | tuner.dtypes() | {"bytes": tuner.bytes_per_parameter()}


class Tuner:
    """The trained net as an engine wraps it, and its optimizer."""

    def __init__(
        self, engine: Engine, compute: torch.dtype, loaded: torch.dtype, rate: float, seed: int
    ) -> None:
        self.engine, self.compute, self.loaded = engine, compute, loaded
        self.device = torch.device("cpu") if engine == "alone" else device()
        self.model = wrapped(trained(seed).to(self.device, loaded), engine, compute)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, weight_decay=0.0)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Of a batch of digits, which this transposes; the loss function in float32."""
        with region(self.engine, self.compute, self.device):
            outputs = self.model(transposed(inputs).to(self.device, self.loaded))
        self.computed = outputs.dtype
        return cross_entropy(outputs.float(), targets.to(self.device))

    @torch.no_grad()
    def held_out(self) -> float:
        """The loss on the held-out digits, on every rank the same."""
        ((inputs, targets),) = _digits().validation(1000)
        return self.loss(inputs, targets).item()

    def dtypes(self) -> dict[str, str]:
        """Of the first parameter, its gradient and Adam's first moment, and of the outputs."""
        parameter = next(self.model.parameters())
        state = self.optimizer.state[parameter].get("exp_avg", parameter)
        gradient = parameter.grad if parameter.grad is not None else parameter
        found = {"parameters": parameter, "gradients": gradient, "state": state}
        names = {name: str(tensor.dtype)[6:] for name, tensor in found.items()}
        return names | {"computed": str(self.computed)[6:]}

    def bytes_per_parameter(self) -> float:
        """What this rank holds between two steps, its own parts of sharded tensors, for each."""
        parameters = list(self.model.parameters())
        state = [t for p in parameters for t in self.optimizer.state[p].values() if t.dim()]
        gradients = [p.grad for p in parameters if p.grad is not None]
        held = sum(_own(tensor).nbytes for tensor in (*parameters, *gradients, *state))
        return held / sum(parameter.numel() for parameter in parameters)


def _own(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, or the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def wrapped(model: nn.Module, engine: Engine, compute: torch.dtype) -> nn.Module:
    """The model as the engine wants it; the layers are units of their own under FSDP2."""
    if engine == "ddp":
        return DistributedDataParallel(model)
    if engine == "fsdp2":
        policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
        mesh = init_device_mesh(device().type, (dist.get_world_size(),))
        for layer in model.children():
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


def region(
    engine: Engine, compute: torch.dtype, ours: torch.device
) -> AbstractContextManager[object]:
    """Autocast, but under FSDP2, whose policy casts."""
    if engine == "fsdp2" or compute == torch.float32:
        return nullcontext()
    return torch.autocast(ours.type, dtype=compute)


def mean_over_ranks(loss: Tensor, ranks: int) -> float:
    """The mean of a loss of each rank, which all of them get."""
    if ranks > 1:
        dist.all_reduce(loss)
    return loss.item() / ranks


_digits = functools.cache(digits)


def transposed(inputs: Tensor) -> Tensor:
    """Digits lying on their side: rows for columns."""
    return inputs.view(-1, 8, 8).transpose(1, 2).reshape(-1, 64)


@functools.cache
def _trained(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    model, data = MLP(64, 128, 128, 10), _digits()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(150):
        inputs, targets = data.sample(64, generator)
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model.state_dict()


def trained(seed: int) -> nn.Module:
    """The net after 150 float32 steps on digits that stand upright, the same on every rank."""
    model = MLP(64, 128, 128, 10)
    model.load_state_dict(_trained(seed))
    return model


if __name__ == "__main__":
    run_rank(main, at_least=2)
