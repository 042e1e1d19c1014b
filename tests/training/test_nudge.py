"""`mpbook.training.nudge`: one weight, the next number, and nothing else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mpbook.models import GPT, MLP, GPTConfig
from mpbook.training.nudge import nudged


def changed(before: nn.Module, after: nn.Module) -> list[tuple[str, tuple[int, ...], float, float]]:
    """Name, place, old and new value of every weight that differs."""
    new = dict(after.named_parameters())
    return [
        (name, tuple(place), p[tuple(place)].item(), new[name][tuple(place)].item())
        for name, p in before.named_parameters()
        for place in (p != new[name]).nonzero().tolist()
    ]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (MLP(5, 4, 3), "2.weight"),
        (GPT(GPTConfig(layers=1, width=8, context=4)), "blocks.0.contract.weight"),
        (nn.LayerNorm(3), "weight"),
    ],
    ids=["MLP", "GPT", "no matrix"],
)
def test_the_largest_weight_of_the_last_matrix_becomes_the_next_number(model, expected):
    ((name, place, old, new),) = changed(model, nudged(model))
    parameter = model.get_parameter(expected)
    assert name == expected and abs(old) == parameter.abs().max()
    assert new == torch.tensor(old).nextafter(torch.tensor(2.0 * old)).item(), place


def test_the_largest_weight_may_be_negative():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[2.0, -4.0]])
    assert nudged(layer).weight.tolist() == [[2.0, -4.0 * (1 + 2**-23)]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@given(value=st.floats(min_value=2**-10, max_value=2**10), sign=st.sampled_from([1, -1]))
def test_the_nudge_is_one_ulp_of_the_dtype_away_from_zero(dtype, value, sign):
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, sign * value)
    start = layer.weight.to(dtype).item()
    end = nudged(layer.to(dtype)).weight.item()
    exponent = torch.tensor(start, dtype=torch.float64).frexp().exponent - 1
    assert end == start + sign * torch.finfo(dtype).eps * 2.0 ** exponent.item()


def test_an_ulp_of_a_narrower_dtype_survives_the_cast_to_it():
    layer = nn.Linear(2, 1, bias=False)
    nn.init.constant_(layer.weight, 1 / 3)
    before, after = layer.weight, nudged(layer, dtype=torch.bfloat16).weight
    assert after.dtype == torch.float32
    assert (before.bfloat16() != after.bfloat16()).sum() == 1
    assert torch.equal(before.bfloat16(), nudged(layer).weight.bfloat16())


def test_the_model_that_was_given_stays_as_it_is():
    model = MLP(4, 3)
    before = model[0].weight.clone()
    nudged(model)
    assert torch.equal(model[0].weight, before)


def test_the_nudged_weight_still_trains():
    ours = nudged(MLP(4, 3))
    ours(torch.ones(1, 4)).sum().backward()
    assert ours[0].weight.is_leaf and ours[0].weight.grad is not None


def test_frozen_and_zero_weights_are_passed_over():
    model = MLP(4, 3, 2, 2)
    model[2].requires_grad_(False)
    nn.init.zeros_(model[4].weight)
    assert [name for name, *_ in changed(model, nudged(model))] == ["0.weight"]


def test_a_model_with_nothing_to_nudge_is_refused():
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    with pytest.raises(ValueError, match="model: Linear has no trainable weight that is not 0"):
        nudged(model)
    with pytest.raises(ValueError, match="model: MLP has no trainable"):
        nudged(MLP(2, 2).requires_grad_(False))
