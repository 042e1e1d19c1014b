"""The answers of the exercises on memory, against torch and the planner."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mpbook.cost.live_memory import LiveMemory
from mpbook.cost.measure import saved_for_backward
from mpbook.cost.saved_tensors import block_tensors
from mpbook.exercises import find
from mpbook.exercises.memory import EXERCISES
from mpbook.models import GPTConfig
from mpbook.precision import PRECISIONS


def solution(name: str, *arguments: object) -> object:
    return find(f"memory.{name}").solution(*arguments)


def inputs(name: str) -> list[tuple[object, ...]]:
    return list(find(f"memory.{name}").inputs())


@pytest.mark.parametrize(("width", "precision"), inputs("block_bytes"))
def test_a_block_saves_what_the_planner_lists(width: int, precision: str) -> None:
    saved = block_tensors(GPTConfig(width=width), (1, 1), PRECISIONS[precision], torch.float32)
    wide = [t.bytes for t in saved if t.shape[-1] % width == 0 and not t.is_weight_cast]
    assert solution("block_bytes", width, precision) == sum(wide)


@pytest.mark.parametrize(("rows", "columns", "outputs"), inputs("autocast_costs_more"))
def test_autocast_costs_more_where_autograd_says_so(rows: int, columns: int, outputs: int) -> None:
    layer = nn.Linear(columns, outputs, bias=False)
    x = torch.ones(rows, columns, requires_grad=True)
    saved = []
    for mixed in (False, True):
        with (
            saved_for_backward(layer) as count,
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed),
        ):
            layer(x)
        saved.append(count())
    assert solution("autocast_costs_more", rows, columns, outputs) is (saved[1] > saved[0])


def test_the_loss_holds_three_tensors_of_its_size() -> None:
    batch, time, vocabulary = 2, 8, 512
    logits = torch.randn(batch, time, vocabulary, requires_grad=True)
    targets = torch.zeros(batch * time, dtype=torch.int64)
    with LiveMemory() as live:
        nn.functional.cross_entropy(logits.flatten(0, 1), targets).backward()
    expected = solution("loss_bytes", batch, time, vocabulary)
    assert live.peak == pytest.approx(expected, rel=0.001)


def test_float32_state_is_that_of_torch() -> None:
    weight = nn.Parameter(torch.ones(4096))
    weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.AdamW([weight])
    optimizer.step()
    moments = [t for t in optimizer.state[weight].values() if t.dim()]
    assert solution("optimizer_bytes", 4096, 32, 2048) == sum(t.nbytes for t in moments)


def test_eight_bit_state_by_hand() -> None:
    assert solution("optimizer_bytes", 4096, 8, 2048) == 2 * (4096 + 2 * 4)
    assert solution("optimizer_bytes", 5000, 8, 2048) == 2 * (5000 + 3 * 4)


@pytest.mark.parametrize("name", EXERCISES)
def test_every_misconception_is_wrong_somewhere_and_found(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from mpbook.exercises import check

    for meaning, wrong in EXERCISES[name].misconceptions.items():
        assert not check(f"memory.{name}", wrong)
        assert meaning in capsys.readouterr().out
    assert check(f"memory.{name}", EXERCISES[name].solution)
