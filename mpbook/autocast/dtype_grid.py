"""A grid of dtypes: one row for each part of a model, one column for each thing it meets.

Colour says which dtype, in the colours of every page; a letter says so again, for those who do not
see colour and for greyscale print: F is float32, H float16, B bfloat16, D float64, and i an
integer.  A cell that several dtypes share is split.  The grid is narrow enough for a phone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mpbook import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LETTERS = {"float32": "F", "float16": "H", "bfloat16": "B", "float64": "D"}
_OTHER_COLOUR, _LONGEST_NAME, _FONT_SIZE = "#7f7f7f", 20, 9


def dtype_grid(rows: Mapping[str, Sequence[Sequence[str]]], columns: Sequence[str]) -> Figure:
    """Draw the grid.

    Args:
        rows: by the name of a row, the dtypes in each of its cells, as names without ``torch.``.
        columns: a title for each cell of a row.

    Raises:
        ValueError: no rows, or a row with more or fewer cells than there are columns.
    """
    if not rows:
        raise ValueError("rows: expected at least one")
    for name, cells in rows.items():
        if len(cells) != len(columns):
            raise ValueError(
                f'rows: "{name}" has {len(cells)} cells, expected {len(columns)} as columns'
            )
    figure, axes = plots.figure(figsize=(4.4, 0.9 + 0.27 * len(rows)))
    for y, cells in enumerate(rows.values()):
        for x, dtypes in enumerate(cells):
            _draw_cell(axes, x, y, dtypes)
    _label(axes, list(map(_short, rows)), columns)
    met = {dtype for cells in rows.values() for dtypes in cells for dtype in dtypes}
    key = "   ".join(f"{_letter(dtype)} {dtype}" for dtype in sorted(met))
    axes.set_xlabel(key, fontsize=_FONT_SIZE)
    return figure


def _draw_cell(axes: Any, x: int, y: int, dtypes: Sequence[str]) -> None:
    """One cell, shared by its dtypes side by side; empty if there are none."""
    from matplotlib.patches import Rectangle

    width = 0.92 / max(len(dtypes), 1)
    for i, dtype in enumerate(dtypes):
        left = x + 0.04 + i * width
        colour = plots.COLOURS.get(dtype, _OTHER_COLOUR)
        axes.add_patch(Rectangle((left, y + 0.06), width, 0.88, facecolor=colour, edgecolor="w"))
        axes.text(
            left + width / 2,
            y + 0.5,
            _letter(dtype),
            color="white",
            fontsize=_FONT_SIZE,
            fontweight="bold",
            ha="center",
            va="center",
        )


def _label(axes: Any, names: Sequence[str], columns: Sequence[str]) -> None:
    axes.set(xlim=(0, len(columns)), ylim=(len(names), 0))  # the first row is on top
    axes.set_xticks([x + 0.5 for x in range(len(columns))], columns, fontsize=_FONT_SIZE)
    axes.set_yticks([y + 0.5 for y in range(len(names))], names, fontsize=_FONT_SIZE)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _letter(dtype: str) -> str:
    return _LETTERS.get(dtype, "i")


def _short(name: str) -> str:
    """The end of a long name, which is what tells modules apart."""
    return name if len(name) <= _LONGEST_NAME else "…" + name[-(_LONGEST_NAME - 1) :]
