"""The bound on a sum's error holds, is not absurdly wide, and the errors are what was replayed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpbook.many_gpus.reduction_error import error_bound, errors_by_ranks
from mpbook.many_gpus.reductions import DTYPES, all_reduce, divisors

AVERAGES = ("no", "before", "after", "split")


def exact(parts: torch.Tensor, average: str) -> torch.Tensor:
    """In float64, whose own error is far below that of the three dtypes."""
    before, after = divisors(len(parts), average)
    return parts.double().sum(0) / (before * after)


@settings(max_examples=150)
@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 2, 3, 4, 7, 16, 64]),
    st.integers(-30, 6),
    st.sampled_from(DTYPES),
    st.sampled_from(["ring", "tree", "halving"]),
    st.sampled_from(AVERAGES),
    st.booleans(),
)
def test_no_error_is_above_the_bound(
    seed: int, ranks: int, binade: int, dtype: torch.dtype, algorithm: str, average: str, cast: bool
) -> None:
    if algorithm == "halving" and ranks & (ranks - 1):
        ranks = 8
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(ranks, 17, generator=generator) * 2.0**binade
    parts = parts if cast else parts.to(dtype)
    options = dict(dtype=dtype, algorithm=algorithm, average=average)
    error = (all_reduce(parts, **options).double() - exact(parts, average)).abs()
    assert (error <= error_bound(parts, **options) * (1 + 1e-6)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_equal_halves_of_a_gap_reach_a_third_of_the_bound(dtype: torch.dtype) -> None:
    """A bound that no case comes near would be no bound worth stating."""
    eps = torch.finfo(dtype).eps
    parts = torch.tensor([[1.0], [eps / 2]]).to(dtype)  # a tie, rounded to the even 1
    options = dict(dtype=dtype, average="no")
    error = (all_reduce(parts, **options).double() - exact(parts, "no")).abs()
    assert error.item() == eps / 2
    assert error.item() > error_bound(parts, **options).item() / 3


def test_the_bound_grows_with_the_additions() -> None:
    parts = torch.ones(1024, 1)

    def bound(algorithm: str, dtype: torch.dtype) -> float:
        return error_bound(parts, dtype=dtype, algorithm=algorithm).item()

    for dtype in DTYPES:
        assert bound("ring", dtype) > 50 * bound("tree", dtype)
    ratio = bound("tree", torch.bfloat16) / bound("tree", torch.float32)
    assert ratio == pytest.approx(2**16 * 12 / 11, rel=0.05)  # the cast rounds once more


@pytest.mark.parametrize(
    ("average", "cast", "roundings", "divided"),
    [("no", False, 2, 1), ("after", False, 3, 3), ("before", False, 3, 3), ("after", True, 4, 3)],
)
def test_the_bound_counts_every_rounding_on_the_way(
    average: str, cast: bool, roundings: int, divided: int
) -> None:
    parts = torch.ones(3, 1, dtype=torch.float32 if cast else torch.bfloat16)
    bound = error_bound(parts, dtype=torch.bfloat16, average=average)
    wanted = ((1 + 2**-8) ** roundings - 1) * 3 / divided
    assert bound.item() == pytest.approx(wanted, rel=1e-9)


def test_parts_without_noise_are_equal_and_add_up_exactly_in_pairs() -> None:
    def errors(noise: float) -> list[float]:
        found = errors_by_ranks(
            (2, 8), dtypes=(torch.float32,), algorithms=("tree",), noise=noise, elements=32
        )
        return [one.error for one in found]

    assert errors(0.0) == [0.0, 0.0]
    assert all(error > 0 for error in errors(1.0))


def test_errors_by_ranks_are_those_of_the_replay() -> None:
    found = list(errors_by_ranks((2, 32), dtypes=DTYPES, elements=32))
    assert len(found) == 2 * 3 * 2
    for one in found:
        assert 0 < one.error <= one.bound
    errors = {(one.ranks, one.dtype, one.algorithm): one.error for one in found}
    for algorithm in ("ring", "tree"):
        for ranks in (2, 32):
            wide, half, brain = (errors[ranks, dtype, algorithm] for dtype in (
                torch.float32, torch.float16, torch.bfloat16))  # fmt: skip
            assert wide < half / 100
            assert half < brain / 2


def test_a_long_bfloat16_ring_is_far_worse_than_a_tree() -> None:
    found = errors_by_ranks((1024,), dtypes=(torch.bfloat16,), elements=32)
    errors = {one.algorithm: one.error for one in found}
    assert errors["ring"] > 10 * errors["tree"]


def test_more_ranks_keep_the_parts_of_few() -> None:
    few = list(errors_by_ranks((2,), elements=16))
    assert few == list(errors_by_ranks((2, 8), elements=16))[: len(few)]
