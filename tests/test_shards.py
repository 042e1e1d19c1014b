"""Parts of tensors: what this rank holds, and whom to ask about the whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from one_rank import group_of_one, sharded
from torch import nn

from mpbook.loss_scaling import StaticLossScaler, all_finite, nonfinite_gradients
from mpbook.master_weights import MasterWeights
from mpbook.shards import groups_of, is_shared, own_part
from mpbook.training.step import clip, gradient_norm


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    with group_of_one():
        yield


@pytest.fixture
def layer() -> nn.Module:
    torch.manual_seed(0)
    layer = sharded(nn.Linear(3, 2))
    layer(torch.ones(4, 3)).square().sum().backward()
    return layer


def test_a_part_is_in_the_memory_of_the_whole(layer: nn.Module) -> None:
    weight = layer.weight.detach()
    assert is_shared(weight) and not is_shared(own_part(weight))
    own_part(weight).fill_(3.0)
    assert weight.full_tensor().tolist() == [[3.0] * 3] * 2


def test_a_tensor_of_one_process_is_its_own_part_and_asks_nobody() -> None:
    tensor = torch.ones(2)
    assert own_part(tensor) is tensor
    assert groups_of([tensor]) == []


def test_the_group_is_that_of_the_mesh_once_and_only_where_tensors_are_cut(
    layer: nn.Module,
) -> None:
    from torch.distributed.tensor import Replicate, distribute_tensor

    mesh = layer.weight.device_mesh
    copies = distribute_tensor(torch.ones(2), mesh, [Replicate()])
    found = groups_of([torch.ones(1), layer.weight, copies, layer.bias])
    assert found == [mesh.get_group()]
    assert groups_of([copies]) == []


def test_a_tensor_that_is_cut_twice_has_a_group_for_each() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (1, 1))
    cut = distribute_tensor(torch.ones(2, 2), mesh, [Shard(0), Shard(1)])
    assert groups_of([cut]) == [mesh.get_group(0), mesh.get_group(1)]


def test_other_ranks_are_asked_whether_all_is_finite(
    layer: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = [p.grad for p in layer.parameters()]
    assert bool(all_finite(gradients)) and nonfinite_gradients(layer) == []

    def all_reduce(flags: torch.Tensor, op: object, group: object) -> None:
        assert op == dist.ReduceOp.MIN and flags.tolist() == [1, 1]
        flags[1] = 0  # the bias of another rank is infinite

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    assert not bool(all_finite(gradients))
    assert nonfinite_gradients(layer) == ["bias"]
    optimizer, scaler = torch.optim.SGD(layer.parameters()), StaticLossScaler(4.0)
    assert scaler.step(optimizer) is False


def test_norms_are_of_all_parts_and_parts_are_clipped_in_place(
    layer: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = [p.grad for p in layer.parameters()]
    theirs = torch.nn.utils.get_total_norm(gradients).full_tensor().item()
    assert gradient_norm(gradients).item() == pytest.approx(theirs, rel=1e-6)

    def all_reduce(square: torch.Tensor, group: object) -> None:
        assert square.dtype == torch.float64
        square *= 4  # four ranks with the same

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    assert gradient_norm(gradients).item() == pytest.approx(2 * theirs, rel=1e-6)
    clip(gradients, torch.tensor(10.0), 1.0)
    after = torch.nn.utils.get_total_norm(gradients).full_tensor().item()
    assert after == pytest.approx(theirs / 10, rel=1e-5)


def test_master_weights_of_shards_are_those_of_whole_weights() -> None:
    torch.manual_seed(0)
    whole = nn.Linear(3, 2, dtype=torch.bfloat16)
    cut = sharded(nn.Linear(3, 2, dtype=torch.bfloat16))
    cut.load_state_dict({n: _like(p, cut.get_parameter(n)) for n, p in whole.named_parameters()})
    pair = [(m, MasterWeights(torch.optim.AdamW(m.parameters(), lr=1e-3))) for m in (whole, cut)]
    for step in range(6):
        for module, optimizer in pair:
            optimizer.zero_grad()
            module(torch.ones(4, 3, dtype=torch.bfloat16)).square().sum().backward()
            optimizer.step()
            if step == 3:  # somebody else writes to a weight, and the copy takes it over
                with torch.no_grad():
                    module.bias.copy_(_like(torch.ones(2, dtype=torch.bfloat16), module.bias))
    for p, q in zip(whole.parameters(), cut.parameters(), strict=True):
        assert q.full_tensor().equal(p)
        copies = [dict(optimizer.copies) for _, optimizer in pair]
        assert own_part(copies[1][q]).equal(copies[0][p])


def _like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    from torch.distributed.tensor import distribute_tensor

    if not is_shared(other):
        return tensor
    return distribute_tensor(tensor.detach(), other.device_mesh, other.placements)
