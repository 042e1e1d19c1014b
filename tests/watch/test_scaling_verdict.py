"""The verdict on loss scaling: what it decides, why, and that its scale does what it says."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpbook.watch.histograms import Histogram, log2_histogram
from mpbook.watch.scaling_verdict import judge, listed, words


def gradients(*values: float) -> Histogram:
    return log2_histogram(torch.tensor(values, dtype=torch.float64))


def model(**layers: Histogram) -> dict[tuple[str, str], Histogram]:
    return {("activation_gradients", layer): histogram for layer, histogram in layers.items()}


def test_gradients_in_the_middle_need_no_scale():
    verdict = judge(model(first=gradients(1e-3, 0.0), last=gradients(1.0)), "float16")
    assert (verdict.verdict, verdict.scale) == ("not needed", 1.0)
    assert "none overflow" in verdict.reason


def test_small_gradients_need_the_middle_of_the_scales_that_fit():
    verdict = judge(model(first=gradients(2.0**-30, 2.0**-28)), "float16")
    assert verdict.verdict == "needed"
    assert "scales from 2**6 to 2**43 lose at most 10% in every layer" in verdict.reason
    assert verdict.scale == 2.0**24


@pytest.mark.parametrize(("exponent", "needed"), [(-24, False), (-25, True)])
def test_the_border_is_half_the_smallest_subnormal(exponent, needed):
    verdict = judge(model(first=gradients(2.0**exponent)), "float16")
    assert (verdict.verdict == "needed") is needed


def test_bfloat16_needs_none_where_float16_does():
    small = model(first=gradients(2.0**-40))
    assert judge(small, "float16").verdict == "needed"
    assert judge(small, "bfloat16").verdict == "not needed"
    assert judge(small, torch.bfloat16).verdict == "not needed"


def test_gradients_that_overflow_need_a_scale_below_1():
    verdict = judge(model(first=gradients(2.0**20)), "float16")
    assert verdict.verdict == "needed" and verdict.scale < 1
    assert "unscaled, gradients overflow float16" in verdict.reason


def test_the_layer_that_is_worst_off_decides():
    healthy, small = gradients(*[1.0] * 999), gradients(2.0**-30)
    verdict = judge(model(many=healthy, few=small, rest=healthy), "float16")
    assert verdict.verdict == "needed"
    assert "the activation gradients of few lose 100% of their magnitude" in verdict.reason
    worst = verdict.worst["activation_gradients"]
    assert (worst.layer, worst.values, worst.magnitude) == ("few", 1, 1)


def test_each_kind_names_its_own_worst_layer():
    seen = {
        ("activation_gradients", "a"): gradients(1.0),
        ("activation_gradients", "b"): gradients(1.0, 2.0**-30, 2.0**-30),
        ("weight_gradients", "b.weight"): gradients(2.0**-26, 2.0**-23),
        ("weight_gradients", "c.weight"): gradients(2.0**-26, 2.0**-20),
    }
    worst = judge(seen, "float16").worst
    assert list(worst) == ["activation_gradients", "weight_gradients"]
    first, second = worst.values()
    assert (first.kind, first.layer) == ("activation_gradients", "b")
    assert first.values == pytest.approx(2 / 3) and first.magnitude < 1e-8
    assert (second.kind, second.layer) == ("weight_gradients", "b.weight")
    assert second.magnitude == pytest.approx(1 / 9)


def test_magnitude_counts_and_not_the_number_of_values():
    mostly_tiny = model(first=gradients(*[2.0**-30] * 99, 1.0))
    verdict = judge(mostly_tiny, "float16")
    assert verdict.verdict == "not needed"
    assert "99% of their values" in verdict.reason
    others = mostly_tiny | model(second=gradients(2.0**-26, 2.0**-23))
    assert judge(others, "float16").worst["activation_gradients"].layer == "second"


def test_how_much_may_be_lost_is_an_argument():
    seen = model(first=gradients(2.0**-26, 2.0**-23))  # a ninth is lost
    assert judge(seen, "float16").verdict == "needed"
    assert judge(seen, "float16", lost=0.12).verdict == "not needed"
    assert "at most 12% in every layer" in judge(seen, "float16", lost=0.12).reason


def test_no_scale_helps_a_layer_wider_than_the_format():
    verdict = judge(
        model(a=gradients(1.0), b=gradients(2.0**10, *[2.0**-3] * 9999)), "float4_e2m1fn"
    )
    assert (verdict.verdict, verdict.scale) == ("does not help", None)
    assert "no scale keeps every layer between underflow and overflow" in verdict.reason


def test_no_scale_helps_layers_too_far_apart():
    verdict = judge(model(small=gradients(2.0**-40), large=gradients(2.0**10)), "float16")
    assert (verdict.verdict, verdict.scale) == ("does not help", None)


def test_layers_just_close_enough_share_one_scale():
    verdict = judge(model(small=gradients(2.0**-31), large=gradients(2.0**8)), "float16")
    assert (verdict.verdict, verdict.scale) == ("needed", 2.0**7)
    assert "from 2**7 to 2**7" in verdict.reason


def test_no_scale_helps_activations_that_overflow():
    verdict = judge(model(a=gradients(1.0)), "float16", overflowing=["block.3", "block.4"])
    assert (verdict.verdict, verdict.scale) == ("does not help", None)
    expected = (
        "activations of block.3, block.4 overflow float16, and no loss scale moves activations"
    )
    assert verdict.reason == expected
    assert verdict.worst["activation_gradients"].layer == "a"
    doubts = dict(perhaps=["exp in b"], unseen=["weights"])
    assert judge(model(a=gradients(1.0)), "float16", overflowing=["c"], **doubts) == judge(
        model(a=gradients(1.0)), "float16", overflowing=["c"]
    )  # more to doubt does not make it less certain


def test_a_layer_of_zeros_has_no_say():
    frozen = gradients(0.0, 0.0, math.inf, math.nan)
    verdict = judge(model(a=gradients(1.0), frozen=frozen), "float16")
    assert verdict.verdict == "not needed"
    assert verdict.worst["activation_gradients"].layer == "a"


def test_gradients_seen_in_the_format_itself_come_with_a_caution():
    seen = model(a=gradients(1.0))
    verdict = judge(seen, "float16", flushed=["float16"])
    plain = judge(seen, "float16")
    assert (
        verdict.reason.startswith(plain.reason) and "float16, whose zeros may be" in verdict.reason
    )
    assert (verdict.verdict, verdict.scale, verdict.worst) == ("not needed", 1.0, plain.worst)
    assert "zeros may be" not in plain.reason


@pytest.mark.parametrize("seen", [{}, model(a=gradients(0.0, math.nan)), model(a=Histogram())])
def test_without_gradients_there_is_nothing_to_judge(seen):
    with pytest.raises(ValueError, match="none that is finite and not zero"):
        judge(seen, "float16")


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"lost=1.5: expected a share"):
        judge(model(a=gradients(1.0)), "float16", lost=1.5)
    with pytest.raises(ValueError, match="no sign or no zero"):
        judge(model(a=gradients(1.0)), "float8_e8m0fnu")


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.floats(-45, 20), min_size=1, max_size=5), min_size=1, max_size=3),
    st.sampled_from(["float16", "float8_e5m2", "float8_e4m3fn"]),
)
def test_the_scale_keeps_what_it_promises(layers, format):
    seen = {
        ("weight_gradients", str(i)): gradients(*(2.0**exponent for exponent in exponents))
        for i, exponents in enumerate(layers)
    }
    verdict = judge(seen, format)

    def keeps(binades: int) -> bool:
        scaled = [histogram.shifted(binades) for histogram in seen.values()]
        lost = max(histogram.lost(format, of="magnitude") for histogram in scaled)
        return lost <= 0.1 and not any(h.fates(format).overflows for h in scaled)

    if verdict.scale is None:
        assert verdict.verdict == "does not help" and not any(map(keeps, range(-40, 70)))
    else:
        assert keeps(round(math.log2(verdict.scale)))
        assert (verdict.verdict == "not needed") is keeps(0)
        assert math.log2(verdict.scale).is_integer()


def test_lists_stop_after_eight():
    names = [str(i) for i in range(10)]
    assert listed(names[:8]) == "0, 1, 2, 3, 4, 5, 6, 7"
    assert listed(names) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
    assert words("weight_gradients") == "weight gradients"
