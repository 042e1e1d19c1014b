"""`mpbook.autocast.dtype_grid`: colours, letters, split cells and labels."""

import pytest
from matplotlib.colors import to_rgba

from mpbook import plots
from mpbook.autocast.dtype_grid import dtype_grid

GRID = {
    "first": [("int64",), ("float32",)],
    "blocks.0.attention.query_key_value": [("bfloat16", "float32"), ()],
}


def drawn(rows=GRID, columns=("in", "out")):
    (axes,) = dtype_grid(rows, list(columns)).axes
    return axes


def test_a_cell_has_its_dtypes_colour_and_letter() -> None:
    axes = drawn()
    colours = [patch.get_facecolor() for patch in axes.patches]
    grey, blue = to_rgba(plots.COLOURS["float32"]), to_rgba(plots.COLOURS["bfloat16"])
    assert colours == [to_rgba("#7f7f7f"), grey, blue, grey]
    assert [text.get_text() for text in axes.texts] == ["i", "F", "B", "F"]
    assert {text.get_color() for text in axes.texts} == {"white"}


def test_every_float_of_training_has_its_own_letter() -> None:
    axes = drawn({"x": [("bfloat16", "float16", "float32", "float64")]}, ["in"])
    assert [text.get_text() for text in axes.texts] == ["B", "H", "F", "D"]


def test_a_cell_shared_by_two_dtypes_is_split_in_half() -> None:
    first, second = drawn().patches[2:]
    assert first.get_width() == second.get_width() == pytest.approx(0.46)
    assert (first.get_x(), first.get_y()) == pytest.approx((0.04, 1.06))
    assert second.get_x() == pytest.approx(first.get_x() + first.get_width())


def test_cells_sit_in_their_row_and_column_and_letters_in_their_middle() -> None:
    axes = drawn()
    assert [(p.get_x(), p.get_y()) for p in axes.patches[:2]] == [(0.04, 0.06), (1.04, 0.06)]
    assert {round(p.get_height(), 6) for p in axes.patches} == {0.88}
    for patch, text in zip(axes.patches, axes.texts, strict=True):
        centre = patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2
        assert text.get_position() == pytest.approx(centre)
        assert (text.get_ha(), text.get_va()) == ("center", "center")


def test_rows_read_from_the_top_and_columns_are_titled_there() -> None:
    axes = drawn()
    assert axes.get_ylim() == (2, 0) and axes.get_xlim() == (0, 2)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["in", "out"]
    assert list(axes.get_xticks()) == list(axes.get_yticks()) == [0.5, 1.5]
    assert axes.xaxis.get_tick_params()["labeltop"]
    assert not axes.xaxis.get_tick_params()["labelbottom"]


def test_a_long_name_keeps_its_end() -> None:
    names = [label.get_text() for label in drawn().get_yticklabels()]
    assert names == ["first", "…ion.query_key_value"]
    assert len(names[1]) == 20
    exact = drawn({"a" * 20: [()]}, ["in"]).get_yticklabels()[0].get_text()
    assert exact == "a" * 20


def test_the_key_names_what_was_drawn() -> None:
    assert drawn().get_xlabel() == "B bfloat16   F float32   i int64"


def test_the_figure_grows_with_its_rows_and_fits_a_phone() -> None:
    few = dtype_grid({"a": [()]}, ["in"]).get_size_inches()
    many = dtype_grid({str(i): [()] for i in range(21)}, ["in"]).get_size_inches()
    assert few[0] == many[0] == 4.4
    assert many[1] - few[1] == pytest.approx(20 * 0.27)


def test_letters_are_legible_on_every_colour() -> None:
    def luminance(colour: str) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
                 for c in to_rgba(colour)[:3]]  # fmt: skip
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), parts, strict=True))

    for dtype in ("float32", "float16", "bfloat16"):
        assert 1.05 / (luminance(plots.COLOURS[dtype]) + 0.05) >= 3  # WCAG, bold text


def test_nothing_to_draw_and_ragged_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="rows: expected at least one"):
        dtype_grid({}, ["in"])
    with pytest.raises(ValueError, match='rows: "a" has 1 cells, expected 2 as columns'):
        dtype_grid({"a": [()]}, ["in", "out"])
