"""The heat map of a trial: a format a row, a combination of tricks a column."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mpbook.low_precision.trial import Metric, Trial


def draw(trial: Trial, metric: Metric) -> Figure:
    """One heat map for each product: see `Trial.figure`."""
    from mpbook import plots

    means = {(p, variant): trial.mean(p, variant, metric) for p, variant in trial.tried()}
    products = list(dict.fromkeys(p for p, _ in means))
    formats = list(dict.fromkeys(variant.format_name for _, variant in means))
    tricks = {p: list(dict.fromkeys(v.tricks for q, v in means if q == p)) for p in products}
    shape = dict(figsize=(10, 1.6 + 0.5 * len(formats) * len(products)))
    figure, axes = plots.figure(len(products), 1, squeeze=False, **shape)
    for axis, product in zip(axes[:, 0], products, strict=True):
        grid = [[math.nan] * len(tricks[product]) for _ in formats]
        for (name, variant), value in means.items():
            if name == product:
                place = formats.index(variant.format_name), tricks[product].index(variant.tricks)
                grid[place[0]][place[1]] = value
        _heat_map(axis, grid, formats, tricks[product])
        axis.set(title=f"{product}: {metric}")
    return figure


def _heat_map(axis: Any, grid: list[list[float]], formats: list[str], tricks: list[str]) -> None:
    """Numbers on a colour that compares the tricks of a format: blue is better than without."""
    relative = [[value / row[0] - 1 if row[0] else 0.0 for value in row] for row in grid]
    axis.imshow(relative, cmap="RdBu_r", vmin=-0.5, vmax=0.5, aspect="auto")
    for (i, row), j in itertools.product(enumerate(grid), range(len(tricks))):
        if not math.isnan(row[j]):
            axis.text(j, i, f"{row[j]:.3g}", ha="center", va="center", fontsize=7)
    names = [
        trick.replace(", ", "\n").replace("Hadamard", "H").replace(" blocks", "")
        for trick in tricks
    ]
    axis.set_xticks(range(len(tricks)), names, fontsize=6)
    axis.set_yticks(range(len(formats)), formats, fontsize=8)
    axis.grid(False)
