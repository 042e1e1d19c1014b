"""The exercises of the chapter "Many GPUs", and the ways people get them wrong."""

from __future__ import annotations

from mpbook.exercises._checking import Exercise
from mpbook.formats import FORMATS

# --- stalls_at: when a ring of equal parts stops counting ----------------------------------------

_FORMATS = ("bfloat16", "float16", "float32", "float8_e4m3fn")


def _stalls_at(name: str) -> int:
    return 2 ** FORMATS[name].precision


# --- sent_bytes: what a rank sends in one ring all-reduce ----------------------------------------

_RINGS = [(1, 1000, 4), (2, 1000, 4), (4, 1000, 2), (8, 8000, 4), (64, 64_000, 2)]


def _sent_bytes(ranks: int, elements: int, size: int) -> float:
    return 2 * (ranks - 1) * elements * size / ranks


# --- all_skip: who skips a step ------------------------------------------------------------------

_GRADIENTS = [
    ("ddp", (False, False)),
    ("ddp", (False, True)),
    ("fsdp2", (True, False)),
    ("fsdp2", (False, False, False)),
    ("no_sync", (False, True)),
    ("no_sync", (True, True, False)),
]


def _skips(engine: str, infinite: tuple[bool, ...]) -> tuple[bool, ...]:
    if engine == "no_sync":
        return infinite
    return (any(infinite),) * len(infinite)


# --- kept: what a rank of torch has of each parameter --------------------------------------------

_KEPT = [
    (strategy, ranks) for strategy in ("zero1", "ddp", "zero2", "fsdp2") for ranks in (2, 8, 64)
]


def _kept(strategy: str, ranks: int) -> float:
    weights, gradients, moments, buckets = 4, 4, 8, 4
    if strategy in ("zero2", "fsdp2"):
        return (weights + gradients + moments) / ranks
    return weights + gradients + buckets + moments / (ranks if strategy == "zero1" else 1)


def _by_the_paper(strategy: str, ranks: int) -> float:
    cut = {"ddp": 0, "zero1": 12, "zero2": 12 + 2, "fsdp2": 12 + 2 + 2}[strategy]
    return 16 - cut + cut / ranks


EXERCISES = {
    "stalls_at": Exercise(
        inputs=lambda: [(name,) for name in _FORMATS],
        solution=_stalls_at,
        misconceptions={
            "The hidden bit counts too: 8 bits of digits make 256 distinct sums.": lambda name: (
                2 ** FORMATS[name].mantissa_bits
            ),
            "That is where the format ends, not where adding 1 changes nothing.": lambda name: (
                FORMATS[name].max
            ),
        },
    ),
    "sent_bytes": Exercise(
        inputs=lambda: _RINGS,
        solution=_sent_bytes,
        misconceptions={
            "A ring goes round twice: once to add, once to hand the sums out.": lambda r, n, b: (
                (r - 1) * n * b / r
            ),
            "A rank sends a share each time, not the whole gradient.": lambda r, n, b: (
                2 * (r - 1) * n * b
            ),
            "The last share is not sent again: ranks - 1 steps, not as many as ranks.": (
                lambda r, n, b: 2 * n * b
            ),
        },
        describe=lambda r, n, b: f"{r} ranks, {n} elements of {b} bytes",
    ),
    "skips": Exercise(
        inputs=lambda: _GRADIENTS,
        solution=_skips,
        misconceptions={
            "A rank that sees no infinity of its own still gets the sum, which has one.": (
                lambda engine, infinite: infinite
            ),
            "With no_sync the gradients are not added up, so nobody tells the others.": (
                lambda engine, infinite: (any(infinite),) * len(infinite)
            ),
        },
    ),
    "kept": Exercise(
        inputs=lambda: _KEPT,
        solution=_kept,
        misconceptions={
            "Those are the ZeRO paper's parts, 2 + 2 + 12; torch keeps float32 weights and "
            "gradients, and shards both or neither.": _by_the_paper,
            "DDP sends gradients from buckets of its own: another copy, by default.": (
                lambda strategy, ranks: (
                    _kept(strategy, ranks) - (4 if strategy in ("ddp", "zero1") else 0)
                )
            ),
            "ZeRO-2 with fully_shard keeps shards of the weights; whole copies last from forward "
            "to backward.": lambda strategy, ranks: (
                4 + 12 / ranks if strategy == "zero2" else _kept(strategy, ranks)
            ),
            "DDP divides the batch, and no part of this.": lambda strategy, ranks: 16 / ranks,
        },
    ),
}
