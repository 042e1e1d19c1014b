"""`mpbook.training.paired` against scipy's t tests and against simulation."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mpbook.training.paired import PairedDifference, t_test_power

LOSSES = (2.1, 2.3, 1.9, 2.6, 2.2, 2.0)
OTHERS = (2.0, 2.25, 1.95, 2.4, 2.15, 1.9)


def paired(values=LOSSES, baseline_values=OTHERS, **options) -> PairedDifference:
    names = dict(name="bf16-mixed", baseline="32-true")
    return PairedDifference(
        values=tuple(values), baseline_values=tuple(baseline_values), **names, **options
    )


def around(relative: float, spread: float = 0.0) -> PairedDifference:
    """Two pairs over a baseline of 64, whose relative differences are exact."""
    low, high = 64 * (1 + relative - spread), 64 * (1 + relative + spread)
    return paired([low, high], [64.0, 64.0])


pairs = st.lists(
    st.tuples(st.floats(0.5, 10.0), st.floats(0.5, 10.0)), min_size=2, max_size=12
).map(lambda rows: tuple(zip(*rows, strict=True)))


# --- the interval -----------------------------------------------------------------------------


@given(values=pairs, confidence=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_interval_is_that_of_the_paired_t_test(values, confidence):
    difference = np.subtract(*values)
    if np.ptp(difference) < 1e-6:  # scipy warns of precision loss
        return
    found = paired(*values, confidence=confidence)
    expected = stats.ttest_rel(*values).confidence_interval(confidence)
    assert found.interval == pytest.approx(tuple(expected), rel=1e-9, abs=1e-12)
    assert found.mean == pytest.approx(difference.mean(), rel=1e-9, abs=1e-12)
    assert found.sd == pytest.approx(difference.std(ddof=1), rel=1e-9)
    assert found.seeds == len(difference)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth, runs = 0.3, 3000
    held = 0
    for _ in range(runs):
        base = rng.normal(2.0, 1.0, 5)  # seeds differ much more than precisions do
        low, high = paired(base + rng.normal(truth, 0.1, 5), base, confidence=0.9).interval
        held += low <= truth <= high
    assert held / runs == pytest.approx(0.9, abs=0.017)  # three standard errors


def test_pairing_takes_away_what_the_seeds_have_in_common():
    found = paired([1.0, 5.0, 9.0], [0.5, 4.5, 8.5])
    assert found.differences == (0.5, 0.5, 0.5)
    assert (found.mean, found.sd, found.interval) == (0.5, 0.0, (0.5, 0.5))


def test_relative_is_a_fraction_of_the_size_of_the_baselines_mean():
    found = paired([5.0, 7.0], [3.0, 5.0])
    assert (found.baseline_mean, found.mean, found.relative) == (4.0, 2.0, 0.5)
    negative = paired([-3.0, -1.0], [-5.0, -3.0])
    assert (negative.baseline_mean, negative.mean, negative.relative) == (-4.0, 2.0, 0.5)
    low, high = paired(confidence=0.8).interval
    unit = sum(OTHERS) / len(OTHERS)
    assert paired(confidence=0.8).relative_interval == pytest.approx((low / unit, high / unit))


def test_nothing_is_a_fraction_of_zero():
    found = paired([1.0, 2.0], [1.0, -1.0])
    assert found.mean == 1.5 and found.interval[0] < 1.5
    for use in (
        lambda: found.relative,
        lambda: found.relative_interval,
        lambda: found.excludes(0.1),
        lambda: found.seeds_needed(0.1),
        found.detectable,
    ):
        with pytest.raises(ValueError, match="the mean of 32-true is 0"):
            use()


# --- what it settles --------------------------------------------------------------------------


def test_a_difference_outside_the_interval_is_excluded():
    found = paired(confidence=0.8)
    low, high = found.relative_interval
    assert 0 < low < high
    assert found.excludes(low - 1e-6) and found.excludes(high + 1e-6)
    assert not found.excludes(low + 1e-6) and not found.excludes(high - 1e-6)
    assert found.excludes(-high)
    exact = around(1 / 8)
    assert not exact.excludes(1 / 8) and exact.excludes(0.0)


@given(values=pairs, margin=st.floats(0.01, 0.99))
def test_within_is_two_one_sided_t_tests(values, margin):
    difference = np.subtract(*values)
    if np.ptp(difference) < 1e-6:
        return
    found = paired(*values, confidence=0.9)
    limit = margin * np.mean(values[1])
    above = stats.ttest_1samp(difference, -limit, alternative="greater").pvalue
    below = stats.ttest_1samp(difference, limit, alternative="less").pvalue
    assert found.within(margin) == (max(above, below) <= 0.05)


def test_within_includes_the_margin_on_both_sides():
    assert around(1 / 8).within(1 / 8) and around(-1 / 8).within(1 / 8)
    assert not around(1 / 8).within(1 / 16) and not around(-1 / 8).within(1 / 16)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (around(0.0), "within 12.5% of 32-true (95% confidence, 2 seeds)"),
        (around(1 / 8), "within 12.5% of 32-true (95% confidence, 2 seeds)"),
        (around(1 / 4), "worse than 32-true by more than 12.5% (95% confidence, 2 seeds)"),
        (around(-1 / 8), "within 12.5% of 32-true (95% confidence, 2 seeds)"),
        (around(-1 / 4), "better than 32-true by more than 12.5% (95% confidence, 2 seeds)"),
        (
            around(0.0, 1 / 4),
            "not settled: perhaps within 12.5% of 32-true, perhaps not "
            "(95% confidence, 2 seeds)",
        ),
    ],
)  # fmt: skip
def test_the_verdict_follows_from_the_interval(found, expected):
    assert found.verdict(margin=1 / 8) == expected


def test_an_interval_across_one_end_of_the_margin_settles_nothing():
    for centre in (1 / 8, -1 / 8):
        found = around(centre, 1 / 256)
        low, high = found.relative_interval
        assert 0 < abs(low) < abs(high) or 0 < abs(high) < abs(low)
        assert found.verdict(margin=1 / 8).startswith("not settled")


def test_more_of_a_metric_that_should_be_high_is_better():
    accuracy = dict(baseline_values=(0.5, 0.5, 0.5), better="higher")
    assert paired((0.75, 0.75, 0.75), **accuracy).verdict(margin=0.1).startswith("better than")
    assert paired((0.25, 0.25, 0.25), **accuracy).verdict(margin=0.1).startswith("worse than")


@pytest.mark.parametrize(
    ("margin", "confidence", "shown"),
    [(0.01, 0.95, "1%"), (0.0025, 0.99, "0.25%"), (0.07, 0.999, "7%")],
)
def test_a_verdict_shows_percent_as_a_person_writes_it(margin, confidence, shown):
    said = paired([2.0, 2.0], [2.0, 2.0], confidence=confidence).verdict(margin=margin)
    assert said == f"within {shown} of 32-true ({100 * confidence:g}% confidence, 2 seeds)"


# --- what it could settle ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effect", "seeds", "confidence"),
    [(0.0, 4, 0.95), (1.0, 2, 0.8), (1.2, 8, 0.95), (-1.2, 8, 0.95), (0.5, 30, 0.9), (3, 3, 0.99)],
)
def test_power_is_how_often_the_interval_leaves_out_zero(effect, seeds, confidence):
    runs = 40_000
    x = np.random.default_rng(1).normal(effect, 1.0, (runs, seeds))
    half = stats.t.ppf((1 + confidence) / 2, seeds - 1) * x.std(1, ddof=1) / math.sqrt(seeds)
    shown = np.mean(abs(x.mean(1)) > half)
    power = t_test_power(effect, seeds=seeds, confidence=confidence)
    assert power == pytest.approx(shown, abs=0.0075)  # three standard errors


@pytest.mark.parametrize("seeds", [2, 3, 8, 1000, 10**6])
def test_power_is_a_probability_however_large_the_effect(seeds):
    powers = [t_test_power(x, seeds=seeds) for x in (0.0, 0.1, 1.0, 10.0, 1e3)]
    assert powers == sorted(powers) and powers[0] == pytest.approx(0.05)
    assert powers[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("seeds", [3, 8, 10_000, 10**6])
@pytest.mark.parametrize("shift", [5.999, 6.001, 8.0, 10.0, 20.0])
def test_power_has_the_same_value_for_both_signs_and_far_out(seeds, shift):
    effect = shift / math.sqrt(seeds)
    power = t_test_power(effect, seeds=seeds)
    assert t_test_power(-effect, seeds=seeds) == power
    critical = stats.t.ppf(0.975, seeds - 1)
    assert power == pytest.approx(stats.ncf.sf(critical**2, 1, seeds - 1, shift**2), rel=1e-6)


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.99])
def test_what_is_detectable_has_exactly_that_power(power, confidence):
    found = paired(confidence=confidence)
    effect = found.detectable(power=power) * found.baseline_mean / found.sd
    assert effect > 0
    assert t_test_power(effect, seeds=6, confidence=confidence) == pytest.approx(power, abs=1e-6)


def test_more_seeds_detect_less_and_80_percent_is_the_usual_power():
    assert paired().detectable() == paired().detectable(power=0.8)
    assert paired(LOSSES * 3, OTHERS * 3).detectable() < 0.7 * paired().detectable()
    assert around(0.5).detectable() == 0.0  # every pair said the same


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize("difference", [0.3, 0.05, -0.05, 0.01, 0.001])
def test_the_seeds_needed_are_the_fewest_with_that_power(difference, confidence):
    found = paired(confidence=confidence)
    effect = difference * found.baseline_mean / found.sd
    needed = found.seeds_needed(difference, power=0.9)
    assert t_test_power(effect, seeds=needed, confidence=confidence) >= 0.9
    if needed > 2:
        assert t_test_power(effect, seeds=needed - 1, confidence=confidence) < 0.9
    assert found.seeds_needed(difference) == found.seeds_needed(difference, power=0.8) <= needed


def test_the_seeds_needed_for_what_is_detectable_are_those_there_are():
    assert paired().seeds_needed(paired().detectable() * (1 + 1e-6)) == 6
    assert paired().seeds_needed(100.0) == 2
    assert around(0.5).seeds_needed(0.001) == 2


def test_a_difference_that_no_number_of_seeds_shows_is_refused():
    with pytest.raises(ValueError, match=r"difference=0: .*use within"):
        paired().seeds_needed(0.0)
    with pytest.raises(ValueError, match=r"difference=1e-09: takes more than 1,048,576 seeds"):
        paired().seeds_needed(1e-9)
    one_effect = paired().sd / paired().baseline_mean
    assert 800_000 < paired().seeds_needed(2.8 / math.sqrt(900_000) * one_effect) < 1_000_000
    with pytest.raises(ValueError, match="takes more than"):
        paired().seeds_needed(2.8 / math.sqrt(1_400_000) * one_effect)


@pytest.mark.parametrize("power", [0.0, 0.05, 1.0, 80])
def test_a_power_that_chance_reaches_or_that_nothing_reaches_is_refused(power):
    for use in (paired().detectable, lambda power: paired().seeds_needed(0.1, power=power)):
        with pytest.raises(ValueError, match=rf"power={power}: expected more than 0\.05"):
            use(power=power)
    assert paired(confidence=0.99).detectable(power=0.05) > 0
    with pytest.raises(ValueError, match=r"power=0\.25: expected more than 0\.25"):
        paired(confidence=0.75).detectable(power=0.25)


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(values=[1.0], baseline_values=[1.0]), "seeds: 1 cannot give an interval.*at least 2"),
        (dict(values=[], baseline_values=[]), "seeds: 0 cannot"),
        (dict(values=[1.0, 2.0, 3.0], baseline_values=[1.0, 2.0]), "values: 3 of bf16-mixed for 2"),
        (dict(values=[1.0, math.nan], baseline_values=[1.0, 2.0]), "values: nan in bf16-mixed"),
        (dict(values=[1.0, 2.0], baseline_values=[math.inf, 2.0]), "values: inf in 32-true"),
        (dict(confidence=95), "confidence=95: expected between 0 and 1"),
        (dict(confidence=1.0), "confidence=1.0"),
        (dict(confidence=0.0), "confidence=0.0"),
        (dict(better="more"), 'better=\'more\': expected "lower" or "higher"'),
    ],
)
def test_what_gives_no_interval_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        paired(**options)


@pytest.mark.parametrize("margin", [0.0, -0.01, 1.0, 5, math.nan])
def test_a_margin_is_a_fraction(margin):
    for use in (paired().within, lambda m: paired().verdict(margin=m)):
        with pytest.raises(ValueError, match=rf"margin={margin}: expected between 0 and 1, 0.01"):
            use(margin)


def test_power_needs_two_seeds_and_a_confidence():
    with pytest.raises(ValueError, match="seeds=1: expected at least 2"):
        t_test_power(1.0, seeds=1)
    with pytest.raises(ValueError, match="confidence=95"):
        t_test_power(1.0, seeds=2, confidence=95)


def test_the_mean_needs_no_scipy_and_the_interval_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert paired().mean == pytest.approx(0.075)
    with pytest.raises(ImportError, match=r"intervals need scipy: pip install .mpbook\[notebook\]"):
        _ = paired().interval
