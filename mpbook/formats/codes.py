"""Codes of whole tensors, and the gap between a format's numbers.

A format's *code* is the integer that its bits spell.  `encode_tensor` and `decode_tensor` do for
tensors what `mpbook.formats.description` does for one number, and `ulp` says how far apart the
numbers lie around a value.  Taught in the chapter "Precision formats".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mpbook.formats.checks import check_tensor, check_whole
from mpbook.formats.description import FloatFormat, Overflow, Rounding, as_format, nan_code
from mpbook.formats.rounding import round_to
from mpbook.formats.rounding_steps import power_of_two


def ulp(x: Tensor, format: str | torch.dtype | FloatFormat) -> Tensor:
    """The unit in the last place at ``x``: the gap between the format's numbers in x's binade.

    Subnormals share the gap of the smallest normal numbers, and beyond ``max`` the gap is that
    of the last binade.  For infinity and NaN it is what `math.ulp` says: infinity and NaN.

    Args:
        x: a real floating-point tensor of any shape.
        format: name, torch dtype or `FloatFormat`.

    Returns:
        float64 tensor of the same shape.

    >>> ulp(torch.tensor([1.0, 2048.0]), "float16")
    tensor([9.7656e-04, 2.0000e+00], dtype=torch.float64)
    """
    format = as_format(format)
    check_tensor(x)
    wide = x.double()
    return torch.where(wide.isfinite(), _ulp_of(wide, format), wide.abs())


def _ulp_of(wide: Tensor, format: FloatFormat) -> Tensor:
    highest = math.frexp(format.max)[1] - 1
    powers = power_of_two(wide, out=torch.empty_like(wide))
    powers.clamp_(math.ldexp(1.0, format.lowest_binade), math.ldexp(1.0, highest))
    return powers.mul_(2.0**-format.mantissa_bits)


def encode_tensor(
    x: Tensor,
    format: str | torch.dtype | FloatFormat,
    *,
    rounding: Rounding = "nearest-even",
    overflow: Overflow,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The int64 codes that the elements of ``x`` round to.

    Arguments and errors are those of `round_to`; a value that becomes NaN in a format without
    NaN raises ``ValueError``.

    >>> encode_tensor(torch.tensor([0.5, -6.0]), "float4_e2m1fn", overflow="saturate")
    tensor([ 1, 15])
    """
    format = as_format(format)
    value = round_to(x.double(), format, rounding=rounding, overflow=overflow, generator=generator)
    if not format.has_nan and bool(value.isnan().any()):
        raise ValueError(f"x holds values that have no code in {format.name}, which has no NaN")
    magnitude = torch.where(value.isfinite(), value.abs(), format.smallest_normal)
    quantum = _ulp_of(magnitude, format)
    binade = torch.frexp(quantum)[1] - 1 + format.mantissa_bits - format.lowest_binade
    hidden = 0 if format.subnormals else 2**format.mantissa_bits
    code = (binade * 2**format.mantissa_bits + magnitude / quantum - hidden).long()
    code = torch.where(value.isinf(), format.max_code + 1, code)
    code = code + (value.signbit().long() << (format.bits - 1)) * format.signed
    return torch.where(value.isnan(), nan_code(format), code) if format.has_nan else code


def decode_tensor(codes: Tensor, format: str | torch.dtype | FloatFormat) -> Tensor:
    """The values of integer codes, as a float64 tensor of the same shape.

    Raises:
        TypeError: ``codes`` is not an integer tensor.
        ValueError: a code outside ``0 ... 2**bits - 1``.

    >>> decode_tensor(torch.tensor([0b0111, 0b1001]), "float4_e2m1fn")
    tensor([ 6.0000, -0.5000], dtype=torch.float64)
    """
    format = as_format(format)
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise TypeError(f"codes has dtype {codes.dtype}: expected an integer tensor")
    check_whole(codes, "codes")
    codes = codes.long()
    if bool(((codes < 0) | (codes >= 2**format.bits)).any()):
        raise ValueError(f"codes: {format.name} has codes 0 to {2**format.bits - 1}")
    magnitude = codes & (2 ** (format.exponent_bits + format.mantissa_bits) - 1)
    sign = 1.0 - 2.0 * (codes != magnitude)
    field, mantissa = magnitude >> format.mantissa_bits, magnitude & (2**format.mantissa_bits - 1)
    is_normal = (field > 0) if format.subnormals else torch.ones_like(field, dtype=torch.bool)
    significand = mantissa + is_normal * 2**format.mantissa_bits
    exponent = torch.where(is_normal, field - format.bias, format.lowest_binade)
    value = torch.ldexp(significand.double(), exponent - format.mantissa_bits)
    value = torch.where(magnitude > format.max_code, math.nan, value)
    if format.has_inf:
        value = torch.where(magnitude == format.max_code + 1, math.inf, value)
    if format.specials == "nan_is_negative_zero":
        value = torch.where((magnitude == 0) & (sign < 0), math.nan, value)
    return sign * value
