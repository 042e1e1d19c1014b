"""The steps of one run by themselves: what is kept of gradients, what is skipped, and which phase
an operator belongs to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpbook.diagnosis.operators_seen import Recorder
from mpbook.diagnosis.places import OPTIMIZER
from mpbook.diagnosis.stepping import Run, Stepper

X = torch.tensor([[1.0, -2.0]])


def layer() -> nn.Linear:
    made = nn.Linear(2, 1, bias=False)
    nn.init.ones_(made.weight)
    return made


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.5)


def of(model: nn.Module, optimizer: Any) -> tuple[Stepper, Run]:
    run = Run(torch.float32, 1.0, Recorder(model), steps=2)
    return Stepper(model, optimizer, run, torch.device("cpu"), None, nullcontext()), run


def no_region() -> AbstractContextManager[Any]:
    return nullcontext(lambda: None)


@contextmanager
def bfloat16() -> Iterator[Any]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield lambda: None


def one_step(model: Any, optimizer: Any, factor: float) -> None:
    optimizer.zero_grad(set_to_none=False)
    (factor * model(X)).sum().backward()
    optimizer.step()


def test_the_first_gradients_that_are_used_are_kept_as_they_were() -> None:
    model = layer()
    stepper, run = of(model, sgd(model))
    for number, factor in enumerate((1.0, 10.0)):
        stepper.run(number, one_step, factor, no_region)
    stepper.finish()
    assert torch.equal(run.gradients["weight"], X) and run.steps_to_gradients == 1
    assert model.weight.tolist() == [[1 - 0.5 - 5, 1 + 1 + 10]]


def test_steps_are_counted_until_a_gradient_is_used() -> None:
    def accumulate(model: Any, optimizer: Any, number: int) -> None:
        model(X).sum().backward()
        if number:
            optimizer.step()

    model = layer()
    stepper, run = of(model, sgd(model))
    for number in range(2):
        stepper.run(number, accumulate, number, no_region)
    assert run.steps_to_gradients == 2 and torch.equal(run.gradients["weight"], 2 * X)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_step_whose_gradient_is_not_finite_is_skipped_and_counted(value: float) -> None:
    model = layer()
    stepper, run = of(model, sgd(model))
    stepper.run(0, one_step, value, no_region)
    assert run.skipped == 1 and not run.trains and model.weight.tolist() == [[1, 1]]


def test_without_an_optimizer_a_gradient_that_is_not_finite_ends_the_step() -> None:
    def step(model: Any, _optimizer: Any, factor: float) -> None:
        (factor * model(X)).sum().backward()
        model.weight.grad.zero_()

    model = layer()
    stepper, run = of(model, None)
    stepper.run(0, step, math.inf, no_region)
    assert run.skipped == 1 and not model.weight.grad.isfinite().all()


def test_a_sparse_gradient_is_judged_by_its_values_and_kept_dense() -> None:
    model = nn.Embedding(4, 1, sparse=True)
    stepper, run = of(model, sgd(model))
    for number, factor in enumerate((1.0, math.inf)):
        stepper.run(number, lambda m, o, f: one_step_of(m, o, f), factor, no_region)
    assert run.skipped == 1
    assert run.gradients["weight"].tolist() == [[0], [2], [1], [0]]


def one_step_of(model: Any, optimizer: Any, factor: float) -> None:
    optimizer.zero_grad()
    (factor * model(torch.tensor([1, 2, 1]))).sum().backward()
    optimizer.step()


def test_a_backward_pass_of_a_tensor_leaves_no_loss() -> None:
    def step(model: Any, optimizer: Any, _batch: Any) -> None:
        model(torch.cat([X, X])).backward(torch.ones(2, 1))
        model(X).sum().backward()

    model = layer()
    stepper, run = of(model, sgd(model))
    stepper.run(0, step, None, no_region)
    assert run.losses == [-1.0]


def test_gradients_that_no_step_used_are_looked_at_in_the_end() -> None:
    def step(model: Any, _optimizer: Any, factor: float) -> None:
        (factor * model(X)).sum().backward()

    for factor in (1.0, math.inf):
        model = layer()
        stepper, run = of(model, sgd(model))
        stepper.run(0, step, factor, no_region)
        stepper.finish()
        assert run.skipped == (factor == math.inf) and "weight" in run.gradients


def test_gradients_that_an_error_left_are_not() -> None:
    def step(model: Any, _optimizer: Any, _batch: Any) -> None:
        (math.inf * model(X)).sum().backward()
        raise ArithmeticError

    model = layer()
    stepper, run = of(model, sgd(model))
    with pytest.raises(ArithmeticError) as caught:
        stepper.run(0, step, None, no_region)
    run.error = caught.value
    stepper.finish()
    assert run.skipped == 0 and not run.gradients


def test_what_was_infinite_from_the_start_is_no_failure() -> None:
    model = layer()
    model.register_buffer("mask", torch.tensor([-math.inf, 0.0]))
    model.register_buffer("mean", torch.zeros(3))
    stepper, run = of(model, sgd(model))

    def step(model: Any, optimizer: Any, _batch: Any) -> None:
        one_step(model, optimizer, 1.0)
        model.mean += math.inf

    stepper.run(0, step, None, no_region)
    stepper.finish()
    assert run.nonfinite_buffers == ["mean"] and run.nonfinite_weights == []


def test_what_is_held_in_the_end_is_weights_buffers_gradients_and_states() -> None:
    model = layer()
    model.register_buffer("mean", torch.zeros(3))
    stepper, run = of(model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9))
    stepper.run(0, one_step, 1.0, no_region)
    stepper.finish()
    assert run.kept_bytes == 4 * (2 + 3 + 2 + 2)


class Asking(torch.optim.SGD):
    """Notes in which phase and in which autocast it and its closure run."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.5)
        self.seen: list[tuple[str, str, bool]] = []
        self.recorder: Any = None

    def note(self, where: str) -> None:
        self.seen.append((where, self.recorder.phase, torch.is_autocast_enabled("cpu")))

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        self.note("before")
        loss = closure() if closure is not None else None
        self.note("after")
        super().step()
        return loss


@pytest.mark.parametrize("by_name", [False, True])
def test_a_closure_is_a_forward_pass_inside_of_an_update(by_name: bool) -> None:
    model = layer()
    asking = Asking(model)
    stepper, run = of(model, asking)
    asking.recorder = run.recorder

    def step(model: Any, optimizer: Any, _batch: Any) -> None:
        def closure() -> Tensor:
            asking.note("closure")
            optimizer.zero_grad()
            loss: Tensor = model(X).float().sum()
            loss.backward()
            return loss

        if by_name:
            optimizer.step(closure=closure)
        else:
            optimizer.step(closure)
        asking.note("outside")

    stepper.run(0, step, None, bfloat16)
    assert asking.seen == [
        ("before", "update", False),
        ("closure", "forward", True),
        ("after", "update", False),
        ("outside", "forward", True),
    ]
    assert torch.equal(run.gradients["weight"], X) and run.losses == [-1.0]


@pytest.mark.parametrize("where", ["update", "closure"])
def test_an_error_of_the_update_is_the_optimizers_and_one_of_a_closure_is_not(where: str) -> None:
    class Failing(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            closure()
            raise ArithmeticError

    def closure() -> None:
        if where == "closure":
            raise ArithmeticError

    model = layer()
    stepper, run = of(model, Failing(model.parameters(), lr=0.5))
    with pytest.raises(ArithmeticError):
        stepper.run(0, lambda _model, optimizer, _batch: optimizer.step(closure), None, no_region)
    assert (run.recorder.last_module == OPTIMIZER) == (where == "update")


def test_a_run_is_finite_in_all_its_losses() -> None:
    run = Run(torch.float32, 1.0, Recorder(layer()), steps=3, losses=[1.0, math.nan, 2.0])
    assert run.trains and not run.finite_losses and not run.sound
