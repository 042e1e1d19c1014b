"""Copies in another dtype, and what is put back after a run."""

from __future__ import annotations

import random
from functools import partial

import numpy
import pytest
import torch
from torch import nn

from mpbook.diagnosis.copies import (
    checked_optimizer,
    convert_states,
    converted,
    eager,
    round_weights,
    same_random_numbers,
    without_master_copies,
)
from mpbook.master_weights import MasterWeights

CPU = torch.device("cpu")
HALF = torch.float16


def drawn() -> tuple[float, float, float]:
    return torch.rand(()).item(), random.random(), float(numpy.random.rand())


def test_random_numbers_begin_alike_inside_and_go_on_outside() -> None:
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
    outside = drawn()
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    numpy.random.set_state(states[2])
    inside, after = [], []
    for _ in range(2):
        with same_random_numbers(CPU):
            inside.append(drawn())
        after.append(drawn())
    assert inside[0] == inside[1] and after[0] == outside


def test_a_condition_is_torchs_own_again_after_an_error() -> None:
    before = torch.cond
    with eager():
        chosen = [torch.cond(flag, lambda x: x, lambda x: -x, (1,)) for flag in (True, False)]
    assert chosen == [1, -1]
    with pytest.raises(ArithmeticError), eager():
        raise ArithmeticError
    assert torch.cond is before


def test_a_batchs_tensor_is_a_copy_that_needs_a_gradient_if_it_did() -> None:
    for needed in (False, True):
        given = torch.ones(2, requires_grad=needed)
        copied = converted(given, HALF, {torch.float32})
        assert copied.dtype == HALF and copied.is_leaf and copied.requires_grad is needed
    plain = torch.ones(2)
    converted(plain, None, {torch.float32}).add_(1)
    assert plain.tolist() == [1, 1] and converted(torch.tensor(1), HALF, set()).dtype == torch.int64


def test_weights_are_rounded_where_they_are_and_infinities_become_zero() -> None:
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[1 + 2**-20, 1e6]])
    round_weights(model, HALF)
    assert model.weight.dtype == torch.float32 and model.weight.tolist() == [[1.0, 0.0]]


def test_states_follow_the_weights_and_the_count_of_steps_does_not() -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    optimizer = torch.optim.AdamW([weight])
    optimizer.step()
    convert_states(optimizer, HALF, {torch.float32})
    assert {k: v.dtype for k, v in optimizer.state[weight].items()} == {
        "step": torch.float32, "exp_avg": HALF, "exp_avg_sq": HALF
    }  # fmt: skip


def test_master_copies_of_other_shapes_have_no_place_in_a_float32_model() -> None:
    narrow, wide = nn.Linear(2, 3).bfloat16(), nn.Linear(2, 3)
    optimizer = MasterWeights(torch.optim.AdamW(narrow.parameters()))
    for parameter in narrow.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    inner = without_master_copies(optimizer, wide)
    assert type(inner) is torch.optim.AdamW and not inner.state
    assert inner.param_groups[0]["params"] == list(wide.parameters())
    other = MasterWeights(torch.optim.AdamW(nn.Linear(2, 3).bfloat16().parameters()))
    assert without_master_copies(other, nn.Linear(3, 2)) is None


def test_an_optimizer_that_needs_a_closure_needs_a_step_of_ones_own() -> None:
    model = nn.Linear(2, 1)
    make = partial(torch.optim.LBFGS, max_iter=2)
    with pytest.raises(ValueError, match=r"LBFGS\.step\(\) needs a closure; pass step="):
        checked_optimizer(make, model)
    assert isinstance(checked_optimizer(make, model, own_step=True), torch.optim.LBFGS)
