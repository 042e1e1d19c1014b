"""What the chapters say of sharded training, tried with two processes on a CPU."""

import json
import subprocess
import sys

import pytest
import torch

# One rank. It is a script, so that a rank imports torch and nothing of the tests.
RANK = '''
import json, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

rank, meeting = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
bf16 = torch.bfloat16


def sharded(dtype=torch.float32, **policy):
    torch.manual_seed(0)
    model = nn.Linear(8, 8, bias=False).to(dtype)
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(**policy))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return model, optimizer


def stored(dtype, **policy):
    """The dtypes of shard, gradient and Adam's state; and whether the gradient fits bfloat16."""
    model, optimizer = sharded(dtype, **policy)
    inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(rank))
    model(inputs).float().square().sum().backward()
    optimizer.step()
    gradient = model.weight.grad.to_local()
    state = optimizer.state[model.weight]["exp_avg"]
    dtypes = [str(tensor.dtype)[6:] for tensor in (model.weight, gradient, state)]
    return dtypes, torch.equal(gradient.to(bf16).to(gradient.dtype), gradient)


def after_an_infinity():
    """The plain GradScaler's scale, and whether this rank moved, when rank 0 has an infinity."""
    model, optimizer = sharded()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(model(torch.ones(2, 8)).sum()).backward()
    if rank == 0:
        model.weight.grad.to_local()[0, 0] = torch.inf
    before = model.weight.to_local().clone()
    scaler.step(optimizer)
    scaler.update()
    return scaler.get_scale(), not torch.equal(before, model.weight.to_local())


found = {
    "param_dtype": stored(torch.float32, param_dtype=bf16),
    "reduce_dtype": stored(torch.float32, param_dtype=bf16, reduce_dtype=torch.float32),
    "bfloat16 model": stored(bf16, param_dtype=bf16, reduce_dtype=torch.float32),
    "infinity": after_an_infinity(),
}
dist.destroy_process_group()
print(json.dumps(found))
'''
PATIENCE_S = 300


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks found."""
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "rank.py").write_text(RANK)
    command = [sys.executable, str(folder / "rank.py")]
    running = [
        subprocess.Popen([*command, str(rank), str(folder / "meeting")], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        printed = [process.communicate(timeout=PATIENCE_S)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [process.returncode for process in running] == [0, 0]
    return [json.loads(text.splitlines()[-1]) for text in printed]


def test_a_float32_model_keeps_float32_shards_gradients_and_state(ranks):
    for found in ranks:
        for policy in ("param_dtype", "reduce_dtype"):
            assert found[policy][0] == ["float32", "float32", "float32"]


def test_a_bfloat16_model_has_bfloat16_shards_gradients_and_state(ranks):
    for found in ranks:
        assert found["bfloat16 model"][0] == ["bfloat16", "bfloat16", "bfloat16"]


def test_without_reduce_dtype_gradients_were_reduced_in_param_dtype_before_torch_2_15(ranks):
    major, minor = map(int, torch.__version__.split(".")[:2])
    for found in ranks:
        assert found["param_dtype"][1] is ((major, minor) < (2, 15))
        assert found["reduce_dtype"][1] is False


def test_an_infinity_in_one_shard_makes_the_plain_scaler_back_off_on_all(ranks):
    assert [found["infinity"] for found in ranks] == [[512.0, False], [512.0, False]]
