"""`Histogram` against rounding every value: fates, what is lost, and the window of scales."""

import json
import math

import matplotlib as mpl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpbook.formats import FORMATS, FloatFormat, round_to
from mpbook.plots import figure
from mpbook.watch.binades import PARTS
from mpbook.watch.histograms import Fates, Histogram, draw, log2_histogram, percent, plot

mpl.use("agg")

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
OVERFLOWS_TO = {
    "float16": "inf",
    "bfloat16": "inf",
    "float8_e5m2": "inf",
    "float8_e4m3fn": "nan",
    "tfloat32": "inf",
}


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def spread(count: int, low: float, high: float, seed: int = 0) -> torch.Tensor:
    """Random numbers with log2|x| uniform, some of them on the grid of short significands."""
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.rand(count, generator=generator, dtype=torch.float64) * (high - low) + low
    x = torch.exp2(exponents) * torch.randn(count, generator=generator).sign()
    short = torch.exp2(exponents.floor()) * (1 + torch.arange(count) % 4097 / 4096.0)
    return torch.cat([x, short, torch.zeros(7, dtype=torch.float64)])


def fates_by_rounding(x: torch.Tensor, name: str) -> Fates:
    """The fates by rounding every value with `round_to`."""
    format = FORMATS[name]
    rounded = round_to(x, format, overflow=OVERFLOWS_TO[name]).abs()
    was_zero, was_finite = x == 0, x.isfinite()
    is_small = (rounded > 0) & (rounded < format.smallest_normal)
    fates = {
        "zero": was_zero,
        "underflows": (rounded == 0) & ~was_zero,
        "subnormal": is_small,
        "normal": (rounded >= format.smallest_normal) & rounded.isfinite(),
        "overflows": was_finite & ~rounded.isfinite(),
        "nonfinite": ~was_finite,
    }
    return Fates(**{fate: mask.sum().item() / len(x) for fate, mask in fates.items()})


# --- Fates --------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", OVERFLOWS_TO)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_fates_are_those_of_rounding_every_value(dtype, name, device):
    x = torch.cat([spread(20_000, -150, 128), tensor([math.inf, -math.inf, math.nan])]).to(dtype)
    x = torch.cat([x, spread(20_000, -30, 18, seed=1).to(dtype)])
    assert log2_histogram(x.to(device)).fates(name) == fates_by_rounding(x, name)


@settings(max_examples=60)
@given(st.lists(st.floats(width=32), min_size=1, max_size=30), st.sampled_from(list(OVERFLOWS_TO)))
def test_fates_of_any_floats_are_those_of_rounding(values, name):
    fates = log2_histogram(tensor(values)).fates(name)
    assert fates == fates_by_rounding(tensor(values), name)
    assert sum(vars(fates).values()) == pytest.approx(1)


@settings(max_examples=60)
@given(st.integers(-40, 40), st.sampled_from(["float16", "float8_e4m3fn", "float8_e5m2"]))
def test_the_fates_of_a_shifted_histogram_are_those_of_the_scaled_tensor(binades, name):
    x = spread(500, -30, 18)
    shifted = log2_histogram(x).shifted(binades)
    assert shifted == log2_histogram(x * 2.0**binades)
    assert shifted.fates(name) == fates_by_rounding(x * 2.0**binades, name)


def test_float4_overflows_from_7_on_and_underflows_up_to_a_quarter():
    x = tensor([0.25, 0.26, 0.74, 0.75, 6.99, 7.0, 0.0, math.nan])
    expected = Fates(1 / 8, 1 / 8, 2 / 8, 2 / 8, 1 / 8, 1 / 8)
    assert log2_histogram(x).fates("float4_e2m1fn") == expected


def test_a_float32_tensor_fits_float32():
    x = spread(5000, -149, 127).float()
    x = torch.cat([x, torch.tensor([torch.finfo(torch.float32).max])])
    fates = log2_histogram(x).fates(torch.float32)
    assert fates.subnormal == ((x != 0) & (x.abs() < 2.0**-126)).sum().item() / len(x)
    assert fates.underflows == fates.overflows == 0


def test_a_longer_format_counts_what_is_just_below_its_borders_as_below():
    just_below = 1 - 2.0**-30  # rounds up to the border in float32
    x = tensor([2.0**-126 * just_below, 2.0**128 * just_below, 2.0**-150, 1.1 * 2.0**-150])
    fates = log2_histogram(x).fates("float32")
    assert fates == Fates(0, 0.25, 0.5, 0.25, 0, 0)


def test_zero_before_is_apart_from_underflow():
    histogram = log2_histogram(tensor([0.0, 0.0, 0.0, 2.0**-25]))
    assert (histogram.fates("float16").zero, histogram.fates("float16").underflows) == (0.75, 0.25)
    assert histogram.fates("bfloat16").underflows == 0


def test_an_empty_histogram_has_no_fates():
    with pytest.raises(ValueError, match="histogram: empty"):
        Histogram().fates("float16")


def test_formats_for_scales_and_unknown_ones_are_refused():
    histogram = log2_histogram(torch.ones(1))
    for ask in (histogram.fates, histogram.lost, histogram.window):
        with pytest.raises(ValueError, match="no sign or no zero"):
            ask("float8_e8m0fnu")
        with pytest.raises(ValueError, match="did you mean 'float16'"):
            ask("flot16")


def test_percents_have_three_digits():
    fates = Fates(0.12345678, 0.000012345, 0, 1, 0.5, 0)
    assert fates.percent() == [12.3, 0.00123, 0, 100, 50, 0]


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0%"), (1, "100%"), (0.12345, "12%"), (1e-7, "1e-05%"), (0.005, "0.5%")]
)
def test_only_nothing_is_zero_percent(share, text):
    assert percent(share) == text


# --- Counts and sums ----------------------------------------------------------------------------


def test_counts_are_by_binade_ascending():
    histogram = log2_histogram(tensor([5.0, 1.0, -1.75, 2.0**-30, 0, math.inf, math.nan, math.nan]))
    assert list(histogram.counts.items()) == [(-30, 1), (0, 2), (2, 1)]
    assert (histogram.zeros, histogram.infinities, histogram.nans) == (1, 1, 2)
    assert (histogram.nonzero, histogram.total) == (4, 8)


def test_the_sum_of_histograms_counts_both_tensors():
    x, y = spread(300, -30, 10), torch.cat([spread(200, -5, 20, seed=2), tensor([math.nan])])
    y = torch.cat([y, tensor([math.inf, math.inf, 0.0])])
    both = log2_histogram(torch.cat([x, y]))
    first, second = log2_histogram(x), log2_histogram(y)
    assert first + second == second + first == both
    assert sum([first, second], Histogram()) == both
    assert first == log2_histogram(x)  # the sum left it alone
    with pytest.raises(TypeError):
        first + 1


def test_a_shift_leaves_what_has_no_binade():
    histogram = log2_histogram(tensor([0.0, 1.0, 1.5, math.inf, math.nan, math.nan]))
    shifted = histogram.shifted(-3)
    assert shifted.counts == {-3: 2}
    assert (shifted.zeros, shifted.infinities, shifted.nans) == (1, 1, 2)
    assert shifted.shifted(3) == histogram


# --- What is lost -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OVERFLOWS_TO)
def test_lost_values_are_the_underflows_among_those_not_zero(name):
    x = spread(5000, -145, 20)
    rounded = round_to(x, name, overflow=OVERFLOWS_TO[name])
    expected = ((rounded == 0) & (x != 0)).sum() / (x != 0).sum()
    assert log2_histogram(x).lost(name) == pytest.approx(expected.item(), rel=1e-6)


@settings(max_examples=60)
@given(st.integers(0, 1000), st.floats(-40, -20), st.floats(0.1, 20))
def test_lost_magnitude_is_right_to_within_a_quarter(seed, low, width):
    x = spread(100, low, low + width, seed)
    rounded = round_to(x, "float16", overflow="inf")
    true = (x.abs()[rounded == 0].sum() / x.abs().sum()).item()
    found = log2_histogram(x).lost("float16", of="magnitude")
    assert 0.8 * true <= found <= 1.25 * true


def test_many_small_values_may_hold_little_magnitude():
    histogram = log2_histogram(tensor([2.0**-30] * 900 + [1.0] * 100))
    assert histogram.lost("float16") == 0.9
    assert histogram.lost("float16", of="magnitude") == pytest.approx(9 * 2.0**-30)


def test_magnitudes_outside_float64_are_weighed():
    histogram = Histogram({(2000, 0): 1, (-2000, 0): 3})
    assert histogram.lost("float16", of="magnitude") == 0
    assert histogram.shifted(-2040).lost("float16", of="magnitude") == 1


def test_nothing_is_lost_where_nothing_is():
    histogram = log2_histogram(tensor([0.0, math.inf, math.nan]))
    assert histogram.lost("float16") == histogram.lost("float16", of="magnitude") == 0


def test_lost_knows_values_and_magnitude_only():
    with pytest.raises(ValueError, match='of=\'squares\': expected "values" or "magnitude"'):
        log2_histogram(torch.ones(1)).lost("float16", of="squares")


# --- The window ---------------------------------------------------------------------------------


def fits(histogram: Histogram, name: str, lost: float, of: str) -> bool:
    return not histogram.fates(name).overflows and histogram.lost(name, of=of) <= lost


@settings(max_examples=25)
@given(
    st.integers(0, 1000),
    st.floats(-60, 20),
    st.floats(0, 45),
    st.sampled_from(["float16", "float8_e4m3fn", "float4_e2m1fn"]),
    st.sampled_from([0.0, 0.01, 0.3]),
    st.sampled_from(["values", "magnitude"]),
)
def test_the_window_holds_all_scales_that_fit_and_no_other(seed, low, width, name, lost, of):
    histogram = log2_histogram(spread(20, low, low + width, seed))
    window = histogram.window(name, lost=lost, of=of)
    found = [k for k in range(-90, 90) if fits(histogram.shifted(k), name, lost, of)]
    assert window == ((found[0], found[-1]) if found else None)
    assert found == list(range(*((window and (window[0], window[1] + 1)) or (0, 0))))


def test_a_tensor_wider_than_the_format_has_no_window():
    assert log2_histogram(tensor([2.0**-40, 2.0**10])).window("float16") is None
    assert log2_histogram(tensor([2.0**-40, 2.0**10])).window("float16", lost=0.5) == (-34, 5)


def test_a_window_may_be_one_scale_wide():
    widest = tensor([1.5 * 2.0**-25, 65519.0])
    assert log2_histogram(widest).window("float16") == (0, 0)
    assert log2_histogram(tensor([2.0**-25, 65519.0])).window("float16") is None
    assert log2_histogram(tensor([1.5 * 2.0**-25, 65520.0])).window("float16") is None


def test_a_window_looks_past_zeros_and_infinities():
    plain, special = tensor([1.0]), tensor([1.0, 0.0, math.inf, math.nan])
    assert log2_histogram(special).window("float16") == log2_histogram(plain).window("float16")


def test_a_window_needs_a_number_and_a_share():
    with pytest.raises(ValueError, match="no finite value but zero"):
        log2_histogram(tensor([0.0, math.inf])).window("float16")
    for lost in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=f"lost={lost}: expected a share"):
            log2_histogram(torch.ones(1)).window("float16", lost=lost)


# --- Saving and showing -------------------------------------------------------------------------


def test_a_histogram_comes_back_from_json():
    x = torch.cat([spread(3000, -40, 10), tensor([math.inf, math.nan, math.nan])])
    histogram = log2_histogram(x)
    text = json.dumps(histogram.as_dict())
    assert Histogram.from_dict(json.loads(text)) == histogram
    assert json.dumps(log2_histogram(x.flip(0)).as_dict()) == text
    assert Histogram.from_dict(Histogram().as_dict()) == Histogram()


def test_a_saved_histogram_is_plain():
    saved = log2_histogram(tensor([0.0, 4.0, 1.0, 1.1, 1.3, 1.3])).as_dict()
    bins = [[0, [1, 1, 2]], [2, [1]]]
    assert saved == {"bins": bins, "zeros": 1, "infinities": 0, "nans": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"zeros": -1}, "counts are integers and not negative"),
        ({"nans": 1.5}, "counts are integers and not negative"),
        ({"infinities": True}, "counts are integers and not negative"),
        ({"bins": [[0, [1, -1]]]}, "counts are integers and not negative"),
        ({"bins": [[0, [1] * (len(PARTS) + 1)]]}, f"more than {len(PARTS)} parts"),
        ({"more": 1}, "a Histogram needs"),
    ],
)
def test_a_damaged_save_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Histogram.from_dict(log2_histogram(torch.ones(2)).as_dict() | change)


def test_a_histogram_says_in_a_line_what_it_holds():
    histogram = log2_histogram(tensor([0.0, 0.0, 5.0, 2.0**-10, math.inf, math.nan, math.nan]))
    expected = "Histogram(7 values: 2 zero, 3 nonfinite, 2 from 2**-10 to below 2**3)"
    assert repr(histogram) == expected
    assert repr(Histogram()) == "Histogram(0 values: 0 zero, 0 nonfinite)"


def test_bars_are_the_shares_of_the_binades():
    axis = figure()[1]
    draw(log2_histogram(tensor([1.0, 1.5, 2.0**-3, 0.0])), axis)
    bars = {bar.get_x(): bar.get_height() for bar in axis.patches}
    assert bars == {0: 0.5, -3: 0.25}
    assert all(bar.get_width() == 1 for bar in axis.patches)
    assert axis.get_title() == "" and axis.get_ylabel() == "share"


def test_regions_are_named_and_reach_from_border_to_border():
    axis = figure()[1]
    draw(log2_histogram(tensor([1.0, 2.0**-26, 0.0, 65520.0])), axis, "float16")
    low, high = axis.get_xlim()
    spans = [(p.get_x(), p.get_x() + p.get_width()) for p in axis.patches[3:]]
    overflow = math.log2(65504)
    assert spans == [(low, -25), (-25, -14), (overflow, pytest.approx(high))]
    assert [text.get_text() for text in axis.texts] == ["zero", "subnormal", "overflow"]
    assert axis.get_title() == "25% zero, 25% underflow, 25% overflow"
    assert low < -26 and high > 17


@pytest.mark.parametrize("binades", [(-60, 0), (0, 40)])
def test_an_axis_shows_the_binades_that_it_must(binades):
    axis = figure()[1]
    draw(log2_histogram(torch.ones(1)), axis, "float16", binades=binades)
    assert axis.get_xlim()[0] < binades[0] and axis.get_xlim()[1] > binades[1] + 1


def test_a_plot_has_a_titled_panel_for_each_histogram_on_one_axis():
    histograms = {"small": log2_histogram(tensor([2.0**-50])), "one": log2_histogram(tensor([1.0]))}
    drawn = plot(histograms, "float16")
    titles = [axis.get_title() for axis in drawn.axes]
    assert titles == [
        "small\n0% zero, 100% underflow, 0% overflow",
        "one\n0% zero, 0% underflow, 0% overflow",
    ]
    assert drawn.axes[0].get_xlim() == drawn.axes[1].get_xlim()
    assert drawn.axes[1].get_xlim()[0] < -50
    assert drawn.axes[1].get_xlabel() == r"$\log_2|x|$"


@pytest.mark.parametrize("format", [None, "float16", FloatFormat("mine", 4, 3)])
@pytest.mark.parametrize("values", [[], [0.0], [1.0]])
def test_every_histogram_can_be_drawn(values, format):
    assert len(log2_histogram(tensor(values)).plot(format).axes) == 1
