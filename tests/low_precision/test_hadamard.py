"""The Hadamard transform against a matrix of its own, and what makes it one."""

import math

import numpy as np
import product_references as references
import pytest
import torch

from mpbook.low_precision.hadamard import hadamard_transform, random_signs

SIZES = [2, 4, 16, 32, 128, 1024]


@pytest.mark.parametrize("size", SIZES)
def test_a_transform_is_that_of_sylvesters_matrix_after_the_signs(size):
    generator = torch.Generator().manual_seed(0)
    x, signs = torch.randn(3, 2 * size, generator=generator), random_signs(size, generator)
    found = hadamard_transform(x, size, signs=signs)
    expected = references.rotate(x.double().numpy(), tuple(signs.tolist()))
    assert np.abs(found.double().numpy() - expected).max() < 1e-5
    plain = hadamard_transform(x, size)
    assert torch.allclose(hadamard_transform(plain, size), x, atol=1e-5)  # its own inverse


@pytest.mark.parametrize("size", SIZES)
def test_one_number_is_spread_evenly_and_products_are_kept(size):
    generator = torch.Generator().manual_seed(1)
    signs = random_signs(size, generator)
    unit = torch.zeros(1, size)
    unit[0, 1] = 1
    spread = hadamard_transform(unit, size, signs=signs)
    assert torch.allclose(spread.abs(), torch.full((1, size), 1 / math.sqrt(size)))
    a, b = torch.randn(2, 5, 3 * size, generator=generator)
    turned = (hadamard_transform(m, size, signs=signs) for m in (a, b))
    left, right = turned
    assert torch.allclose(left @ right.T, a @ b.T, rtol=1e-4, atol=1e-3)


def test_signs_are_even_and_follow_the_generator():
    draws = [random_signs(1024, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert set(draws[0].tolist()) == {-1, 1} and abs(draws[0].mean()) < 0.2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_is_kept(dtype):
    assert hadamard_transform(torch.ones(2, 16, dtype=dtype), 16).dtype == dtype


@pytest.mark.parametrize(
    ("block", "message"),
    [(12, "block=12: expected a power of two"), (0, "block=0"), (16, "blocks of 16 do not divide")],
)
def test_a_block_that_is_none_is_refused(block, message):
    with pytest.raises(ValueError, match=message):
        hadamard_transform(torch.ones(2, 24), block)
