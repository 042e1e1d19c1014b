"""What a step knows by other ways than its arguments is as it was, whatever the step does to it."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mpbook.diagnosis import diagnose
from mpbook.diagnosis.outside import Outside

FLOAT16: dict[str, Any] = {"formats": ["float16"], "steps": 2, "rescue": False}
GLOBAL = torch.Generator().manual_seed(0)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3


def train(model: Any, optimizer: Any, given: Any) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(given[0]), given[1]).backward()
    optimizer.step()


def scheduled(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 1)


@pytest.mark.filterwarnings("error")
def test_a_scheduler_leaves_the_learning_rate_that_was_passed() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = scheduled(optimizer)
    before = scheduler.state_dict()

    def step(model: Any, optimizer: Any, given: Any) -> None:
        train(model, optimizer, given)
        scheduler.step()

    found = diagnose(model, batch(), step=step, optimizer=optimizer, **FLOAT16)
    assert optimizer.param_groups[0]["lr"] == 0.1 and scheduler.state_dict() == before
    assert found.survives("float16") == "yes"
    assert "StepLR" in {where for _, where in found.unseen}


def test_a_step_that_changes_nothing_outside_has_no_line() -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler, teacher = scheduled(optimizer), mlp()

    def step(model: Any, optimizer: Any, given: Any) -> None:
        assert scheduler.get_last_lr() and teacher(given[0]).isfinite().all()
        train(model, optimizer, given)

    found = diagnose(model, batch(), step=step, optimizer=optimizer, **FLOAT16)
    assert not {"StepLR", "AdamW", "Sequential"} & {where for _, where in found.unseen}


def test_an_average_of_the_weights_is_the_one_that_it_was() -> None:
    model = mlp()
    average = torch.optim.swa_utils.AveragedModel(model)
    before = [t.detach().clone() for t in average.state_dict().values()]

    class Trainer:
        def __init__(self) -> None:
            self.parts = {"average": average}

        def step(self, model: Any, optimizer: Any, given: Any) -> None:
            train(model, optimizer, given)
            self.parts["average"].update_parameters(model)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    diagnose(model, batch(), step=Trainer().step, optimizer=optimizer, **FLOAT16)
    assert all(map(torch.equal, before, average.state_dict().values()))


def test_the_states_of_an_optimizer_that_is_no_argument_are_put_back() -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    train(model, optimizer, batch())
    moments = [state["exp_avg"].clone() for state in optimizer.state.values()]

    def step(_model: Any, _optimizer: Any, given: Any) -> None:
        train(model, optimizer, given)

    with pytest.raises(RuntimeError, match="use its arguments, step"):
        diagnose(model, batch(), step=step, optimizer=torch.optim.SGD, **FLOAT16)
    assert set(optimizer.state) == set(model.parameters())
    kept = [state["exp_avg"] for state in optimizer.state.values()]
    assert all(map(torch.equal, moments, kept))


def test_an_optimizer_loses_what_it_has_gained() -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    outside = Outside(train, [optimizer], but=model)
    train(model, optimizer, batch())
    outside.put_back()
    assert outside.changed == {"AdamW"} and not optimizer.state
    optimizer.param_groups[0] |= {"lr": 0.2, "initial_lr": 0.1}
    outside.put_back()
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert "initial_lr" not in optimizer.param_groups[0]


def test_arrays_of_an_objects_state_are_put_back_each_time() -> None:
    class Normaliser:
        def __init__(self) -> None:
            self.mean = numpy.zeros(2)

        def state_dict(self) -> dict[str, Any]:
            return {"mean": self.mean}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.mean = state["mean"]

    normaliser = Normaliser()
    outside = Outside(partial(train, normaliser), [], but=None)
    outside.put_back()
    assert not outside.changed
    for _ in range(2):
        normaliser.mean += 1
        outside.put_back()
        assert not normaliser.mean.any()
    assert outside.changed == {"Normaliser"}


def ways_to_know(generator: torch.Generator) -> dict[str, Any]:
    """Steps that know a generator, each in another way."""

    def default(_model: Any, known: Any = generator) -> None: ...

    def keyword_only(_model: Any, *, known: Any = generator) -> None: ...

    def inner(_model: Any) -> Any:
        return lambda: GLOBAL

    class Called:
        def __call__(self, _model: Any) -> Any:
            return generator

    class Trainer:
        def method(self, _model: Any) -> Any:
            return generator

    return {
        "a keyword of a partial": partial(train, known=generator),
        "a function in a partial": partial(keyword_only, 1),
        "a default": default,
        "a keyword's default": keyword_only,
        "a global of a function inside": inner,
        "a callable object": Called(),
        "a method": Trainer().method,
        "several": partial(train, {"all": [1, (2, 3, generator), 4], "first": 1, "last": 2}),
    }


@pytest.mark.parametrize("way", ways_to_know(GLOBAL))
def test_a_generator_is_found_in_whatever_way_a_step_knows_it(way: str) -> None:
    before = GLOBAL.get_state()
    outside = Outside(ways_to_know(GLOBAL)[way], [], but=None)
    torch.randn(1, generator=GLOBAL)
    outside.put_back()
    assert torch.equal(GLOBAL.get_state(), before)


def test_random_numbers_of_its_own_are_the_same_in_each_run_and_afterwards() -> None:
    generator = torch.Generator().manual_seed(0)
    others = random.Random(0), numpy.random.default_rng(0), numpy.random.RandomState(0)
    before = generator.get_state(), GLOBAL.get_state()

    def step(model: Any, optimizer: Any, given: Any, factor: float = 1.0) -> None:
        noise = torch.randn(16, 8, generator=generator) + torch.randn(16, 8, generator=GLOBAL)
        factor *= others[0].random() + float(others[1].random() + others[2].rand())
        train(model, optimizer, (given[0] + factor * noise, given[1]))

    optimizer = partial(torch.optim.SGD, lr=0.1)
    found = diagnose(mlp(), batch(), step=partial(step, factor=0.5), optimizer=optimizer, **FLOAT16)
    assert found.repeatable and found.of("float16").total < 0.02
    assert not {"Generator", "Random", "RandomState"} & {where for _, where in found.unseen}
    assert torch.equal(generator.get_state(), before[0])
    assert torch.equal(GLOBAL.get_state(), before[1])
    assert others[0].random() == random.Random(0).random()
    assert others[1].random() == numpy.random.default_rng(0).random()
    assert others[2].rand() == numpy.random.RandomState(0).rand()


def test_nothing_is_kept_of_a_model_that_is_looked_after_elsewhere() -> None:
    model = mlp()

    def step(_model: Any, _optimizer: Any, _batch: Any) -> Any:
        return model

    outside = Outside(step, [], but=model)
    with torch.no_grad():
        model[0].weight.add_(1)
    outside.put_back()
    assert not outside.changed
