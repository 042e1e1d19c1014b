"""What the chapters say of DDP and FSDP2, tried by ranks on a CPU; all in one start.

The functions are programs: each runs on every rank, in a process of its own.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mpbook.many_gpus.launch import launch_all

# ruff: noqa: F821  a program's imports come from `mpbook.many_gpus.program_text.PRELUDE`


CLUSTER = {
    "MASTER_ADDR": "no-such-host",
    "RANK": "7",
    "WORLD_SIZE": "9",
    "LOCAL_RANK": "3",
    "SLURM_PROCID": "7",
    "SLURM_NTASKS": "9",
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "8",
    "PET_NODE_RANK": "1",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
"""What a job of several machines finds set: by torchrun, SLURM and Kubernetes."""


def sharded(dtype, **policy):
    torch.manual_seed(0)
    model = nn.Linear(8, 8, bias=False).to(dtype)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(**policy))
    return model


def stored(dtype, **policy):
    """The dtypes of shard, gradient and Adam's state; and whether the gradient fits bfloat16."""
    model = sharded(dtype, **policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(dist.get_rank()))
    model(inputs).float().square().sum().backward()
    optimizer.step()
    gradient = model.weight.grad.to_local()
    state = optimizer.state[model.weight]["exp_avg"]
    dtypes = [str(tensor.dtype)[6:] for tensor in (model.weight, gradient, state)]
    return dtypes, torch.equal(gradient.bfloat16().to(gradient.dtype), gradient)


def dtypes():
    wide = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}
    return {
        "param_dtype": stored(torch.float32, param_dtype=torch.bfloat16),
        "reduce_dtype": stored(torch.float32, **wide),
        "bfloat16 model": stored(torch.bfloat16, **wide),
    }


def scale_after_an_infinity(model, weight):
    """The plain GradScaler's scale, and whether this rank's weight moved."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    inputs = torch.ones(2, 8)
    if dist.get_rank() == 1:
        inputs[0, 0] = torch.inf
    before = weight().clone()
    scaler.scale(model(inputs).square().sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    return [scaler.get_scale(), torch.equal(before, weight())]


def infinity():
    plain = nn.Linear(8, 8, bias=False)
    ddp, fsdp = DistributedDataParallel(plain), sharded(torch.float32)
    return {
        "ddp": scale_after_an_infinity(ddp, lambda: plain.weight.detach()),
        "fsdp2": scale_after_an_infinity(fsdp, lambda: fsdp.weight.detach().to_local()),
    }


def counted():
    other = torch.ones(1) * dist.get_rank()
    dist.all_reduce(other)
    return [dist.get_rank(), dist.get_world_size(), other.item()]


@pytest.fixture(scope="module")
def found(
    ranks: int, patience_s: float, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, list[Any]]]:
    """What each rank found, where much stands in the way.

    The port that others would have taken is in use, the environment is one of a cluster's jobs, and
    the folder has a space and a letter beyond ASCII in its name.
    """
    with socket.socket() as taken, pytest.MonkeyPatch.context() as patch:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        patch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        patch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("a fol\u0111er")))
        for name, value in CLUSTER.items():
            patch.setenv(name, value)
        helpers = [sharded, stored, scale_after_an_infinity]
        yield launch_all([*helpers, counted, dtypes, infinity], ranks=ranks, patience_s=patience_s)


def test_every_rank_answers_for_each_program_and_for_no_helper(found: Any) -> None:
    assert list(found) == ["counted", "dtypes", "infinity"]
    ranks = len(found["counted"])
    assert found["counted"] == [[r, ranks, float(sum(range(ranks)))] for r in range(ranks)]


def test_a_float32_model_keeps_float32_shards_gradients_and_state(found: Any) -> None:
    for rank in found["dtypes"]:
        for policy in ("param_dtype", "reduce_dtype"):
            assert rank[policy][0] == ["float32", "float32", "float32"]


def test_a_bfloat16_model_has_bfloat16_shards_gradients_and_state(found: Any) -> None:
    for rank in found["dtypes"]:
        assert rank["bfloat16 model"][0] == ["bfloat16", "bfloat16", "bfloat16"]


def test_without_reduce_dtype_gradients_were_reduced_in_param_dtype_before_torch_2_15(
    found: Any,
) -> None:
    major, minor = map(int, torch.__version__.split(".")[:2])
    for rank in found["dtypes"]:
        assert rank["param_dtype"][1] is ((major, minor) < (2, 15))
        assert rank["reduce_dtype"][1] is False


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_an_infinity_of_one_rank_makes_the_plain_scaler_back_off_on_all(
    found: Any, engine: str
) -> None:
    assert len(found["infinity"]) > 1
    assert all(rank[engine] == [512.0, True] for rank in found["infinity"])
