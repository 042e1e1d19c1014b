"""The house style: one colour for one precision, on every page.

A colour always means a number format, or the precision named after it; a line style tells the
variants of one format apart, so figures survive greyscale.  `show` puts a figure on the page with
its alternative text, which is required.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mpbook.notebook import _ipython
from mpbook.synonyms import did_you_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GREY, _PURPLE, _ORANGE, _BLUE = "#4d4d4d", "#8a5fb0", "#d55e00", "#0072b2"

COLOURS: dict[str, str] = {
    "float32": _GREY,
    "tfloat32": _PURPLE,
    "float16": _ORANGE,
    "bfloat16": _BLUE,
    "float8_e4m3fn": "#009e73",
    "float8_e5m2": "#5b8c2a",
    "float8_e4m3fnuz": "#17657d",
    "float8_e5m2fnuz": "#3d5c12",
    "float6_e2m3fn": "#a3342c",
    "float6_e3m2fn": "#7a4a1e",
    "float4_e2m1fn": "#b8860b",
    "float8_e8m0fnu": "#c2568f",
    "32-true": _GREY,
    "tf32": _PURPLE,
    "16-mixed": _ORANGE,
    "16-true": _ORANGE,
    "bf16-mixed": _BLUE,
    "bf16-true": _BLUE,
}
"""Format or precision name to colour; the same values are CSS variables on the page."""

LINE_STYLES: dict[str, Any] = {
    "tf32": (0, (11, 2)),
    "16-mixed": (0, (5, 1.5)),
    "16-true": (0, (1, 1)),
    "bf16-mixed": "-.",
    "bf16-true": (0, (1, 3)),
    "float16": (0, (5, 1.5)),
    "bfloat16": "-.",
}
"""Line styles by precision or format; solid where none is given.

The greys of tf32, 16-bit and bf16 are close, so each precision has a pattern of its own.
"""

_MIME_TYPES = {"png": "image/png", "svg": "image/svg+xml"}

STYLE: dict[str, Any] = {
    "figure.figsize": (7.0, 3.6),
    "figure.dpi": 110,
    "savefig.dpi": 144,
    "figure.constrained_layout.use": True,
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titleweight": "semibold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "svg.hashsalt": "mpbook",
    "svg.fonttype": "path",
}
"""matplotlib settings of the house style."""


def line(name: str) -> dict[str, Any]:
    """The colour and line style of a precision or format, as keywords for ``Axes.plot``.

    Raises:
        ValueError: a name that has no colour.
    """
    if name not in COLOURS:
        hint = did_you_mean(name, COLOURS)
        raise ValueError(f"name={name!r}: expected one of {', '.join(COLOURS)}{hint}")
    return {"color": COLOURS[name], "linestyle": LINE_STYLES.get(name, "-")}


@contextmanager
def style() -> Iterator[None]:
    """Draw in the house style inside this context, and leave matplotlib as it was."""
    with _pyplot().rc_context(STYLE):
        yield


def figure(*shape: int, **options: Any) -> tuple[Figure, Any]:
    """``matplotlib.pyplot.subplots`` in the house style, on a figure that shows itself only once.

    Args:
        shape: rows and columns of axes, one of each when not given.
        options: as for ``subplots``: ``figsize`` in inches, ``sharex``, ``width_ratios`` ...

    Returns:
        The figure, and its axes as ``subplots`` gives them.
    """
    pyplot = _pyplot()
    with style():
        drawn, axes = pyplot.subplots(*shape, **options)
    pyplot.close(drawn)  # the inline backend would show it again, without alternative text
    return drawn, axes


def show(figure: Figure, *, alt: str, format: str = "png") -> None:
    """Show a figure in the notebook, with its alternative text.

    Args:
        figure: a matplotlib figure.
        alt: what the figure shows, for those who do not see it; one or two sentences that carry
            its message, without digits that vary between runs.
        format: ``"png"``, or ``"svg"`` for a figure of a few lines.

    Raises:
        ValueError: empty alternative text, or another format.
    """
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError(f"alt={alt!r}: say in a sentence what the figure shows")
    mime = _mime_type(format)
    if _ipython() is None:
        return
    from IPython.display import display

    data = {mime: render(figure, format), "text/plain": f"Figure: {alt}"}
    display(data, metadata={mime: {"alt": alt}}, raw=True)


def render(figure: Figure, format: str = "png") -> Any:
    """The figure as PNG bytes or SVG text, the same on every run.

    Raises:
        ValueError: another format.
    """
    _mime_type(format)
    _finish(figure)
    buffer = io.BytesIO()
    with style():
        metadata = {"Date": None} if format == "svg" else None
        figure.savefig(buffer, format=format, metadata=metadata, bbox_inches="tight")
    return buffer.getvalue() if format == "png" else buffer.getvalue().decode()


def _finish(figure: Figure) -> None:
    """Apply what matplotlib reads from its settings only when a title or legend is made."""
    for axes in figure.axes:
        if title := axes.get_title():
            axes.set_title("")
            axes.set_title(title, loc="left")
        if legend := axes.get_legend():
            legend.set_frame_on(False)
    for legend in figure.legends:
        legend.set_frame_on(False)


def _mime_type(format: str) -> str:
    if format not in _MIME_TYPES:
        raise ValueError(f'format={format!r}: expected "png" or "svg"')
    return _MIME_TYPES[format]


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot
    except ImportError as error:
        raise ImportError('figures need matplotlib: pip install "mpbook[notebook]"') from error
    return matplotlib.pyplot
