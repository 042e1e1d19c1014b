"""`compare`: paired runs, what they say, and what they refuse to say."""

import math
from dataclasses import replace

import pytest
import torch
from matplotlib.colors import same_color
from torch import nn

from mpbook import plots
from mpbook.data import Examples
from mpbook.models import MLP
from mpbook.precision import PRECISIONS, Precision
from mpbook.training import comparison, train
from mpbook.training.comparison import CONTROL, Comparison, compare
from mpbook.training.nudge import nudged
from mpbook.training.paired import PairedDifference
from mpbook.training.run import Run

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
SETTINGS = dict(steps=4, batch_size=8, learning_rate=0.01, device="cpu")


def data(*, held_out: int = 16) -> Examples:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=generator)
    y = (x[:, 0] > 0).long()
    split = 64 - held_out
    return Examples(x[:split], y[:split], x[split:], y[split:], name="made up")


def model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return MLP(6, 8, 2)


def run(
    loss: float, *, name: str = "32-true", steps: int = 20, speed: float = 100.0, **options
) -> Run:
    """A run that ended on this loss, and validated on one tenth more."""
    made = Run(PRECISIONS[name], {"data": "made up"}, losses=[loss] * steps, items_per_second=speed)
    made.validation_losses = [(steps, 1.1 * loss)]
    return replace(made, **options)


def made_up(seeds: int = 3, **runs: list[Run]) -> Comparison:
    """A comparison with a baseline of 2.0, 4.0, 6.0 ... and the runs given."""
    base = [run(2.0 * (seed + 1)) for seed in range(seeds)]
    named = {name.replace("_", "-"): made for name, made in runs.items()}
    return Comparison({"32-true": base, **named}, tuple(range(seeds)), "32-true")


def bf16(*losses: float, **options) -> list[Run]:
    return [run(loss, name="bf16-mixed", **options) for loss in losses]


def rows(table) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, int]]:
    """Precision and seed of every run, in the order in which they are trained."""
    made = []

    def noted(*arguments, **options):
        made.append((options["precision"].name, options["seed"]))
        return train(*arguments, **options)

    monkeypatch.setattr(comparison, "train", noted)
    return made


# --- the runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_every_run_is_what_train_makes_of_it(device):
    settings = SETTINGS | dict(device=device, clip_norm=1.0)
    names = ["32-true", "16-mixed", "bf16-true"]
    result = compare(model(), data(), names, seeds=[3, 5], **settings)
    assert list(result.runs) == names and result.seeds == (3, 5)
    for name, runs in result.runs.items():
        for seed, made in zip((3, 5), runs, strict=True):
            alone = train(model(), data(), precision=name, seed=seed, **settings)
            assert made.losses == alone.losses
            assert made.validation_losses == alone.validation_losses
            assert made.config == alone.config


def test_the_same_call_gives_the_same_numbers():
    first, second = (compare(MLP_of, data(), ["32-true", "16-mixed"], seeds=2, **SETTINGS)
                     for _ in range(2))  # fmt: skip
    for name in first.runs:
        for one, other in zip(first.runs[name], second.runs[name], strict=True):
            assert one.losses == other.losses and one.validation_losses == other.validation_losses
    assert repr(first.table()) == repr(second.table())


def MLP_of(seed: int) -> nn.Module:  # noqa: N802
    return MLP(6, 8, 2)


def test_a_function_gives_each_seed_initial_weights_of_its_own_that_its_precisions_share():
    asked = []

    def make(seed):
        asked.append(seed)
        return MLP(6, 8, 2)

    result = compare(make, data(), ["32-true", "bf16-mixed"], seeds=[7, 2], **SETTINGS)
    assert asked == [7, 2]
    for seed, *runs in zip(result.seeds, *result.runs.values(), strict=True):
        for made in runs:
            options = SETTINGS | dict(precision=made.precision, seed=seed)
            assert made.losses == train(model(seed), data(), **options).losses


def test_the_global_random_state_stays_as_it_is():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    compare(MLP_of, data(), ["32-true"], seeds=1, **SETTINGS)
    assert torch.equal(torch.rand(3), expected)


def test_precisions_take_turns_and_none_is_always_the_first(calls):
    result = compare(model(), data(), ["32-true", "16-mixed", "bf16-mixed"], seeds=4, **SETTINGS)
    assert [seed for _, seed in calls] == [s for s in range(4) for _ in range(3)]
    firsts = [name for name, _ in calls[::3]]
    assert firsts == ["32-true", "16-mixed", "bf16-mixed", "32-true"]
    for turn in range(4):
        assert {name for name, _ in calls[3 * turn : 3 * turn + 3]} == set(result.runs)


def test_eight_seeds_unless_asked_otherwise():
    assert compare(model(), data(), ["32-true"], **SETTINGS).seeds == tuple(range(8))


def test_a_trained_model_is_kept_only_on_request():
    options = dict(seeds=1, **SETTINGS)
    lean = compare(model(), data(), ["32-true"], **options)
    assert list(lean.runs["32-true"][0].model.parameters()) == []
    full = compare(model(), data(), ["32-true"], keep_models="all", **options)
    expected = train(model(), data(), precision="32-true", seed=0, **SETTINGS).model
    assert torch.equal(full.runs["32-true"][0].model[0].weight, expected[0].weight)


def test_precisions_of_ones_own_are_compared_under_their_names():
    mine = Precision("scaled by 8", compute_dtype=torch.float16, loss_scale=8.0)
    result = compare(model(), data(), ["32-true", mine], seeds=1, **SETTINGS)
    assert list(result.runs) == ["32-true", "scaled by 8"]
    assert result.runs["scaled by 8"][0].precision is mine


def test_progress_is_counted_in_runs(monkeypatch):
    lines = []

    class Recorder:
        def __init__(self, total, *, label, enabled):
            lines.append((total, label, enabled))

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            lines.append("closed")

        def update(self, done, note):
            lines.append((done, note))

    monkeypatch.setattr(comparison, "Progress", Recorder)
    options = dict(seeds=[4, 6], progress=False, **SETTINGS)
    compare(model(), data(), ["32-true", "bf16-true"], **options)
    assert lines == [
        (4, "comparing", False),
        (0, "seed 4, 32-true"),
        (1, "seed 4, bf16-true"),
        (2, "seed 6, bf16-true"),
        (3, "seed 6, 32-true"),
        "closed",
    ]


def test_only_the_comparison_shows_a_progress_line(monkeypatch):
    asked = []
    monkeypatch.setattr(
        comparison, "train", lambda *a, progress, **o: asked.append(progress) or run(1.0)
    )
    compare(model(), data(), ["32-true"], seeds=1, steps=1)
    assert asked == [False]


# --- the control ------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["32-true", "bf16-true"])
def test_the_control_is_the_baseline_from_a_nudged_start(base):
    names = ["16-mixed", base]
    options = dict(baseline=base, control=CONTROL, seeds=2, **SETTINGS)
    result = compare(MLP_of, data(), names, **options)
    assert list(result.runs) == [*names, CONTROL]
    for seed, made in zip(result.seeds, result.runs[CONTROL], strict=True):
        start = nudged(model(seed), dtype=PRECISIONS[base].parameter_dtype)
        alone = train(start, data(), precision=base, seed=seed, **SETTINGS)
        assert made.losses == alone.losses
        assert replace(made.precision, name=base) == PRECISIONS[base]
        assert made.precision.name == CONTROL


def test_a_nudge_moves_the_loss_far_less_than_another_seed_does():
    options = dict(control=CONTROL, seeds=4, **SETTINGS | dict(steps=30))
    result = compare(MLP_of, data(), ["32-true"], **options)
    found = result.difference(CONTROL)
    assert any(found.differences)
    losses = result.values("32-true")
    assert max(map(abs, found.differences)) < 1e-3 * (max(losses) - min(losses))


def test_without_a_control_there_is_none_and_its_name_is_free(monkeypatch):
    named = replace(PRECISIONS["bf16-mixed"], name=CONTROL)
    with pytest.raises(ValueError, match='"1-ulp nudge" is what the control is called'):
        compare(model(), data(), ["32-true", named], control=CONTROL, **SETTINGS)
    monkeypatch.setattr(comparison, "nudged", lambda *a, **o: pytest.fail("nothing to nudge"))
    result = compare(model(), data(), ["32-true", named], seeds=1, **SETTINGS)
    alone = train(model(), data(), precision="bf16-mixed", seed=0, **SETTINGS)
    assert result.runs[CONTROL][0].losses == alone.losses


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


def test_the_figure_shows_curves_and_paired_differences():
    result = made_up(bf16_mixed=bf16(2.5, 4.0, 7.0), bf16_true=bf16(3.0, 5.0, 7.5))
    curves, pairs = result.figure(metric="loss", confidence=0.9).axes
    assert [text.get_text() for text in curves.get_legend().get_texts()] == list(result.runs)
    baseline, mixed, _ = curves.lines
    assert list(mixed.get_xdata()) == list(range(1, 21))
    assert set(baseline.get_ydata()) == {4.0} and set(mixed.get_ydata()) == {4.0}
    assert same_color(mixed.get_color(), plots.COLOURS["bf16-mixed"])
    assert curves.collections[1].get_datalim(curves.transData).intervaly.tolist() == [2.5, 7.0]
    assert [label.get_text() for label in pairs.get_yticklabels()] == ["bf16-mixed", "bf16-true"]
    assert pairs.get_title("left") == "" and pairs.get_title() == "Loss minus 32-true"
    dots, interval, mean, *second, zero = pairs.lines
    assert list(dots.get_xdata()) == [0.5, 0.0, 1.0]
    found = result.difference("bf16-mixed", metric="loss", confidence=0.9)
    assert tuple(interval.get_xdata()) == found.interval and list(mean.get_xdata()) == [0.5]
    assert list(second[2].get_xdata()) == [pytest.approx(3.5 / 3)]
    assert [round(y) for line in pairs.lines[:-1] for y in line.get_ydata()[:1]] == [0] * 3 + [
        1
    ] * 3
    assert list(zero.get_xdata()) == [0, 0]
    assert pairs.get_ylim() == (1.5, -0.5)


def test_the_curves_are_running_means_over_a_twentieth_of_the_steps():
    losses = [float(step) for step in range(40)]
    result = made_up(1, bf16_mixed=bf16(1.0, losses=losses))
    curve = result.figure().axes[0].lines[1]
    assert list(curve.get_xdata()) == list(range(2, 41))
    assert list(curve.get_ydata()) == [step + 0.5 for step in range(39)]


def test_a_run_of_a_few_steps_is_drawn_as_it_is():
    result = made_up(1, bf16_mixed=bf16(1.0, losses=[3.0, 2.0, 1.0]))
    assert list(result.figure().axes[0].lines[1].get_ydata()) == [3.0, 2.0, 1.0]


def test_the_figure_says_which_runs_diverged():
    early = dict(losses=[8.0] * 10, stopped_on_nan=True)
    runs = bf16(2.0, 5.0) + bf16(8.0, **early)
    figure = made_up(bf16_mixed=runs, bf16_true=bf16(1, 2, losses=[math.inf] * 20)
                     + bf16(3.0)).figure()  # fmt: skip
    curves, pairs = figure.axes
    labels = [text.get_text() for text in curves.get_legend().get_texts()]
    assert labels[1:] == ["bf16-mixed (1 of 3 diverged)", "bf16-true (2 of 3 diverged)"]
    assert curves.lines[1].get_ydata()[0] == 5.0 and curves.lines[1].get_ydata()[-1] == 3.5
    assert set(curves.lines[2].get_ydata()) == {3.0}
    texts = [text.get_text() for text in pairs.texts]
    assert texts == ["1 of 3 pairs diverged", "2 of 3 pairs diverged"]
    assert len(plots.render(figure)) > 1000


def test_a_metric_that_is_not_finite_marks_the_pairs_of_the_figure_too():
    result = made_up(2, bf16_mixed=bf16(2.0, 4.0))
    metric = lambda made: math.inf if made.precision.name == "bf16-mixed" else 1.0  # noqa: E731
    curves, pairs = result.figure(metric=metric).axes
    assert curves.get_legend().get_texts()[1].get_text() == "bf16-mixed (2 of 2 diverged)"
    assert [text.get_text() for text in pairs.texts] == ["2 of 2 pairs diverged"]
    assert pairs.get_title() == "Lambda minus 32-true"


def test_the_figure_of_one_seed_has_dots_and_of_one_precision_curves_only():
    _, pairs = made_up(1, bf16_mixed=bf16(2.5)).figure(metric="loss").axes
    assert [list(line.get_xdata()) for line in pairs.lines] == [[0.5], [0, 0]]
    assert list(pairs.texts) == []
    assert len(made_up(2).figure().axes) == 1


def test_precisions_of_ones_own_have_the_colour_of_what_they_compute_in_and_their_own_line():
    half = dict(compute_dtype=torch.float16, loss_scale=8.0)
    mine = [Precision(f"mine {i}", **half) for i in range(2)]
    result = made_up(1, **{p.name: [replace(run(1.0), precision=p)] for p in mine})
    lines = result.figure().axes[0].lines
    assert all(same_color(line.get_color(), plots.COLOURS["float16"]) for line in lines[1:])
    assert len({str(line._unscaled_dash_pattern) for line in lines}) == 3


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(precisions=[]), ValueError, "precisions: none given"),
        (dict(precisions="32-true"), TypeError, "precisions='32-true': expected a list"),
        (dict(precisions=PRECISIONS["tf32"]), TypeError, "expected a list of names"),
        (dict(precisions=["32-true", "fp64"]), ValueError, 'precision="fp64": expected one of'),
        (dict(precisions=["32-true", "bf16"]), ValueError, "ambiguous"),
        (dict(precisions=["32-true", "32-true"]), ValueError, 'two are called "32-true"'),
        (dict(baseline="tf32"), ValueError, 'baseline="tf32": expected one of 32-true, 16-mixed$'),
        (dict(seeds=0), ValueError, "seeds=0: expected at least 1, and 2 for an interval"),
        (dict(seeds=[]), ValueError, r"seeds=\[\]: expected at least 1"),
        (dict(seeds=[1, 2, 1]), ValueError, "seeds: 1 is there more than once"),
        (dict(control="nudge"), ValueError, 'control="nudge": expected one of none, 1-ulp nudge'),
        (dict(keep_models="some"), ValueError, 'keep_models="some": expected one of none, all'),
        (dict(seed=3), ValueError, "seed=3: cannot be the same for every run"),
        (dict(precision="32-true"), ValueError, "precision='32-true': cannot"),
        (dict(save_to="x"), ValueError, "save_to='x': cannot"),
        (dict(save_every=2), ValueError, "save_every=2: cannot"),
        (dict(resume_from="x"), ValueError, "resume_from='x': cannot"),
        (dict(model=lambda seed: None), TypeError, "model: gave None for seed 0, expected a torch"),
        (dict(batch_size=0), ValueError, "batch_size=0: expected at least 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(options, error, message, monkeypatch):
    given = dict(model=model(), data=data(), precisions=["32-true", "16-mixed"]) | SETTINGS
    with pytest.raises(error, match=message):
        compare(**given | options)


def test_mistakes_are_found_before_the_first_run(calls):
    for options in (dict(baseline="tf32"), dict(seeds=[1, 1]), dict(control="x")):
        with pytest.raises(ValueError, match=r"expected|more than once"):
            compare(model(), data(), ["32-true", "16-mixed"], **SETTINGS, **options)
    assert calls == []


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
