"""The loss scalers against `torch.amp.GradScaler`, step for step and bit for bit."""

import math

import pytest
import torch
from torch import nn

from mpbook.loss_scaling import DynamicLossScaler, StaticLossScaler, all_finite

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def small_model(seed: int, device: str) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4)).to(device)


def batches(seed: int, steps: int, poisoned: set[int]) -> list[torch.Tensor]:
    """Random inputs; a poisoned step's overflow float32 in the backward pass."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(8, 16, generator=generator) for _ in range(steps)]
    return [x * math.inf if step in poisoned else x for step, x in enumerate(drawn)]


def optimizer_for(name: str, model: nn.Module) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def run(kind: str, optimizer_name: str, seed: int, poisoned: set[int], device: str, **options):
    """Losses, scales and weights of 60 steps with torch's scaler or ours."""
    model = small_model(seed, device)
    optimizer = optimizer_for(optimizer_name, model)
    scale = options.pop("scale", 2.0**16)
    if kind == "torch":
        torch_scaler = torch.amp.GradScaler(device, init_scale=scale, **options)
    else:
        ours = DynamicLossScaler(scale, **options)
    losses, scales = [], []
    for x in batches(seed, 60, poisoned):
        optimizer.zero_grad()
        loss = model(x.to(device)).square().mean()
        if kind == "torch":
            torch_scaler.scale(loss).backward()
            torch_scaler.step(optimizer)
            torch_scaler.update()
            scales.append(torch_scaler.get_scale())
        else:
            ours.scale(loss).backward()
            finite = ours.unscale_([p.grad for p in model.parameters() if p.grad is not None])
            if finite:
                optimizer.step()
            ours.update(finite=finite)
            scales.append(ours.loss_scale)
        losses.append(loss.item())
    return losses, scales, [p.detach().cpu() for p in model.parameters()]


def assert_same_runs(optimizer_name: str, seed: int, poisoned: set[int], device: str, **options):
    expected = run("torch", optimizer_name, seed, poisoned, device, **options)
    actual = run("ours", optimizer_name, seed, poisoned, device, **options)
    assert [repr(loss) for loss in actual[0]] == [repr(loss) for loss in expected[0]]
    assert actual[1] == expected[1]
    assert all(map(torch.equal, actual[2], expected[2]))
    return actual[1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw"])
@pytest.mark.parametrize("seed", range(10))
def test_dynamic_scaling_equals_grad_scaler(optimizer_name, seed, device):
    poisoned = {3, 20, 21, 22, 40 + seed}
    scales = assert_same_runs(optimizer_name, seed, poisoned, device, growth_interval=7)
    assert min(scales) < 2**16 < max(scales)  # it backed off and it grew


@pytest.mark.parametrize("device", DEVICES)
def test_unusual_factors_equal_grad_scaler(device):
    options = dict(scale=1000.0, growth_factor=1.7, backoff_factor=0.3, growth_interval=3)
    assert_same_runs("sgd", 0, {5, 6, 30}, device, **options)


@pytest.mark.parametrize("device", DEVICES)
def test_a_scale_does_not_grow_past_float32(device):
    scales = assert_same_runs("sgd", 0, set(), device, scale=2.0**126, growth_interval=1)
    assert all(map(math.isfinite, scales))
    assert DynamicLossScaler(2.0**127, growth_interval=1).loss_scale == 2.0**127
    scaler = DynamicLossScaler(2.0**127, growth_interval=1)
    scaler.update(finite=True)
    assert scaler.loss_scale == 2.0**127


def test_the_defaults_are_those_of_grad_scaler():
    theirs, ours = torch.amp.GradScaler("cpu"), DynamicLossScaler()
    assert ours.loss_scale == StaticLossScaler().loss_scale == theirs.get_scale()
    assert ours.growth_factor == theirs.get_growth_factor()
    assert ours.backoff_factor == theirs.get_backoff_factor()
    assert ours.growth_interval == theirs.get_growth_interval()


def test_the_schedule_backs_off_at_once_and_grows_after_a_clean_interval():
    scaler = DynamicLossScaler(1024, growth_interval=3)
    seen = []
    for finite in (True, True, False, True, True, True, True, False, False):
        scaler.update(finite=finite)
        seen.append(scaler.loss_scale)
    assert seen == [1024, 1024, 512, 512, 512, 1024, 1024, 512, 256]


def test_unscaling_returns_the_gradients_and_says_whether_they_are_finite():
    scaler = StaticLossScaler(8.0)
    gradients = [torch.tensor([8.0, -16.0]), torch.tensor([[2.0]])]
    assert scaler.unscale_(gradients) is True
    assert gradients[0].tolist() == [1, -2] and gradients[1].tolist() == [[0.25]]
    for bad in (math.inf, -math.inf, math.nan):
        assert scaler.unscale_([torch.ones(3), torch.tensor([1.0, bad])]) is False
    assert scaler.unscale_([]) is True


def test_scaling_multiplies_the_loss():
    assert StaticLossScaler(4.0).scale(torch.tensor(3.0)).item() == 12


def test_a_static_scale_never_changes():
    scaler = StaticLossScaler(8.0)
    for finite in (True, False):
        scaler.update(finite=finite)
    assert scaler.loss_scale == 8.0


def test_all_finite_sees_every_tensor():
    assert all_finite([torch.ones(2), torch.zeros(0)])
    assert not all_finite([torch.tensor([math.nan]), torch.ones(2)])
    assert not all_finite([torch.ones(2), torch.tensor([math.inf])])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_only_float32_gradients_are_unscaled_and_none_is_touched(dtype):
    first, second = torch.ones(2), torch.ones(2, dtype=dtype)
    with pytest.raises(ValueError, match=r"convert them to float32 first"):
        StaticLossScaler(2.0).unscale_([first, second])
    assert first.tolist() == second.tolist() == [1, 1]


def test_a_saved_scaler_goes_on_where_it_stopped():
    scaler = DynamicLossScaler(64, growth_interval=3)
    scaler.update(finite=True)
    scaler.update(finite=True)
    other = DynamicLossScaler(2, growth_interval=50)
    other.load_state_dict(scaler.state_dict())
    other.update(finite=True)
    assert other.loss_scale == 128 and scaler.loss_scale == 64


def test_a_saved_state_does_not_change_with_the_scaler():
    scaler = DynamicLossScaler(64)
    saved = scaler.state_dict()
    scaler.update(finite=False)
    assert saved["loss_scale"] == 64


def test_the_state_of_another_kind_of_scaler_is_refused():
    scaler = DynamicLossScaler()
    with pytest.raises(ValueError, match="a DynamicLossScaler needs"):
        scaler.load_state_dict(StaticLossScaler(2.0).state_dict())
    assert scaler.loss_scale == 2**16


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_impossible_scales_are_refused(scale):
    for kind in (StaticLossScaler, DynamicLossScaler):
        with pytest.raises(ValueError, match="expected a positive finite number"):
            kind(scale)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(growth_factor=1.0), "growth_factor=1.0"),
        (dict(backoff_factor=1.0), "backoff_factor=1.0"),
        (dict(backoff_factor=0.0), "backoff_factor=0.0"),
        (dict(growth_interval=0), "growth_interval=0"),
    ],
)
def test_impossible_schedules_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DynamicLossScaler(**options)
