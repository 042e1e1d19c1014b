"""bfloat16 is float32 cut in half, and rounding to it is three lines of integer arithmetic.

The upper 16 bits of a float32 *are* a bfloat16: sign, all 8 exponent bits, and 7 of the 23 bits
of the mantissa.  So the conversion needs no new exponent, no subnormals of its own and no test for
overflow.  What is left is to round the half that goes away:

* Add just under half of what the last kept bit is worth, 0x7FFF, and cut.  All above the half
  then carries into the kept bits, and all below does not.
* A tie, exactly 0x8000, goes to the even number: add one more if the last kept bit is 1.
* A carry out of the mantissa runs into the exponent field and makes the next power of two, and
  past the largest number it makes the code of infinity.  Both are right without a line of code.

Only NaN needs care: the carry could turn it into -0, and the cut could leave the code of infinity.

Taught in the chapter "bfloat16".
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpbook.formats.checks import check_whole

_QUIET = 0x40  # the first bit of the mantissa, set in a quiet NaN


def bfloat16_bits(x: Tensor) -> Tensor:
    """The bits of the nearest bfloat16, ties to even, of each element.

    Args:
        x: float32 of any shape.

    Returns:
        int64 of the same shape, 0 to 65535.

    Raises:
        TypeError: another dtype; cutting works because float32 has the same exponent field.

    >>> [hex(code) for code in bfloat16_bits(torch.tensor([1.0, -2.0, 3.4e38])).tolist()]
    ['0x3f80', '0xc000', '0x7f80']
    """
    if x.dtype != torch.float32:
        raise TypeError(f"x: {x.dtype}, expected torch.float32")
    check_whole(x)
    bits = x.view(torch.int32).long() & 0xFFFFFFFF
    last_kept = (bits >> 16) & 1
    rounded = (bits + 0x7FFF + last_kept) >> 16
    return torch.where(x.isnan(), (bits >> 16) | _QUIET, rounded)


def from_bfloat16_bits(bits: Tensor) -> Tensor:
    """The float32 numbers that bfloat16 bits stand for: the same bits, and 16 zeros behind them.

    Args:
        bits: integers of any shape, 0 to 65535.

    >>> from_bfloat16_bits(torch.tensor([0x3F80, 0xC000]))
    tensor([ 1., -2.])
    """
    return (bits.long() << 16).to(torch.int32).view(torch.float32)
