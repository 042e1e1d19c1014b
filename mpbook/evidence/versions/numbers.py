"""Casts and random draws: the same call, other numbers."""

from __future__ import annotations

import math

import torch

from mpbook.evidence.versions.base import Probe, UnavailableError


def _cast(dtype: torch.dtype, *values: float) -> str:
    """What values become, alone and in a tensor long enough for a vectorised kernel."""
    found = {
        torch.tensor([value] * count).to(dtype).float()[0].item()
        for value in values
        for count in (1, 64)
    }
    return " or ".join(sorted({f"{value:g}".replace("nan", "NaN") for value in found}))


def _e4m3fn_overflow() -> str:
    return _cast(torch.float8_e4m3fn, 465.0, 1e4, math.inf)


def _e4m3fn_overflow_compiled() -> str:
    try:
        cast = torch.compile(lambda x: x.to(torch.float8_e4m3fn).float())
        found = cast(torch.tensor([465.0, math.inf] * 32))
    except RuntimeError as error:
        raise UnavailableError(f"torch.compile: {type(error).__name__}") from error
    return " or ".join(sorted({f"{value:g}".replace("nan", "NaN") for value in found.tolist()}))


def _e5m2_overflow() -> str:
    return _cast(torch.float8_e5m2, 61441.0, 1e6, math.inf)


def _fnuz_overflow() -> str:
    return _cast(torch.float8_e4m3fnuz, 249.0, math.inf)


def _e8m0_ties() -> str:
    return _cast(torch.float8_e8m0fnu, 3.0)


def _e2m1_copy() -> str:
    try:
        torch.zeros(2).to(torch.float4_e2m1fn_x2)
    except NotImplementedError:
        return "NotImplementedError"
    return "casts"


def _compiled_plus_zero() -> str:
    try:
        found = torch.compile(lambda x: x + 0.0)(torch.full((64,), -0.0))
    except RuntimeError as error:
        raise UnavailableError(f"torch.compile: {type(error).__name__}") from error
    return "-0" if math.copysign(1.0, found[0].item()) < 0 else "0"


def _randn_beyond_4(dtype: torch.dtype) -> str:
    """Of 2**21 normal numbers some 130 lie beyond 4; without any, the tails are cut off."""
    draws = torch.Generator().manual_seed(0)
    largest = torch.randn(2**21, generator=draws, dtype=dtype).abs().max().item()
    return "some" if largest > 4 else "none"


def _randn_bfloat16() -> str:
    return _randn_beyond_4(torch.bfloat16)


def _randn_float16() -> str:
    return _randn_beyond_4(torch.float16)


def _rand_bfloat16() -> str:
    draws = torch.Generator().manual_seed(0)
    count = len(torch.rand(2**21, generator=draws, dtype=torch.bfloat16).unique())
    return "256" if count == 256 else "more than 256"


def _index_overflow() -> str:
    x = torch.zeros(4, dtype=torch.float16)
    try:
        x[torch.tensor([True, False, True, False])] = -1e9
    except RuntimeError:
        return "RuntimeError"
    return f"{x[0].item():g}"


def _fill_overflow() -> str:
    try:
        found = torch.zeros(4, dtype=torch.float16).masked_fill(torch.tensor(True), -1e9)
    except RuntimeError:
        return "RuntimeError"
    return f"{found[0].item():g}"


def _sum_of_1000_ones() -> str:
    return f"{torch.ones(1000, dtype=torch.bfloat16).sum().item():g}"


def _mean_of_60000() -> str:
    return f"{torch.full((100,), 60000.0, dtype=torch.float16).mean().item():g}"


PROBES = (
    Probe(
        "e4m3fn-overflow",
        "What does `.to(torch.float8_e4m3fn)` make of 465, of 10,000 and of infinity on a CPU?",
        _e4m3fn_overflow,
        "Clamp before you cast.",
        (
            "numbers/precision_formats",
            "formats_that_need_less/fp8_and_below_traps",
            "reference/same_name",
            "reference/interview",
        ),
    ),
    Probe(
        "e4m3fn-overflow-compiled",
        "And the same cast inside `torch.compile`?",
        _e4m3fn_overflow_compiled,
        "Clamp before you cast.",
    ),
    Probe(
        "e5m2-overflow",
        "What does `.to(torch.float8_e5m2)` make of 61,441 and of infinity?",
        _e5m2_overflow,
        "Clamp if you want 57,344.",
    ),
    Probe(
        "e4m3fnuz-overflow",
        "What does `.to(torch.float8_e4m3fnuz)` make of 249 and of infinity?",
        _fnuz_overflow,
        "Clamp if you want 240.",
    ),
    Probe(
        "e8m0fnu-ties",
        "What does `.to(torch.float8_e8m0fnu)` make of 3, halfway between 2 and 4?",
        _e8m0_ties,
        "Choose the scale's rounding yourself.",
        ("numbers/precision_formats", "reference/same_name"),
    ),
    Probe(
        "e2m1-copy",
        "Can a tensor be cast to `torch.float4_e2m1fn_x2`?",
        _e2m1_copy,
        "Pack the codes yourself, or leave it to a library.",
    ),
    Probe(
        "compiled-plus-zero",
        "What is -0 + 0.0 inside `torch.compile`? (IEEE 754, and eager torch: 0)",
        _compiled_plus_zero,
        "Do not clear the sign of zero by adding 0.0 in compiled code.",
    ),
    Probe(
        "randn-bfloat16",
        "How many of 2 million `torch.randn(dtype=torch.bfloat16)` on a CPU lie beyond 4?",
        _randn_bfloat16,
        "Draw in float32, then cast.",
    ),
    Probe(
        "randn-float16",
        "How many of 2 million `torch.randn(dtype=torch.float16)` on a CPU lie beyond 4?",
        _randn_float16,
        "Draw in float32, then cast.",
    ),
    Probe(
        "rand-bfloat16",
        "How many different numbers does `torch.rand(dtype=torch.bfloat16)` on a CPU give?",
        _rand_bfloat16,
        "Draw in float32, then cast.",
    ),
    Probe(
        "index-overflow",
        "What does `x[mask] = -1e9` do to a float16 tensor?",
        _index_overflow,
        "Mask with `-inf`.",
        ("numbers/precision_formats_traps",),
    ),
    Probe(
        "fill-overflow",
        "What does `x.masked_fill(mask, -1e9)` make of a float16 tensor?",
        _fill_overflow,
        "Mask with `-inf`.",
    ),
    Probe(
        "sum-accumulates-in-float32",
        "What is `torch.ones(1000, dtype=torch.bfloat16).sum()`? (A bfloat16 sum stops at 256.)",
        _sum_of_1000_ones,
        "Nothing, inside one call.",
        ("numbers/rounding_and_sums",),
    ),
    Probe(
        "float16-mean",
        "What is the mean of 100 float16 numbers 60,000, whose sum is infinite?",
        _mean_of_60000,
        "Give `dtype=torch.float32` and you need not know.",
        ("numbers/rounding_and_sums_traps",),
    ),
)
"""Casts, draws and reductions."""
