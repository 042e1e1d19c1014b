"""What a recorder notes of each operator: its place, its size, and where infinity begins."""

from __future__ import annotations

import linecache
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mpbook.diagnosis import diagnose
from mpbook.diagnosis.operators_seen import Recorder
from mpbook.diagnosis.places import LOSS, Seen, is_like_a_mask
from mpbook.diagnosis.zoo.cases import Lambda


class Scores(nn.Module):
    """Attention's scores, larger before their scale than after it."""

    def forward(self, q: Tensor) -> Tensor:
        scores = q @ q.mT  # the scores
        return scores / 16  # after their scale


def seen(model: nn.Module, x: Tensor, *, backward: bool = False, **options: Any) -> list[Seen]:
    recorder = Recorder(model, **options)
    recorder.begin(0)
    with recorder.hooks(), recorder:
        result = model(x)
        if backward:
            result.square().sum().backward()
    return list(recorder.seen.values())


def line_of(one: Seen) -> str:
    return linecache.getline(one.key.place.file, one.key.place.line)


def test_an_operator_inside_a_module_has_its_module_and_its_line() -> None:
    found = seen(nn.Sequential(nn.Identity(), Scores()), torch.full((1, 4, 4), 8.0))
    product = next(s for s in found if s.operator == "bmm")
    assert product.key.place.module == "1"
    assert "# the scores" in line_of(product)
    assert product.largest == 256.0
    assert next(s for s in found if s.operator == "div").largest == 16.0


def test_backward_is_attributed_to_the_line_that_made_it() -> None:
    x = torch.full((1, 4, 4), 8.0, requires_grad=True)
    found = seen(nn.Sequential(nn.Identity(), Scores()), x, backward=True)
    products = [s for s in found if s.operator == "bmm" and s.key.phase == "backward"]
    assert len(products) == 2
    for product in products:
        assert product.key.place.module == "1"
        assert "# the scores" in line_of(product)


def test_each_operator_of_the_backward_pass_has_its_own_line() -> None:
    x = torch.full((1, 4, 4), 8.0, requires_grad=True)
    found = seen(Scores(), x, backward=True)
    (quotient,) = [s for s in found if s.operator == "div" and s.key.phase == "backward"]
    assert "# after their scale" in line_of(quotient)


def test_of_two_operators_in_a_row_each_has_the_gradient_of_its_own() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.exp()  # first
            return y.tanh()  # second

    found = seen(Model(), torch.ones(2, requires_grad=True), backward=True)
    (outer,) = [s for s in found if s.operator == "tanh_backward"]
    inner = next(s for s in found if s.key.phase == "backward" and "# first" in line_of(s))
    assert "# second" in line_of(outer) and inner.operator == "mul"


def test_gradients_are_noted_without_the_loss_scale() -> None:
    x = torch.full((1, 4, 4), 8.0, requires_grad=True)
    for scale in (1.0, 1024.0):
        largest = [s.largest for s in seen(Scores(), x, backward=True, loss_scale=scale)
                   if s.operator == "bmm"]  # fmt: skip
        assert largest == [256.0, *([4 * 2 * 16.0 / 16 * 8 / scale] * 2)]


class Raises(nn.Module):
    """A part that raises, to be caught or not."""

    def forward(self, x: Tensor) -> Tensor:
        raise ArithmeticError


def test_an_error_is_placed_in_the_innermost_module() -> None:
    recorder = Recorder(nn.Sequential(nn.Identity(), nn.Sequential(Raises())))
    recorder.begin(0)
    with recorder.hooks(), recorder, pytest.raises(ArithmeticError) as caught:
        recorder.model(torch.ones(1))
    assert recorder.place_of(caught.value).module == "1.0"


def test_a_module_that_raised_and_was_caught_is_left_again() -> None:
    class Catches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Raises()

        def forward(self, x: Tensor) -> Tensor:
            with suppress(ArithmeticError):
                return self.part(x)
            return x + 1

    found = seen(nn.Sequential(Catches()), torch.ones(1))
    assert [s.key.place.module for s in found if s.operator == "add"] == ["0"]


@pytest.mark.parametrize(
    ("function", "chooses"),
    [
        (lambda x: x.topk(2).values, True),
        (lambda x: x.argmax(-1), True),
        (lambda x: x.argmin(-1), True),
        (lambda x: x.max(-1).values, True),
        (lambda x: x.min(-1).values, True),
        (lambda x: x.sort(-1).values, True),
        (lambda x: x.kthvalue(2, -1).values, True),
        (lambda x: x.max(), False),
        (lambda x: x.min(), False),
    ],
)
def test_choices_are_indices_and_a_maximum_of_all_is_none(function: Any, chooses: bool) -> None:
    recorder = Recorder(Lambda(function))
    recorder.begin(0)
    with recorder:
        recorder.model(torch.randn(3, 4))
    assert [c.indices.dtype for c in recorder.choices] == [torch.int64] * chooses


def test_work_has_the_operations_of_products_and_all_bytes_read_and_written() -> None:
    recorder, x = Recorder(Lambda(lambda x: (x @ x) + x)), torch.ones(4, 4).half()
    recorder.begin(0)
    with recorder:
        recorder.model(x)
    assert recorder.work == [(torch.float16, 2 * 4**3, 96), (torch.float16, 0, 96)]


def test_a_result_keeps_its_first_infinity_and_the_step_of_its_first_overflow() -> None:
    recorder = Recorder(Lambda(lambda x: x * 1.0))
    for step, values in enumerate(([1.0, torch.inf], [2.0, 1.0], [7e4, 1.0], [8e4, 1.0])):
        recorder.begin(step)
        with recorder:
            recorder.model(torch.tensor(values))
    (one,) = recorder.seen.values()
    assert (one.step, one.largest, one.overflows_at) == (0, torch.tensor(8e4).item(), 2)


def test_what_runs_outside_of_every_module_is_the_loss() -> None:
    found = seen(nn.Linear(2, 2), torch.ones(1, 2), backward=True)
    assert next(s for s in found if s.operator == "sum").key.place.module == LOSS


@pytest.mark.parametrize(
    ("function", "operator", "cause"),
    [
        (lambda x: (x * 1e30) * 1e30, "mul", ""),
        (lambda x: x / (x - x), "div", "its divisor is 0"),
        (lambda x: (x - x).log(), "log", "its operand is 0"),
        (lambda x: (x - x).log2(), "log2", "its operand is 0"),
        (lambda x: (x - x).rsqrt(), "rsqrt", "its operand is 0"),
        (lambda x: (x - x).reciprocal(), "reciprocal", "its divisor is 0"),
        (lambda x: (x * 1e6).half(), "_to_copy", "the cast overflows"),
    ],
)
def test_the_first_infinity_is_where_operands_were_finite(
    function: Any, operator: str, cause: str
) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x) + 1  # the sum hands it on

    began = [s for s in seen(Model(), torch.ones(4)) if s.began]
    assert [s.operator for s in began] == [operator]
    assert began[0].cause == cause
    assert all(s.nonfinite for s in seen(Model(), torch.ones(4)) if s.operator == "add")


def test_an_operator_in_place_begins_it_only_if_what_it_wrote_to_was_finite() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = (x * 1e30).mul_(1e30)
            return y.relu_()

    assert [s.operator for s in seen(Model(), torch.ones(4)) if s.began] == ["mul_"]


def test_a_sum_that_vanishes_but_for_rounding_is_marked() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh()).bfloat16()
    model[1].float()
    torch.manual_seed(0)
    x = torch.randn(256, 8, dtype=torch.bfloat16)
    sums = [s for s in seen(model, x, backward=True, histograms=True)
            if s.key.phase == "backward" and s.operator == "sum" and s.histogram]  # fmt: skip
    assert [s.cancelled for s in sums if s.key.place.module == "0"] == [True]
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), Lambda(lambda x: x * 1e-4)).bfloat16()
    others = [s for s in seen(model, x, backward=True, histograms=True) if s.histogram]
    assert {"sum", "mul"} <= {s.operator for s in others} and not any(s.cancelled for s in others)


def test_whole_numbers_that_16_bits_cannot_tell_apart_are_noted() -> None:
    class Model(nn.Module):
        def __init__(self, count: int) -> None:
            super().__init__()
            self.count = count

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.arange(self.count).bfloat16().float().sum()

    for count, noted in ((257, 0), (400, 1)):  # bfloat16 has every whole number up to 256
        recorder = Recorder(Model(count))
        recorder.begin(0)
        with recorder:
            recorder.model(torch.ones(1))
        assert len(recorder.rounded) == noted


@pytest.mark.parametrize(
    "function",
    [
        lambda: torch.arange(512, dtype=torch.bfloat16),
        lambda: torch.arange(512.0).bfloat16(),
    ],
    ids=["arange", "_to_copy"],
)
def test_whole_numbers_are_noted_by_arange_itself_and_by_a_cast_of_floats(function: Any) -> None:
    recorder = Recorder(nn.Identity())
    recorder.begin(0)
    with recorder:
        function()
        torch.linspace(0, 1, 512).bfloat16()
    ((operator, share),) = recorder.rounded.values()
    exact = torch.arange(512).bfloat16().double()
    collide, differ = 1 - len(exact.unique()) / 512, (exact != torch.arange(512)).double().mean()
    assert share == pytest.approx(collide if operator == "arange" else float(differ))


def _masks(function: Callable[[Tensor], Tensor]) -> list[bool]:
    """Of each result at the end of float16 or beyond, in order, whether it counts as a mask's."""
    found = seen(Lambda(function), torch.tensor([1.0, 2.0, 3.0]))
    return [is_like_a_mask(s) for s in found if s.nonfinite or s.largest > 65e3]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: -(x.half() * 200) * (x.half() * 200),
        lambda x: x.half() - (x.half() * 16000) * (x.half() * 4),
        lambda x: (x * -50000 - 20000).half(),
    ],
    ids=["a square with a minus", "a difference", "a cast of activations"],
)
def test_a_negative_overflow_of_moderate_operands_is_no_mask(function: Any) -> None:
    found = _masks(function)
    assert found and not any(found)


@pytest.mark.parametrize("fill", [-1e5, -1e9, torch.finfo(torch.float16).min])
@pytest.mark.parametrize("kind", ["added", "by a product", "cast", "cast after a sum", "in place"])
def test_what_a_mask_hands_on_is_a_mask(fill: float, kind: str) -> None:
    hidden = torch.tensor([0.0, 1.0, 1.0])
    written = hidden * fill
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "added": lambda x: x + written,
        "by a product": lambda x: x + hidden * fill,
        "cast": lambda x: written.half(),
        "cast after a sum": lambda x: (x + written).half(),
        "in place": lambda x: x.clone().add_(written),
    }
    found = _masks(functions[kind])
    assert found and all(found)


def test_a_mask_of_float16s_smallest_number_is_not_near_to_overflow() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.register_buffer("mask", torch.ones(4, 4).triu(1) * torch.finfo(torch.float16).min)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return F.scaled_dot_product_attention(y, y, y, attn_mask=self.mask)

    torch.manual_seed(0)
    found = diagnose(Attention(), torch.randn(2, 4, 8), loss=lambda o: o.square().mean(),
                     formats=["float16"], steps=1)  # fmt: skip
    assert found.of("float16").headroom > 5 and found.of("float16").forecast is None


def test_a_square_with_a_minus_gets_the_advice_of_a_square() -> None:
    model = Lambda(lambda x: (-(x * 400) * (x * 400)) / 1e6)
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(8, 8), model, nn.Linear(8, 3))
    found = diagnose(layers, (torch.linspace(-3, 3, 32).view(4, 8), torch.arange(4) % 3),
                     loss=F.cross_entropy, formats=["float16"], steps=1, rescue=False)  # fmt: skip
    verdict = found.of("float16")
    assert verdict.survives == "no" and verdict.forecast is not None
    assert "square" in found.advice[0].what
