"""What is diagnosed, run by run: the scale it finds, what is not finite, what it puts back."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpbook.diagnosis.operators_seen import Recorder
from mpbook.diagnosis.stepping import Run, Stepper
from mpbook.diagnosis.workload import Workload

X, Y = torch.tensor([[1.0, -2.0], [3.0, 0.5]]), torch.tensor([[1.0], [0.0]])


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))


def workload(model: nn.Module, batches: list[Any] | None = None, **options: Any) -> Workload:
    given: dict[str, Any] = dict(loss=nn.functional.mse_loss, step=None, optimizer=None)
    made = Workload(model, batches or [(X, Y)] * 2, target="cpu", **given | options)
    made.find_call()
    return made


def backward(model: Any, _optimizer: Any, batch: Any) -> None:
    nn.functional.mse_loss(model(batch[0]), batch[1]).backward()


def left(**what: Any) -> Run:
    return Run(torch.float16, 1.0, Recorder(net()), steps=1, **what)


def test_a_scale_is_lowered_by_64_until_nothing_overflows_or_it_is_a_256th(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, asked = workload(net()), list[float]()

    def run(_dtype: torch.dtype, *, loss_scale: float, **_options: Any) -> Run:
        asked.append(loss_scale)
        return left(skipped=int(loss_scale > lowest))

    monkeypatch.setattr(made, "run", run)
    lowest = 2.0**5
    made.run_scaled(torch.float16, loss_scale=2.0**16)
    assert asked == [2.0**16, 2.0**10, 2.0**4]
    asked.clear()
    lowest = 0.0
    made.run_scaled(torch.float16, loss_scale=2.0**16)
    assert asked == [2.0**16, 2.0**10, 2.0**4, 2.0**-2, 2.0**-8]


@pytest.mark.parametrize("what", [{"losses": [math.inf]}, {"error": ArithmeticError()}])
def test_no_scale_is_looked_for_where_none_would_help(
    what: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, asked = workload(net()), list[float]()

    def run(_dtype: torch.dtype, *, loss_scale: float, **_options: Any) -> Run:
        asked.append(loss_scale)
        return left(skipped=1, **what)

    monkeypatch.setattr(made, "run", run)
    made.run_scaled(torch.float16, loss_scale=2.0**16)
    assert asked == [2.0**16]


@pytest.mark.parametrize(
    ("step", "losses", "expected"),
    [
        (None, [1.0, 2.0], True),  # is asked once
        (backward, [1.0, 2.0], False),
        (backward, [2.0, 1.0], False),
        (backward, [1.0, 1.0], True),
    ],
)
def test_a_step_of_ones_own_is_asked_twice_whether_it_repeats(
    step: Any, losses: list[float], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = workload(net(), step=step)
    found = iter(losses)
    monkeypatch.setattr(made, "run", lambda *_args, **_options: left(losses=[next(found)]))
    assert made.is_repeatable(left(losses=[1.0, 5.0])) is expected


def test_a_batch_that_is_not_finite_is_named_by_its_number_and_its_tensor() -> None:
    def bad(value: float) -> Tensor:
        return torch.tensor([[value], [0.0]])

    for value in (math.nan, math.inf):
        found = workload(net(), [(X, Y), (X, bad(value))])
        assert found.not_finite(2) == "batch 2 holds NaN or infinity: tensor 2 of 2"
        assert found.not_finite(1) == ""
    assert workload(net(), [(X, bad(-math.inf))]).not_finite(1) == ""  # as in a mask
    model = net()
    with torch.no_grad():
        model[2].bias.fill_(math.nan)
    assert workload(model).not_finite(2) == "not finite before the first step: 2.bias"


def test_a_run_may_have_ten_times_the_operators_of_the_reference_and_a_thousand() -> None:
    made = workload(net())
    reference = made.run(torch.float32, steps=1)
    made.limit_operators(reference)
    assert made.most == 10 * reference.recorder.operators + 1000
    assert made.run(torch.float32, steps=1).error is None


def test_only_16_bit_weights_are_narrow() -> None:
    assert workload(net()).narrow == set()
    assert workload(net().bfloat16(), [(X.bfloat16(), Y.bfloat16())]).narrow == {torch.bfloat16}
    assert workload(net().double(), [(X.double(), Y.double())]).narrow == set()


def test_float64_has_no_region_of_autocast() -> None:
    found = workload(net()).run(torch.float64, steps=2, weights=torch.float64)
    assert found.sound and {g.dtype for g in found.gradients.values()} == {torch.float64}


def test_a_step_may_ask_its_wrapper_for_the_module_and_for_no_synchronisation() -> None:
    def step(model: Any, _optimizer: Any, batch: Any) -> None:
        with model.no_sync():
            backward(model.module, _optimizer, batch)

    found = workload(nn.DataParallel(net()), step=step).run(torch.float32, steps=1)
    assert found.error is None and len(found.gradients) == 4


def test_a_run_has_gradients_whatever_the_caller_has_switched_off() -> None:
    made = workload(net())
    with torch.no_grad():
        found = made.run(torch.float32, steps=1)
    assert found.error is None and len(found.gradients) == 4


def test_a_run_that_gave_its_copy_no_gradient_was_one_of_something_else() -> None:
    made = workload(net())
    with pytest.raises(ValueError, match="its copy got no gradient"):
        made.must_have_reached_the_copy(left(losses=[1.0]))
    made.must_have_reached_the_copy(left(losses=[1.0], skipped=1))
    made.must_have_reached_the_copy(left(losses=[1.0], gradients={"0.bias": X}))
    workload(net(), step=backward).must_have_reached_the_copy(left(losses=[1.0]))


def test_an_optimizers_state_is_in_the_dtype_of_the_run() -> None:
    model = net().bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    made = workload(model, [(X.bfloat16(), Y.bfloat16())], optimizer=optimizer)
    _, ours, _ = made._copies(torch.float32)
    kept = [state["momentum_buffer"].dtype for state in ours.state.values()]
    assert kept == [torch.float32] * 4
    _, ours, _ = made._copies(None)
    assert {state["momentum_buffer"].dtype for state in ours.state.values()} == {torch.bfloat16}


def test_a_scheduler_that_patched_the_step_steps_no_original() -> None:
    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    found = workload(model, optimizer=optimizer).run(torch.float32, steps=2)
    assert found.sound
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_a_loss_with_weights_is_converted_with_the_model() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return (self.weight * (output - target) ** 2).mean()

    made = workload(net().bfloat16(), [(X.bfloat16(), Y.bfloat16())], loss=Weighted())
    _, _, call = made._copies(torch.float32)
    assert call.loss.weight.dtype == torch.float32
    assert made.call.loss.weight.dtype == torch.bfloat16  # the reader's own


def test_without_an_optimizer_each_step_begins_without_gradients() -> None:
    def gradients(steps: int) -> list[Tensor]:
        model = net()
        run = Run(torch.float32, 1.0, Recorder(model), steps=steps)
        stepper = Stepper(model, None, run, torch.device("cpu"), None, nullcontext())
        for number in range(steps):
            stepper.run(number, call, (X, Y), nullcontext)
        return [p.grad for p in model.parameters() if p.grad is not None]

    call = workload(net()).call
    for one, other in zip(gradients(1), gradients(2), strict=True):
        assert torch.allclose(one, other)
