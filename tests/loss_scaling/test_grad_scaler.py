"""What the book says of `torch.amp.GradScaler` itself: its state, and what a disabled one does."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

KEYS = ["scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"]


def after_steps(count: int, scaler: GradScaler) -> GradScaler:
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for _ in range(count):
        optimizer.zero_grad()
        scaler.scale(weight.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    return scaler


def test_a_state_is_five_numbers_the_last_counts_steps_since_the_scale_changed() -> None:
    state = after_steps(7, GradScaler("cpu", growth_interval=5)).state_dict()
    assert state == dict(zip(KEYS, [2.0**17, 2.0, 0.5, 5, 2], strict=True))


def test_a_state_goes_through_a_file_that_may_hold_nothing_but_numbers_and_tensors() -> None:
    state = after_steps(3, GradScaler("cpu", init_scale=8.0)).state_dict()
    file = io.BytesIO()
    torch.save({"scaler": state}, file)
    file.seek(0)
    resumed = GradScaler("cpu")
    resumed.load_state_dict(torch.load(file, weights_only=True)["scaler"])
    assert resumed.state_dict() == state


def test_a_disabled_scaler_saves_an_empty_state_and_an_enabled_one_refuses_it() -> None:
    assert GradScaler("cpu", enabled=False).state_dict() == {}
    with pytest.raises(RuntimeError, match="saved from a disabled instance of GradScaler"):
        GradScaler("cpu").load_state_dict({})


def test_a_disabled_scaler_ignores_the_state_that_it_is_given() -> None:
    disabled = GradScaler("cpu", enabled=False)
    disabled.load_state_dict(after_steps(1, GradScaler("cpu")).state_dict())
    assert disabled.get_scale() == 1.0
    assert disabled.state_dict() == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_scaler_for_a_gpu_that_is_not_there_is_disabled_with_a_warning() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scaler = GradScaler("cuda")
    assert any("CUDA is not available.  Disabling." in str(w.message) for w in caught)
    assert not scaler.is_enabled() and scaler.state_dict() == {}


def test_an_infinite_norm_leaves_the_step_out_and_update_still_halves_the_scale() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = GradScaler("cpu", init_scale=8.0)
    scaler.scale(weight.sum() * torch.inf).backward()
    scaler.unscale_(optimizer)
    assert not nn.utils.clip_grad_norm_([weight], 1.0) < 100
    scaler.update()  # without a step
    assert scaler.get_scale() == 4.0
