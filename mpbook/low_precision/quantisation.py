"""What becomes of an operand: the numbers that enter a product.

Taught in the chapter "FP8 and below".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mpbook.formats.blocks import fake_quantise, quantise
from mpbook.formats.counter_hash import keys_of
from mpbook.low_precision.hadamard import hadamard_transform
from mpbook.low_precision.operands import Operand
from mpbook.low_precision.scaling import elements_at


def quantised(x: Tensor, operand: Operand, *, scale: Tensor | None = None) -> Tensor:
    """The numbers that a matrix becomes as an operand, in float32; its rows are contracted.

    Args:
        x: (rows, contracted), a real floating-point tensor.
        operand: what becomes of it.
        scale: by which its elements are multiplied, if that does not follow from ``x``.

    Raises:
        ValueError: a shape that the operand's blocks do not divide.

    >>> quantised(torch.tensor([[1.0, -7.3] * 16]), Operand("mxfp4", "rceil"))[0, :2]
    tensor([ 1., -8.])
    """
    x = rotated_floats(x, operand)
    if operand.block_format is None or not x.numel():
        return x
    if scale is not None:
        return elements_at(x, operand.block_format.element, scale) * (1 / scale)
    return fake_quantise(
        x,
        operand.block_format,
        scale_mode=operand.scale_mode,
        rounding=operand.rounding,
        keys=drawn_keys(operand, x.device),
    )


def factored(x: Tensor, operand: Operand, *, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same numbers as a matrix and a factor: what a tensor core adds up, and what comes after.

    Returns:
        Elements (rows, contracted), times their scales where these differ along a row, and
        (rows, 1) or (1, 1) of what all of a row shares.
    """
    x = rotated_floats(x, operand)
    block_format, one = operand.block_format, torch.ones(1, 1, device=x.device)
    if block_format is None or not x.numel():
        return x, one
    if scale is not None:
        return elements_at(x, block_format.element, scale), one / scale
    keys, rounding = drawn_keys(operand, x.device), operand.rounding
    mode = operand.scale_mode
    blocks = quantise(x, block_format, scale_mode=mode, rounding=rounding, keys=keys)
    if block_format.block in ("tensor", "row"):
        return blocks.values, blocks.scales
    if blocks.tensor_scale is None:
        return blocks.dequantise(), one
    return blocks.dequantise() / blocks.tensor_scale, blocks.tensor_scale.reshape(1, 1)


def rotated_floats(x: Tensor, operand: Operand) -> Tensor:
    """A matrix in float32, NaN for infinity, rotated if the operand is.

    An infinite amax gives a scale of which a number is made that is large, finite, and seen by
    nobody.
    """
    x = x.float()
    x = torch.where(x.isinf(), math.nan, x)
    if operand.hadamard is None or not x.numel():
        return x
    return hadamard_transform(x, operand.hadamard, signs=torch.tensor(operand.signs).to(x))


def drawn_keys(operand: Operand, device: torch.device) -> Tensor | None:
    """The keys of stochastic rounding, from torch's own generator, as dropout draws its masks.

    So `torch.manual_seed` repeats them, a resumed run goes on with them, and activation
    checkpointing replays them.
    """
    if operand.rounding != "stochastic":
        return None
    return keys_of(torch.randint(-(2**31), 2**31, (2,), dtype=torch.int32, device=device))
