"""A forest plot of published ratios: every figure a dot, every group its median and its sources."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from mpbook.evidence.published.figures import Figures
from mpbook.evidence.published.reading import GENERATIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"float32": "32-true", "TF32": "tf32", "16 bits": "bf16-mixed"}
"""The colour of a baseline is that of the precision of this name; others are float32's grey."""


def forest(figures: Figures, *, xlabel: str, mark: float = 1.0) -> Figure:
    """Draw ratios by generation and baseline, to be shown by `mpbook.plots.show`.

    A dot is a figure, a bar the median of a group, a diamond the median with one vote a source.

    Args:
        figures: of one quantity; those without a ratio are left out.
        xlabel: what the ratio means, for example ``"times as fast"``.
        mark: the ratio of "no change", where a line is drawn.

    Raises:
        LookupError: no figure with a ratio.
        ValueError: two quantities.
    """
    from mpbook import plots

    compared = figures.compared
    if not len(compared):
        raise LookupError("no published figure with a ratio")
    if len(found := compared.by("quantity")) > 1:
        raise ValueError(f"quantity: {', '.join(found)}; draw one at a time")
    groups = _groups(compared)
    drawn, axes = plots.figure(figsize=(7.2, 0.9 + 0.42 * len(groups)))
    for row, ((_, baseline), group) in enumerate(groups.items()):
        _draw_group(axes, row, group, plots.COLOURS[COLOURS.get(baseline, "32-true")])
    axes.axvline(mark, color="black", lw=0.8, zorder=0)
    axes.set(yticks=range(len(groups)), ylim=(len(groups) - 0.5, -0.5), xlabel=xlabel)
    axes.set_yticklabels([_label(*key, group) for key, group in groups.items()])
    _ratio_axis(axes, compared.ratios)
    return drawn


def _groups(figures: Figures) -> dict[tuple[str, str], Figures]:
    """By generation and baseline, old cards first and those without a name last."""
    order = {name: place for place, name in enumerate((*GENERATIONS, ""))}
    return {
        (generation, baseline): group
        for generation, part in sorted(figures.by("generation").items(), key=lambda x: order[x[0]])
        for baseline, group in part.by("baseline").items()
    }


def _label(generation: str, baseline: str, group: Figures) -> str:
    return f"{generation or 'GPU not named'}, over {baseline}\n{group.counts}"


def _draw_group(axes: Axes, row: int, group: Figures, colour: str) -> None:
    """The dots of a group, spread so that equal ratios stay visible, then its two medians."""
    found = group.summary()
    ratios = sorted(group.ratios)
    spread = [row + 0.26 * ((place % 5) - 2) / 2 for place in range(len(ratios))]
    axes.scatter(ratios, spread, s=14, color=colour, alpha=0.45, lw=0)
    axes.vlines(statistics.median(ratios), row - 0.38, row + 0.38, color=colour, lw=3)
    axes.scatter([found.one_vote], [row], marker="D", s=30, facecolor="white", edgecolor=colour)


def _ratio_axis(axes: Any, ratios: list[float]) -> None:
    """A logarithmic axis, on which twice and half are equally far from 1, with plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    ticks = (0.1, 0.2, 0.5, 0.7, 1, 1.4, 2, 3, 4, 6, 10)
    low, high = min(*ratios, 0.9) / 1.08, max(*ratios, 1.1) * 1.08
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator([t for t in ticks if low < t < high]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
