"""What measurements of speed say, those made here and those in a record alike.

Square products from small to large show where a narrower format begins to pay; sizes beside a
power of two show what alignment is worth; the ladder shows what each optimisation is worth.
Speeds that are compared were measured in turn, on one device, in one process.

Taught in the chapters "Speed" and "GPT-2: a famous claim on trial".
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mpbook.cost.measure import Spread, interleave, time_calls, utilisation
from mpbook.device_facts import dense_peak
from mpbook.evidence.published import published
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


# --- Tokens a second ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Throughput:
    """One case of a record that counts tokens: its rate, or why there is none.

    ``mfu`` is the share of the stated dense peak, None where no peak is known; ``peak_memory`` is
    in bytes, None where nothing counts it.
    """

    case: Mapping[str, Any]
    status: str
    tokens_per_second: Spread | None = None
    mfu: float | None = None
    peak_memory: int | None = None

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Rate, MFU, memory in GiB and remark, as a table shows them."""
        if self.tokens_per_second is None:
            return "", "", "", self.remark
        memory = "" if self.peak_memory is None else f"{self.peak_memory / 2**30:.1f}"
        mfu = "" if self.mfu is None else f"{self.mfu:.1%}"
        return f"{self.tokens_per_second.median:,.0f}", mfu, memory, self.remark

    @property
    def remark(self) -> str:
        """What a table has to say beside the number: a wide spread, or the status."""
        if self.tokens_per_second is None:
            return self.status
        return "wide spread" if self.tokens_per_second.is_wide else ""


def throughputs(record: Record) -> list[Throughput]:
    """Every case of a record of throughput, those without results included.

    The peak is the one that a case states, else the device's in bfloat16.
    """
    stated = dense_peak(record.provenance.device, "bfloat16")
    return [_throughput(row, stated) for row in record.cases]


def _throughput(row: Mapping[str, Any], stated: float | None) -> Throughput:
    case, status, results = row["case"], row["status"], row["results"]
    if status != "measured":
        return Throughput(case, status)
    rate = Spread(tuple(results["tokens"] / seconds for seconds in results["seconds"]))
    peak = results.get("stated_peak", stated)
    mfu = utilisation(results["flops_per_token"] * rate.median, 1.0, peak) if peak else None
    return Throughput(case, status, rate, mfu, results.get("peak_memory"))


def ladder(record: Record | None) -> Table:
    """The rungs of ``optimisation_ladder``: tokens a second, what each gained, MFU and memory.

    A rung that did not run stays as a row that says so; a gain is over the last one that ran.
    Without a record it is what others have published of the one rung they compare: compilation.
    """
    if record is None:
        return _published_compilation()
    rows: list[list[Any]] = []
    first: float | None = None
    before: float | None = None
    for rung in throughputs(record):
        rate, mfu, memory, remark = rung.cells
        median = rung.tokens_per_second.median if rung.tokens_per_second else None
        gains = [f"{median / base:.2f}" if median and base else "" for base in (before, first)]
        rows.append([rung.case["rung"], rate, *gains, mfu, memory, remark])
        first, before = first or median, median or before
    header = ["change", "tokens/s", "times the one before", "times the first"]
    header += ["MFU of the bf16 peak", "peak GiB", ""]
    return Table(header, rows, caption=record.caption)


def _published_compilation() -> Table:
    """Times the speed that compiling a GPT-2 or its like made, by precision."""
    pairs = published(precision="compiled", quantity="speed", kind_of_model="Transformers")
    return pairs.table("baseline", caption="Published: times the speed of the same in eager code")


def ladder_figure(record: Record) -> Figure:
    """One bar for each rung that ran, from its lowest to its highest reading, to `plots.show`."""
    from mpbook import plots

    rungs = [t for t in throughputs(record) if t.tokens_per_second is not None]
    figure, axes = plots.figure(figsize=(6.4, 0.5 + 0.42 * len(rungs)))
    for row, rung in enumerate(rungs):
        rate = rung.tokens_per_second or Spread((math.nan,))
        colour = plots.COLOURS[rung.case["precision"]]
        axes.barh(row, rate.median, color=colour)
        axes.plot([rate.low, rate.high], [row, row], color="black", linewidth=1.5)
    axes.set(yticks=range(len(rungs)), yticklabels=[rung.case["rung"] for rung in rungs])
    axes.set(title=f"Tokens a second, {record.caption}", ylim=(len(rungs) - 0.5, -0.5))
    return figure


def _rate(results: Mapping[str, Any]) -> float:
    return float(results["flops"] / Spread(tuple(results["seconds"])).median)
