"""`sums`: each way of adding, against torch's own additions, numpy, and exact fractions."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mpbook.formats import FORMATS, FloatFormat, decode, encode, round_to
from mpbook.formats.sums import (
    exact_sum,
    kahan_sum,
    kahan_sums,
    overflow_rule,
    pairwise_sum,
    running_sum,
    running_sums,
    sum_rounder,
)

NATIVE = [torch.float32, torch.float16, torch.bfloat16]
SUMMABLE = [name for name, format in FORMATS.items() if format.signed]
SUMS = [running_sum, pairwise_sum, kahan_sum]
numpy_types = {torch.float16: np.float16, torch.bfloat16: ml_dtypes.bfloat16}

every_sum = pytest.mark.parametrize("total", SUMS)


def uniform(*shape: int, low: float = -1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64) * (1 - low) + low


def by_fractions(terms: list[float], format: FloatFormat, rounding: Any) -> float:
    """A running sum in exact rational arithmetic, each total encoded and decoded again."""

    def rounded(x: Fraction, rounding: Any) -> Fraction:
        code = encode(x, format, rounding=rounding, overflow=overflow_rule(format))
        return Fraction(decode(code, format))

    total = Fraction(0)
    for term in terms:
        total = rounded(total + rounded(Fraction(term), "nearest-even"), rounding)
    return float(total)


# --- the facts of the chapter ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_a_running_sum_of_ones_stalls_at_two_to_the_precision(name: str) -> None:
    stall = 2 ** FORMATS[name].precision
    assert running_sum(torch.ones(2 * stall + 5), name) == stall
    assert running_sum(torch.ones(stall - 1), name) == stall - 1


@pytest.mark.parametrize("total", [pairwise_sum, kahan_sum])
def test_the_cures_count_to_a_thousand_in_bfloat16(total: Callable[..., Tensor]) -> None:
    assert total(torch.ones(1000), "bfloat16") == 1000


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_kahan_stays_within_an_ulp_where_the_running_sum_is_lost(name: str) -> None:
    terms = round_to(uniform(20, 8192, low=0), name, overflow="inf")
    exact = terms.sum(-1)
    assert ((kahan_sum(terms, name) / exact - 1).abs() < FORMATS[name].eps).all()
    assert ((pairwise_sum(terms, name) / exact - 1).abs() < 3 * FORMATS[name].eps).all()
    assert (running_sum(terms, name) < 0.6 * exact).all()


def test_stochastic_rounding_is_right_on_average() -> None:
    terms = torch.ones(400, 1000)
    generator = torch.Generator().manual_seed(0)
    totals = running_sum(terms, "bfloat16", rounding="stochastic", generator=generator)
    deviation = (totals.mean() - 1000) / (totals.std() / 20)
    assert abs(deviation) < 4
    assert totals.std() > 5


# --- against other ways to the same number ------------------------------------------------------


@pytest.mark.parametrize("dtype", NATIVE)
@pytest.mark.parametrize("low", [-1.0, 0.0])
def test_a_running_sum_is_what_torch_makes_of_one_addition_after_the_other(
    dtype: torch.dtype, low: float
) -> None:
    terms = uniform(3, 3000, low=low)
    total = torch.zeros(3, dtype=dtype)
    for term in round_to(terms, dtype, overflow="inf").to(dtype).unbind(-1):
        total = total + term
    assert torch.equal(running_sum(terms, dtype), total.double())


@pytest.mark.parametrize("dtype", list(numpy_types))
def test_running_sums_are_numpys_accumulate(dtype: torch.dtype) -> None:
    terms = uniform(5000, low=0)
    rounded = round_to(terms, dtype, overflow="inf").numpy().astype(numpy_types[dtype])
    expected = np.add.accumulate(rounded).astype(np.float64)
    np.testing.assert_array_equal(running_sums(terms, dtype).numpy(), expected)


@pytest.mark.parametrize("dtype", NATIVE)
def test_kahan_sums_are_those_of_torchs_own_additions(dtype: torch.dtype) -> None:
    terms = uniform(2000)
    total = torch.zeros((), dtype=dtype)
    compensation = torch.zeros((), dtype=dtype)
    for term in round_to(terms, dtype, overflow="inf").to(dtype):
        y = term - compensation
        new = total + y
        compensation = (new - total) - y
        total = new
    assert kahan_sum(terms, dtype) == total.item()


@given(
    terms=st.lists(st.floats(-500, 500), max_size=12),
    name=st.sampled_from(SUMMABLE),
    rounding=st.sampled_from(["nearest-even", "toward-zero", "up", "down"]),
)
def test_a_running_sum_is_that_of_exact_fractions(
    terms: list[float], name: str, rounding: Any
) -> None:
    rounded = round_to(
        torch.tensor(terms, dtype=torch.float64), name, overflow=overflow_rule(FORMATS[name])
    )
    if not rounded.isfinite().all():
        return
    ours = running_sum(torch.tensor(terms, dtype=torch.float64), name, rounding=rounding)
    try:
        expected = by_fractions(terms, FORMATS[name], rounding)
    except (OverflowError, ValueError):  # a total that is infinity or NaN
        return
    if name == "float32" and rounding != "nearest-even":
        assert abs(ours - expected) <= 2**-13  # one step: float64 has rounded once before
    else:
        assert ours == expected


@given(terms=st.lists(st.floats(-10, 10, width=16), min_size=1, max_size=40))
def test_all_sums_are_exact_where_nothing_rounds(terms: list[float]) -> None:
    whole = torch.tensor(terms, dtype=torch.float64).round()
    for total in SUMS:
        assert total(whole, "float16") == exact_sum(whole)


def test_the_fast_sum_rounder_is_the_general_one() -> None:
    for dtype in NATIVE:
        left, right = (round_to(x, dtype, overflow="inf") for x in uniform(2, 10**5) * 300)
        sums = left.double() + right.double()
        assert torch.equal(sum_rounder(dtype)(sums), round_to(sums, dtype, overflow="inf").double())


def test_exact_sum_does_not_cancel() -> None:
    assert exact_sum(torch.tensor([1e8, 1.0, -1e8])) == 1.0
    with pytest.raises(ValueError, match="expected one dimension"):
        exact_sum(torch.zeros(2, 2))


# --- shapes, ends and bad input -----------------------------------------------------------------


@every_sum
def test_the_last_dimension_is_summed(total: Callable[..., Tensor]) -> None:
    terms = uniform(2, 3, 7)
    each = [[total(row, "bfloat16").item() for row in block] for block in terms]
    assert total(terms, "bfloat16").tolist() == each


@every_sum
def test_no_terms_sum_to_zero_and_one_to_itself(total: Callable[..., Tensor]) -> None:
    assert total(torch.zeros(0), "float16") == 0
    assert total(torch.zeros(2, 0), "float16").tolist() == [0, 0]
    assert total(torch.tensor([0.5]), "float16") == 0.5


@pytest.mark.parametrize("totals", [running_sums, kahan_sums])
def test_every_total_on_the_way_is_the_sum_of_the_terms_so_far(
    totals: Callable[..., Tensor],
) -> None:
    terms = uniform(40)
    last = {running_sums: running_sum, kahan_sums: kahan_sum}[totals]
    assert totals(terms, "bfloat16").tolist() == [
        last(terms[: k + 1], "bfloat16").item() for k in range(40)
    ]


@pytest.mark.parametrize(
    ("name", "expected"), [("float16", np.inf), ("float8_e4m3fn", np.nan), ("float4_e2m1fn", 6)]
)
def test_a_total_that_overflows(name: str, expected: float) -> None:
    terms = torch.full((64,), FORMATS[name].max)
    np.testing.assert_equal(running_sum(terms, name).item(), expected)


@every_sum
def test_bad_input_is_named(total: Callable[..., Tensor]) -> None:
    with pytest.raises(TypeError, match=r"terms is torch\.int64"):
        total(torch.ones(3, dtype=torch.int64), "float16")
    with pytest.raises(TypeError, match="terms is list"):
        total([1.0], "float16")
    with pytest.raises(ValueError, match="no dimension"):
        total(torch.tensor(1.0), "float16")
    with pytest.raises(ValueError, match="expected one of float32"):
        total(torch.ones(3), "fp16")
    with pytest.raises(ValueError, match="generator"):
        total(torch.ones(3), "float16", rounding="stochastic")
