"""`mpbook.plots`: colours that everyone can tell apart, and figures that are the same each time."""

import itertools
import os
import struct
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import RichOutput, capture_output
from matplotlib import colors, pyplot
from matplotlib.figure import Figure
from traitlets.config import Config

from mpbook import plots
from mpbook.formats import FORMATS
from mpbook.plots import COLOURS, LINE_STYLES, STYLE, line, render, show, style
from mpbook.precision import PRECISIONS

mpl.use("agg")

FORMAT_OF = {
    "32-true": "float32",
    "tf32": "tfloat32",
    "16-mixed": "float16",
    "16-true": "float16",
    "bf16-mixed": "bfloat16",
    "bf16-true": "bfloat16",
}


def curves() -> Figure:
    """Every precision as a line, with a title, a legend and markers."""
    drawn, axes = plots.figure()
    for i, name in enumerate(PRECISIONS):
        axes.plot([0, 1, 2], [i, i + 1, i], marker="o", label=name, **line(name))
    axes.set_title("Loss")
    axes.legend()
    return drawn


def luminance(colour: str) -> float:
    """Relative luminance.  Source: WCAG 2.2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def to_rgb(colour: str) -> tuple[float, float, float]:
    return colors.to_rgb(colour)


def contrast(one: str, other: str) -> float:
    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)


# --- the palette ------------------------------------------------------------------------------


def test_every_precision_and_format_has_a_colour_and_nothing_else_has() -> None:
    assert set(COLOURS) == {*FORMATS, *PRECISIONS}
    assert set(LINE_STYLES) <= set(COLOURS)


def test_a_precision_has_the_colour_of_its_format() -> None:
    for precision, format in FORMAT_OF.items():
        assert COLOURS[precision] == COLOURS[format]
    assert set(FORMAT_OF) == set(PRECISIONS)


def test_the_hues_are_those_of_okabe_and_ito() -> None:
    assert COLOURS["float16"] == "#d55e00"  # vermilion
    assert COLOURS["bfloat16"] == "#0072b2"  # blue
    assert COLOURS["float8_e4m3fn"] == "#009e73"  # bluish green
    red, green, blue = to_rgb(COLOURS["float32"])
    assert red == green == blue


@pytest.mark.parametrize("name", COLOURS)
def test_a_colour_stands_out_from_white(name: str) -> None:
    assert contrast(COLOURS[name], "white") >= 3


def test_formats_differ_in_colour() -> None:
    used = [COLOURS[name] for name in FORMATS]
    for one, other in itertools.combinations(used, 2):
        distance = sum((a - b) ** 2 for a, b in zip(to_rgb(one), to_rgb(other), strict=True))
        assert distance**0.5 > 0.15, (one, other)


def dashes(name: str) -> list[float]:
    """Lengths of dashes and gaps, by turns; empty for a solid line."""
    (drawn,) = pyplot.figure().subplots().plot([0, 1], **line(name))
    pyplot.close()
    pattern: list[float] = list(drawn._unscaled_dash_pattern[1] or [])  # type: ignore[attr-defined]
    return pattern


def look_alike(one: list[float], other: list[float]) -> bool:
    """As many dashes, and neither dashes nor gaps twice as long."""
    if len(one) != len(other):
        return False
    ratios = [max(a, b) / min(a, b) for a, b in zip(one, other, strict=True)]
    return max(ratios, default=1.0) < 2


@pytest.mark.parametrize("pair", itertools.combinations(PRECISIONS, 2))
def test_precisions_differ_without_colour(pair: tuple[str, str]) -> None:
    one, other = pair
    assert not look_alike(dashes(one), dashes(other))


def test_float16_and_bfloat16_lines_look_like_their_mixed_precisions() -> None:
    assert dashes("float16") == dashes("16-mixed") != []
    assert dashes("bfloat16") == dashes("bf16-mixed") != []
    assert dashes("float32") == dashes("32-true") == []


def test_a_line_is_drawn_in_its_colour_and_style() -> None:
    assert line("16-mixed") == {"color": "#d55e00", "linestyle": LINE_STYLES["16-mixed"]}
    assert line("32-true") == {"color": "#4d4d4d", "linestyle": "-"}
    assert line("float8_e5m2") == {"color": COLOURS["float8_e5m2"], "linestyle": "-"}


@pytest.mark.parametrize("name", ["fp16", "bf16", "", "FLOAT16"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=f"name='{name}': expected one of float32, ") as refused:
        line(name)
    assert all(known in str(refused.value) for known in COLOURS)


# --- the house style --------------------------------------------------------------------------


def settings() -> dict[str, Any]:
    return {
        key: value for key, value in dict(mpl.rcParams).items() if not key.startswith("backend")
    }


def test_the_style_holds_inside_its_context_and_nowhere_else() -> None:
    before = settings()
    with style():
        inside = settings()
        assert tuple(inside.pop("figure.figsize")) == STYLE["figure.figsize"]
        assert all(inside[key] == value for key, value in STYLE.items() if key in inside)
        assert settings() != before
    assert settings() == before


def failing_drawing() -> None:
    with style():
        raise KeyError("drawing failed")


def test_the_style_ends_when_drawing_fails() -> None:
    before = settings()
    with pytest.raises(KeyError, match="drawing failed"):
        failing_drawing()
    assert settings() == before


def test_figures_leave_matplotlib_as_it_was() -> None:
    before = settings()
    drawn = curves()
    render(drawn)
    render(drawn, "svg")
    assert settings() == before
    assert pyplot.get_fignums() == []


def test_a_figure_has_the_style_and_the_axes_asked_for() -> None:
    drawn, axes = plots.figure()
    assert drawn.get_size_inches().tolist() == [7.0, 3.6]
    assert not axes.spines["top"].get_visible()
    assert not axes.spines["right"].get_visible()
    drawn, axes = plots.figure(2, 3, figsize=(5, 4), sharex=True)
    assert axes.shape == (2, 3)
    assert drawn.get_size_inches().tolist() == [5.0, 4.0]
    assert axes[0, 0].get_shared_x_axes().joined(axes[0, 0], axes[1, 2])


# --- rendering --------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["png", "svg"])
def test_the_same_figure_gives_the_same_bytes(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = curves()
    once = render(first, format)
    assert render(first, format) == once
    monkeypatch.setitem(os.environ, "SOURCE_DATE_EPOCH", "86400")  # another day
    assert render(curves(), format) == once


def test_titles_and_legends_made_outside_the_style_follow_it() -> None:
    drawn, (left, right) = plots.figure(1, 2)
    for axes, title in ((left, "Loss"), (right, "Scale")):
        axes.plot([0, 1], label="a")
        axes.set_title(title)
        axes.legend()
    right.set_title("")
    right.set_title("Already left", loc="left")
    drawn.legend()
    render(drawn)
    assert [axes.get_title() for axes in (left, right)] == ["", ""]
    assert [axes.get_title(loc="left") for axes in (left, right)] == ["Loss", "Already left"]
    legends = [left.get_legend(), right.get_legend(), *drawn.legends]
    assert [legend.get_frame_on() for legend in legends] == [False] * 3


def test_a_png_is_at_a_resolution_for_sharp_screens() -> None:
    png = render(curves())
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    assert 0.85 * 7.0 * 144 < width < 1.1 * 7.0 * 144
    assert 0.85 * 3.6 * 144 < height < 1.1 * 3.6 * 144


def test_an_svg_is_text_without_a_date_or_fonts_of_the_reader() -> None:
    svg = render(curves(), "svg")
    assert isinstance(svg, str)
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "dc:date" not in svg
    assert "<text" not in svg


def test_a_tight_box_keeps_what_lies_outside_the_figure() -> None:
    drawn, _ = plots.figure()
    drawn.text(1.3, 0.5, "far to the right")
    width, _ = struct.unpack(">II", render(drawn)[16:24])
    assert width > 1.2 * 7.0 * 144


# --- showing ----------------------------------------------------------------------------------


@pytest.fixture
def shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., list[RichOutput]]]:
    """Yield a function that shows a figure in an IPython shell and returns what that displayed."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))

    def run(figure: Figure, **options: Any) -> list[RichOutput]:
        with capture_output() as captured:
            show(figure, **options)
        assert captured.stdout == ""
        return list(captured.outputs)

    yield run
    shell.restore_sys_module_state()
    InteractiveShell.clear_instance()


def test_a_figure_is_one_image_with_its_alternative_text(
    shown: Callable[..., list[RichOutput]],
) -> None:
    drawn = curves()
    (output,) = shown(drawn, alt="Six lines rise and fall.")
    assert output.data == {
        "image/png": render(drawn),
        "text/plain": "Figure: Six lines rise and fall.",
    }
    assert output.metadata == {"image/png": {"alt": "Six lines rise and fall."}}


def test_a_figure_of_a_few_lines_may_be_svg(shown: Callable[..., list[RichOutput]]) -> None:
    drawn = curves()
    (output,) = shown(drawn, alt="Lines.", format="svg")
    assert output.data == {"image/svg+xml": render(drawn, "svg"), "text/plain": "Figure: Lines."}
    assert output.metadata == {"image/svg+xml": {"alt": "Lines."}}


@pytest.mark.parametrize("alt", ["", "  \n", None, 3])
def test_a_figure_without_alternative_text_is_refused(
    shown: Callable[..., list[RichOutput]], alt: Any
) -> None:
    with pytest.raises(ValueError, match=r"alt=.*: say in a sentence what the figure shows"):
        shown(curves(), alt=alt)


def test_alternative_text_has_no_default_and_is_named() -> None:
    with pytest.raises(TypeError, match="alt"):
        show(curves())  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        show(curves(), "Lines.")  # type: ignore[call-arg]


@pytest.mark.parametrize("format", ["jpg", "pdf", "PNG"])
def test_other_formats_are_refused(shown: Callable[..., list[RichOutput]], format: str) -> None:
    with pytest.raises(ValueError, match=f'format=\'{format}\': expected "png" or "svg"'):
        shown(curves(), alt="Lines.", format=format)
    with pytest.raises(ValueError, match=f'format=\'{format}\': expected "png" or "svg"'):
        render(curves(), format)


def test_outside_ipython_arguments_are_checked_and_nothing_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plots, "_ipython", lambda: None)
    show(curves(), alt="Lines.")
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="alt=''"):
        show(curves(), alt="")
    with pytest.raises(ValueError, match="format='gif'"):
        show(curves(), alt="Lines.", format="gif")


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'matplotlib: pip install "mpbook\[notebook\]"'):
        plots.figure()
