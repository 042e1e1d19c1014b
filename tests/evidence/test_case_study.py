"""`case_study`: savings as the ratio of two lines, and records read without losing a row."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpbook.cost.memory_plan import GPT2_SIZES, plan_memory
from mpbook.cost.roofline import STATED, gpt_step
from mpbook.evidence import case_study, ladders
from mpbook.evidence.case_study import MemoryLine, predicted_tokens_per_second
from mpbook.evidence.records import Provenance, Record
from mpbook.models import GPT2_124M, GPTConfig
from mpbook.precision import PRECISIONS

CPU = torch.device("cpu")
GPU = replace(
    Provenance.here(CPU), device="A GPU", device_type="cuda", started="2026-11-24T10:00:00+00:00"
)


def record(experiment: str, *cases: dict[str, Any]) -> Record:
    return Record(experiment, {}, list(cases), GPU, 1.0)


def measured(results: dict[str, Any], **case: Any) -> dict[str, Any]:
    return {"case": case, "status": "measured", "seconds": 1.0, "results": results}


def without(status: str, **case: Any) -> dict[str, Any]:
    return {"case": case, "status": status, "seconds": 1.0, "results": {}}


# --- memory as a line --------------------------------------------------------------------------


def test_a_line_goes_through_both_points() -> None:
    line = MemoryLine.through((64, 1000.0), (16, 400.0))
    assert (line.at(64), line.at(16), line.at(0)) == (1000.0, 400.0, 200.0)


def test_a_line_needs_two_points() -> None:
    with pytest.raises(ValueError, match="second: 8 tokens like the first"):
        MemoryLine.through((8, 1.0), (8, 2.0))


FULL = MemoryLine(1000.0, 100.0)
MIXED = MemoryLine(1200.0, 50.0)


def test_a_saving_is_a_fraction_of_the_other_line() -> None:
    assert MIXED.saving(to=FULL, tokens=0) == pytest.approx(-0.2)
    assert MIXED.saving(to=FULL, tokens=4) == 0.0
    assert MIXED.saving(to=FULL, tokens=90) == pytest.approx(0.43)


def test_the_limit_is_what_a_vast_batch_saves() -> None:
    assert MIXED.saving_limit(to=FULL) == 0.5
    assert MIXED.saving(to=FULL, tokens=1e12) == pytest.approx(0.5)
    assert MemoryLine(0.0, 25.0).saving_limit(to=FULL) == 0.75


def test_a_saving_above_the_limit_is_reached_by_no_batch() -> None:
    assert MIXED.tokens_for(0.5, to=FULL) is None
    assert MIXED.tokens_for(0.6, to=FULL) is None


def test_a_saving_that_is_there_from_the_start_takes_no_tokens() -> None:
    assert MIXED.tokens_for(-0.3, to=FULL) == 0.0
    assert MIXED.tokens_for(-0.2, to=FULL) == 0.0


def test_equal_lines_save_nothing_from_the_start() -> None:
    assert FULL.tokens_for(0.0, to=FULL) == 0.0
    assert FULL.tokens_for(0.1, to=FULL) is None


def test_a_line_that_saves_less_the_larger_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="falls as the batch grows"):
        FULL.tokens_for(-0.9, to=MIXED)


@pytest.mark.parametrize("saving", [1.0, 40.0])
def test_a_saving_in_percent_is_refused(saving: float) -> None:
    for count in (MIXED.tokens_for, MIXED.tokens_until):
        with pytest.raises(ValueError, match=r"expected less than 1, 0\.4 for 40%"):
            count(saving, to=FULL)


def test_a_saving_that_is_there_from_the_start_lasts_until_it_is_used_up() -> None:
    slim = MemoryLine(500.0, 75.0)
    until = slim.tokens_until(0.4, to=FULL)
    assert until is not None and slim.saving(to=FULL, tokens=until) == pytest.approx(0.4)
    assert slim.saving(to=FULL, tokens=until + 1) < 0.4 < slim.saving(to=FULL, tokens=until - 1)
    assert slim.tokens_until(0.25, to=FULL) == math.inf  # its limit
    assert MIXED.tokens_until(0.0, to=FULL) is None


# --- what of the claim about memory is true, and when ------------------------------------------


def planned_line(precision: str) -> MemoryLine:
    """The chapter's line of GPT-2 124M, from the planner."""
    plans = (
        plan_memory(GPT2_124M, batch_size=b, precision=precision, device="cuda") for b in (1, 2)
    )
    points = [(1024 * b, float(p.memory.total)) for b, p in enumerate(plans, start=1)]
    return MemoryLine.through(*points)


def test_bf16_true_saves_40_percent_of_what_is_counted_up_to_some_nine_sequences() -> None:
    tokens = planned_line("bf16-true").tokens_until(0.4, to=planned_line("32-true"))
    assert tokens is not None and 7 < tokens / 1024 < 12
    assert planned_line("bf16-mixed").tokens_for(0.4, to=planned_line("32-true")) is None


def saved_at_peak(config: GPTConfig, precision: str, **options: Any) -> float:
    peaks = [
        plan_memory(config, precision=p, device="cuda", update_loop="fused", **options).peak
        for p in (precision, "32-true")
    ]
    return 1 - peaks[0] / peaks[1]


def test_at_the_peak_bf16_true_saves_40_percent_of_larger_models_and_of_shorter_sequences() -> None:
    full = [saved_at_peak(GPT2_124M, "bf16-true", batch_size=b) for b in (1, 4, 16, 64)]
    assert max(full) < 0.395
    short = saved_at_peak(GPT2_124M, "bf16-true", batch_size=1, sequence_length=512)
    large = saved_at_peak(GPT2_SIZES["GPT-2 774M"], "bf16-true", batch_size=12)
    assert short > 0.45 and large > 0.41


def test_at_the_peak_bf16_mixed_saves_40_percent_of_no_gpt2() -> None:
    saved = [
        saved_at_peak(config, "bf16-mixed", batch_size=b)
        for config in GPT2_SIZES.values()
        for b in (1, 8, 64)
    ]
    assert max(saved) < 0.38


sizes = st.floats(1.0, 1e6)


@given(sizes, sizes, sizes, sizes, st.floats(-0.5, 0.9))
def test_where_a_saving_is_reached_it_is_that_saving(
    a: float, b: float, c: float, d: float, saving: float
) -> None:
    mixed, full = MemoryLine(a, b), MemoryLine(c, d)
    if mixed.saving_limit(to=full) < mixed.saving(to=full, tokens=0):
        return
    tokens = mixed.tokens_for(saving, to=full)
    if tokens is None:
        assert mixed.saving_limit(to=full) <= saving + 1e-9
    elif tokens == 0:
        assert mixed.saving(to=full, tokens=0) >= saving - 1e-9
    else:
        assert mixed.saving(to=full, tokens=tokens) == pytest.approx(saving, abs=1e-6)


# --- speed as two terms ------------------------------------------------------------------------


def test_products_alone_run_at_the_share_of_the_peak_that_they_reach() -> None:
    assert predicted_tokens_per_second(2.0, 0.0, peak=100.0, bandwidth=1.0) == 40.0
    assert predicted_tokens_per_second(2.0, 0.0, peak=100.0, bandwidth=1.0, reached=1.0) == 50.0


def test_memory_traffic_takes_its_time_beside_them() -> None:
    rate = predicted_tokens_per_second(0.0, 4.0, peak=100.0, bandwidth=8.0)
    assert rate == 2.0
    both = predicted_tokens_per_second(8.0, 4.0, peak=20.0, bandwidth=8.0, reached=0.5)
    assert both == pytest.approx(1 / (0.8 + 0.5))


@pytest.mark.parametrize("reached", [0.0, -0.1, 1.1, 80.0])
def test_a_share_out_of_range_is_refused(reached: float) -> None:
    with pytest.raises(ValueError, match="expected a share above 0"):
        predicted_tokens_per_second(1.0, 1.0, peak=1.0, bandwidth=1.0, reached=reached)


# --- the two models of memory, and the two of speed ---------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_the_planner_counts_is_a_line_in_the_batch(
    precision: str, checkpointing: bool
) -> None:
    def total(batch: int) -> int:
        options = dict(precision=precision, checkpointing=checkpointing)
        return plan_memory(GPT2_124M, batch_size=batch, **options).memory.total  # type: ignore[arg-type]

    line = MemoryLine.through((1, total(1)), (3, total(3)))
    assert [line.at(batch) for batch in (2, 40)] == [total(2), total(40)]


@pytest.mark.parametrize("batch", [1, 2, 8, 64])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_counted_total_and_its_larger_half_are_bounds_of_the_peak(
    precision: str, batch: int
) -> None:
    plan = plan_memory(GPT2_124M, batch_size=batch, precision=precision)
    saved, gradients = plan.memory.saved_for_backward, plan.gradients
    assert plan.memory.total == plan.kept + gradients + saved
    most = max(plan.loss_temporaries, plan.block_temporaries, plan.update_temporaries)
    assert plan.kept + max(saved, gradients) <= plan.peak <= plan.memory.total + most


@pytest.mark.parametrize("batch", [1, 16, 256])
@pytest.mark.parametrize("name", STATED)
def test_the_time_of_a_step_lies_between_the_larger_and_the_sum_of_the_two_terms(
    name: str, batch: int
) -> None:
    roof, tokens = STATED[name], batch * GPT2_124M.context
    for format in {"float32", "tfloat32", "float16", "bfloat16"} & set(roof.peaks):
        parts = gpt_step(GPT2_124M, batch=batch, format=format)
        flops, traffic = sum(p.flops for p in parts), sum(p.bytes for p in parts)
        least = sum(roof.seconds(part, format) for part in parts)
        machine = dict(peak=roof.peak(format), bandwidth=roof.bandwidth, reached=1.0)
        rate = predicted_tokens_per_second(flops / tokens, traffic / tokens, **machine)
        terms = flops / roof.peak(format), traffic / roof.bandwidth
        assert tokens / rate == pytest.approx(sum(terms))
        assert max(terms) <= least * (1 + 1e-9) and least <= sum(terms) * (1 + 1e-9)


# --- records of throughput ---------------------------------------------------------------------


def timing(*seconds: float, peak: float | None = 1e6, **more: Any) -> dict[str, Any]:
    results = {"seconds": list(seconds), "tokens": 100, "flops_per_token": 1000}
    return results | {"stated_peak": peak, "peak_memory": 3 * 2**30} | more


def a_throughput_record() -> Record:
    at = dict(mode="eager", vocabulary=512)
    return record(
        "gpt2_throughput",
        measured(timing(1.0, 1.0, 1.01), precision="32-true", **at),
        measured(timing(0.5, 0.5, 0.5), precision="tf32", **at),
        measured(timing(0.2, 0.25, 0.4), precision="bf16-mixed", **at),
        without("out of memory", precision="16-mixed", **at),
        measured(timing(0.1), precision="bf16-mixed", mode="compiled", vocabulary=512),
    )


def test_every_case_is_a_row_those_without_results_too() -> None:
    found = ladders.throughputs(a_throughput_record())
    assert [t.case["precision"] for t in found] == [
        "32-true", "tf32", "bf16-mixed", "16-mixed", "bf16-mixed"
    ]  # fmt: skip
    assert [t.remark for t in found] == ["", "", "wide spread", "out of memory", ""]
    assert found[3].tokens_per_second is None


def test_tokens_a_second_are_tokens_over_each_reading() -> None:
    rate = ladders.throughputs(a_throughput_record())[2].tokens_per_second
    assert rate is not None
    assert rate.readings == (500.0, 400.0, 250.0)


def test_mfu_is_the_share_of_the_stated_peak_at_the_median() -> None:
    found = ladders.throughputs(a_throughput_record())
    assert found[1].mfu == pytest.approx(200 * 1000 / 1e6)
    assert found[2].mfu == pytest.approx(400 * 1000 / 1e6)


def test_without_a_stated_peak_there_is_no_mfu() -> None:
    only = record("gpt2_throughput", measured(timing(1.0, peak=None), precision="32-true"))
    assert ladders.throughputs(only)[0].mfu is None


def test_a_speedup_is_the_ratio_of_medians_in_the_same_mode() -> None:
    found = a_throughput_record()
    at = dict(mode="eager", vocabulary=512)
    assert case_study.speedup(found, "bf16-mixed", to="32-true", **at) == 4.0
    assert case_study.speedup(found, "bf16-mixed", to="tf32", **at) == 2.0


def test_there_is_no_speedup_without_both_cases() -> None:
    found = a_throughput_record()
    at = dict(mode="eager", vocabulary=512)
    assert case_study.speedup(None, "bf16-mixed", to="tf32", **at) is None
    assert case_study.speedup(found, "16-mixed", to="tf32", **at) is None
    assert case_study.speedup(found, "bf16-true", to="tf32", **at) is None
    assert case_study.speedup(found, "tf32", to="32-true", mode="compiled", vocabulary=512) is None


def test_the_table_puts_predictions_beside_measurements() -> None:
    table = case_study.throughput_table(a_throughput_record(), {"tf32": (150.0, 1250.0)})
    assert table.caption == "recorded on A GPU, 2026-11-24"
    assert list(table.header) == [
        "precision", "mode", "vocabulary", "predicted", "tokens/s", "MFU", "peak GiB", ""
    ]  # fmt: skip
    assert table.rows[0] == ["32-true", "eager", 512, "", "100", "10.0%", "3.0", ""]
    assert table.rows[1] == ["tf32", "eager", 512, "150 to 1,250", "200", "20.0%", "3.0", ""]
    assert table.rows[2][4:] == ["400", "40.0%", "3.0", "wide spread"]
    assert table.rows[3][4:] == ["", "", "", "out of memory"]


def test_a_number_that_nothing_counted_is_left_empty() -> None:
    results = timing(1.0, peak=None, peak_memory=None)
    only = record(
        "gpt2_throughput", measured(results, precision="32-true", mode="eager", vocabulary=1)
    )
    assert case_study.throughput_table(only, {}).rows[0][4:] == ["100", "", "", ""]


def test_without_a_record_the_tables_say_so() -> None:
    table = case_study.throughput_table(None, {"tf32": (150.0, 250.0)})
    assert table.rows == [["tf32", "150 to 250"]]
    memory = case_study.memory_table(None, {1: -0.02, 8: 0.2})
    assert memory.rows == [[1, "-2.0%"], [8, "20.0%"]]
    assert "no record" in case_study.quality(None, "bf16-mixed", margin=0.01)


# --- memory ------------------------------------------------------------------------------------


def held(peak: int | None, **memory: int) -> dict[str, Any]:
    return {"memory": memory, "peak": peak}


def a_memory_record() -> Record:
    return record(
        "gpt2_memory",
        measured(held(1000, parameters=1), precision="32-true", batch=1),
        measured(held(2000, parameters=1), precision="32-true", batch=2),
        without("out of memory", precision="32-true", batch=4),
        measured(held(1500, parameters=9), precision="bf16-mixed", batch=2),
        measured(held(1100, parameters=9), precision="bf16-mixed", batch=1),
        measured(held(1900, parameters=9), precision="bf16-mixed", batch=4),
        measured(held(400, parameters=9), precision="16-true", batch=1),
        measured(held(400, parameters=9), precision="16-true", batch=8),
    )


def test_savings_are_fractions_of_the_peak_by_batch() -> None:
    found = case_study.savings(a_memory_record(), "bf16-mixed")
    assert list(found) == [1, 2, 4]
    assert found == {1: pytest.approx(-0.1), 2: 0.25, 4: None}


def test_a_batch_that_the_other_precision_has_not_has_no_saving() -> None:
    assert case_study.savings(a_memory_record(), "16-true") == {1: 0.6, 8: None}


def test_where_the_allocator_keeps_no_count_the_categories_are_added_up() -> None:
    found = record(
        "gpt2_memory",
        measured(held(None, parameters=6, gradients=4), precision="32-true", batch=1),
        measured(held(None, parameters=3, gradients=2), precision="bf16-true", batch=1),
    )
    assert case_study.savings(found, "bf16-true") == {1: 0.5}


def test_the_memory_table_has_a_row_for_each_batch_and_no_column_for_the_baseline() -> None:
    table = case_study.memory_table(a_memory_record(), {1: 0.01, 4: 0.3, 64: 0.4})
    assert list(table.header) == ["batch", "bf16-mixed, predicted", "bf16-mixed", "16-true"]
    assert table.rows == [
        [1, "1.0%", "-10.0%", "60.0%"],
        [2, "", "25.0%", "no result"],
        [4, "30.0%", "no result", "no result"],
        [8, "", "no result", "no result"],
    ]
    assert table.caption == "Less than 32-true; recorded on A GPU, 2026-11-24"


# --- quality -----------------------------------------------------------------------------------


def pairs(*losses: tuple[float | None, float | None]) -> Record:
    cases = []
    for seed, (full, mixed) in enumerate(losses):
        cases += [
            measured({"validation_loss": mixed}, precision="bf16-mixed", seed=seed),
            measured({"validation_loss": full}, precision="32-true", seed=seed),
        ]
    return record("bf16_pairs", *cases)


def test_the_interval_over_the_pairs_decides() -> None:
    close = pairs((3.0, 3.001), (3.1, 3.099), (2.9, 2.9005), (3.2, 3.2))
    said = case_study.quality(close, "bf16-mixed", margin=0.003)
    assert said == "within 0.3% of 32-true (95% confidence, 4 seeds)"
    assert "not settled" in case_study.quality(close, "bf16-mixed", margin=0.0001)
    worse = pairs((3.0, 3.1), (3.1, 3.21), (2.9, 3.0))
    assert "worse than 32-true" in case_study.quality(worse, "bf16-mixed", margin=0.003)


def test_pairs_are_matched_by_seed_and_not_by_order() -> None:
    shuffled = pairs((3.0, 3.0), (1.0, 1.0), (2.0, 2.0))
    full = [row for row in shuffled.cases if row["case"]["precision"] == "32-true"]
    mixed = [row for row in shuffled.cases if row["case"]["precision"] != "32-true"]
    said = case_study.quality(
        replace(shuffled, cases=full + mixed[::-1]), "bf16-mixed", margin=0.003
    )
    assert said.startswith("within 0.3%")


def test_a_pair_that_diverged_is_not_left_out_in_silence() -> None:
    for broken in (pairs((3.0, None), (3.0, 3.0)), pairs((None, 3.0), (3.0, 3.0))):
        said = case_study.quality(broken, "bf16-mixed", margin=0.003)
        assert said == "no verdict: 1 of 2 pairs are incomplete"


def test_a_case_without_results_or_without_partner_makes_its_pair_incomplete() -> None:
    whole = pairs((3.0, 3.0), (3.1, 3.1), (3.2, 3.2))
    failed = [*whole.cases[:-1], without("out of memory", precision="32-true", seed=2)]
    for cases in (failed, whole.cases[:-1]):
        said = case_study.quality(replace(whole, cases=cases), "bf16-mixed", margin=0.003)
        assert said == "no verdict: 1 of 3 pairs are incomplete"


def test_one_pair_gives_no_verdict() -> None:
    said = case_study.quality(pairs((3.0, 3.0)), "bf16-mixed", margin=0.003)
    assert said == "no verdict: of 1 pairs, which give no interval"


# --- real records ------------------------------------------------------------------------------


def test_it_reads_what_the_recorder_writes(recorded_here: Any) -> None:
    names = case_study.EXPERIMENTS
    made = {name: recorded_here(name) for name in names}
    speed = case_study.throughput_table(made["gpt2_throughput"], {})
    assert len(speed.rows) == len(made["gpt2_throughput"].cases)
    at = dict(mode="eager", vocabulary=512)
    ratio = case_study.speedup(made["gpt2_throughput"], "bf16-mixed", to="32-true", **at)
    assert ratio is not None
    assert ratio > 0
    saved = case_study.savings(made["gpt2_memory"], "bf16-true")
    assert all(saving is not None and 0.3 < saving < 0.6 for saving in saved.values())
    assert ladders.ladder(made["optimisation_ladder"]).rows[0][0] == "float32"
    said = case_study.quality(made["bf16_pairs"], "bf16-mixed", margin=0.003)
    assert said == "no verdict: of 1 pairs, which give no interval"


def test_published_pairs_are_of_one_baseline_and_of_the_small_model() -> None:
    over = {name: case_study.published_speedup(to=name) for name in ("32-true", "tf32")}
    assert {figure.baseline for figure in over["32-true"]} == {"float32"}
    assert {figure.baseline for figure in over["tf32"]} == {"TF32"}
    assert over["32-true"].summary().figures == 35 and over["32-true"].summary().median < 2
    assert not any(figure.compiled for group in over.values() for figure in group)
