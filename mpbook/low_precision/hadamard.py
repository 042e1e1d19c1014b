"""The random Hadamard transform: a rotation that spreads an outlier over its block.

A Hadamard matrix H has entries of 1 and -1 and orthogonal rows, so H / sqrt(n) is a rotation.  With
the signs of the numbers flipped at random first, no input is bad for it but by accident.  Both
operands of a product are rotated alike along what is contracted: the rotations cancel in exact
arithmetic, ``(a R) (b R).T = a b.T``, and what is quantised has no outliers.

Taught in the chapter "FP8 and below".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def hadamard_transform(x: Tensor, block: int, *, signs: Tensor | None = None) -> Tensor:
    """Rotate each block of the last dimension by a Hadamard matrix.

    Args:
        x: a real floating-point tensor, whose last dimension the blocks divide.
        block: size of the blocks, a power of two.
        signs: (block,), 1 or -1, by which the numbers of a block are multiplied first; None for
            no change of signs.

    Returns:
        A tensor of the shape and dtype of ``x``.

    Raises:
        ValueError: a block that is no power of two, or does not divide the last dimension.

    >>> hadamard_transform(torch.tensor([4.0, 0.0, 0.0, 0.0]), 4)
    tensor([2., 2., 2., 2.])
    """
    if type(block) is not int or block < 1 or block & (block - 1):
        raise ValueError(f"block={block!r}: expected a power of two, 16 for example")
    if x.shape[-1] % block:
        raise ValueError(f"x has shape {tuple(x.shape)}: blocks of {block} do not divide it")
    blocks = x.unflatten(-1, (-1, block))
    blocks = blocks if signs is None else blocks * signs.to(x)
    return (blocks @ hadamard_matrix(block, x.device).to(x.dtype)).flatten(-2)


def hadamard_matrix(size: int, device: torch.device | None = None) -> Tensor:
    """Sylvester's Hadamard matrix over the square root of its size, in float32.

    >>> hadamard_matrix(4) * 2
    tensor([[ 1.,  1.,  1.,  1.],
            [ 1., -1.,  1., -1.],
            [ 1.,  1., -1., -1.],
            [ 1., -1., -1.,  1.]])
    """
    index = torch.arange(size, device=device)
    parity = index[:, None] & index  # of the bits that both indices have, folded into the last one
    for shift in (16, 8, 4, 2, 1):
        parity = parity ^ (parity >> shift)
    return (1.0 - 2 * (parity & 1)) / math.sqrt(size)


def random_signs(block: int, generator: torch.Generator) -> Tensor:
    """(block,) signs, 1 or -1 with equal probability, in float32."""
    return 2.0 * torch.randint(0, 2, (block,), generator=generator) - 1
