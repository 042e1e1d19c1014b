"""What people hand over: lists from loaders, losses that know a module, loops that accumulate."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mpbook.copies import deep_copy
from mpbook.diagnosis import Diagnosis, diagnose
from mpbook.diagnosis.batches import as_batches
from mpbook.diagnosis.operators_seen import Recorder
from mpbook.diagnosis.same_draws import SameDraws
from mpbook.diagnosis.zoo.cases import Lambda
from mpbook.master_weights import SIXTEEN_BIT

SGD = partial(torch.optim.SGD, lr=0.05)
FLOAT16: dict[str, Any] = {"formats": ["float16"], "steps": 3, "rescue": False}


def batch(scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(16, 8, generator=generator), torch.arange(16) % 3


def mlp(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), *(middle or (nn.ReLU(),)), nn.Linear(16, 3))


def of_its_norm(x: Tensor) -> Tensor:
    return x / (x * x).sum(-1, keepdim=True).sqrt()


# --- Random numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "draw",
    [
        lambda like: torch.randn_like(like),
        lambda like: torch.rand(40, dtype=like.dtype),
        lambda like: torch.empty_like(like).normal_(),
        lambda like: torch.empty_like(like).uniform_(-1, 1),
        lambda like: torch.bernoulli(torch.full_like(like, 0.25)),
        lambda like: torch.normal(torch.zeros_like(like), 2.0),
    ],
)
@pytest.mark.parametrize("mode", [SameDraws, lambda: Recorder(nn.Identity())])
def test_the_same_numbers_are_drawn_in_each_dtype(draw: Any, dtype: torch.dtype, mode: Any) -> None:
    drawn = []
    for kind in (torch.float32, dtype):
        torch.manual_seed(3)
        with mode():
            drawn.append(draw(torch.zeros(40, dtype=kind)))
            following = torch.rand(1)
        drawn.append(following)
    assert drawn[2].dtype == dtype and torch.equal(drawn[2], drawn[0].to(dtype))
    assert torch.equal(drawn[3], drawn[1])  # no more and no fewer were taken


@pytest.mark.parametrize(
    ("factor", "middle", "expected"),
    [(1.0, nn.Tanh(), "yes"), (1e-9, nn.Tanh(), "with a loss scale"),
     (1.0, Lambda(lambda x: of_its_norm(3000 * x)), "no")],
)  # fmt: skip
def test_noise_in_a_step_takes_no_gradients_vote(factor: float, middle: Any, expected: str) -> None:
    def step(model: Any, optimizer: Any, x: Tensor) -> None:
        noise = torch.randn_like(x)
        optimizer.zero_grad()
        (factor * F.mse_loss(model(x + noise), noise[:, :3])).backward()
        optimizer.step()

    found = diagnose(mlp(middle), batch()[0], step=step, optimizer=SGD, **FLOAT16)
    assert not found.without_vote and found.survives("float16") == expected


# --- Batches and losses -----------------------------------------------------------------------


def test_a_list_from_a_loader_is_one_batch() -> None:
    x, y = batch()
    first = next(iter(DataLoader(TensorDataset(x, y), 16)))
    assert isinstance(first, list)
    found = diagnose(mlp(), first, loss=F.cross_entropy, optimizer=SGD, **FLOAT16)
    assert found.survives("float16") == "yes"
    z = torch.randn(16, 8)
    for two, loss in (([x, y], None), ([x, z], F.mse_loss), ([x, z], nn.MSELoss())):
        assert [len(one) for one in as_batches(two, 2, loss)] == [2, 2]
    alike = as_batches([x, z], 2, lambda output, given: (output - given).square().mean())
    assert alike[0] is x and alike[1] is z


class Contrast(nn.Module):
    """A loss whose target has a default, as those of metric learning have."""

    def forward(self, output: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None:
            raise ValueError("no labels")
        return F.cross_entropy(output, labels)


def test_a_loss_that_may_do_without_a_target_gets_one() -> None:
    given: list[bool] = []

    def loss(output: Tensor, target: Tensor | None = None) -> Tensor:
        given.append(target is not None)
        return output.square().mean() if target is None else F.cross_entropy(output, target)

    for one in (Contrast(), loss):
        assert diagnose(mlp(), batch(), loss=one, **FLOAT16).survives("float16") == "yes"
    assert given[-1]


def test_a_mapping_of_other_names_is_told_so() -> None:
    x, y = batch()
    with pytest.raises((TypeError, AttributeError)) as raised:
        diagnose(mlp(), {"image": x, "label": y}, loss=F.cross_entropy)
    (note,) = raised.value.__notes__
    assert "a mapping of image, label, and forward takes input" in note


class Weighted(nn.Module):
    """A loss with a weight, and a buffer that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        self.weight.data = self.weight.data.to(output.dtype)
        return F.cross_entropy(output * self.weight, target)


@pytest.mark.parametrize("kind", ["lambda", "method", "module"])
def test_a_loss_that_knows_a_module_leaves_it_as_it_was(kind: str) -> None:
    held = Weighted()
    held.weight.grad = before = torch.full((3,), 5.0)
    losses = {"lambda": lambda o, y: held(o, y), "method": held.forward, "module": held}
    found = diagnose(mlp(), batch(), loss=losses[kind], optimizer=SGD)
    assert found.survives("float16") == found.survives("bfloat16") == "yes"
    assert held.weight.grad is before and bool((before == 5).all())
    assert held.weight.dtype == torch.float32 and bool((held.weight == 1).all()) and held.calls == 0


def test_what_float32_refuses_is_raised() -> None:
    class Changed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sigmoid().mul_(2)  # a saved result

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        diagnose(mlp(Changed()), batch(), loss=F.cross_entropy)


# --- Loops ------------------------------------------------------------------------------------


def accumulated(model: nn.Module, factor: float, given: Any, **options: Any) -> Diagnosis:
    calls = 0

    def step(model: Any, optimizer: Any, given: Any) -> None:
        nonlocal calls
        calls += 1
        (factor * F.cross_entropy(model(given[0]), given[1]) / 4).backward()
        if calls % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()

    found = diagnose(model, given, step=step, optimizer=SGD, **{**FLOAT16, **options})
    assert calls == 0
    return found


@pytest.mark.parametrize("steps", [3, 4, 6])
@pytest.mark.parametrize(
    ("factor", "scale", "expected"),
    [(1.0, 1.0, "yes"), (1e-9, 1.0, "with a loss scale"), (1.0, 3000.0, "no")],
)
def test_gradients_that_are_accumulated_over_steps_are_compared(
    factor: float, scale: float, expected: str, steps: int
) -> None:
    model = mlp(Lambda(of_its_norm)) if scale > 1 else mlp()
    found = accumulated(model, factor, batch(scale), steps=steps)
    assert found.survives("float16") == expected and not found.without_vote
    assert set(found.of("float16").gradient_error) == {n for n, _ in model.named_parameters()}


class SharpnessAware(torch.optim.Optimizer):
    """Two steps for one, around an optimizer of its own, as SAM is written."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"rho": 0.05})
        self.base = torch.optim.SGD(self.param_groups, lr=0.1)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def ascend(self) -> None:
        for p in self.param_groups[0]["params"]:
            self.state[p]["added"] = p.grad * 0.05
            p.add_(self.state[p]["added"])
        self.zero_grad()

    @torch.no_grad()
    def descend(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.sub_(self.state[p]["added"])
        self.base.step()
        self.zero_grad()


def test_an_optimizer_with_another_inside_is_copied_with_it() -> None:
    def step(model: Any, optimizer: Any, given: Any) -> None:
        for end in (optimizer.ascend, optimizer.descend):
            F.cross_entropy(model(given[0]), given[1]).backward()
            end()

    model = mlp()
    optimizer = SharpnessAware(model.parameters())
    before = copy.deepcopy(model.state_dict())
    found = diagnose(model, batch(), step=step, optimizer=optimizer, **FLOAT16)
    assert found.survives("float16") == "yes" and found.of("float16").gradient_error
    assert all(torch.equal(before[name], held) for name, held in model.state_dict().items())


class Averaged(nn.Module):
    """An average that knows the model, and whose state holds the model's weights too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.average = model, copy.deepcopy(model)

    def update(self) -> None:
        for mean, new in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.data.lerp_(new.detach(), 0.5)


def test_an_average_that_holds_the_model_is_no_training_of_it() -> None:
    model = mlp()
    average = Averaged(model)
    nn.init.zeros_(average.average[0].weight)

    def step(given_model: Any, optimizer: Any, given: Any) -> None:
        F.cross_entropy(given_model(given[0]), given[1]).backward()
        optimizer.step()
        average.update()

    found = diagnose(model, batch(), step=step, optimizer=SGD, **FLOAT16)
    assert found.survives("float16") == "yes"
    assert not average.average[0].weight.any()


def test_a_tuple_that_has_no_length_is_copied() -> None:
    class Rows(tuple[int, ...]):
        def __len__(self) -> int:
            raise NotImplementedError

        def __iter__(self) -> Iterator[int]:
            return super().__iter__()

    assert deep_copy({"rows": Rows((1, 2))}, what="rows")["rows"] is not None


def test_a_buffer_that_is_infinite_from_the_start_is_no_failure() -> None:
    class Masked(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.mask: Tensor
            self.register_buffer("mask", torch.full((16, 16), value).triu(1))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ x.mT + self.mask).softmax(-1) @ x

    for value in (-math.inf, torch.finfo(torch.float32).min):
        found = diagnose(mlp(Masked(value)), batch(), loss=F.cross_entropy)
        assert found.survives("float16") == found.survives("bfloat16") == "yes"
        assert not any(line.topic.startswith("not finite") for line in found.lines())


def test_a_solver_that_never_ends_in_16_bits_is_not_waited_for() -> None:
    def halved(x: Tensor) -> Tensor:
        """Until a step is as small as float32 can make it."""
        total, part = x, x
        while float((part.abs() / (total.abs() + 1)).max()) > 1e-7:
            part = part if part.dtype in SIXTEEN_BIT else part / 2
            total = total + part
        return total

    found = diagnose(mlp(Lambda(halved)), batch(), loss=F.cross_entropy, **FLOAT16)
    assert found.survives("float16") == "no"
    assert "many times as many operators" in found.of("float16").reason


# --- Models that do not run in float64 --------------------------------------------------------


class Timed(nn.Module):
    """Attention whose keys have a bias, and times that are float32 whatever the weights are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.time, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(4, 4, 8) + self.time(torch.arange(4).float() * 0.1)
        chosen = (self.query(x) @ self.key(x).mT).softmax(-1) @ self.value(x)
        return self.last(chosen).view(16, 3)


def test_rounding_has_no_vote_in_a_model_that_float64_does_not_run() -> None:
    found = diagnose(Timed(), batch(), loss=F.cross_entropy, optimizer=SGD, **FLOAT16)
    assert found.survives("float16") == "yes"
    assert found.without_vote == ("key.bias",)
