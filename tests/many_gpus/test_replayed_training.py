"""Trainings over replayed ranks: their gradients are the ranks', and only the reduction differs."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mpbook.data import Examples, digits, standard_library
from mpbook.many_gpus import Algorithm, rank_gradients, train_over_ranks
from mpbook.models import GPT, MLP, GPTConfig

FLOAT32, BF16 = torch.float32, torch.bfloat16


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MLP(64, 16, 10)


def sgd(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.3)  # type: ignore[arg-type]


def test_each_ranks_gradient_is_that_of_its_own_share() -> None:
    model = net()
    inputs, targets = digits().sample(12, torch.Generator().manual_seed(0))
    sent, losses = rank_gradients(model, inputs, targets, ranks=4)
    assert sent.shape == (4, sum(p.numel() for p in model.parameters()))
    for rank in range(4):
        share = slice(3 * rank, 3 * rank + 3)
        loss = cross_entropy(model(inputs[share]), targets[share])
        alone = torch.autograd.grad(loss, list(model.parameters()))
        flat = torch.cat([g.flatten() for g in alone])
        assert torch.allclose(sent[rank], flat, rtol=1e-4, atol=1e-6)
        assert losses[rank].item() == pytest.approx(loss.item(), rel=1e-5)
    assert all(p.grad is None for p in model.parameters())


def test_a_gpt_has_a_class_for_each_token() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(layers=1, width=32))
    inputs, targets = standard_library().sample(4, torch.Generator().manual_seed(0))
    sent, losses = rank_gradients(model, inputs, targets, ranks=2)
    logits = model(inputs[:2])
    loss = cross_entropy(logits.flatten(0, 1), targets[:2].flatten())
    assert losses[0].item() == pytest.approx(loss.item(), rel=1e-4)
    assert sent.isfinite().all()


@pytest.mark.parametrize("ranks", [1, 8])
def test_in_float32_it_is_a_training_on_whole_batches(ranks: int) -> None:
    model, data = net(), digits()
    plain = copy.deepcopy(model)
    found = train_over_ranks(
        model, data, ranks=ranks, dtype=FLOAT32, steps=10, batch_size=64, optimizer=sgd
    )
    update, generator = sgd(plain.parameters()), torch.Generator().manual_seed(0)
    losses = []
    for _ in range(10):
        inputs, targets = data.sample(64, generator)
        loss = cross_entropy(plain(inputs), targets)
        update.zero_grad()
        loss.backward()
        update.step()
        losses.append(loss.item())
    assert found.losses == pytest.approx(losses, rel=1e-4)
    ((inputs, targets),) = data.validation(1000)
    held_out = cross_entropy(plain(inputs), targets).item()
    assert found.validation_loss == pytest.approx(held_out, rel=1e-4)


def test_batches_of_held_out_data_are_weighed_by_their_size() -> None:
    data = digits(validation_examples=100)
    at_once = train_over_ranks(net(), data, ranks=2, dtype=FLOAT32, steps=0, batch_size=100)
    in_parts = train_over_ranks(net(), data, ranks=2, dtype=FLOAT32, steps=0, batch_size=64)
    assert in_parts.validation_loss == pytest.approx(at_once.validation_loss, rel=1e-5)


@pytest.mark.parametrize(
    ("dtype", "algorithm", "low", "high"),
    [(FLOAT32, "ring", 0.99, 1.01), (BF16, "tree", 0.99, 1.01), (BF16, "ring", 0.24, 0.51)],
)
def test_the_dtype_and_the_order_are_those_asked_for(
    dtype: torch.dtype, algorithm: Algorithm, low: float, high: float
) -> None:
    """A bfloat16 ring of equal gradients stalls between 256 and 512 of them, of 1024 here."""
    data = digits()
    same = Examples(data.inputs[:1], data.targets[:1])
    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    loss = cross_entropy(model(same.inputs), same.targets)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    found = train_over_ranks(
        model, same, ranks=1024, dtype=dtype, algorithm=algorithm, steps=1, optimizer=sgd
    )
    moved = [((p - b).norm() / 0.3).item() for p, b in zip(model.parameters(), before, strict=True)]
    for distance, gradient in zip(moved, gradients, strict=True):
        assert low < distance / gradient.norm().item() < high
    assert low < found.lengths[0] < high
    assert found.errors[0] == pytest.approx(1 - found.lengths[0], abs=0.15)


def test_without_held_out_data_there_is_no_such_loss() -> None:
    alone = Examples(torch.randn(8, 64), torch.arange(8))
    found = train_over_ranks(net(), alone, ranks=2, dtype=FLOAT32, steps=1, batch_size=8)
    assert math.isnan(found.validation_loss) and math.isfinite(found.losses[0])


def test_a_seed_repeats_and_another_does_not() -> None:
    run = lambda seed: train_over_ranks(  # noqa: E731
        net(), digits(), ranks=4, dtype=BF16, steps=3, batch_size=16, seed=seed
    )
    assert run(0) == run(0) != run(1)


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="ranks=7: expected a divisor of the 64 examples"):
        train_over_ranks(net(), digits(), ranks=7, dtype=FLOAT32, batch_size=64)
    with pytest.raises(ValueError, match="ranks=0"):
        train_over_ranks(net(), digits(), ranks=0, dtype=FLOAT32, batch_size=64)
