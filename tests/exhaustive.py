"""All 2**32 float32 inputs through `round_to`, eager and compiled, against other libraries.

``make exhaustive`` runs this, and ``python tests/exhaustive.py --every 16`` a sixteenth of it.  One
row for each format, overflow rule and way to run; the exit status is 1 if any row has a mismatch.

The oracle converts to the format and back: numpy for float16, ml_dtypes for the rest.  It overflows
in one way; from that the other rules follow, because what overflows does so under every rule.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from mpbook.formats import FORMATS, FloatFormat, Overflow, compiled_round_to, round_to

NAMES = (
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
    "float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn", "float16", "bfloat16",
)  # fmt: skip
CHUNK = 2**21  # small enough for malloc to reuse the memory
CHUNKS = 2**32 // CHUNK


def legal_overflows(format: FloatFormat) -> list[Overflow]:
    """The overflow rules that the format has codes for."""
    legal: dict[Overflow, bool] = {
        "saturate": True,
        "inf": format.has_inf,
        "nan": format.has_nan,
    }
    return [rule for rule, is_legal in legal.items() if is_legal]


def bit_patterns(chunk: int) -> Tensor:
    """The float32 numbers of one chunk of all bit patterns, in order."""
    start = chunk * CHUNK - 2**31
    return torch.arange(start, start + CHUNK, dtype=torch.int32).view(torch.float32)


def oracle(x: Tensor, name: str) -> Tensor:
    """Rounded to nearest by another library, which also decides what overflow gives."""
    dtype = np.float16 if name == "float16" else getattr(ml_dtypes, name)
    if name == "float16":  # numpy reports each overflow and underflow, 25 times slower: spare it
        x = torch.where(x.abs() >= 2.0**17, x * torch.inf, x)
        x = torch.where(x.abs() < 2.0**-26, x * 0.0, x)
    with np.errstate(all="ignore"):
        return torch.from_numpy(x.numpy().astype(dtype).astype(np.float32))


def with_overflow(expected: Tensor, x: Tensor, format: FloatFormat, rule: Overflow) -> Tensor:
    """The oracle's result, changed to another overflow rule."""
    if not format.has_nan:  # saturates, and has nothing to say about NaN
        return torch.where(x.isnan(), torch.nan, expected)
    overflowed = ~expected.isfinite() & ~x.isnan()
    replacement = {"inf": torch.inf, "nan": torch.nan, "saturate": format.max}[rule]
    return torch.where(overflowed, torch.full_like(x, replacement).copysign(x), expected)


def count_mismatches(actual: Tensor, expected: Tensor) -> int:
    """How many bit patterns differ, where every NaN is like any other."""
    bits = actual.view(torch.int32), expected.view(torch.int32)
    if torch.equal(*bits):
        return 0
    both_nan = actual.isnan() & expected.isnan()
    return int(((bits[0] != bits[1]) & ~both_nan).sum())


def check(name: str, chunks: Iterator[int] | range) -> Counter[tuple[str, str]]:
    """Mismatches of one format by overflow rule and way to run."""
    format, found = FORMATS[name], Counter[tuple[str, str]]()
    out = torch.empty(CHUNK)
    for chunk in chunks:
        x = bit_patterns(chunk)
        theirs = oracle(x, name)
        for rule in legal_overflows(format):
            expected = with_overflow(theirs, x, format, rule)
            round_to(x, format, overflow=rule, out=out)
            found[rule, "eager"] += count_mismatches(out, expected)
            compiled_round_to(format, overflow=rule)(x, out=out)
            found[rule, "compiled"] += count_mismatches(out, expected)
    return found


def main() -> int:
    """Print a row for each format, overflow rule and way to run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="check every n-th chunk only")
    chunks = range(0, CHUNKS, parser.parse_args().every)
    print(f"{len(chunks) * CHUNK:,} inputs a row, to nearest\n")
    print(f"{'format':<17}{'overflow':<10}{'run':<10}{'mismatches':>11}")
    failed = False
    for name in NAMES:
        start = time.monotonic()
        for (rule, run), mismatches in check(name, chunks).items():
            failed |= mismatches > 0
            print(f"{name:<17}{rule:<10}{run:<10}{mismatches:>11,}")
        print(f"{'':<17}{time.monotonic() - start:.0f} s", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
