"""The replay of many ranks' sums, against sums that numpy does one number at a time."""

from __future__ import annotations

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpbook.many_gpus.reductions import (
    DTYPES,
    additions,
    all_reduce,
    divisors,
    reduce_scatter,
    ring_chunks,
    ring_order,
)

NUMPY = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
}


def parts_of(ranks: int, elements: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Parts whose magnitudes differ, so that the order of their additions matters."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(-4, 5, (ranks, elements), generator=generator).float().exp2()
    return (torch.randn(ranks, elements, generator=generator) * sizes).to(dtype)


def as_numpy(x: torch.Tensor) -> np.ndarray:
    return x.double().numpy().astype(NUMPY[x.dtype])


def one_by_one(column: np.ndarray, order: list[int]) -> np.generic:
    total = column[order[0]]
    for rank in order[1:]:
        total = column.dtype.type(total + column[rank])
    return total


def by_tree(column: list[np.generic]) -> np.generic:
    """Neighbours, then neighbours of those, as pairs in a list."""
    while len(column) > 1:
        left, right, odd = column[::2], column[1::2], column[len(column) // 2 * 2 :]
        column = [a.dtype.type(a + b) for a, b in zip(left, right, strict=False)] + odd
    return column[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8, 64])
def test_a_ring_adds_each_chunk_in_its_own_order(dtype: torch.dtype, ranks: int) -> None:
    parts = parts_of(ranks, 23, dtype)
    found = as_numpy(all_reduce(parts, dtype=dtype, algorithm="ring", average="no"))
    numbers = as_numpy(parts)
    for chunk, place in enumerate(ring_chunks(23, ranks, element_bytes=dtype.itemsize)):
        for element in range(place.start, place.stop):
            wanted = one_by_one(numbers[:, element], ring_order(chunk, ranks))
            assert found[element] == wanted


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8, 13, 64])
def test_a_tree_adds_neighbours_first(dtype: torch.dtype, ranks: int) -> None:
    parts = parts_of(ranks, 23, dtype)
    found = as_numpy(all_reduce(parts, dtype=dtype, algorithm="tree", average="no"))
    for element, column in enumerate(as_numpy(parts).T):
        assert found[element] == by_tree(list(column))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [0, 1, 3, 6])
def test_halving_is_the_tree_of_ranks_with_their_bits_reversed(
    dtype: torch.dtype, bits: int
) -> None:
    parts = parts_of(2**bits, 23, dtype)
    reverse = [int(f"{rank:0{bits}b}"[::-1], 2) if bits else 0 for rank in range(2**bits)]
    found = all_reduce(parts, dtype=dtype, algorithm="halving", average="no")
    wanted = all_reduce(parts[reverse], dtype=dtype, algorithm="tree", average="no")
    assert torch.equal(found, wanted)


def test_the_order_changes_the_sum() -> None:
    parts = parts_of(64, 200, torch.bfloat16)
    ring, tree, halving = (
        all_reduce(parts, dtype=torch.bfloat16, algorithm=algorithm, average="no")
        for algorithm in ("ring", "tree", "halving")
    )
    assert not torch.equal(ring, tree)
    assert not torch.equal(tree, halving)
    assert not torch.equal(ring, all_reduce(parts.flip(0), dtype=torch.bfloat16, average="no"))


def test_every_rank_visits_every_chunk_once_and_its_owner_last() -> None:
    for ranks in (1, 2, 5, 8):
        for chunk in range(ranks):
            order = ring_order(chunk, ranks)
            assert sorted(order) == list(range(ranks))
            assert order[-1] == chunk


@given(st.integers(0, 10**7), st.integers(1, 300), st.sampled_from([2, 4, 8]))
def test_the_chunks_cover_the_tensor_in_whole_segments_of_at_most_a_mebibyte(
    elements: int, ranks: int, size: int
) -> None:
    chunks = ring_chunks(elements, ranks, element_bytes=size)
    assert len(chunks) == ranks
    assert chunks[0].start == 0
    assert chunks[-1].stop == elements
    assert all(a.stop == b.start for a, b in itertools.pairwise(chunks))
    longest = chunks[0].stop
    assert all(chunk.stop == min(chunk.start + longest, elements) for chunk in chunks)
    # At least two segments, and rounding up adds less than one element to each.
    segments = max(2, math.ceil(elements * size / (ranks * 2**20)))
    assert longest <= elements
    assert longest - elements / ranks < segments + 1


@pytest.mark.parametrize(
    ("elements", "ranks", "size", "starts"),
    [
        (10, 4, 4, [0, 4, 8, 10]),  # two segments of 2 elements, each
        (7, 3, 2, [0, 4, 7]),
        (5_000_001, 3, 4, [0, 1_666_672, 3_333_344]),  # seven segments of just below a mebibyte
        (3 * 2**20, 3, 2, [0, 2**20, 2**21]),  # two of a mebibyte
        (3 * 2**20 + 1, 3, 2, [0, 3 * 349_526, 6 * 349_526]),  # three of less
    ],
)
def test_gloo_cuts_here(elements: int, ranks: int, size: int, starts: list[int]) -> None:
    """Where gloo was asked; see the docstring of `ring_chunks` for the rule."""
    chunks = ring_chunks(elements, ranks, element_bytes=size)
    assert [chunk.start for chunk in chunks] == starts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_part_is_cast_before_it_is_divided_and_rounded_by_both(dtype: torch.dtype) -> None:
    parts = parts_of(3, 200, torch.float32)
    cast = as_numpy(parts.to(dtype))
    wanted = torch.from_numpy((cast / NUMPY[dtype](3)).astype(np.float64)).to(dtype)
    found = all_reduce(parts, dtype=dtype, average="before")
    assert torch.equal(found, all_reduce(wanted, dtype=dtype, average="no"))
    assert not torch.equal(wanted, (parts / 3).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sum_is_divided_and_rounded_once_more(dtype: torch.dtype) -> None:
    parts = parts_of(3, 2000, dtype)
    total = as_numpy(all_reduce(parts, dtype=dtype, average="no"))
    found = as_numpy(all_reduce(parts, dtype=dtype, average="after"))
    assert (found == total / NUMPY[dtype](3)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_reduce_scatter_gives_each_rank_its_share_of_the_all_reduce(dtype: torch.dtype) -> None:
    parts = parts_of(4, 20, dtype)
    for algorithm in ("ring", "tree", "halving"):
        shares = reduce_scatter(parts, dtype=dtype, algorithm=algorithm, average="before")
        whole = all_reduce(parts, dtype=dtype, algorithm=algorithm, average="before")
        assert shares.shape == (4, 5)
        assert torch.equal(shares.flatten(), whole)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 8, 12, 64, 100, 4096])
def test_what_is_divided_before_and_after_is_the_number_of_ranks(ranks: int) -> None:
    for average in ("before", "after", "split"):
        before, after = divisors(ranks, average)
        assert before * after == ranks
    before, after = divisors(ranks, "split")
    assert float(before).is_integer()
    assert math.log2(before).is_integer()
    assert divisors(ranks, "no") == (1, 1)


def test_the_split_is_that_of_fsdp2() -> None:
    collectives = pytest.importorskip("torch.distributed.fsdp._fully_shard._fsdp_collectives")
    theirs = getattr(collectives, "_get_gradient_divide_factors", None)
    if theirs is None:
        pytest.skip("FSDP2 has another helper in this torch")

    class Group:
        def __init__(self, ranks: int) -> None:
            self.ranks = ranks

        def size(self) -> int:
            return self.ranks

    for ranks in (2, 4, 6, 8, 12, 64, 100):
        before, after, *_ = theirs(Group(ranks), None, torch.float16, "cpu")
        assert divisors(ranks, "split") == (before or 1, after or 1)


def test_dividing_first_keeps_float16_from_overflowing_and_lets_small_parts_vanish() -> None:
    large, small = torch.full((64, 1), 4096.0), torch.full((64, 1), 2.0**-20)

    def mean(parts: torch.Tensor, average: str) -> float:
        return all_reduce(parts, dtype=torch.float16, average=average).item()

    assert [mean(large, a) for a in ("before", "split", "after")] == [4096, 4096, math.inf]
    assert [mean(small, a) for a in ("before", "split", "after")] == [0, 2.0**-20, 2.0**-20]


def test_a_bfloat16_ring_of_equal_parts_stalls_at_256_of_them() -> None:
    for ranks in (256, 300, 4096):
        ones = torch.ones(ranks, 3)
        ring = all_reduce(ones, dtype=torch.bfloat16, average="no")
        assert ring.tolist() == [256.0] * 3
    tree = all_reduce(ones, dtype=torch.bfloat16, algorithm="tree", average="no")
    assert tree.tolist() == [4096.0] * 3


def test_the_additions_on_the_longest_way() -> None:
    assert [additions(ranks, "ring") for ranks in (1, 2, 5, 4096)] == [0, 1, 4, 4095]
    assert [additions(ranks, "tree") for ranks in (1, 2, 5, 4096)] == [0, 1, 3, 12]
    assert additions(8, "halving") == 3


def test_parts_are_not_changed() -> None:
    parts = parts_of(4, 9, torch.float32)
    before = parts.clone()
    for algorithm in ("ring", "tree", "halving"):
        all_reduce(parts, dtype=torch.float32, algorithm=algorithm, average="before")
    assert torch.equal(parts, before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: all_reduce(torch.ones(3), dtype=torch.float32), r"parts: shape \(3,\)"),
        (lambda: all_reduce(torch.ones(0, 3), dtype=torch.float32), "at least one rank"),
        (lambda: all_reduce(torch.ones(2, 3), dtype=torch.float64), "dtype=torch.float64"),
        (lambda: all_reduce(torch.ones(2, 3).half(), dtype=torch.bfloat16), "parts: torch.float16"),
        (
            lambda: all_reduce(torch.ones(2, 3), dtype=torch.float32, algorithm="rang"),
            "algorithm='rang'",
        ),
        (
            lambda: all_reduce(torch.ones(2, 3), dtype=torch.float32, average="mean"),
            "average='mean'",
        ),
        (
            lambda: all_reduce(torch.ones(3, 3), dtype=torch.float32, algorithm="halving"),
            "3 ranks are no power of two",
        ),
        (lambda: reduce_scatter(torch.ones(2, 3), dtype=torch.float32), "3 elements do not divide"),
        (lambda: additions(0, "ring"), "ranks=0"),
        (lambda: divisors(0, "after"), "ranks=0"),
        (lambda: ring_chunks(4, 0, element_bytes=4), "ranks=0"),
    ],
)
def test_what_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
