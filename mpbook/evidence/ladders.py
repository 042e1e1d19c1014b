"""What measurements of speed say, those made here and those in a record alike.

Square products from small to large show where a narrower format begins to pay; sizes beside a
power of two show what alignment is worth; the ladder shows what each optimisation is worth.
Speeds that are compared were measured in turn, on one device, in one process.

Taught in the chapter "Speed".
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mpbook.cost.measure import Spread, interleave, time_calls, utilisation
from mpbook.device_facts import dense_peak
from mpbook.evidence.records import Record
from mpbook.notebook import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Seconds = Mapping[str, Mapping[int, Spread]]
"""Seconds of the product of two square matrices, by format and by their size."""


def time_squares(
    sizes: Sequence[int],
    formats: Sequence[str],
    *,
    device: torch.device,
    rounds: int = 7,
    calls: int | None = None,
) -> Seconds:
    """Time square products, the formats in turn at each size.

    Args:
        sizes: of the matrices.
        formats: names of torch's dtypes.
        device: where they are.
        rounds: readings of each.
        calls: in one reading; by default as many as make about a fifth of a gigaflop.

    Raises:
        ValueError: no size, no format, or no round.
    """
    if not sizes or not formats:
        raise ValueError(f"sizes={sizes}, formats={formats}: expected at least one of each")
    found: dict[str, dict[int, Spread]] = {format: {} for format in formats}
    for size in sizes:
        several = calls or max(1, min(200, round(2e8 / size**3)))
        work = {format: _reading(format, size, device, several) for format in formats}
        for format, spread in interleave(work, rounds=rounds).items():
            found[format][size] = spread
    return found


def _reading(format: str, size: int, device: torch.device, calls: int) -> Callable[[], float]:
    pair = [torch.randn(size, size, device=device).to(getattr(torch, format)) for _ in range(2)]
    return partial(_once, (pair[0], pair[1]), device, calls)


def _once(pair: tuple[Tensor, Tensor], device: torch.device, calls: int) -> float:
    options = {"readings": 1, "calls": calls, "warm_up": 1}
    return time_calls(torch.matmul, [pair], device=device, **options).median


def recorded_squares(record: Record) -> Seconds:
    """The square products of a record of ``matmul_ladder``, those of a power of two."""
    found: dict[str, dict[int, Spread]] = {}
    for case, results in record.measured():
        m, k, n = case["m"], case["k"], case["n"]
        if m == k == n and n & (n - 1) == 0:
            found.setdefault(case["format"], {})[n] = Spread(tuple(results["seconds"]))
    return found


def crossover(seconds: Seconds, wide: str, narrow: str) -> int | None:
    """The smallest size from which on the narrow format is faster by the median; None if none."""
    faster = None
    for size in sorted(seconds[wide], reverse=True):
        if seconds[narrow][size].median >= seconds[wide][size].median:
            break
        faster = size
    return faster


def figure(seconds: Seconds, *, title: str = "") -> Figure:
    """Rates of square products against their size: medians, and the middle half of the readings."""
    from mpbook import plots

    drawn, axis = plots.figure(figsize=(7, 3.8))
    for format, spreads in seconds.items():
        sizes = sorted(spreads)
        rates = [_quartiles(spreads[size], 2 * size**3) for size in sizes]
        low, mid, high = zip(*rates, strict=True)
        axis.plot(sizes, mid, marker="o", ms=4.5, label=format, **plots.line(format))
        axis.fill_between(sizes, low, high, color=plots.COLOURS[format], alpha=0.15, lw=0)
    axis.set_xscale("log", base=2)
    axis.set(yscale="log", xlabel="size of the square matrices", title=title)
    axis.set_ylabel("operations per second")
    axis.legend()
    return drawn


_BESIDE = {4095: 4096, 4097: 4096, 4100: 4096, 4104: 4096, 50257: 50304}
"""Sizes of the ladder that are no multiple of 64, and the one that each is held against."""


def _quartiles(seconds: Spread, flops: int) -> tuple[float, float, float]:
    """The rates below which a quarter, half and three quarters of the readings lie."""
    rates = [flops / reading for reading in seconds.readings]
    several = rates if len(rates) > 1 else rates * 2
    low, mid, high = statistics.quantiles(several, n=4, method="inclusive")
    return low, mid, high


def alignment(record: Record) -> Table:
    """What sizes that fill no tile reach of the rate of the aligned one, from ``matmul_ladder``.

    Raises:
        LookupError: the record lacks the aligned size in a format.
    """
    rows = []
    for case, results in record.measured():
        if case["n"] in _BESIDE:
            aligned = {name: _BESIDE.get(value, value) for name, value in case.items()}
            share = _rate(results) / _rate(record.results(**aligned))
            powers = math.gcd(case["n"], 64)
            rows.append((case["format"], case["n"], powers, aligned["n"], f"{share:.0%}"))
    header = ["format", "size", "multiple of", "beside", "of its rate"]
    return Table(header, rows, caption=record.caption)


def ladder(record: Record) -> Table:
    """The rungs of ``optimisation_ladder``: tokens a second, gain over the rung before, and MFU."""
    peak = dense_peak(record.provenance.device, "bfloat16")
    rows, before = [], None
    for case, results in record.measured():
        median = Spread(tuple(results["seconds"])).median
        rate = results["tokens"] / median
        gain = "" if before is None else f"{rate / before:.2f}"
        flops = results["flops_per_token"] * results["tokens"]
        share = "" if peak is None else f"{utilisation(flops, median, peak):.0%}"
        rows.append((case["rung"], f"{rate:,.0f}", gain, share))
        before = rate
    header = ["change", "tokens a second", "times the one before", "MFU of the bf16 peak"]
    return Table(header, rows, caption=record.caption)


def _rate(results: Mapping[str, Any]) -> float:
    return float(results["flops"] / Spread(tuple(results["seconds"])).median)
