"""Trainings on simulated ranks: the same one, but for the rounding of the reduction."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mpbook.data import digits
from mpbook.many_gpus.simulated_training import train_on_ranks
from mpbook.models import MLP


def by_hand(seed: int, steps: int) -> float:
    """The same training in plain torch, on whole batches; the loss on held-out digits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net: nn.Module = MLP(64, 16, 10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    data, generator = digits(), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        inputs, targets = data.sample(1024, generator)
        optimizer.zero_grad()
        cross_entropy(net(inputs), targets).backward()
        optimizer.step()
    ((inputs, targets),) = data.validation(1000)
    with torch.no_grad():
        return float(cross_entropy(net(inputs), targets))


@pytest.mark.parametrize("ranks", [1, 64, 1024])
def test_in_float32_it_is_the_training_of_one_process(ranks: int) -> None:
    trained = train_on_ranks(ranks, dtype=torch.float32, algorithm="tree", seed=1, steps=8)
    assert trained.loss == pytest.approx(by_hand(1, 8), rel=1e-4)
    assert trained.error < 1e-5
    assert trained.length == pytest.approx(1, abs=1e-5)


def test_only_a_long_ring_of_bfloat16_is_far_off() -> None:
    found = {
        (ranks, algorithm): train_on_ranks(
            ranks, dtype=torch.bfloat16, algorithm=algorithm, steps=8
        )
        for ranks in (64, 1024)
        for algorithm in ("ring", "tree")
    }
    assert found[1024, "ring"].error > 0.03  # measured: 0.11
    for near in ((64, "ring"), (64, "tree"), (1024, "tree")):
        assert 1e-4 < found[near].error < 0.02


def test_a_seed_means_the_same_weights_and_batches_and_the_global_one_is_left_alone() -> None:
    state = torch.get_rng_state()
    first, second, other = (
        train_on_ranks(4, dtype=torch.float32, seed=seed, steps=2) for seed in (0, 0, 1)
    )
    assert first.loss == pytest.approx(second.loss, rel=1e-5)
    assert abs(first.loss - other.loss) > 1e-3
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("ranks", [0, 3, 2048])
def test_ranks_that_do_not_divide_the_batch_are_refused(ranks: int) -> None:
    with pytest.raises(ValueError, match="expected a divisor of batch_size=1024"):
        train_on_ranks(ranks, dtype=torch.float32)
