"""What published measurements say of a claim: each decision is over figures that may be added up.

Where a claim names no baseline, the figures are taken apart by baseline and generation first, and
the verdict says for which of them it holds.
"""

from __future__ import annotations

import re
import statistics

from mpbook.evidence.claims.base import NOT_RECORDED, Finding, by_share
from mpbook.evidence.published import Figures
from mpbook.evidence.published.figures import plural

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
    """GPT-2 shapes, float32 to autocast: the small one, and the larger ones; eager and compiled."""
    speeds = figures.where(claim="gpt2-2x-tokens", quantity="speed", precision="mixed")
    pairs = speeds.where(baseline="float32")
    eager = pairs.that(lambda figure: not figure.compiled)
    small = eager.where(model=r"small|124M")
    others = eager.that(lambda figure: figure not in small.rows)
    large = others.where(model=r"(?<![\d.])(?:[2-9]|\d{2,})(?:\.\d+)?B\b")
    why = (
        f"{_how_often(small, 2)} for GPT-2 124M in eager code: {_reach(small, 2)} pairs reach 2, "
        f"the median is {_median(small):.2f}. {_how_often(others, 2)} for other shapes: "
        f"{_reach(others, 2)} reach 2, of those with more than 2 billion parameters "
        f"{_reach(large, 2)}; the largest ratio is {max(others.ratios):.2f}. "
        f"{_of_compiled_pairs(speeds)}"
    )
    return (by_share([ratio >= 2 for ratio in pairs.ratios]), why), pairs


def _how_often(figures: Figures, ratio: float) -> str:
    """The first word of a sentence on how many reach a ratio."""
    share = figures.share(lambda one: one >= ratio)
    if share in (0, 1):
        return "Always" if share else "Not"
    return "Mostly" if share >= 1 / 2 else "Sometimes" if share >= 1 / 4 else "Seldom"


def _of_compiled_pairs(speeds: Figures) -> str:
    """How fast mixed precision is in compiled pairs, by baseline."""
    groups = speeds.that(lambda figure: figure.compiled).by("baseline")
    if not groups:
        return "The collection has no compiled pair."
    gains = " and ".join(
        f"{_median(pairs):.2f} times as fast as {baseline} ({plural(len(pairs), 'pair')})"
        for baseline, pairs in groups.items()
    )
    largest = " and ".join(dict.fromkeys(figure.model for figure in speeds if figure.compiled))
    return f"Where both are compiled ({largest}), mixed precision is {gains}."


def _whole_steps(figures: Figures, *claims: str) -> Figures:
    """The memory of training steps in float32 and under autocast, with the optimizer's state."""
    return figures.where(claim=claims, quantity="memory", precision="mixed").compared.that(
        lambda figure: figure.whole_step
    )


def memory_halves(figures: Figures) -> tuple[Finding, Figures]:
    """A whole training step under autocast, with float32 weights and optimizer."""
    steps = _whole_steps(figures, "memory-halves", "gpt2-40-percent-memory")
    if not len(steps):
        raise LookupError("no published step under autocast")
    small = steps.where(claim="gpt2-40-percent-memory")
    groups = {"GPT-2's small shape": small}
    groups |= steps.that(lambda figure: figure not in small.rows).by("kind_of_model")
    medians = ", ".join(
        f"{_median(group):.0%} for {name.replace('Trans', 'other Trans')} ({len(group)})"
        for name, group in groups.items()
        if len(group)
    )
    why = (
        f"{_down_to(steps, 0.55)} published steps under autocast take 55% or less of float32's "
        f"memory: they take {min(steps.ratios):.0%} to {max(steps.ratios):.0%}. The medians: "
        f"{medians}."
    )
    return (by_share([ratio <= 0.55 for ratio in steps.ratios]), why), steps


def _down_to(figures: Figures, ratio: float) -> str:
    """How many come down to a ratio, as "none of 17" or "3 of 17"."""
    count = sum(one <= ratio for one in figures.ratios)
    return f"{count or 'None'} of {len(figures.ratios)}"


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
    improvements, of_imagenet = (
        [figure.improvement for figure in group if figure.improvement is not None]
        for group in (pairs, pairs.where(model="ImageNet"))
    )
    if not improvements:
        raise LookupError("no published pair")
    apart, imagenet = [*map(abs, improvements)], [*map(abs, of_imagenet)]
    why = (
        f"{_within(apart)} published pairs lie within 0.3%, of ImageNet's {_within(imagenet)}; the "
        f"median difference is {statistics.median(apart):.2%}, "
        f"{sum(d > 0 for d in improvements)} are better and {sum(d < 0 for d in improvements)} "
        f"worse. Most are single runs; {sum('bf16' in pair.precision_b for pair in pairs)} of them "
        "in bfloat16, the others in float16."
    )
    return (by_share([d <= MARGIN for d in apart]), why), pairs


def _within(differences: list[float]) -> str:
    return f"{sum(d <= MARGIN for d in differences)} of {len(differences)}"


def forty_percent_less(figures: Figures) -> tuple[Finding, Figures]:
    """Whole steps of GPT-2's small shape; where there is none, what comes close to it."""
    found = figures.where(claim="gpt2-40-percent-memory").compared
    steps = _whole_steps(figures, "gpt2-40-percent-memory")
    if not len(steps):
        why = (
            "No published figure was found of the memory of a whole training step of GPT-2 in "
            f"float32 and under autocast. Close to it: {_each(found)}."
        )
        return (NOT_RECORDED, why), found
    sources = len({figure.source for figure in steps})
    why = (
        f"{_down_to(steps, 0.6)} published steps of its shape ({plural(sources, 'source')}) take "
        f"60% or less: autocast takes {min(steps.ratios):.0%} to {max(steps.ratios):.0%} of "
        "float32's memory, with weights, gradients and optimizer in float32. The largest batch "
        f"among them is of {max(_sequences(figure.batch) for figure in steps)} sequences."
    )
    if len(cast := found.where(precision="16-bit weights")):
        why += f" Without float32 weights, {_each(cast)}."
    return (by_share([ratio <= 0.6 for ratio in steps.ratios]), why), steps


def _sequences(batch: str | None) -> int:
    """The number that a batch's words begin with, 0 where they say none."""
    found = re.match(r"\d+", batch or "")
    return int(found[0]) if found else 0


def _each(figures: Figures) -> str:
    return "; ".join(
        f"{figure.precision_b} takes {figure.ratio:.0%} ({figure.caveat})" for figure in figures
    )
