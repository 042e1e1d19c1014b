"""The figure of a comparison: loss curves, and the paired differences with their intervals."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import torch

from mpbook.training.paired import PairedDifference
from mpbook.training.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mpbook.training.comparison import Comparison, Metric

_PATTERNS: tuple[Any, ...] = ("--", (0, (6, 1, 1, 1, 1, 1)), (0, (9, 3)), ":")
"""For what has no line style of its own: the control, and precisions that a reader makes."""


def draw(comparison: Comparison, *, metric: Metric | None, confidence: float) -> Figure:
    """Loss curves on the left, paired differences on the right: see `Comparison.figure`."""
    from mpbook import plots

    others = [name for name in comparison.runs if name != comparison.baseline]
    shape = dict(figsize=(9, 3.6), width_ratios=[3, 2]) if others else dict(figsize=(5.4, 3.6))
    figure, axes = plots.figure(1, 2 if others else 1, squeeze=False, **shape)
    styles = _styles(comparison.runs)
    for name, runs in comparison.runs.items():
        lost = len(comparison.diverged(name, metric=metric))
        label = f"{name} ({lost} of {len(runs)} diverged)" if lost else name
        _draw_curves(axes[0, 0], [run.losses for run in runs], label=label, **styles[name])
    axes[0, 0].set(title="Training loss", xlabel="step")
    axes[0, 0].legend()
    if others:
        for row, name in enumerate(others):
            found = comparison.found(name, metric, confidence)
            _draw_pairs(axes[0, 1], row, comparison.pairs(name, metric), found, styles[name])
        title = f"{comparison.title(metric)} minus {comparison.baseline}"
        axes[0, 1].set(
            title=title[0].upper() + title[1:], yticks=range(len(others)), yticklabels=others
        )
        axes[0, 1].set(ylim=(len(others) - 0.5, -0.5), xlabel="dots: seeds; line: interval")
        axes[0, 1].axvline(0, color="black", linewidth=0.8)
    return figure


def _styles(runs: dict[str, list[Run]]) -> dict[str, dict[str, Any]]:
    """Colour and line style by name: without a colour of its own, that of the compute dtype."""
    from mpbook import plots

    styles, patterns = {}, itertools.cycle(_PATTERNS)
    for name, (run, *_) in runs.items():
        if name in plots.COLOURS:
            styles[name] = plots.line(name)
        else:
            format = str(run.precision.compute_dtype).removeprefix("torch.")
            styles[name] = plots.line(format) | {"linestyle": next(patterns)}
    return styles


def _draw_curves(axes: Axes, losses: list[list[float]], *, label: str, **style: Any) -> None:
    """Median and range of the running means over the seeds, of those that are finite."""
    steps = max(map(len, losses))
    padded = torch.full((len(losses), steps), math.nan, dtype=torch.float64)
    for row, values in zip(padded, losses, strict=True):
        row[: len(values)] = torch.tensor(values)
    padded[padded.isinf()] = math.nan
    window = max(1, steps // 20)
    smooth = padded.unfold(1, window, 1).mean(-1)
    ends = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    low, median, high = smooth.nanquantile(ends, dim=0)
    x = range(window, steps + 1)
    axes.plot(x, median, label=label, **style)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _draw_pairs(
    axes: Axes,
    row: int,
    pairs: list[float],
    found: PairedDifference | None,
    style: dict[str, Any],
) -> None:
    """The difference of every seed, and above them the mean with its interval."""
    axes.plot(pairs, [row + 0.15] * len(pairs), "o", color=style["color"], markersize=3)
    if found is not None:
        axes.plot(found.interval, [row - 0.15] * 2, color=style["color"])
        axes.plot([found.mean], [row - 0.15], "D", color=style["color"])
    elif lost := sum(map(math.isnan, pairs)):
        text = f"{lost} of {len(pairs)} pairs diverged"
        axes.text(0.5, row - 0.15, text, transform=axes.get_yaxis_transform(), ha="center")
