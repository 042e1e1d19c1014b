"""`bfloat16`: three lines of integer arithmetic against torch's cast and ml_dtypes."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpbook.formats.bfloat16 import bfloat16_bits, from_bfloat16_bits

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]

LOWER = [0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
"""Lower halves on either side of each decision."""


def float32_of(bits: torch.Tensor) -> torch.Tensor:
    return bits.to(torch.int32).view(torch.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lower", LOWER)
def test_every_upper_half_rounds_as_torch_does(lower: int, device: str) -> None:
    x = float32_of((torch.arange(2**16, device=device) << 16) + lower)
    ours = bfloat16_bits(x)
    theirs = x.bfloat16().view(torch.int16).long() & 0xFFFF
    number = ~x.isnan()
    assert torch.equal(ours[number], theirs[number])


@pytest.mark.parametrize("lower", LOWER)
def test_every_upper_half_rounds_as_ml_dtypes_does(lower: int) -> None:
    x = float32_of((torch.arange(2**16) << 16) + lower)
    x = x[~x.isnan()]  # numpy warns of those
    theirs = x.numpy().astype(ml_dtypes.bfloat16).view(np.uint16).astype(np.int64)
    assert torch.equal(bfloat16_bits(x), torch.from_numpy(theirs))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize("payload", [0x000001, 0x00FFFF, 0x010000, 0x400000, 0x7FFFFF])
def test_a_nan_stays_a_nan_of_its_sign(payload: int, sign: int, device: str) -> None:
    bits = torch.tensor([(sign << 31) | 0x7F800000 | payload], device=device)
    code = bfloat16_bits(float32_of(bits))
    assert from_bfloat16_bits(code).isnan().all()
    assert int(code) >> 15 == sign


def test_what_overflows_becomes_infinity() -> None:
    largest = torch.finfo(torch.bfloat16).max
    tie = largest + 2.0**119
    x = torch.tensor([largest, np.nextafter(np.float32(tie), np.float32(0)), tie, -tie])
    back = from_bfloat16_bits(bfloat16_bits(x)).tolist()
    assert back == [largest, largest, float("inf"), float("-inf")]


@given(st.integers(0, 2**32 - 1))
def test_any_bits_round_as_torch_rounds_them(bits: int) -> None:
    x = float32_of(torch.tensor([bits]))
    back = from_bfloat16_bits(bfloat16_bits(x))
    assert torch.equal(back.nan_to_num(1.5), x.bfloat16().float().nan_to_num(1.5))


@pytest.mark.parametrize("device", DEVICES)
def test_every_code_comes_back(device: str) -> None:
    codes = torch.arange(2**16, device=device)
    values = from_bfloat16_bits(codes)
    number = ~values.isnan()
    assert values.dtype == torch.float32
    assert torch.equal(bfloat16_bits(values)[number], codes[number])
    assert int((~number).sum()) == 2 * 127


def test_the_shape_is_kept_and_a_view_may_be_strided() -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).t()
    back = from_bfloat16_bits(bfloat16_bits(x))
    assert torch.equal(back, x.bfloat16().float())


def test_small_integer_dtypes_are_read_as_codes() -> None:
    assert from_bfloat16_bits(torch.tensor([0x3F80], dtype=torch.int16)).item() == 1.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int32])
def test_another_dtype_is_refused_by_name(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"x: {dtype}, expected torch.float32"):
        bfloat16_bits(torch.ones(2, dtype=dtype))
