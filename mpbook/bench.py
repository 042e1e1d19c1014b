"""How fast a tensor rounds: ours against a copy, torch's casts and every library at hand.

All contenders work on the same tensor, take turns, and use one thread; what is reported is the
median over the rounds, its spread, and the speed as a share of ``copy_`` in the same round.  Beside
each speed stands whether the library is right: how many of the format's hard inputs (every number
of a small format, every midpoint, and the float32 numbers beside them) it rounds as the exact
rational reference does.

Two yardsticks stand beside the contenders.  ``copy_`` reads and writes, and does nothing else.
``one product, compiled`` is what `torch.compile` makes of ``x * 1.5``: the least that a compiled
loop can do, with the same compiler, and so what compiled rounding could reach at most.

What the shares are depends on the CPU, on its memory, and on the C++ compiler, which tunes its code
for the CPU that it runs on.  A Sapphire Rapids Xeon whose one thread copies 1.6 G elements a second
(2**24 of them, from memory) rounded compiled at 84% of that to float8_e4m3fn and bfloat16, at 43%
stochastically; with 2.9 G (2**22, from its last cache) at 84%, 92% and 35%.  Stochastic
rounding computes: some sixty vector instructions for sixteen elements, at most 1.0 G elements a
second there, whatever the memory.  Uncompiled rounding, 24%, goes over a block six times, and these
passes alone take 1.0 ns an element out of its second cache, where a copy takes 0.6 and 0.35.

    python -m mpbook bench formats --elements 16777216 --rounds 7
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mpbook import device as devices
from mpbook.cost.measure import Spread, interleave, ratios
from mpbook.formats import (
    FloatFormat,
    Overflow,
    as_format,
    compiled_round_to,
    decode,
    decode_tensor,
    encode,
    round_to,
)
from mpbook.formats.block_description import as_block_format
from mpbook.formats.blocks import fake_quantise
from mpbook.notebook import Table
from mpbook.peers import Round, installed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCK_FORMATS_TIMED = ("mxfp8_e4m3", "mxfp8_e5m2")
"""Formats with shared scales that are timed too: quantised and back, in one call."""

ONE_PRODUCT = "one product, compiled"
"""The yardstick of compiled code."""

DEFAULT_FORMATS = ("float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "float16", "bfloat16")


@dataclass(frozen=True)
class Result:
    """One contender in one format."""

    contender: str
    format: str
    melements_per_s: Spread
    of_copy: Spread
    wrong: int | None
    """Hard inputs rounded otherwise than by the reference; None where that is not the question."""
    inputs: int


def bench_formats(
    formats: Sequence[str | FloatFormat] = DEFAULT_FORMATS,
    *,
    elements: int = 2**24,
    rounds: int = 7,
    compiled: bool = True,
    blocks: bool = True,
) -> list[Result]:
    """Time and check every contender in every format, on one thread.

    Args:
        formats: what to round to.
        elements: of the float32 tensor that is rounded.
        rounds: readings of each contender.
        compiled: also time our rounding through `torch.compile`.
        blocks: also time MXFP8, if its blocks of 32 divide the tensor.

    Raises:
        ValueError: fewer than one element or round.
    """
    if elements < 1 or rounds < 1:
        raise ValueError(f"elements={elements}, rounds={rounds}: expected at least 1 of each")
    x = torch.randn(elements, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        results = [r for f in formats for r in _bench_one(as_format(f), x, rounds, compiled)]
        timed = BLOCK_FORMATS_TIMED if blocks and elements % 32 == 0 else ()
        return results + [r for name in timed for r in _bench_blocks(name, x, rounds)]
    finally:
        torch.set_num_threads(threads)


def _bench_one(format: FloatFormat, x: Tensor, rounds: int, compiled: bool) -> list[Result]:
    out = torch.empty_like(x)
    work: dict[str, Callable[[], float]] = {"copy_": _timed(lambda: out.copy_(x), x)}
    checks: dict[str, Round | None] = {"copy_": None}
    if compiled:
        work[ONE_PRODUCT] = _timed(partial(_compiled_product(), x, out), x)
        checks[ONE_PRODUCT] = None
    for name, into, check in _ours(format, compiled):
        work[name] = _timed(partial(into, x, out), x)
        checks[name] = check
    for peer in installed():
        rounder = peer.prepare(format)
        if rounder is not None:
            name = f"{peer.name} {peer.version}"
            work[name] = _timed(partial(rounder, x), x)
            checks[name] = rounder
    return _results(format.name, work, checks, rounds, hard_inputs(format))


def _bench_blocks(name: str, x: Tensor, rounds: int) -> list[Result]:
    out = torch.empty_like(x)
    ours = partial(fake_quantise, block_format=name, scale_mode="floor")
    work: dict[str, Callable[[], float]] = {
        "copy_": _timed(lambda: out.copy_(x), x),
        "mpbook": _timed(lambda: ours(x, out=out), x),
    }
    checks: dict[str, Round | None] = {"copy_": None, "mpbook": ours}
    for peer in installed():
        round_trip = peer.prepare_blocks(as_block_format(name))
        if round_trip is not None:
            label = f"{peer.name} {peer.version}"
            work[label], checks[label] = _timed(partial(round_trip, x), x), round_trip
    return _results(name, work, checks, rounds, hard_blocks(name))


def hard_blocks(name: str, *, blocks: int = 64) -> tuple[Tensor, Tensor]:
    """Blocks of 32 whose magnitudes span many binades, and what an MX format makes of them.

    By the exact reference path, as the specification says: the scale is the power of two of the
    largest magnitude, over that of the largest element (OCP MX v1.0, section 6.3).
    """
    element = as_block_format(name).element
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(blocks, 32, generator=generator).exp2().mul(3) * torch.randn(
        blocks, 32, generator=generator
    )
    exponents = torch.frexp(x.abs().amax(1))[1] - math.frexp(element.max)[1]
    expected = [
        [math.ldexp(decode(encode(math.ldexp(v, -e), element, overflow="saturate"), element), e)
         for v in row]
        for row, e in zip(x.tolist(), exponents.tolist(), strict=True)
    ]  # fmt: skip
    return x.flatten(), torch.tensor(expected, dtype=torch.float64).flatten()


def _results(
    format: str,
    work: dict[str, Callable[[], float]],
    checks: dict[str, Round | None],
    rounds: int,
    inputs: tuple[Tensor, Tensor],
) -> list[Result]:
    """Time the contenders in turns, and check those that can be checked."""
    speeds = interleave(work, rounds=rounds)
    shares = ratios(speeds, to="copy_")
    hard, expected = inputs
    return [
        Result(
            name, format, speeds[name], shares[name],
            None if check is None else wrong(check, hard, expected), len(hard),
        )
        for name, check in checks.items()
    ]  # fmt: skip


Contender = tuple[str, Callable[[Tensor, Tensor], object], Round | None]
"""A name, the timed call from input and output, and the call to check."""


def _ours(format: FloatFormat, compiled: bool) -> list[Contender]:
    overflow: Overflow = "saturate" if format.bits <= 8 else "inf"
    generator = torch.Generator().manual_seed(0)
    ways: list[tuple[str, Callable[..., Tensor], bool]] = [
        ("mpbook", partial(round_to, format=format, overflow=overflow), False),
        (
            "mpbook stochastic",
            partial(round_to, format=format, rounding="stochastic", overflow=overflow),
            True,
        ),
    ]
    if compiled:
        noisy = compiled_round_to(format, rounding="stochastic", overflow=overflow)
        ways += [
            ("mpbook compiled", compiled_round_to(format, overflow=overflow), False),
            ("mpbook compiled stochastic", noisy, True),
        ]
    found: list[Contender] = []
    for name, way, draws in ways:
        into = partial(_into, partial(way, generator=generator) if draws else way)
        found.append((name, into, None if draws else way))
    return found


@functools.cache
def _compiled_product() -> Callable[[Tensor, Tensor], object]:
    """Read, one operation, write, by the compiler that compiles our rounding."""

    def product(x: Tensor, out: Tensor) -> None:
        torch.mul(x, 1.5, out=out)

    return devices.compiled(product, fullgraph=True)


def _into(way: Callable[..., Tensor], x: Tensor, out: Tensor) -> Tensor:
    return way(x, out=out)


def _timed(work: Callable[[], object], x: Tensor) -> Callable[[], float]:
    """A reading in million elements a second."""

    def reading() -> float:
        started = time.perf_counter()
        work()
        return x.numel() / (time.perf_counter() - started) / 1e6

    return reading


def hard_inputs(format: FloatFormat, *, most: int = 3000) -> tuple[Tensor, Tensor]:
    """Float32 inputs where rounding goes wrong first, in range, and their exact roundings.

    Numbers of the format, midpoints of neighbours, and the float32 numbers on both sides of each;
    at most about ``most`` of them, spread evenly over the codes.
    """
    top = format.max_code
    step = max(1, top * 9 // most)
    codes = torch.arange(0, top, step)
    low, high = decode_tensor(codes, format), decode_tensor(codes + 1, format)
    largest = torch.tensor([format.max], dtype=torch.float64)
    exact = torch.cat([low, (low + high) / 2, largest]).float()
    exact = exact[exact.abs() >= torch.finfo(torch.float32).tiny]
    around = [exact, exact.nextafter(torch.tensor(4e38)), exact.nextafter(torch.tensor(0.0))]
    x = torch.cat(around)
    x = torch.cat([x, -x]) if format.signed else x
    codes_of = [encode(value, format, overflow="saturate") for value in x.tolist()]
    expected = torch.tensor([decode(code, format) for code in codes_of], dtype=torch.float64)
    return x, expected


def wrong(rounder: Round, x: Tensor, expected: Tensor) -> int:
    """How many inputs a function rounds otherwise than expected."""
    return int((rounder(x).double() != expected).sum())


def table(results: Sequence[Result]) -> Table:
    """The results as a table, one row for each contender and format."""
    rows = [
        (
            result.format,
            result.contender,
            f"{result.melements_per_s.median:.0f}",
            f"{result.of_copy.median:.0%}",
            f"{result.of_copy.low:.0%} to {result.of_copy.high:.0%}",
            "" if result.wrong is None else f"{result.wrong} of {result.inputs}",
        )
        for result in results
    ]
    header = ["format", "contender", "Melem/s", "of copy_", "lowest to highest", "wrong"]
    return Table(header, rows)


def figure(results: Sequence[Result]) -> Figure:
    """Speeds as bars, one panel a format, on a logarithmic scale; wrong ones hatched."""
    from mpbook import plots

    names = list(dict.fromkeys(result.format for result in results))
    drawn, axes = plots.figure(len(names), 1, figsize=(7, 1 + 2.2 * len(names)), squeeze=False)
    for axis, name in zip(axes[:, 0], names, strict=True):
        rows = [result for result in results if result.format == name][::-1]
        axis.barh(
            [row.contender for row in rows],
            [row.melements_per_s.median for row in rows],
            color=[
                plots.COLOURS[_colour_of(name)] if "mpbook" in row.contender else "#a9a9a9"
                for row in rows
            ],
            hatch=["//" if row.wrong else "" for row in rows],
            edgecolor="white",
        )
        axis.set(title=name, xscale="log", xlabel="million elements a second")
    return drawn


def _colour_of(name: str) -> str:
    is_block_format = name in BLOCK_FORMATS_TIMED
    return as_block_format(name).element.name if is_block_format else name
