"""`Comparison`: what the runs say, and what they refuse to say."""

import math

import pytest
import torch
from made_up_runs import DEVICES, SETTINGS, bf16, data, made_up, model, rows, run
from torch import nn

from mpbook.models import MLP
from mpbook.training.comparison_runs import compare
from mpbook.training.paired import PairedDifference

# --- values and differences -------------------------------------------------------------------


def test_the_metric_is_the_validation_loss_or_the_loss_or_any_function():
    result = made_up(2, bf16_mixed=bf16(2.5, 4.5))
    assert result.values("bf16-mixed") == [1.1 * 2.5, 1.1 * 4.5]
    assert result.values("bf16-mixed", metric="validation_loss") == [1.1 * 2.5, 1.1 * 4.5]
    assert result.values("bf16-mixed", metric="loss") == [2.5, 4.5]
    steps = result.values("bf16-mixed", metric=lambda made: torch.tensor(made.steps))
    assert steps == [20.0, 20.0] and all(isinstance(value, float) for value in steps)


def test_where_nothing_is_held_out_the_metric_is_the_loss():
    result = compare(model(), data(held_out=0), ["32-true", "16-mixed"], seeds=2, **SETTINGS)
    assert result.values("32-true") == [made.loss for made in result.runs["32-true"]]
    assert "loss" in result.table().header and "validation loss" not in result.table().header
    for use in (result.values, result.diverged, result.difference):
        with pytest.raises(ValueError, match=r'metric="validation_loss": made up holds nothing'):
            use("16-mixed", metric="validation_loss")


def test_a_difference_pairs_the_seeds():
    result = made_up(bf16_mixed=bf16(2.5, 4.0, 7.0))
    found = result.difference("bf16-mixed", metric="loss", confidence=0.9, better="higher")
    assert found == PairedDifference(
        name="bf16-mixed",
        baseline="32-true",
        values=(2.5, 4.0, 7.0),
        baseline_values=(2.0, 4.0, 6.0),
        confidence=0.9,
        better="higher",
    )
    assert result.difference("bf16-mixed").values == pytest.approx((2.75, 4.4, 7.7))
    assert result.difference("bf16-mixed").confidence == 0.95
    assert result.difference("bf16-mixed").better == "lower"


def test_a_difference_may_be_taken_to_another_than_the_baseline():
    result = made_up(2, bf16_mixed=bf16(2.0, 4.0), bf16_true=bf16(3.0, 5.5))
    found = result.difference("bf16-true", to="bf16-mixed", metric="loss")
    assert (found.baseline, found.differences) == ("bf16-mixed", (1.0, 1.5))
    assert result.difference("32-true", to="bf16-true", metric="loss").differences == (-1.0, -1.5)


def test_the_verdict_is_that_of_the_difference():
    result = made_up(2, bf16_mixed=bf16(2.0, 4.0), bf16_true=bf16(3.0, 5.0))
    said = "within 1% of 32-true (95% confidence, 2 seeds)"
    assert result.verdict("bf16-mixed", margin=0.01) == said
    options = dict(metric="loss", to="bf16-mixed", confidence=0.9)
    said = "worse than bf16-mixed by more than 20% (90% confidence, 2 seeds)"
    assert result.verdict("bf16-true", margin=0.2, **options) == said


def test_one_seed_gives_no_interval_but_a_table():
    result = made_up(1, bf16_mixed=bf16(2.5))
    with pytest.raises(ValueError, match="seeds: 1 cannot give an interval"):
        result.difference("bf16-mixed")
    table = result.table(metric="loss")
    assert table.caption == (
        "Mean ± sd over 1 seed; differences and intervals are paired. One seed gives no interval."
    )
    assert rows(table)["bf16-mixed"] == {
        "": "bf16-mixed", "loss": "2.5", "minus 32-true": "+0.5", "95% interval": "",
        "relative": "", "diverged": "0 of 1",
    }  # fmt: skip


# --- runs that diverged -----------------------------------------------------------------------

LOST = {
    "stopped on NaN": dict(stopped_on_nan=True),
    "ended on NaN": dict(losses=[2.0, math.nan]),
    "ended on inf": dict(losses=[2.0, math.inf]),
    "broken by the last update": dict(validation_losses=[(20, math.nan)]),
    "no step": dict(losses=[], validation_losses=[], stopped_on_nan=True),
}


@pytest.mark.parametrize("how", LOST)
def test_a_run_that_diverged_is_named_and_never_averaged_away(how):
    runs = bf16(2.0, 4.0) + bf16(6.0, **LOST[how])
    result = made_up(bf16_mixed=runs)
    assert result.diverged("bf16-mixed") == (2,) and result.diverged("32-true") == ()
    values = result.values("bf16-mixed")
    assert values[:2] == [1.1 * 2.0, 1.1 * 4.0] and math.isnan(values[2])
    for name, to in (("bf16-mixed", None), ("32-true", "bf16-mixed")):
        message = r"bf16-mixed: 1 of 3 runs diverged \(seed 2\); a mean over the others would"
        with pytest.raises(ValueError, match=message):
            result.difference(name, to=to)
    row = rows(result.table())["bf16-mixed"]
    assert row["diverged"] == "1 of 3" and row["minus 32-true"] == "none: diverged"
    assert row["validation loss"].endswith("(of 2)")
    assert row["relative"] == row["95% interval"] == ""


def test_a_loss_that_comes_back_from_infinity_is_no_divergence():
    result = made_up(2, bf16_mixed=bf16(2.0, 4.0, losses=[math.inf, *[2.0] * 30]))
    assert result.diverged("bf16-mixed") == ()


def test_a_metric_that_is_not_finite_counts_as_diverged():
    result = made_up(2, bf16_mixed=bf16(2.0, 4.0))
    metric = lambda made: math.inf if made.loss == 4.0 else 1.0  # noqa: E731
    assert result.diverged("bf16-mixed", metric=metric) == (1,)
    assert rows(result.table(metric=metric))["bf16-mixed"]["diverged"] == "1 of 2"
    assert result.verdict("bf16-mixed", margin=0.1, metric=metric).startswith("diverged in some")
    with pytest.raises(ValueError, match="bf16-mixed: 1 of 2 runs diverged"):
        result.difference("bf16-mixed", metric=metric)


def test_a_metric_is_not_asked_of_a_run_that_diverged():
    result = made_up(2, bf16_mixed=bf16(2.0) + bf16(4.0, stopped_on_nan=True))
    asked = []
    result.values("bf16-mixed", metric=lambda made: asked.append(made.loss) or 1.0)
    assert asked == [2.0]


def test_a_verdict_says_that_a_precision_diverged():
    lost = dict(stopped_on_nan=True)
    result = made_up(bf16_mixed=bf16(2.0) + bf16(4.0, 6.0, **lost), bf16_true=bf16(1, 2, 3, **lost))
    assert result.verdict("bf16-mixed", margin=0.01) == "diverged in some of 3 seeds"
    assert result.verdict("bf16-true", margin=0.01) == "diverged in every one of 3 seeds"
    with pytest.raises(ValueError, match="bf16-mixed: 2 of 3 runs diverged"):
        result.verdict("32-true", to="bf16-mixed", margin=0.01)


def test_a_baseline_that_diverged_leaves_no_difference_in_the_table():
    result = made_up(2, bf16_mixed=bf16(2.0, 4.0))
    result.runs["32-true"][1].stopped_on_nan = True
    table = rows(result.table())
    assert table["32-true"]["diverged"] == "1 of 2"
    assert table["32-true"]["minus 32-true"] == "baseline"
    assert table["bf16-mixed"]["minus 32-true"] == "none: diverged"


def test_a_precision_of_which_no_run_is_left_has_no_mean():
    result = made_up(2, bf16_mixed=bf16(2.0, 4.0, stopped_on_nan=True))
    row = rows(result.table())["bf16-mixed"]
    assert (row["validation loss"], row["diverged"]) == ("none", "2 of 2")


@pytest.mark.parametrize("device", DEVICES)
def test_a_training_that_overflows_is_seen_to_diverge(device):
    huge = MLP(6, 8, 2)
    nn.init.constant_(huge[0].weight, 1e5)
    options = SETTINGS | dict(device=device, stop_on_nan=True)
    result = compare(huge, data(), ["32-true", "16-mixed"], seeds=2, **options)
    assert result.diverged("16-mixed") == (0, 1) and result.diverged("32-true") == ()
    assert result.verdict("16-mixed", margin=0.1) == "diverged in every one of 2 seeds"
    assert rows(result.speed())["16-mixed"]["speed against 32-true"] == "not timed"


# --- tables and figures -----------------------------------------------------------------------


def test_the_table_holds_means_differences_intervals_and_counts():
    result = made_up(bf16_mixed=bf16(2.5, 4.0, 7.0))
    table = rows(result.table(metric="loss"))
    assert table["32-true"] == {
        "": "32-true", "loss": "4 ± 2", "minus 32-true": "baseline", "95% interval": "",
        "relative": "", "diverged": "0 of 3",
    }  # fmt: skip
    assert table["bf16-mixed"] == {
        "": "bf16-mixed", "loss": "4.5 ± 2.3", "minus 32-true": "+0.5",
        "95% interval": "-0.742 to +1.74", "relative": "-19% to +44%", "diverged": "0 of 3",
    }  # fmt: skip
    assert rows(result.table(metric="loss", confidence=0.5))["bf16-mixed"]["50% interval"] == (
        "+0.264 to +0.736"
    )
    assert repr(result) == repr(result.table())
    assert result._repr_html_() == result.table()._repr_html_()


@pytest.mark.parametrize(("seeds", "warned"), [(2, True), (7, True), (8, False)])
def test_the_table_warns_of_fewer_than_eight_seeds(seeds, warned):
    caption = made_up(seeds, bf16_mixed=bf16(*range(1, seeds + 1))).table().caption
    assert caption.startswith(f"Mean ± sd over {seeds} seeds; differences and intervals are paired")
    assert ("Fewer than 8 seeds: take the intervals as rough." in caption) == warned
    assert "One seed" not in caption


def test_a_metric_with_a_mean_of_zero_has_no_relative_interval():
    result = made_up(2, bf16_mixed=bf16(2.0, 4.0, skipped_steps=[1, 2]))

    def skipped_steps(made):
        return len(made.skipped_steps)

    row = rows(result.table(metric=skipped_steps))["bf16-mixed"]
    assert row["skipped steps"] == "2 ± 0"
    assert (row["95% interval"], row["relative"]) == ("+2 to +2", "")


def test_speed_is_the_throughput_against_the_baseline_of_the_same_turn():
    made = [run(1.0, name="bf16-mixed", speed=s) for s in (200.0, 150.0, 400.0)]
    result = made_up(bf16_mixed=made)
    result.runs["32-true"][2].items_per_second = 1000.0
    assert result.speed().header == ["", "speed against 32-true", "lowest to highest of 3"]
    assert [tuple(row) for row in result.speed().rows] == [
        ("32-true", "1.00", "1.00 to 1.00"),
        ("bf16-mixed", "1.50", "0.40 to 2.00"),
    ]


def test_a_run_of_one_step_has_no_speed():
    result = compare(model(), data(), ["32-true"], seeds=1, **SETTINGS | dict(steps=1))
    with pytest.raises(ValueError, match="steps: 32-true made a single one"):
        result.speed()


def test_an_unknown_name_or_metric_is_refused():
    result = made_up(2, bf16_mixed=bf16(2.0, 4.0))
    known = "expected one of 32-true, bf16-mixed$"
    for use in (result.values, result.diverged, result.difference):
        with pytest.raises(ValueError, match=f'name="tf32": {known}'):
            use("tf32")
        with pytest.raises(ValueError, match='metric="accuracy": expected one of validation_loss'):
            use("bf16-mixed", metric="accuracy")
    with pytest.raises(ValueError, match=f'to="tf32": {known}'):
        result.difference("bf16-mixed", to="tf32")
