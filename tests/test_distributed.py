"""What a model is to one rank of several, and which tools refuse one that is sharded.

A process group of a single rank is enough to shard a model; what several real ranks count is in
``tests/many_gpus``.
"""

from __future__ import annotations

import socket
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mpbook import diagnose, formats
from mpbook.autocast import trace_dtypes
from mpbook.cost import count_bytes, measure_memory, module_step
from mpbook.distributed import (
    gathered,
    is_another_copy,
    rank_and_ranks,
    refuse_sharded,
    sharded_by,
    without_data_parallel,
)
from mpbook.low_precision import capture, convert, read_gauge
from mpbook.many_gpus.launch import cannot_launch
from mpbook.watch import Probe, log2_histogram

ROUNDING = {"overflow": "inf"}


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    """A process group of this process alone."""
    if reason := cannot_launch():
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch:
        if loopback := {name for _, name in socket.if_nameindex()} & {"lo", "lo0"}:
            patch.setenv("GLOO_SOCKET_IFNAME", loopback.pop())
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        yield
        dist.destroy_process_group()


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


def sharded() -> nn.Module:
    """By FSDP2."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = net()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    return model


def split() -> nn.Module:
    """By tensor parallelism: its weights are DTensors, and no module is FSDP's."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    return parallelize_module(net(), init_device_mesh("cpu", (1,)), {"0": ColwiseParallel()})


def replicated() -> nn.Module:
    return nn.parallel.DistributedDataParallel(net())


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target).square().mean()


def of_model(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return loss(model(batch[0]), batch[1])


BATCH = torch.ones(2, 4), torch.zeros(2, 4)


RUNS_COPIES: dict[str, Callable[[nn.Module], object]] = {
    "diagnose": lambda m: diagnose(m, BATCH, loss=loss, formats=["bfloat16"]),
    "trace_dtypes": lambda m: trace_dtypes(m, BATCH[0], "bf16-mixed"),
    "measure_memory": lambda m: measure_memory(m, BATCH, loss, precision="32-true"),
    "module_step": lambda m: module_step(m, BATCH, loss, batch_size=2, precision="32-true"),
    "capture": lambda m: capture(m, [BATCH], loss=of_model),
    "read_gauge": lambda m: read_gauge(m, lambda: of_model(m, BATCH)),
}


@pytest.mark.parametrize("tool", RUNS_COPIES)
@pytest.mark.parametrize("engine", [sharded, split])
def test_what_runs_a_model_by_itself_refuses_a_part_of_one(
    tool: str, engine: Callable[[], nn.Module]
) -> None:
    named = "fully_shard" if engine is sharded else "a DTensor, as its 0.weight is one"
    with pytest.raises(ValueError, match=rf"model: sharded by {named}.*before that.*one rank"):
        RUNS_COPIES[tool](engine())


def test_layers_are_converted_before_they_are_sharded() -> None:
    with pytest.raises(ValueError, match=r"convert\(model, .*\) first, and fully_shard\(model\)"):
        convert(sharded(), "float8_rowwise")


def test_a_probe_watches_what_fully_shard_made_and_no_tensor_parallelism() -> None:
    Probe(sharded())
    with pytest.raises(ValueError, match="expected one under fully_shard or Distributed"):
        Probe(split())


@pytest.mark.parametrize("also", ["copied", "split"])
def test_a_probe_watches_shards_along_one_dimension_of_a_mesh(also: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("outer", "inner"))
    model = net()
    if also == "copied":
        Probe(fully_shard(model, mesh=mesh))
    else:
        parallelize_module(model, mesh["inner"], {"0": ColwiseParallel()})
        fully_shard(model, mesh=mesh["outer"])
        with pytest.raises(ValueError, match="activations of tensor parallelism would count once"):
            Probe(model)


@pytest.mark.parametrize("tool", ["measure_memory", "module_step", "read_gauge"])
def test_what_ddp_adds_is_in_no_step_of_one_process(tool: str) -> None:
    with pytest.raises(ValueError, match=r"DistributedDataParallel, whose .* model\.module"):
        RUNS_COPIES[tool](replicated())


def test_the_model_inside_of_ddp_is_traced_and_captured() -> None:
    model = replicated()
    inside = without_data_parallel(model)
    assert repr(trace_dtypes(model, BATCH[0])) == repr(trace_dtypes(inside, BATCH[0]))
    captured = capture(model, [BATCH], loss=of_model)
    assert [one.layer for one in captured] == ["0", "2"]
    assert torch.equal(captured[0].w, inside[0].weight)  # type: ignore[index]


WHOLE_TENSORS: dict[str, Callable[[torch.Tensor], object]] = {
    "round_to": lambda x: formats.round_to(x, "float16", **ROUNDING),
    "encode_tensor": lambda x: formats.encode_tensor(x, "float16", **ROUNDING),
    "decode_tensor": lambda x: formats.decode_tensor(x.long(), "float16"),
    "ulp": lambda x: formats.ulp(x, "float16"),
    "bfloat16_bits": formats.bfloat16_bits,
    "quantise": lambda x: formats.quantise(x, "float8_blockwise"),
    "fake_quantise": lambda x: formats.fake_quantise(x, "float8_blockwise"),
    "exact_sum": lambda x: formats.exact_sum(x.flatten()),
    "running_sum": lambda x: formats.running_sum(x, "float16"),
    "pairwise_sum": lambda x: formats.pairwise_sum(x, "float16"),
    "kahan_sum": lambda x: formats.kahan_sum(x, "float16"),
    "signal_to_noise_db": lambda x: formats.signal_to_noise_db(x, x),
    "log2_histogram": log2_histogram,
}


@pytest.mark.parametrize("function", WHOLE_TENSORS)
def test_a_function_of_tensors_refuses_a_part_of_one(function: str) -> None:
    part = next(sharded().parameters()).detach()
    with pytest.raises(TypeError, match=r"is a DTensor.*\.to_local\(\).*\.full_tensor\(\)"):
        WHOLE_TENSORS[function](part)


def test_the_bytes_of_a_sharded_tensor_are_those_of_this_ranks_part() -> None:
    weight = next(sharded().parameters())
    assert count_bytes([weight]) == weight.to_local().untyped_storage().nbytes()  # type: ignore[operator]


def test_a_copy_is_what_an_earlier_rank_holds_too() -> None:
    weight = next(sharded().parameters())
    assert not is_another_copy(weight, rank=3)  # a part is nobody else's
    assert is_another_copy(torch.ones(1), rank=3)
    assert not is_another_copy(torch.ones(1), rank=0)


def test_a_copy_of_a_part_is_known_by_its_place_among_copies() -> None:
    class Placement:
        def __init__(self, replicate: bool) -> None:
            self.is_replicate = lambda: replicate

    class Mesh:
        def __init__(self, *place: int) -> None:
            self.get_coordinate = lambda: place

    class Part:
        """Copied along the first dimension of the mesh, cut along the second (HSDP)."""

        placements = Placement(True), Placement(False)

        def __init__(self, *place: int) -> None:
            self.device_mesh = Mesh(*place)

        def to_local(self) -> None: ...

    copies = {place: is_another_copy(Part(*place), 0) for place in ((0, 0), (0, 1), (1, 0), (1, 1))}  # type: ignore[arg-type]
    assert copies == {(0, 0): False, (0, 1): False, (1, 0): True, (1, 1): True}


def test_a_model_that_nobody_sharded_is_not_refused() -> None:
    for model in (net(), replicated()):
        assert sharded_by(model) == ""
        refuse_sharded(model, instead="another")


def test_fsdp1_keeps_parts_in_plain_tensors_and_is_refused_too() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on one rank it shards nothing, and says so
        model = FullyShardedDataParallel(net(), device_id=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"sharded by FullyShardedDataParallel \(FSDP1\)"):
        refuse_sharded(model, instead="another")
    with pytest.raises(ValueError, match="FSDP1"):
        Probe(model)


def test_one_rank_gathers_its_own() -> None:
    assert rank_and_ranks() == (0, 1)
    assert gathered({"a": 1}) == [{"a": 1}]


def test_a_model_is_taken_out_of_every_wrapper():
    model = net()
    assert without_data_parallel(nn.DataParallel(nn.DataParallel(model))) is model


def test_a_sharded_buffer_is_found_too():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    model = net()
    mesh = init_device_mesh("cpu", (1,))
    model.register_buffer("mean", distribute_tensor(torch.ones(2), mesh, [Shard(0)]))
    assert sharded_by(model) == "a DTensor, as its mean is one"


def test_a_group_of_some_ranks_is_asked_for_its_own(monkeypatch):
    asked = []
    monkeypatch.setattr(dist, "get_rank", lambda group=None: {"half": 1, None: 3}[group])
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: {"half": 2, None: 4}[group])

    def all_gather_object(found, value, group=None):
        asked.append(group)
        found[:] = [f"{value} of {rank}" for rank in range(len(found))]

    monkeypatch.setattr(dist, "all_gather_object", all_gather_object)
    assert rank_and_ranks("half") == (1, 2) and rank_and_ranks() == (3, 4)
    assert gathered("part", "half") == ["part of 0", "part of 1"]
    assert len(gathered("part")) == 4 and asked == ["half", None]
