"""What published measurements say of a claim: each decision is over figures that may be added up.

Where a claim names no baseline, the figures are taken apart by baseline and generation first, and
the verdict says for which of them it holds.
"""

from __future__ import annotations

import statistics

from mpbook.evidence.claims.base import NOT_RECORDED, Finding, by_share
from mpbook.evidence.published import Figures

TENSOR_CORES = ("Volta", "Turing")
"""Generations with tensor cores and no TF32, where "float32" can mean nothing else."""

MARGIN = 0.003
"""The largest relative difference of quality that does not matter."""


def _median(figures: Figures) -> float:
    return figures.summary().median


def _reach(figures: Figures, ratio: float) -> str:
    """How many reach a ratio, as "22 of 82"."""
    ratios = figures.ratios
    return f"{sum(one >= ratio for one in ratios)} of {len(ratios)}"


def two_to_four_times(figures: Figures) -> tuple[Finding, Figures]:
    """Mixed precision against float32 with and without tensor cores, and against TF32."""
    mixed = figures.where(claim="2-4x-throughput", precision="mixed")
    with_cores = mixed.where(baseline="float32", generation=TENSOR_CORES)
    without = mixed.where(baseline="float32", generation="Pascal")
    over_tf32 = mixed.where(baseline="TF32")
    why = (
        f"It holds against float32 on cards with tensor cores and without TF32 (V100, T4, RTX 20): "
        f"median {_median(with_cores):.2f}, one vote a source "
        f"{with_cores.summary().one_vote:.2f}. Not against TF32 (Ampere and later): median "
        f"{_median(over_tf32):.2f}, {_reach(over_tf32, 2)} reach 2. Not without tensor cores "
        f"(Pascal): {_median(without):.2f}."
    )
    kinds = [2 <= _median(group) <= 4 for group in (with_cores, over_tf32, without)]
    counted = Figures((*with_cores, *over_tf32, *without))
    return (by_share(kinds), why), counted


def twice_the_tokens(figures: Figures) -> tuple[Finding, Figures]:
    """GPT-2 shapes, float32 to autocast: the small one, and the larger ones."""
    pairs = figures.where(
        claim="gpt2-2x-tokens", quantity="speed", precision="mixed", baseline="float32"
    )
    small = pairs.where(model=r"small|124M")
    large = pairs.that(lambda figure: figure not in small.rows)
    why = (
        f"Not for GPT-2 124M in eager code: {_reach(small, 2)} pairs reach 2, the median is "
        f"{_median(small):.2f}. It holds for larger shapes at long sequences: {_reach(large, 2)} "
        f"reach 2, at most {max(large.ratios):.2f}. The collection has no compiled pair."
    )
    return (by_share([ratio >= 2 for ratio in pairs.ratios]), why), pairs


def memory_halves(figures: Figures) -> tuple[Finding, Figures]:
    """A whole training step under autocast, with float32 weights and optimizer."""
    steps = figures.where(claim="memory-halves", precision="mixed").compared.that(
        lambda figure: (
            "forward" not in figure.model and "no optimizer state" not in str(figure.caveat)
        )
    )
    if not len(steps):
        raise LookupError("no published step under autocast")
    attention = steps.where(kind_of_model="Transformers")
    nets = steps.where(kind_of_model="convolutional nets")
    why = (
        f"No step under autocast takes half: the lowest takes {min(steps.ratios):.0%} of "
        f"float32's memory. The median is {_median(attention):.0%} for Transformers at small "
        f"batches and {_median(nets):.0%} for convolutional nets."
    )
    return (by_share([ratio <= 0.55 for ratio in steps.ratios]), why), steps


def twice_the_batch(figures: Figures) -> tuple[Finding, Figures]:
    """Batches that were run, and the one that was searched for."""
    batches = figures.where(claim="2x-batch")
    searched = next((figure for figure in batches if "that fits" in figure.unit), None)
    if searched is None:
        raise LookupError("no published batch that was searched for")
    why = (
        f"{_reach(batches, 2)} published runs take at least twice the batch; somebody chose "
        "those sizes. The one largest batch that was searched for, "
        f"of {searched.model}, is {searched.ratio:.1f} times as large."
    )
    return (by_share([ratio >= 2 for ratio in batches.ratios]), why), batches


def quality_is_kept(figures: Figures) -> tuple[Finding, Figures]:
    """The final quality in mixed precision, against float32 and TF32."""
    pairs = figures.where(
        claim="quality-0.1-0.3-percent", precision="mixed", baseline=("float32", "TF32")
    ).compared
    apart, imagenet = (
        [abs(figure.difference) for figure in group if figure.difference is not None]
        for group in (pairs, pairs.where(model="ImageNet"))
    )
    if not apart:
        raise LookupError("no published pair")
    why = (
        f"{_within(apart)} published pairs lie within 0.3%, of ImageNet's {_within(imagenet)}; the "
        f"median difference is {statistics.median(apart):.2%}, "
        f"{sum(ratio > 1 for ratio in pairs.ratios)} ratios are above 1 and "
        f"{sum(ratio < 1 for ratio in pairs.ratios)} below. Most are single runs."
    )
    return (by_share([d <= MARGIN for d in apart]), why), pairs


def _within(differences: list[float]) -> str:
    return f"{sum(d <= MARGIN for d in differences)} of {len(differences)}"


def forty_percent_less(figures: Figures) -> tuple[Finding, Figures]:
    """Nothing decides it: no published step of GPT-2 has float32 weights and both precisions."""
    found = figures.where(claim="gpt2-40-percent-memory").compared
    what = "; ".join(
        f"{figure.precision_b} takes {figure.ratio:.0%} ({figure.caveat})" for figure in found
    )
    why = (
        "No published figure was found of the memory of a whole training step of GPT-2 in float32 "
        f"and under autocast. Close to it: {what}."
    )
    return (NOT_RECORDED, why), found
