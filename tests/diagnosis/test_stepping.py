"""Steps of one's own: whatever they do with gradients and weights, no format is blamed for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mpbook.diagnosis import diagnose
from mpbook.diagnosis.operators_seen import Recorder
from mpbook.diagnosis.scaled_backward import scaled_backward
from mpbook.diagnosis.verdicts import FormatVerdict

SGD = partial(torch.optim.SGD, lr=0.05)
FLOAT16: dict[str, Any] = {"formats": ["float16"], "steps": 2, "rescue": False}
SMALL = 0.02
"""Of the gradients: more than rounding to 16 bits does to these, and less than a wrong scale."""


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3


def float16(step: Any, optimizer: Any = SGD, model: nn.Module | None = None) -> FormatVerdict:
    given = mlp() if model is None else model
    return diagnose(given, batch(), step=step, optimizer=optimizer, **FLOAT16).of("float16")


def backward(model: nn.Module, given: Any, factor: float = 1.0) -> None:
    (factor * F.cross_entropy(model(given[0]), given[1])).backward()


def by_norm(model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)


def by_hand(model: nn.Module) -> None:
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad *= (0.1 / norm).clamp(max=1)


@pytest.mark.parametrize("clip", [by_norm, by_hand])
def test_gradients_may_be_clipped_before_the_optimizers_step(clip: Any) -> None:
    def step(model: Any, optimizer: Any, given: Any) -> None:
        optimizer.zero_grad()
        backward(model, given)
        clip(model)
        optimizer.step()

    verdict = float16(step)
    assert verdict.survives == "yes" and verdict.total < SMALL


def test_a_step_sees_gradients_of_the_size_they_have_without_a_scale() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def step(model: Any, optimizer: Any, given: Any) -> None:
        optimizer.zero_grad()
        x = given[0].requires_grad_()
        backward(model, (x, given[1]))
        assert x.grad is not None
        seen.append((model[0].weight.grad.clone(), x.grad))
        optimizer.step()

    float16(step)
    for gradients in zip(*seen, strict=True):
        norms = torch.stack([gradient.float().norm() for gradient in gradients])
        assert norms.max() < 2 * norms.min()


def test_a_grad_scaler_of_ones_own_is_no_second_scale_and_stays_as_it_was() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    before = scaler.state_dict()

    def step(model: Any, optimizer: Any, given: Any) -> None:
        optimizer.zero_grad()
        scaler.scale(1e-7 * F.cross_entropy(model(given[0]), given[1])).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    verdict = float16(step)
    assert verdict.survives == "with a loss scale" and verdict.total < SMALL
    assert scaler.state_dict() == before and scaler.is_enabled()


def test_a_grad_scaler_that_a_step_makes_is_enabled_afterwards() -> None:
    made: list[Any] = []

    def step(model: Any, optimizer: Any, given: Any) -> None:
        made.append(torch.amp.GradScaler("cpu"))
        assert not made[-1].is_enabled()
        optimizer.zero_grad()
        backward(model, given)
        optimizer.step()

    float16(step)
    assert made[-1].is_enabled()


def test_grad_scalers_are_enabled_again_after_a_step_that_raises() -> None:
    def step(*_arguments: Any) -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        float16(step)
    assert torch.amp.GradScaler("cpu").is_enabled()
    assert "_enabled" not in vars(torch.amp.GradScaler)


def test_the_backward_pass_of_a_step_is_outside_of_autocast() -> None:
    seen: list[bool] = []

    class Asks(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(_ctx: Any, grad: Tensor) -> Any:
            seen.append(torch.is_autocast_enabled("cpu"))
            return grad

    def step(model: Any, optimizer: Any, given: Any) -> None:
        optimizer.zero_grad()
        F.cross_entropy(Asks.apply(model(given[0])), given[1]).backward()
        optimizer.step()

    float16(step)
    assert seen and not any(seen)


def test_a_loss_in_16_bits_is_scaled_in_float32_and_the_division_is_no_gradient() -> None:
    weight, recorder = torch.ones(3, requires_grad=True), Recorder(nn.Identity())
    scaled = scaled_backward(1024.0, recorder, [], begun=lambda _: None, ended=lambda: None)
    with recorder, scaled:
        (weight.half() + 1000).sum().backward()
    assert torch.equal(weight.grad, torch.ones(3))
    assert not any(one.nonfinite for one in recorder.seen.values())
    products = [one for one in recorder.seen.values() if one.operator == "mul"]
    assert {one.shape for one in products if one.key.phase == "backward"} == {()}


def test_backward_from_an_edge_of_the_graph_is_torchs_own() -> None:
    def step(model: Any, optimizer: Any, given: Any) -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(given[0]), given[1])
        torch.autograd.backward([torch.autograd.graph.get_gradient_edge(loss)])
        optimizer.step()

    assert float16(step).survives == "yes"


def test_backward_of_torch_autograd_is_scaled_too() -> None:
    def step(model: Any, optimizer: Any, given: Any) -> None:
        optimizer.zero_grad()
        torch.autograd.backward([1e-7 * F.cross_entropy(model(given[0]), given[1])])
        optimizer.step()

    verdict = float16(step)
    assert verdict.survives == "with a loss scale" and verdict.total < SMALL


def test_gradients_add_up_over_backward_passes() -> None:
    def step(model: Any, optimizer: Any, given: Any) -> None:
        optimizer.zero_grad()
        for _ in range(4):
            backward(model, given, 0.25)
        optimizer.step()

    verdict = float16(step)
    assert verdict.survives == "yes" and verdict.total < SMALL


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_is_computed_again_in_the_backward_pass_is_scaled_once(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rest = nn.Linear(8, 8), mlp()

        def forward(self, x: Tensor) -> Any:
            return checkpoint(self.rest, self.first(x), use_reentrant=reentrant)

    def step(model: Any, optimizer: Any, given: Any) -> None:
        optimizer.zero_grad()
        backward(model, given, 1e-7)
        optimizer.step()

    verdict = float16(step, model=Checkpointed())
    assert verdict.survives == "with a loss scale" and verdict.total < SMALL


def test_a_loop_without_an_optimizer_has_its_gradients_unscaled_and_compared() -> None:
    def step(model: Any, _optimizer: Any, given: Any, factor: float = 1.0) -> None:
        model.zero_grad()
        backward(model, given, factor)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.05 / factor * parameter.grad

    verdict = float16(step, None)
    assert verdict.survives == "yes" and 0 < verdict.total < SMALL
    assert set(verdict.gradient_error) == {name for name, _ in mlp().named_parameters()}
    tiny = float16(partial(step, factor=1e-7), None)
    assert tiny.survives == "with a loss scale" and tiny.total < SMALL


def test_a_loop_without_an_optimizer_is_skipped_where_its_scale_is_too_high() -> None:
    def step(model: Any, _optimizer: Any, given: Any) -> None:
        model.zero_grad()
        backward(model, given, 1e6)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 1e-8 * parameter.grad

    verdict = float16(step, None)
    assert verdict.total < SMALL and not verdict.nonfinite_after


def sam(model: Any, optimizer: Any, given: Any) -> None:
    """Sharpness-aware: the gradients of weights that are moved, for the weights themselves."""
    optimizer.zero_grad()
    backward(model, given)
    moves = [0.5 * p.grad / p.grad.norm() for p in model.parameters()]
    with torch.no_grad():
        for parameter, move in zip(model.parameters(), moves, strict=True):
            parameter += move
    optimizer.zero_grad()
    backward(model, given)
    with torch.no_grad():
        for parameter, move in zip(model.parameters(), moves, strict=True):
            parameter -= move
    optimizer.step()


def sam_by_data(model: Any, optimizer: Any, given: Any) -> None:
    """The same, in a way that leaves no trace in a tensor's version."""
    backward(model, given)
    moves = [0.5 * p.grad / p.grad.norm() for p in model.parameters()]
    for parameter, move in zip(model.parameters(), moves, strict=True):
        parameter.data += move
    optimizer.zero_grad()
    backward(model, given)
    optimizer.step()


@pytest.mark.parametrize("step", [sam, sam_by_data])
@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_a_second_forward_pass_casts_the_weights_that_there_are_then(
    step: Callable[..., None], target: Any
) -> None:
    found = diagnose(mlp(), batch(), step=step, optimizer=SGD, target=target, rescue=False)
    for format in ("float16", "bfloat16"):
        verdict = found.of(format)
        assert verdict.survives == "yes" and verdict.total < 5 * SMALL


def test_a_report_on_a_step_claims_no_activations() -> None:
    found = diagnose(mlp(), batch(), step=sam, optimizer=SGD, **FLOAT16)
    lines = [line.finding for line in found.lines() if line.topic == "memory"]
    assert lines and not any("B saved for backward" in line for line in lines)


def test_a_step_that_leaves_no_gradients_is_told_that_none_was_compared() -> None:
    def step(model: Any, _optimizer: Any, given: Any) -> None:
        loss = F.cross_entropy(model(given[0]), given[1])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.05 * gradient

    found = diagnose(mlp(), batch(), step=step, **FLOAT16)
    assert any("gradients" in what for what, _ in found.unseen)
    found = diagnose(mlp(), batch(), step=sam, optimizer=SGD, **FLOAT16)
    assert not any("gradients" in what for what, _ in found.unseen)


@pytest.mark.parametrize("length", [FLOAT16["steps"], 1000])
def test_a_step_that_is_not_repeatable_gets_no_advice_that_rests_on_comparing_runs(
    length: int,
) -> None:
    inputs = torch.randn(length, 16, 8, generator=torch.Generator().manual_seed(0))
    drawn = itertools.cycle(inputs)

    def step(model: Any, optimizer: Any, given: Any) -> None:
        optimizer.zero_grad()
        backward(model, (next(drawn), given[1]))
        optimizer.step()

    found = diagnose(mlp(), batch(), step=step, optimizer=SGD, **FLOAT16)
    assert not found.repeatable
    assert "batches=" in found.advice[0].what
    said = " ".join([*(a.what for a in found.advice), *(line.finding for line in found.lines())])
    for cause in ("ill-conditioned", "rounding the weights alone", "positions"):
        assert cause not in said


def test_an_iterator_at_its_end_is_no_formats_verdict() -> None:
    drawn = iter([batch()] * 5)

    def step(model: Any, optimizer: Any, _batch: Any) -> None:
        optimizer.zero_grad()
        backward(model, next(drawn))
        optimizer.step()

    with pytest.raises(RuntimeError, match="pass the batches as batches="):
        diagnose(mlp(), batch(), step=step, optimizer=SGD, **FLOAT16)


@pytest.mark.parametrize(("create_graph", "noted"), [(False, True), (True, False)])
def test_gradients_that_no_backward_makes_are_said_to_be_unscaled(
    create_graph: bool, noted: bool
) -> None:
    def step(model: Any, optimizer: Any, given: Any) -> None:
        loss = F.cross_entropy(model(given[0]), given[1])
        weights = list(model.parameters())
        found = torch.autograd.grad(loss, weights, create_graph=create_graph)
        for weight, gradient in zip(weights, found, strict=True):
            weight.grad = gradient.detach()
        optimizer.step()

    diagnosis = diagnose(mlp(), batch(), step=step, optimizer=SGD, **FLOAT16)
    said = [what for what, _ in diagnosis.unseen if "torch.autograd.grad" in what]
    assert bool(said) is noted
    assert torch.autograd.grad.__module__ == "torch.autograd"
