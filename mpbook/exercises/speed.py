"""The exercises of the chapter "Speed", and the ways people get them wrong."""

from __future__ import annotations

from mpbook.exercises._checking import Exercise

# --- intensity: operations for each byte of a matrix product --------------------------------------

_PRODUCTS = [
    (1024, 1024, 1024, 2),
    (1024, 1024, 1024, 4),
    (1, 4096, 4096, 2),
    (16384, 768, 3072, 2),
    (16384, 3072, 768, 1),
]


def _intensity(m: int, k: int, n: int, bytes_each: int) -> float:
    return 2 * m * k * n / ((m * k + k * n + m * n) * bytes_each)


# --- best_speed_up: one product, from float32 to 16 bits ------------------------------------------

# Intensity in float32, peaks in teraflops, bandwidth in terabytes a second: both formats
# memory-bound, both compute-bound, and one of each.
_WORK = [
    (1.0, 20.0, 300.0, 2.0),
    (1000.0, 20.0, 300.0, 2.0),
    (5.0, 20.0, 40.0, 2.0),
    (40.0, 20.0, 300.0, 2.0),
    (5.0, 8.0, 64.0, 0.25),
]


def _best_speed_up(
    intensity: float, peak32: float, peak16: float, bandwidth: float, *, halved: bool = True
) -> float:
    rate32 = min(peak32, intensity * bandwidth)
    rate16 = min(peak16, (2 if halved else 1) * intensity * bandwidth)
    return rate16 / rate32


def _in_float32(intensity: float, peak32: float, peak16: float, bandwidth: float) -> float:
    return _best_speed_up(intensity, peak32, peak16, bandwidth, halved=False)


# --- whole_step: Amdahl ---------------------------------------------------------------------------

_SHARES = [(0.75, 2.0), (0.75, 4.0), (0.5, 1e9), (0.9375, 16.0), (0.25, 0.5)]


def _whole_step(share: float, factor: float) -> float:
    return 1 / ((1 - share) + share / factor)


# --- padded: the vocabulary -----------------------------------------------------------------------

_VOCABULARIES = [(100, 64), (50257, 64), (50304, 64), (30522, 8), (100, 128), (1, 8)]


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


# --- mfu: against the dense peak ------------------------------------------------------------------

# Parameters, tokens a second, and the peak that the advertisement states, with 2:4 sparsity.
_RUNS = [(1e9, 1e5, 2.4e15), (124e6, 4e5, 1.984e15), (7e9, 1e4, 6.24e14)]


def _mfu(parameters: float, tokens_per_second: float, sparse_peak: float) -> float:
    return 6 * parameters * tokens_per_second / (sparse_peak / 2)


# A wrong answer is put down to the first misconception that predicts it, so where two agree on an
# input the one that goes wrong later stands first.
EXERCISES = {
    "intensity": Exercise(
        inputs=lambda: _PRODUCTS,
        solution=_intensity,
        misconceptions={
            "A multiplication and an addition count as two operations.": (
                lambda m, k, n, bytes_each: _intensity(m, k, n, bytes_each) / 2
            ),
            "The result is written, too.": (
                lambda m, k, n, bytes_each: 2 * m * k * n / ((m * k + k * n) * bytes_each)
            ),
            "That is operations for each number. A number takes several bytes.": (
                lambda m, k, n, bytes_each: _intensity(m, k, n, 1)
            ),
            "That reads both operands anew for every product. Each needs to be read once.": (
                lambda m, k, n, bytes_each: 2 * m * k * n / (2 * m * k * n * bytes_each)
            ),
        },
        describe=lambda m, k, n, bytes_each: (
            f"a ({m}, {k}) times a ({k}, {n}) matrix with {bytes_each} bytes a number"
        ),
    ),
    "best_speed_up": Exercise(
        inputs=lambda: _WORK,
        solution=_best_speed_up,
        misconceptions={
            "The ratio of the peaks holds only where both formats are compute-bound.": (
                lambda intensity, peak32, peak16, bandwidth: peak16 / peak32
            ),
            "Half the bytes are twice the speed only where both formats are memory-bound.": (
                lambda intensity, peak32, peak16, bandwidth: 2.0
            ),
            "In 16 bits the same work moves half the bytes, so its intensity is twice that.": (
                _in_float32
            ),
            "Look on which side of its ridge each format is: one may be memory-bound while the "
            "other is not.": lambda intensity, peak32, peak16, bandwidth: (
                2.0 if intensity < peak32 / bandwidth else peak16 / peak32
            ),
        },
        describe=lambda intensity, peak32, peak16, bandwidth: (
            f"{intensity:g} operations per byte in float32, peaks of {peak32:g} and {peak16:g} "
            f"Tflop/s and {bandwidth:g} TB/s"
        ),
    ),
    "whole_step": Exercise(
        inputs=lambda: _SHARES,
        solution=_whole_step,
        misconceptions={
            "Times add up, speeds do not: take the mean of the times, not of the speed-ups.": (
                lambda share, factor: share * factor + (1 - share)
            ),
            "The part that does not get faster is still there.": (lambda share, factor: factor),
            "That is the new time as a share of the old one; the speed-up is its reciprocal.": (
                lambda share, factor: (1 - share) + share / factor
            ),
            "That is the limit for an infinitely fast product, not for this factor.": (
                lambda share, factor: 1 / (1 - share)
            ),
        },
        describe=lambda share, factor: (
            f"a share of {share:g} of the time that gets {factor:g} times as fast"
        ),
    ),
    "padded": Exercise(
        inputs=lambda: _VOCABULARIES,
        solution=_padded,
        misconceptions={
            "What is a multiple already stays as it is.": (
                lambda size, multiple: (size // multiple + 1) * multiple
            ),
            "Rounding down throws tokens away.": lambda size, multiple: size // multiple * multiple,
            "The nearest multiple may lie below, and tokens would be lost.": (
                lambda size, multiple: (size + multiple // 2) // multiple * multiple
            ),
        },
        describe=lambda size, multiple: f"a size of {size} and multiples of {multiple}",
    ),
    "mfu": Exercise(
        inputs=lambda: _RUNS,
        solution=_mfu,
        misconceptions={
            "The peak in the advertisement assumes 2:4 sparsity. Your matrices are dense, and the "
            "dense peak is half of it.": (
                lambda parameters, tokens, sparse_peak: 6 * parameters * tokens / sparse_peak
            ),
            "2 operations for each weight are the forward pass. Backward takes 4 more.": (
                lambda parameters, tokens, sparse_peak: 2 * parameters * tokens / (sparse_peak / 2)
            ),
            "Sparsity doubles the peak on paper: the dense one is half of it, not twice.": (
                lambda parameters, tokens, sparse_peak: 6 * parameters * tokens / (sparse_peak * 2)
            ),
        },
        describe=lambda parameters, tokens, sparse_peak: (
            f"{parameters:g} parameters, {tokens:g} tokens a second and a peak of "
            f"{sparse_peak:g} flop/s with sparsity"
        ),
    ),
}
