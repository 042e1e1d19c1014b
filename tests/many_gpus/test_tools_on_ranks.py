"""The book's tools on real ranks: what one process counts of all batches, they count over ranks.

Weights, inputs and updates are small multiples of a power of two, so that every sum is exact in
float32, in whatever order it is taken: the counts of one process and of all ranks are equal.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mpbook.many_gpus.launch import launch_all
from mpbook.watch import KINDS, Probe

# ruff: noqa: F821  a program's imports come from `mpbook.many_gpus.program_text.PRELUDE`

STEPS = 2


def exact_net(seed):
    """Three layers whose numbers are multiples of a quarter, one of them frozen."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), nn.Linear(3, 2))
    for parameter in net.parameters():
        numbers = torch.randint(-4, 5, parameter.shape, generator=generator)
        parameter.data = numbers.float() / 4
    net[3].weight.requires_grad_(False)
    return net


def exact_batch(rank, step):
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randint(-3, 4, (4, 6), generator=generator).float()


def engines(net):
    """The same net as DDP has it and as FSDP2 does."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    yield "ddp", DistributedDataParallel(net(0))
    model = net(0)
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    yield "fsdp2", model


def counts_of(report):
    return {
        kind: {
            layer.removeprefix("module."): report.histogram(kind, layer).as_dict()
            for layer in report.layers(kind)
        }
        for kind in report.kinds
    }


def refusal(call):
    try:
        call()
    except (RuntimeError, ValueError) as error:
        return str(error)
    return "no error"


def probed():
    """What a probe has counted, over ranks and of this one, and what it says to one alone."""
    from mpbook.watch import Probe

    found = {}
    for name, model in engines(exact_net):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=2**-6)
        with Probe(model, optimizer) as probe:
            for step in range(2):
                optimizer.zero_grad()
                model(exact_batch(dist.get_rank(), step)).sum().backward()
                optimizer.step()
        whole = probe.over_ranks()
        verdict = whole.needs_loss_scaling("float16")
        found[name] = {
            "counts": counts_of(whole),
            "own": counts_of(probe.of_this_rank()),
            "caption": whole.table("float16").caption,
            "own caption": probe.of_this_rank().table("float16").caption,
            "verdict": [verdict.verdict, verdict.reason],
            "alone": refusal(lambda: probe.table("float16")),
        }
    return found


def probed_apart():
    """Ranks that watch different things."""
    from mpbook.watch import Probe

    kinds = ["activations"] if dist.get_rank() else ["weights"]
    model = exact_net(0)
    with Probe(model, kinds=kinds) as probe:
        model(exact_batch(0, 0))
    return refusal(probe.over_ranks)


def diagnosed():
    """What a diagnosis of the model inside of DDP says that it has not seen."""
    import mpbook

    model = DistributedDataParallel(exact_net(0))
    batch = exact_batch(dist.get_rank(), 0)
    found = mpbook.diagnose(
        model, (batch, batch[:, :2]), loss=functional.mse_loss, formats=["bfloat16"], steps=1
    )
    return [what for what, _ in found.unseen]


def converted():
    """Whether layers by a recipe compute the same when they were sharded afterwards."""
    from mpbook.low_precision import convert

    same = {}
    for recipe in ("float8_tensorwise", "float8_rowwise"):
        alone, model = (convert(nn.Sequential(*exact_net(0)[:3]), recipe) for _ in range(2))
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        fully_shard(model, mesh=mesh)
        batch = exact_batch(dist.get_rank(), 0)
        same[recipe] = torch.equal(model(batch), alone(batch))
    return same


@pytest.fixture(scope="module")
def found(ranks: int, patience_s: float) -> dict[str, list[Any]]:
    helpers = [exact_net, exact_batch, engines, counts_of, refusal]
    programs = [probed, probed_apart, diagnosed, converted]
    return launch_all([*helpers, *programs], ranks=ranks, patience_s=patience_s)


def one_process(ranks: int) -> Probe:
    """All batches in one process, whose gradients are divided by the number of ranks."""
    model = exact_net(0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=2**-6)
    with Probe(model, optimizer) as probe:
        for step in range(STEPS):
            optimizer.zero_grad()
            for rank in range(ranks):
                model(exact_batch(rank, step)).sum().backward()
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad /= ranks
            optimizer.step()
    return probe


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_probe_counts_over_ranks_what_one_process_counts(
    found: Any, kind: str, engine: str
) -> None:
    ranks = len(found["probed"])
    wanted = counts_of(one_process(ranks))[kind]
    assert wanted
    for rank in found["probed"]:
        # As JSON has it: a tuple is a list.
        assert rank[engine]["counts"][kind].keys() == wanted.keys()
        for layer, histogram in wanted.items():
            assert rank[engine]["counts"][kind][layer] == histogram, layer


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_every_rank_has_a_part_of_the_counts_and_the_same_verdict(found: Any, engine: str) -> None:
    ranks = found["probed"]
    verdict = one_process(len(ranks)).needs_loss_scaling("float16").verdict
    for number, rank in enumerate(ranks):
        assert rank[engine]["verdict"] == ranks[0][engine]["verdict"]
        assert rank[engine]["verdict"][0] == verdict
        assert f" of {len(ranks)} ranks" in rank[engine]["caption"]
        assert f" of rank {number} of {len(ranks)}" in rank[engine]["own caption"]
    seen = [rank[engine]["own"]["activations"]["0"] for rank in ranks]
    assert any(one != seen[0] for one in seen)


def test_sharded_weights_are_counted_in_parts_and_replicated_ones_on_each_rank(found: Any) -> None:
    def numbers(engine: str, of: str, kind: str, rank: int) -> int:
        layers = found["probed"][rank][engine][of][kind].values()
        rows = (row for layer in layers for row in layer["bins"])
        zeros = sum(layer["zeros"] for layer in layers)
        return zeros + sum(count for _, row in rows for count in row)

    whole = STEPS * sum(p.numel() for p in exact_net(0).parameters())
    ranks = range(len(found["probed"]))
    for rank in ranks:
        assert numbers("ddp", "own", "weights", rank) == whole
        assert numbers("ddp", "counts", "weights", rank) == whole
        assert numbers("fsdp2", "counts", "weights", rank) == whole
    assert sum(numbers("fsdp2", "own", "weights", rank) for rank in ranks) == whole


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_no_rank_reads_its_own_part_by_accident(found: Any, engine: str) -> None:
    for number, rank in enumerate(found["probed"]):
        words = f"probe: has counted what rank {number} of {len(found['probed'])} saw"
        assert words in rank[engine]["alone"]
        assert "over_ranks()" in rank[engine]["alone"]


def test_ranks_that_watch_different_things_are_told_so(found: Any) -> None:
    for message in found["probed_apart"]:
        assert "rank 1 watched another model, other kinds" in message


def test_a_diagnosis_on_one_of_several_ranks_says_what_it_has_not_seen(found: Any) -> None:
    count = len(found["diagnosed"])
    for number, unseen in enumerate(found["diagnosed"]):
        assert any(f"this is rank {number} of {count}" in what for what in unseen)


def test_layers_by_a_recipe_compute_the_same_once_they_are_sharded(found: Any) -> None:
    for rank in found["converted"]:
        assert rank == {"float8_tensorwise": True, "float8_rowwise": True}
