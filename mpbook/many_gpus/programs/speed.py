"""Time what several ranks do together: all-reduces by dtype, and steps of FSDP2 by policy.

A reading is over when its last rank is done.  Taught in the chapter "Many GPUs".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.functional import cross_entropy

from mpbook.cost.measure import peak_memory, time_calls
from mpbook.many_gpus.rank import device, run_rank
from mpbook.models import GPT, GPTConfig


def main(
    dtypes: Sequence[str],
    elements: Sequence[int],
    policies: Mapping[str, Sequence[str]],
    model: dict[str, Any],
    batch: int,
    readings: int,
) -> dict[str, list[dict[str, Any]]]:
    """What `all_reduces` and `steps` find."""
    return {
        "all_reduce": all_reduces(dtypes, elements, readings),
        "fsdp2_step": steps(policies, GPTConfig(**model), batch, readings),
    }


def all_reduces(
    dtypes: Sequence[str], elements: Sequence[int], readings: int
) -> list[dict[str, Any]]:
    """Seconds of an all-reduce for each dtype and number of elements, and the bytes reduced."""
    found = []
    for name in dtypes:
        for count in elements:
            tensor = torch.zeros(count, dtype=getattr(torch, name), device=device())
            seconds = timed(partial(dist.all_reduce, tensor), readings)
            found.append({"dtype": name, "bytes": tensor.nbytes, "seconds": seconds})
    return found


def steps(
    policies: Mapping[str, Sequence[str]], config: GPTConfig, batch: int, readings: int
) -> list[dict[str, Any]]:
    """Seconds of a step of AdamW for each policy, a param_dtype and a reduce_dtype by name.

    Beside them the tokens of a step on all ranks, and the peak memory of this rank.
    """
    found = []
    for name, dtypes in policies.items():
        step = sharded_step(config, batch, *(getattr(torch, dtype) for dtype in dtypes))
        step()  # makes the optimizer's state
        with peak_memory(device()) as peak:
            seconds = timed(step, readings)
        tokens = batch * config.context * dist.get_world_size()
        row = {"policy": name, "tokens": tokens, "seconds": seconds, "peak_memory": peak()}
        found.append(row)
        del step  # and with it the model, before the next one is made
    return found


def sharded_step(
    config: GPTConfig, batch: int, param_dtype: torch.dtype, reduce_dtype: torch.dtype
) -> Callable[[], None]:
    """A training step of a GPT under FSDP2, on the same random tokens each time."""
    torch.manual_seed(0)  # every rank starts from the same weights
    with torch.device(device()):
        model = GPT(config)
    mesh = init_device_mesh(device().type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=reduce_dtype)
    for block in (*model.blocks, model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    generator = torch.Generator().manual_seed(dist.get_rank())
    drawn = torch.randint(config.vocabulary, (batch, config.context + 1), generator=generator)
    tokens = drawn.to(device())

    def step() -> None:
        outputs = model(tokens[:, :-1])
        cross_entropy(outputs.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(work: Callable[[], Any], readings: int) -> list[float]:
    """Seconds of each reading, those of the slowest rank."""
    spread = time_calls(work, [()], device=device(), readings=readings)
    seconds = torch.tensor(spread.readings, dtype=torch.float64, device=device())
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    return [float(each) for each in seconds]


if __name__ == "__main__":
    run_rank(main, at_least=2)
