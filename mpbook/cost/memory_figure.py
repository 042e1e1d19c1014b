"""Memory plans as bars: what is held at the peak, category by category.

Taught in the chapter "Memory".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class HasPeak(Protocol):
    """What can be drawn: categories of bytes at the peak."""

    @property
    def at_peak(self) -> dict[str, int]:
        """Bytes by category."""


CATEGORY_COLOURS: dict[str, str] = {
    "parameters": "#1a1a1a",
    "master copies": "#3d3d3d",
    "optimizer state": "#6b6b6b",
    "gradients": "#8f8f8f",
    "update, for a moment": "#b3b3b3",
    "reduce buffers": "#8f3f63",
    "gathered weights": "#cf9ab2",
    "weight casts": "#6b3d1e",
    "activations": "#b88a66",
    "backward, for a moment": "#ead9cb",
}
"""Greys grow with the parameters, browns come and go in a step, rose is there because there are
other ranks; no precision has these colours."""


def draw(plans: Mapping[str, HasPeak]) -> Figure:
    """Stacked bars of several plans at their peaks, as a figure to `mpbook.plots.show`.

    Raises:
        ValueError: no plan.
    """
    if not plans:
        raise ValueError("plans: none given, expected at least one")
    from mpbook import plots

    figure, axes = plots.figure(figsize=(5.6, 1.9 + 0.45 * len(plans)))
    lefts = [0.0] * len(plans)
    for category, colour in CATEGORY_COLOURS.items():
        widths = [plan.at_peak.get(category, 0) / 1e6 for plan in plans.values()]
        if any(widths):
            options = dict(color=colour, edgecolor="white", label=category)
            axes.barh(range(len(plans)), widths, left=lefts, **options)
            lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    axes.set_yticks(range(len(plans)), list(plans))
    axes.invert_yaxis()
    axes.set(xlabel="MB at the peak")
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
