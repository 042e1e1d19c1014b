"""Healthy models of many kinds, each of which a diagnosis once raised on."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from mpbook.diagnosis import Diagnosis, diagnose

ADAM = partial(torch.optim.AdamW, lr=1e-3)
X, Y = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()


def diagnosed(model: nn.Module, batch: Any = (X, Y), **options: Any) -> Diagnosis:
    given: dict[str, Any] = {"optimizer": ADAM, "steps": 2, "rescue": False} | options
    found = diagnose(model, batch, **given)
    assert {found.survives(f) for f in found.formats} == {"yes"}
    return found


class Graph(Body):
    """Neighbours in a sparse buffer, or in the batch."""

    def __init__(self, neighbours: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("neighbours", neighbours)

    def forward(self, x: Tensor, neighbours: Tensor | None = None) -> Tensor:
        given: Any = self.neighbours if neighbours is None else neighbours
        return torch.sparse.mm(given, self.net(x).float())


def test_a_sparse_buffer() -> None:
    diagnosed(Graph(torch.eye(16).to_sparse()), loss=F.cross_entropy)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_a_sparse_tensor_in_a_batch_has_no_slope_of_memory(layout: torch.layout) -> None:
    neighbours = torch.eye(16).to_sparse(layout=layout)
    found = diagnosed(Graph(), (X, neighbours, Y), loss=F.cross_entropy)
    assert found.memory_float32 is not None and found.memory_float32.for_each_example is None


class InnerStep(Body):
    """A step of descent inside the forward pass."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        def loss(weights: dict[str, Tensor]) -> Tensor:
            return F.cross_entropy(functional_call(self.net, weights, (x,)), y)

        weights = dict(self.net.named_parameters())
        slopes = torch.func.grad(loss)(weights)
        return loss({name: w - 0.1 * slopes[name] for name, w in weights.items()})


class Slopes(Body):
    def forward(self, x: Tensor) -> Tensor:
        slope = torch.func.vmap(torch.func.grad(lambda one: self.net(one).sum()))
        return self.net(x) + slope(x)[:, :3]


class Directions(Body):
    def forward(self, x: Tensor) -> Tensor:
        out, slope = torch.func.jvp(self.net, (x,), (torch.ones_like(x),))
        return out + slope


def test_derivatives_inside_the_forward_pass() -> None:
    found = diagnosed(InnerStep())
    assert "not measured" in next(one.finding for one in found.lines() if one.topic == "memory")
    diagnosed(Slopes(), loss=F.cross_entropy)
    diagnosed(Directions(), loss=F.cross_entropy)


class Chooses(Body):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, self.net, lambda z: 2 * self.net(z), (x,))


def test_a_choice_between_two_functions_is_run_as_written() -> None:
    before = torch.cond
    found = diagnosed(Chooses(), loss=F.cross_entropy)
    assert found.of("float16").total > 0
    assert torch.cond is before


class WideHead(Body):
    """A part in float64, as of a Gaussian process, in a float32 model."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3, dtype=torch.float64)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        return self.head(self.net(x).double()) + self.head(shift)


def test_a_part_in_float64_stays() -> None:
    shift = torch.ones(16, 3, dtype=torch.float64)
    diagnosed(WideHead(), (X, shift, Y), loss=F.cross_entropy)
    diagnosed(mlp().double(), (X.double(), Y), loss=F.cross_entropy)


class TakesItWhole(Body):
    def forward(self, batch: Any, **_options: Any) -> Tensor:
        return self.net(batch["x"])


def test_a_mapping_goes_in_whole_where_forward_needs_one() -> None:
    diagnosed(TakesItWhole(), {"x": X, "y": Y}, loss=lambda out, b: F.cross_entropy(out, b["y"]))


class Keeps(Body):
    """Keeps what it computed in the last call."""

    def __init__(self) -> None:
        super().__init__()
        self.penalties: list[Tensor] = []
        self.seen: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        self.penalties = [out.square().mean()]
        self.seen = {"out": (out,)}
        return out


def test_activations_that_were_kept_are_no_hindrance() -> None:
    model = Keeps()
    model(X)
    kept = model.penalties[0]
    diagnosed(model, loss=F.cross_entropy)
    assert model.penalties[0] is kept


def test_a_loaders_random_numbers_are_put_back() -> None:
    class Drawn(TensorDataset):
        def __getitem__(self, index: Any) -> Any:
            random.random()
            numpy.random.rand()
            return super().__getitem__(index)

    model, loader = mlp(), DataLoader(Drawn(X, Y), batch_size=8, shuffle=True)
    before = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[2]
    diagnose(model, loader, loss=F.cross_entropy, steps=1, rescue=False)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), numpy.random.get_state()[2])


@pytest.mark.parametrize("name", ["loss", "step"])
def test_a_loss_or_step_that_is_no_function_is_told(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name}: a str; expected a function"):
        diagnose(mlp(), (X, Y), **{name: "ce"})  # type: ignore[arg-type]
