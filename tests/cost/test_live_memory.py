"""`live_memory` and `activation_checkpointing`: bytes alive, and what recomputation leaves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpbook.cost.activation_checkpointing import Checkpointed, Recompute, checkpoint_blocks
from mpbook.cost.live_memory import LiveMemory
from mpbook.cost.measure import saved_for_backward
from mpbook.models import GPT, MLP, GPTConfig

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
CONFIG = GPTConfig(vocabulary=64, context=8, layers=3, heads=2, width=16)


# --- What is alive -----------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_bytes_come_with_a_tensor_and_go_with_it(device: str) -> None:
    with LiveMemory() as live:
        x = torch.ones(100, device=device)
        assert live.alive == 400
        y = x.double()
        assert live.alive == 1200
        del x
        assert live.alive == 800
        del y
        assert live.alive == 0
    assert live.timeline == [400, 1200]
    assert live.peak == 1200


def test_what_was_there_before_counts_nothing() -> None:
    before = torch.ones(100)
    with LiveMemory() as live:
        view = before.view(10, 10)
        again = view.t()
        before.add_(1)
        assert live.alive == 0
        double = again + again
    assert live.timeline[-1] == 400
    del double, before, view
    assert live.alive == 0


def test_views_count_once() -> None:
    with LiveMemory() as live:
        x = torch.ones(4, 4)
        parts = [x[0], x.t(), x.view(16), x.detach()]
    assert live.alive == 64
    del x
    assert live.alive == 64
    del parts
    assert live.alive == 0


def test_an_address_that_is_used_again_counts_again() -> None:
    with LiveMemory() as live:
        for _ in range(50):
            x = torch.ones(100)
            assert live.alive == 400
            del x
            assert live.alive == 0


def test_every_result_of_an_operation_counts() -> None:
    with LiveMemory() as live:
        values, indices = torch.ones(10).sort()
    assert live.alive == 40 + 80
    del values, indices


def test_keyword_arguments_are_seen_as_there_before() -> None:
    before, out = torch.ones(10), torch.empty(10)
    with LiveMemory() as live:
        torch.add(before, before, out=out)
    assert live.timeline == [0]


def test_the_operation_of_the_peak_is_named() -> None:
    with LiveMemory() as live:
        x = torch.ones(10)
        y = torch.zeros(1000)
        del y
        x.neg()
    assert live.peak_operation.startswith("aten.zeros")
    assert len(live.timeline) == len(live.operations) == 3


def test_nothing_watched_is_nothing() -> None:
    assert LiveMemory().peak == 0
    assert LiveMemory().peak_operation == ""


@pytest.mark.parametrize("device", DEVICES)
def test_a_linear_layer_by_hand(device: str) -> None:
    layer = nn.Linear(8, 4, bias=False, device=device)
    x = torch.ones(16, 8, device=device)
    with LiveMemory() as live:
        y = layer(x).relu()
        assert live.alive == 4 * 16 * 4  # the product died; ReLU's result is there
        total = y.sum()
        del y
        total.backward()
        assert layer.weight.grad is not None
        del total
        assert live.alive == 4 * 8 * 4  # the gradient


# --- Recomputation -----------------------------------------------------------------------------


def gradients(
    model: nn.Module, device: str, *, mixed: bool, seed: int = 0
) -> tuple[float, list[Tensor], int]:
    """Loss, gradients and saved bytes of one pass."""
    model = model.to(device)
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randint(0, 64, (2, 4, 8), generator=generator).to(device)
    with saved_for_backward(model) as saved:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=mixed):
            logits = model(x)
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), y.flatten())
    loss.backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    return loss.item(), found, saved()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("by", ["torch", "recompute"])
@pytest.mark.parametrize("mixed", [False, True])
def test_gradients_are_those_without_checkpointing(by: Any, mixed: bool, device: str) -> None:
    torch.manual_seed(0)
    plain = GPT(CONFIG)
    checkpointed = checkpoint_blocks(copy.deepcopy(plain), by=by)
    loss, expected, most = gradients(plain, device, mixed=mixed)
    again, found, fewest = gradients(checkpointed, device, mixed=mixed)
    assert again == loss
    assert len(found) == len(expected) == len(list(plain.parameters()))
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0 if device == "cpu" else 1e-3)
    assert fewest < 0.7 * most


def test_both_ways_save_the_same() -> None:
    torch.manual_seed(0)
    plain = GPT(CONFIG)
    saved = [
        gradients(checkpoint_blocks(copy.deepcopy(plain), by=by), "cpu", mixed=True)[2]
        for by in ("torch", "recompute")
    ]
    assert saved[0] == saved[1]


def test_autocast_is_as_it_was_when_a_block_is_run_again() -> None:
    seen: list[tuple[bool, torch.dtype]] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            state = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
            seen.append(state)
            return x * 2

    x = torch.ones(2, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.float16):
        y = Recompute.apply(Spy(), x)
    y.sum().backward()
    Recompute.apply(Spy(), x).sum().backward()
    assert seen[:2] == [(True, torch.float16)] * 2
    assert [enabled for enabled, _ in seen[2:]] == [False, False]


def test_gradients_add_up_over_two_passes() -> None:
    block = nn.Linear(3, 3)
    x = torch.ones(2, 3, requires_grad=True)
    for _ in range(2):
        Recompute.apply(block, x).sum().backward()
    assert torch.equal(block.weight.grad, torch.full((3, 3), 4.0))  # type: ignore[arg-type]
    expected = 2 * block.weight.detach().sum(0).expand(2, 3)
    torch.testing.assert_close(x.grad, expected)


def test_only_the_input_is_kept() -> None:
    block = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 8))
    x = torch.ones(5, 8, requires_grad=True)
    with saved_for_backward(block) as saved:
        Recompute.apply(block, x)
    assert saved() == 4 * 5 * 8


def test_blocks_are_wrapped_and_parameters_stay() -> None:
    model = GPT(CONFIG)
    parameters = list(model.parameters())
    assert checkpoint_blocks(model) is model
    assert all(isinstance(block, Checkpointed) for block in model.blocks)
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert {block.by for block in model.blocks} == {"torch"}


def test_dropout_needs_torchs_checkpoint() -> None:
    torch.manual_seed(0)
    block = Checkpointed(nn.Dropout(0.5))
    x = torch.ones(1000, requires_grad=True)
    y = block(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [MLP(2, 2), nn.Module()])
def test_a_model_without_blocks_is_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="has no blocks"):
        checkpoint_blocks(model)


def test_another_way_is_refused() -> None:
    with pytest.raises(ValueError, match='"torch" or "recompute"'):
        checkpoint_blocks(GPT(CONFIG), by="apex")  # type: ignore[arg-type]


def test_sparse_gradients_count_by_their_indices_and_values():
    layer = torch.nn.Embedding(10, 4, sparse=True)
    with LiveMemory() as live:
        layer(torch.tensor([2, 5, 5])).sum().backward()
        at_end = live.alive
    gradient = layer.weight.grad
    assert gradient.is_sparse
    parts = gradient._indices().nbytes + gradient._values().nbytes
    assert at_end >= gradient._values().nbytes
    assert live.peak >= parts
