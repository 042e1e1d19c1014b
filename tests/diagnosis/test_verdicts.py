"""Verdicts on made-up runs: where the borders are, and which evidence decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mpbook.diagnosis.advice import advise
from mpbook.diagnosis.choices import flipped
from mpbook.diagnosis.failures import (
    in_order,
    overflowing,
    scale_window,
    suggested_scale,
    where_it_began,
)
from mpbook.diagnosis.format_report import FormatReport
from mpbook.diagnosis.gradients import loss_error, losses_without_scale, relative_errors
from mpbook.diagnosis.noise_floor import noise
from mpbook.diagnosis.operators_seen import Choice, Recorder
from mpbook.diagnosis.places import Key, Place, Seen
from mpbook.diagnosis.state import Write
from mpbook.diagnosis.stepping import Run
from mpbook.diagnosis.unseen import _never_called
from mpbook.diagnosis.verdicts import FormatVerdict, is_right, judge_float16, judge_without_scale
from mpbook.watch.histograms import log2_histogram


def result(operator: str = "mm", phase: Any = "forward", *, nth: int = 1, **options: Any) -> Seen:
    """What an operator put out, in float16 and of size 1 unless it is said."""
    key = Key(phase, Place("layer"), operator, nth)
    given = {"dtype": torch.float16, "order": 0, "shape": (1,), "largest": 1.0, "highest": 1.0}
    return Seen(key, **(given | options))


def infinite(**options: Any) -> Seen:
    return result(began=True, nonfinite=True, signs={"+"}, **options)


def run(
    gradient: float = 1.0, small: float = 1e-3, *, seen: Sequence[Seen] = (), **options: Any
) -> Run:
    """Finite steps that left two gradients, of 1 and of a thousandth where they are right."""
    recorder = Recorder(nn.Identity())
    recorder.seen = {one.key: one for one in seen}
    gradients = {"large": torch.tensor([gradient]), "small": torch.tensor([small])}
    given = {"losses": [1.0], "gradients": gradients}
    return Run(torch.float16, 1.0, recorder, 3, **(given | options))


def float16(
    found: Run, *, unscaled: Run | None = None, wide: Run | None = None, sensitive: float = 0.0
) -> FormatVerdict:
    return judge_float16(found, unscaled or found, wide or run(), run(), set(), sensitive)


@pytest.mark.parametrize(
    ("gradient", "sensitive", "survives"),
    [(1.29, 0.0, "yes"), (1.31, 0.0, "no"), (1.5, 0.049, "no"), (1.5, 0.051, "yes")],
)
def test_gradients_are_wrong_from_three_tenths_and_ten_times_what_weights_do(
    gradient: float, sensitive: float, survives: str
) -> None:
    assert float16(run(gradient), sensitive=sensitive).survives == survives
    found = judge_without_scale("bfloat16", run(gradient), run(), set(), sensitive)
    assert found.survives == survives and found.wrong == (survives == "no")


def test_an_overflow_makes_wrong_gradients_its_own_however_sensitive_the_model_is() -> None:
    found = float16(run(1.5, seen=[infinite()]), sensitive=1.0)
    assert found.survives == "no" and found.failure is not None
    assert float16(run(1.29, seen=[infinite()]), sensitive=1.0).survives == "yes"


@pytest.mark.parametrize(
    ("small", "sensitive", "silenced"),
    [(0.0, 0.0, True), (0.00071, 0.0, False), (0.00069, 0.0, True), (0.0, 0.11, False)],
)
def test_a_small_gradient_is_silenced_only_behind_an_overflow(
    small: float, sensitive: float, silenced: bool
) -> None:
    behind, without = run(small=small, seen=[infinite()]), run(small=small)
    assert float16(behind, sensitive=sensitive).survives == ("no" if silenced else "yes")
    assert is_right(behind, run(), set(), sensitive) is not silenced
    assert float16(without, sensitive=sensitive).survives == "yes"
    assert is_right(without, run(), set(), sensitive)


def test_a_run_is_right_only_if_it_is_finite_and_so_are_its_gradients() -> None:
    assert not is_right(run(1.31), run(), set(), 0.0)
    assert not is_right(run(skipped=1), run(), set(), 0.0)


@pytest.mark.parametrize(("gradient", "needed"), [(0.81, False), (0.79, True)])
def test_a_loss_scale_is_needed_from_a_fifth_of_a_gradient(gradient: float, needed: bool) -> None:
    found = float16(run(), unscaled=run(gradient))
    assert found.loss_scale_needed is needed
    assert found.survives == ("with a loss scale" if needed else "yes")
    assert not float16(run(skipped=1), unscaled=run(gradient)).loss_scale_needed


def test_what_is_wrong_with_a_scale_too_is_no_reason_for_one() -> None:
    lost = losses_without_scale(run(0.5), run(0.75), run(), set())
    assert lost["large"] == pytest.approx(0.25)
    for bare in (0.5, float("inf")):
        assert losses_without_scale(run(bare), run(float("inf")), run(), set())["large"] == 0.0


def test_a_gradient_that_is_not_finite_is_infinitely_wrong() -> None:
    assert relative_errors(run(float("nan")), run(), set())["large"] == float("inf")


@pytest.mark.parametrize(("exact", "silent"), [(0.51, set()), (0.49, {"large"}), (1.9, set())])
def test_a_gradient_that_is_rounding_for_the_most_has_no_vote(
    exact: float, silent: set[str]
) -> None:
    workload: Any = SimpleNamespace(run=lambda *_, **__: run(exact))
    assert noise(workload, run()) == silent


@pytest.mark.parametrize(("unused", "shown"), [(8, 8), (9, 9)])
def test_modules_that_nobody_called_are_named_up_to_eight(unused: int, shown: int) -> None:
    found = _never_called(nn.ModuleList(nn.Linear(1, 1) for _ in range(unused)), run())
    assert len(found) == shown and (found[-1] == "and 1 more") is (unused > 8)


def test_a_module_whose_weights_have_gradients_was_used_by_other_ways_than_a_call() -> None:
    gradients = {"0.weight": torch.ones(1), "0.bias": torch.ones(1)}
    model = nn.ModuleList(nn.Linear(1, 1) for _ in range(2))
    assert _never_called(model, run(gradients=gradients)) == ["1"]


def test_the_error_of_a_loss_is_relative() -> None:
    assert loss_error(run(losses=[110.0]), run(losses=[100.0])) == pytest.approx(0.1)
    assert loss_error(run(losses=[1e-3, -1.0]), run(losses=[1e-9, -1.1])) == pytest.approx(1 / 11)


def test_a_failure_has_its_step_from_one_and_what_is_not_finite_after_it() -> None:
    broken = run(
        seen=[infinite(step=1)], nonfinite_weights=["w"], nonfinite_buffers=["running_mean"]
    )
    found = float16(broken)
    assert found.survives == "no" and "infinite at step 2" in found.reason
    assert found.nonfinite_after == ("w", "running_mean")


def test_what_magnitudes_said_and_the_run_did_not_do_is_told() -> None:
    large = run(seen=[result(largest=1e5, highest=1e5)])
    assert not float16(run(seen=[infinite()], skipped=1), wide=large).contradictions
    (said,) = float16(run(seen=[infinite()], skipped=1)).contradictions
    assert "did not say so" in said
    (said,) = float16(run(), wide=large).contradictions
    assert "no infinity" in said
    (said,) = float16(run(seen=[infinite()]), wide=large).contradictions
    assert "nothing behind it" in said
    assert not float16(run()).contradictions


def test_headroom_is_the_runs_own_unless_it_has_infinities() -> None:
    wide, own = run(seen=[result(largest=65504.0)]), result(largest=32752.0)
    assert float16(run(seen=[own]), wide=wide).headroom == 1.0
    assert float16(run(seen=[own, infinite(nth=2)]), wide=wide).headroom == 0.0


@pytest.mark.parametrize(("largest", "warned"), [(65504 / 3.9, True), (65504 / 4.1, False)])
def test_an_operator_is_watched_within_two_binades_of_overflow(
    largest: float, warned: bool
) -> None:
    verdict = float16(run(seen=[result(largest=largest)]))
    said = advise({"float16": FormatReport(verdict)}, [])
    assert any("below overflow" in one.what for one in said) is warned


@pytest.mark.parametrize(("lost", "told"), [(0.49, False), (0.51, True)])
def test_weights_stand_still_from_half_of_their_changes_on(lost: float, told: bool) -> None:
    write = Write("weights", "", "add_", torch.float32, changed=1, magnitude=1.0)
    write.lost[torch.bfloat16] = lost
    assert bool(advise({}, [write])) is told


# --- What fails first ---------------------------------------------------------------------------


def test_what_overflows_first_comes_first_and_a_later_step_comes_later() -> None:
    late = result(largest=7e4, overflows_at=1, order=0)
    early = result(largest=7e4, overflows_at=0, order=1, nth=2)
    assert overflowing(run(seen=[late, early])) == [early, late]
    first, second = result(step=1), result(order=1, nth=2)
    assert in_order(run(seen=[first, second])) == [second, first]


def test_a_result_that_is_as_infinite_in_the_reference_began_nothing() -> None:
    nan = replace(infinite(), signs={"+", "nan"})
    assert where_it_began(run(seen=[nan]), run(seen=[infinite()])) is nan
    assert where_it_began(run(seen=[infinite()]), run(seen=[nan])) is None


def test_of_masks_the_last_before_nan_is_named() -> None:
    masks = [infinite(operator="masked_fill", nth=n, order=n) for n in (1, 2)]
    nan = result("_softmax", order=3, nonfinite=True, began_nan=True, signs={"nan"})
    later = infinite(operator="masked_fill", nth=4, order=4)
    assert where_it_began(run(seen=[*masks, nan, later])) is masks[1]


def gradients(*sizes: float, cancelled: bool = False, nth: int = 1) -> Seen:
    histogram = log2_histogram(torch.tensor(sizes))
    return result("mul", "backward", largest=max(sizes), histogram=histogram,
                  cancelled=cancelled, nth=nth)  # fmt: skip


def test_scales_keep_nine_tenths_of_a_gradient_and_overflow_none() -> None:
    wide = run(seen=[gradients(2.0**-30), gradients(2.0**-10, nth=2)])
    assert scale_window(wide) == (6, 25) and suggested_scale(wide) == 2.0**15
    noise = gradients(2.0**-60, cancelled=True, nth=3)
    assert scale_window(run(seen=[gradients(2.0**-10), noise])) == (-14, 25)
    for tiny, low in ((3, 16), (0.25, 14)):  # three sevenths of the magnitude, and a seventeenth
        parts = gradients(*[2.0**-40 * min(tiny, 1)] * math.ceil(tiny), 2.0**-38)
        assert scale_window(run(seen=[parts])) == (low, 53)


def test_a_suggested_scale_is_one_below_overflow_at_most() -> None:
    assert suggested_scale(run(seen=[gradients(2.0**14)])) == 2.0**0
    assert suggested_scale(run(seen=[gradients(2.0**-24)])) == 2.0**19
    assert suggested_scale(run(seen=[gradients(2.0**-30), gradients(2.0**9, nth=2)])) == 2.0**5
    assert suggested_scale(run()) == 2.0**10


@pytest.mark.parametrize(("operator", "share"), [("topk", 0.0), ("argmax", 1.0)])
def test_the_order_within_a_top_k_does_not_count(operator: str, share: float) -> None:
    runs = []
    for indices in ([[0, 1], [2, 3]], [[1, 0], [3, 2]]):
        runs.append(run())
        key = Key("forward", Place("layer"), f"{operator} (indices)", 1)
        runs[-1].recorder.choices = [Choice(key, torch.tensor(indices))]
    assert sum(one.share for one in flipped(*runs)) == share


def test_a_row_of_a_top_k_with_one_other_index_differs() -> None:
    runs = []
    for indices in ([[0, 1], [2, 3]], [[0, 2], [2, 3]]):
        runs.append(run())
        key = Key("forward", Place("layer"), "topk (indices)", 1)
        runs[-1].recorder.choices = [Choice(key, torch.tensor(indices))]
    assert [one.share for one in flipped(*runs)] == [0.5]
