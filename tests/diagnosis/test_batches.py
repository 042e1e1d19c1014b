"""Any batch, any output, any loss: one way is found, and what is wrong is said."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mpbook.diagnosis.batches import WITH_A_LOSS, Call, as_batches

X, Y = torch.ones(4, 3), torch.tensor([0, 1, 2, 0])
Pair = namedtuple("Pair", "x y")


@dataclass
class Batch:
    x: Tensor
    y: Tensor


class OfTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        return self.layer(x) + shift.sum()


class Returns(nn.Module):
    """Whatever a function makes of its logits and its input."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.layer, self.make = nn.Linear(3, 3), make

    def forward(self, x: Any) -> Any:
        return self.make(self.layer(getattr(x, "x", x)))


@pytest.mark.parametrize(
    ("batches", "count"),
    [
        (X, 1),
        ((X, Y), 1),
        ({"x": X}, 1),
        (Batch(X, Y), 1),
        ([X, X + 1], 2),
        ((batch for batch in [X, X + 1, X + 2, X + 3]), 3),
    ],
)
def test_one_batch_or_several(batches: Any, count: int) -> None:
    found = as_batches(batches, 3)
    assert len(found) == 3
    assert len({id(batch) for batch in found}) == count


def test_fewer_batches_than_steps_begin_again() -> None:
    assert as_batches([1, 2], 5) == [1, 2, 1, 2, 1]


@pytest.mark.parametrize("batches", [[], iter([]), [None]])
def test_no_batch_is_an_error_that_says_what_would_do(batches: Any) -> None:
    with pytest.raises(ValueError, match="batches: has no batch; expected one"):
        as_batches(batches, 3)


def test_no_step_is_an_error() -> None:
    with pytest.raises(ValueError, match="steps=0"):
        as_batches(X, 0)


@pytest.mark.parametrize(
    "loss",
    [
        F.cross_entropy,
        nn.CrossEntropyLoss(),
        lambda output, batch: F.cross_entropy(output, batch[1]),
        lambda output, y: F.cross_entropy(output, y),
    ],
)
def test_the_target_of_a_pair_goes_to_the_loss(loss: Any) -> None:
    model = nn.Linear(3, 3)
    assert torch.equal(Call(loss)(model, (X, Y)), F.cross_entropy(model(X), Y))


def test_a_loss_of_the_output_alone_leaves_the_batch_to_the_model() -> None:
    model = OfTwo()
    assert torch.equal(Call(lambda o: o.mean())(model, (X, Y)), model(X, Y).mean())


def test_what_a_loss_has_a_default_for_is_not_the_batch() -> None:
    model = nn.Linear(3, 3)
    got = Call(lambda o, factor=2.0: (o * factor).mean())(model, torch.full((4, 3), 5.0))
    assert torch.equal(got, (2 * model(torch.full((4, 3), 5.0))).mean())


def test_a_target_is_no_second_input_where_the_model_would_take_one() -> None:
    class Optional(OfTwo):
        def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
            return super().forward(x, torch.zeros(1) if shift is None else shift)

    model, index = Optional(), torch.arange(4) % 3
    index[0] = 2
    expected = F.cross_entropy(model(X), index)
    assert torch.equal(Call(F.cross_entropy)(model, (X, index)), expected)
    by_sum = Call(lambda o, y: (o.sum(1) * y).sum())
    assert torch.equal(by_sum(model, (X, index)), (model(X).sum(1) * index).sum())


def test_two_inputs_and_a_target() -> None:
    model = OfTwo()
    expected = F.cross_entropy(model(X, X), Y)
    assert torch.equal(Call(F.cross_entropy)(model, (X, X, Y)), expected)


def test_a_mapping_goes_in_by_the_names_that_forward_has() -> None:
    model = OfTwo()
    got = Call(lambda o, batch: F.cross_entropy(o, batch["y"]))(model, {"x": X, "shift": X, "y": Y})
    assert torch.equal(got, F.cross_entropy(model(X, X), Y))


@pytest.mark.parametrize(
    "make",
    [
        lambda o: o.mean(),
        lambda o: {"loss": o.mean(), "logits": o},
        lambda o: SimpleNamespace(loss=o.mean(), logits=o),
        lambda o: (o.mean(), o),
        lambda o: (o, o.mean()),
    ],
)
def test_the_models_own_loss_is_found(make: Any) -> None:
    model = Returns(make)
    for batch in (X, Batch(X, Y), (X,), {"x": X}, {"x": X, "labels": Y}):
        call = Call(None)
        assert torch.equal(call(model, batch), model.layer(X).mean())
        assert torch.equal(eval(call.written), model.layer(X).mean())  # as it is pasted


def test_a_loss_that_is_passed_is_written_as_a_function() -> None:
    call = Call(F.cross_entropy)
    call(nn.Linear(3, 3), (X, Y))
    assert call.written == WITH_A_LOSS


def test_an_autoencoders_loss_takes_the_batch_itself() -> None:
    model = nn.Linear(3, 3)
    assert torch.equal(Call(nn.MSELoss())(model, X), F.mse_loss(model(X), X))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda o, y: F.cross_entropy(o, y, reduction="none"), r"gave \(4,\), expected .* one"),
        (None, r"gave \(4, 3\), expected a tensor with one element"),
        (lambda o, y: o.detach().mean(), "has no gradient"),
        (lambda o: o.mean().item(), "loss: it returned a float"),
    ],
)
def test_a_loss_that_is_no_scalar_says_so(loss: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Call(loss)(nn.Linear(3, 3), (X, Y))


def test_what_the_model_raises_comes_through() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Call(F.cross_entropy)(nn.Linear(5, 3), (X, Y))
