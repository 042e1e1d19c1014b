"""The figure of a comparison: what is drawn of which runs, in which colours."""

import math
from dataclasses import replace

import pytest
import torch
from made_up_runs import bf16, made_up, run
from matplotlib.colors import same_color

from mpbook import plots
from mpbook.precision import Precision


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
