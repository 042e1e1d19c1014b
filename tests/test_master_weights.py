"""`Float32Updates`: what 16-bit weights swallow, and what brings it back."""

from functools import partial

import pytest
import torch
from torch import nn

from mpbook.formats import neighbours
from mpbook.master_weights import Float32Updates

sgd = partial(torch.optim.SGD, lr=1.0)
adamw = partial(torch.optim.AdamW, lr=6e-4, weight_decay=0.0)


def weight(value: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> nn.Parameter:
    return nn.Parameter(torch.full((1000,), value, dtype=dtype))


def repeat(optimizer: Float32Updates, parameter: nn.Parameter, gradient: float, steps: int) -> None:
    for _ in range(steps):
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.take_gradients()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_plain_update_below_half_an_ulp_is_lost_for_ever(dtype):
    parameter = weight(dtype=dtype)
    repeat(Float32Updates([parameter], sgd, keep="nothing"), parameter, 1e-4, steps=100)
    assert parameter.eq(1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_master_copy_remembers_every_update(dtype):
    parameter, reference = weight(dtype=dtype), weight(dtype=torch.float32)
    repeat(Float32Updates([parameter], adamw), parameter, 1e-4, steps=100)
    plain = adamw([reference])
    for _ in range(100):
        reference.grad = torch.full_like(reference, torch.tensor(1e-4, dtype=dtype).item())
        plain.step()
    assert torch.equal(parameter, reference.to(dtype))
    assert reference[0] < 0.95


def test_stochastic_rounding_lets_small_updates_through_on_average():
    parameter = weight()
    generator = torch.Generator().manual_seed(0)
    options = dict(keep="nothing", rounding="stochastic", generator=generator)
    repeat(Float32Updates([parameter], sgd, **options), parameter, 1e-4, steps=100)
    assert abs(parameter.float().mean().item() - (1 - 100 * 1e-4)) < 5e-4
    assert set(parameter.tolist()) > {1.0, neighbours(1.0, "bfloat16")[0]}


def test_stochastic_rounding_keeps_no_memory_of_what_it_rounded():
    parameter = weight()
    generator = torch.Generator().manual_seed(0)
    optimizer = Float32Updates(
        [parameter], sgd, keep="nothing", rounding="stochastic", generator=generator
    )
    repeat(optimizer, parameter, 1e-4, steps=1)
    before = parameter.clone()
    repeat(optimizer, parameter, 0.0, steps=1)
    assert torch.equal(parameter, before)


def test_gradients_move_to_float32_and_leave_the_parameters():
    parameter, unused = weight(), weight()
    optimizer = Float32Updates([parameter, unused], sgd)
    parameter.grad = torch.full_like(parameter, 0.5)
    (gradient,) = optimizer.take_gradients()
    assert gradient.dtype == torch.float32 and gradient.eq(0.5).all()
    assert parameter.grad is None and unused.grad is None
    optimizer.step()
    assert parameter.eq(0.5).all() and unused.eq(1).all()


def test_a_gradient_is_taken_once():
    parameter = weight()
    optimizer = Float32Updates([parameter], sgd)
    parameter.grad = torch.ones_like(parameter)
    assert len(optimizer.take_gradients()) == 1
    assert optimizer.take_gradients() == []


@pytest.mark.parametrize("rounding", ["nearest-even", "stochastic"])
def test_a_weight_that_outgrows_its_format_is_infinite(rounding):
    parameter = weight(65504.0, torch.float16)
    generator = torch.Generator().manual_seed(0)
    optimizer = Float32Updates([parameter], sgd, rounding=rounding, generator=generator)
    repeat(optimizer, parameter, -60000.0, steps=1)
    assert parameter.isposinf().all()


def test_gradients_can_be_changed_before_the_step():
    parameter = weight()
    optimizer = Float32Updates([parameter], sgd)
    parameter.grad = torch.full_like(parameter, 0.5)
    for gradient in optimizer.take_gradients():
        gradient.mul_(0.5)
    optimizer.step()
    assert parameter.eq(0.75).all()


def test_zero_grad_forgets_both_gradients():
    parameter = weight()
    optimizer = Float32Updates([parameter], sgd)
    parameter.grad = torch.ones_like(parameter)
    optimizer.take_gradients()
    parameter.grad = torch.ones_like(parameter)
    optimizer.zero_grad()
    optimizer.step()
    assert parameter.grad is None and parameter.eq(1).all()


def test_the_learning_rate_is_set_in_the_param_groups():
    parameter = weight()
    optimizer = Float32Updates([parameter], sgd)
    optimizer.param_groups[0]["lr"] = 0.25
    repeat(optimizer, parameter, 1.0, steps=1)
    assert parameter.eq(0.75).all()


@pytest.mark.parametrize("rounding", ["nearest-even", "stochastic"])
def test_a_saved_state_goes_on_bit_for_bit(rounding):
    def build(seed: int) -> tuple[nn.Parameter, Float32Updates]:
        parameter = weight()
        keep = "master_copy" if rounding == "nearest-even" else "nothing"
        generator = torch.Generator().manual_seed(seed)
        return parameter, Float32Updates(
            [parameter], adamw, keep=keep, rounding=rounding, generator=generator
        )

    parameter, optimizer = build(0)
    repeat(optimizer, parameter, 1e-3, steps=5)
    saved, weights = optimizer.state_dict(), parameter.detach().clone()
    saved = {**saved, "copies": [copy.clone() for copy in saved["copies"]]}
    other, resumed = build(1)
    with torch.no_grad():
        other.copy_(weights)
    resumed.load_state_dict(saved)
    repeat(optimizer, parameter, 1e-3, steps=5)
    repeat(resumed, other, 1e-3, steps=5)
    assert torch.equal(parameter, other)
    assert all(map(torch.equal, optimizer.copies, resumed.copies))


def test_without_a_generator_there_is_none_to_save():
    parameter = weight()
    optimizer = Float32Updates([parameter], sgd)
    repeat(optimizer, parameter, 1e-3, steps=1)
    other = Float32Updates([weight()], sgd)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(other.copies[0], optimizer.copies[0])


def test_no_parameters_are_refused():
    with pytest.raises(ValueError, match="expected at least one"):
        Float32Updates([], sgd)
