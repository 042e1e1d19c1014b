"""`mpbook.evidence.ladders`: what is read out of records made by hand, and what is timed here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpbook.cost.measure import Spread, ratios
from mpbook.device import pick
from mpbook.evidence import ladders, records
from mpbook.evidence.records import Provenance, Record

CPU = torch.device("cpu")


def made(experiment: str, rows: list[tuple[dict[str, Any], dict[str, Any]]], **what: str) -> Record:
    here = vars(Provenance.here(CPU)) | {"started": "2026-11-25T00:00:00+00:00"} | what
    cases = [
        {"case": case, "status": "measured", "seconds": 1.0, "results": results}
        for case, results in rows
    ]
    failed = {"case": {"format": "float32", "m": 8, "k": 8, "n": 8, "rung": "lost"}}
    cases.append({**failed, "status": "out of memory", "seconds": 1.0, "results": {}})
    return Record(experiment, {}, cases, Provenance(**here), 1.0)


def product(format: str, m: int, k: int, n: int, *seconds: float) -> tuple[dict[str, Any], Any]:
    case = {"format": format, "m": m, "k": k, "n": n}
    return case, {"seconds": list(seconds), "flops": 2 * m * k * n}


PRODUCTS = made(
    "matmul_ladder",
    [
        product("float32", 64, 64, 64, 1.0, 3.0, 2.0),
        product("float32", 4096, 4096, 4096, 8.0, 8.0, 8.0),
        product("float32", 4095, 4095, 4095, 16.0, 16.0, 16.0),
        product("float32", 4104, 4104, 4104, 8.0, 8.0, 8.0),
        product("float32", 8192, 8192, 8192, 64.0, 64.0, 64.0),
        product("float32", 64, 64, 128, 9.0),
        product("float32", 512, 768, 50257, 4.0),
        product("float32", 512, 768, 50304, 1.0),
        product("float16", 64, 64, 64, 5.0),
        product("float16", 4096, 4096, 4096, 1.0, 2.0, 9.0),
        product("float16", 4095, 4095, 4095, 8.0),
        product("float16", 8192, 8192, 8192, 4.0),
    ],
    device="NVIDIA H100 80GB HBM3",
    device_type="cuda",
)


def step(
    rung: str, tokens: int, *seconds: float, precision: str = "bf16-mixed", **more: int
) -> tuple[dict[str, Any], Any]:
    results = {"seconds": list(seconds), "tokens": tokens, "flops_per_token": 1e9}
    return {"rung": rung, "precision": precision}, results | more


RUNGS = [step("float32", 1000, 4.0, 2.0, 2.0, precision="32-true", peak_memory=3 * 2**30)]
RUNGS.append(step("bf16 autocast", 1000, 1.0, peak_memory=3 * 2**30))
RUNGS.append(step("twice the batch", 2000, 1.0, 1.0, 5.0))


def test_squares_of_powers_of_two_are_read_and_nothing_else() -> None:
    found = ladders.recorded_squares(PRODUCTS)
    assert {format: sorted(spreads) for format, spreads in found.items()} == {
        "float32": [64, 4096, 8192],
        "float16": [64, 4096, 8192],
    }
    assert found["float32"][64] == Spread((1.0, 3.0, 2.0))


def test_the_crossover_is_where_the_narrow_format_begins_to_win() -> None:
    found = ladders.recorded_squares(PRODUCTS)
    assert ladders.crossover(found, "float32", "float16") == 4096
    assert ladders.crossover(found, "float16", "float32") is None
    assert ladders.crossover(found, "float32", "float32") is None
    always = {
        "a": {1: Spread((2.0,)), 2: Spread((2.0,))},
        "b": {1: Spread((1.0,)), 2: Spread((1.0,))},
    }
    assert ladders.crossover(always, "a", "b") == 1
    dip = {"a": {n: Spread((2.0,)) for n in (1, 2, 3)}, "b": {1: Spread((1.0,)), 2: Spread((3.0,))}}
    dip["b"][3] = Spread((1.0,))
    assert ladders.crossover(dip, "a", "b") == 3


def test_alignment_is_told_as_a_share_of_the_aligned_rate() -> None:
    table = ladders.alignment(PRODUCTS)
    assert table.rows == [
        ("float32", 4095, 1, 4096, f"{(4095 / 4096) ** 3 / 2:.0%}"),
        ("float32", 4104, 8, 4096, f"{(4104 / 4096) ** 3:.0%}"),
        ("float32", 50257, 1, 50304, f"{50257 / 50304 / 4:.0%}"),
        ("float16", 4095, 1, 4096, f"{(4095 / 4096) ** 3 / 4:.0%}"),
    ]
    assert table.caption == "recorded on NVIDIA H100 80GB HBM3, 2026-11-25"
    with pytest.raises(LookupError, match="0 cases"):
        ladders.alignment(made("matmul_ladder", [product("float32", 4095, 4095, 4095, 1.0)]))


H100 = "NVIDIA H100 80GB HBM3"


def test_the_ladder_tells_rates_gains_and_utilisation() -> None:
    table = ladders.ladder(made("optimisation_ladder", RUNGS, device=H100))
    assert [row[:4] for row in table.rows] == [
        ["float32", "500", "", ""],
        ["bf16 autocast", "1,000", "2.00", "2.00"],
        ["twice the batch", "2,000", "2.00", "4.00"],
        ["lost", "", "", ""],
    ]
    assert table.rows[1][4] == f"{1e12 / 989.5e12:.1%}"
    assert table.caption == f"recorded on {H100}, 2026-11-25"


def test_a_rung_that_did_not_run_or_spread_widely_says_so() -> None:
    rows = ladders.ladder(made("optimisation_ladder", RUNGS, device=H100)).rows
    assert [row[6] for row in rows] == ["wide spread", "", "wide spread", "out of memory"]
    assert [row[5] for row in rows] == ["3.0", "3.0", "", ""]


def test_gains_are_over_the_last_rung_that_ran() -> None:
    record = made("optimisation_ladder", RUNGS)
    cases = [record.cases[i] for i in (3, 0, 3, 1)]  # the lost one first, and in between
    rows = ladders.ladder(replace(record, cases=cases)).rows
    assert [row[2] for row in rows] == ["", "", "", "2.00"]


def test_without_a_stated_peak_there_is_no_utilisation() -> None:
    rows = ladders.ladder(made("optimisation_ladder", RUNGS, device="a CPU")).rows
    assert [row[4] for row in rows] == [""] * 4


def test_without_a_record_the_ladder_says_so() -> None:
    table = ladders.ladder(None)
    assert "Published" in table.caption and {row[0] for row in table.rows} == {"16 bits", "float32"}
    assert all(float(row[4]) > 1 for row in table.rows)


def test_the_ladder_is_drawn_from_the_rungs_that_ran() -> None:
    axes: Any = ladders.ladder_figure(made("optimisation_ladder", RUNGS, device=H100)).axes[0]
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == ["float32", "bf16 autocast", "twice the batch"]
    assert [bar.get_width() for bar in axes.patches] == [500.0, 1000.0, 2000.0]
    assert list(axes.lines[0].get_xdata()) == [250.0, 500.0]
    title = axes.get_title(loc="left") or axes.get_title()
    assert title == f"Tokens a second, recorded on {H100}, 2026-11-25"
    assert axes.get_ylim() == (2.5, -0.5)


def test_a_page_finds_a_record_once_there_is_one(tmp_path: Path) -> None:
    assert records.find("matmul_ladder", folders=[tmp_path]) is None
    records.save(PRODUCTS, tmp_path)
    found = records.find("matmul_ladder", folders=[tmp_path])
    assert found is not None
    assert ladders.recorded_squares(found) == ladders.recorded_squares(PRODUCTS)


@pytest.mark.parametrize("name", ["matmul_ladder", "optimisation_ladder"])
def test_what_the_recorder_writes_can_be_read(name: str, recorded_here: Any) -> None:
    record = recorded_here(name)
    if name == "matmul_ladder":
        found = ladders.recorded_squares(record)
        assert set(found) == {"float32", "float16", "bfloat16"}
        assert all(len(spreads) == 4 for spreads in found.values())
    else:
        assert [row[0] for row in ladders.ladder(record).rows][:2] == ["float32", "bf16 autocast"]


def test_squares_are_timed_in_turn_and_can_be_compared() -> None:
    found = ladders.time_squares([8, 16], ["float32", "bfloat16"], device=pick(), rounds=3, calls=2)
    assert {format: list(spreads) for format, spreads in found.items()} == {
        "float32": [8, 16],
        "bfloat16": [8, 16],
    }
    readings = {format: spreads[16] for format, spreads in found.items()}
    assert all(len(s.readings) == 3 and s.low > 0 for s in readings.values())
    assert ratios(readings, to="float32")["float32"].readings == (1.0, 1.0, 1.0)


def test_small_products_are_repeated_in_one_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def timed(function: Any, inputs: Any, **options: Any) -> Spread:
        a, b = inputs[0]
        assert function is torch.matmul and a.shape == b.shape and a.dtype == torch.float16
        seen.append((len(a), options["calls"], options["warm_up"]))
        return Spread((1.0,))

    monkeypatch.setattr(ladders, "time_calls", timed)
    ladders.time_squares([2, 256, 4096], ["float16"], device=CPU, rounds=1)
    assert seen[1::2] == [(2, 200, 1), (256, 12, 1), (4096, 1, 1)]


def test_nothing_to_time_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sizes=\[\]"):
        ladders.time_squares([], ["float32"], device=CPU)
    with pytest.raises(ValueError, match="expected at least one of each"):
        ladders.time_squares([8], [], device=CPU)


def test_a_figure_draws_median_rates_and_the_middle_half() -> None:
    axis = ladders.figure(ladders.recorded_squares(PRODUCTS), title="here").axes[0]
    line = np.asarray(axis.lines[1].get_xydata())
    assert [line_.get_label() for line_ in axis.lines] == ["float32", "float16"]
    assert line[1].tolist() == [4096, 2 * 4096**3 / 2.0]
    bands = [np.asarray(c.get_paths()[0].vertices) for c in axis.collections]
    heights = {round(y) for x, y in bands[1].tolist() if x == 4096}
    quarter, three_quarters = (1 / 9 + 1 / 2) / 2, (1 / 2 + 1) / 2  # readings of 1, 2 and 9 s
    assert heights == {round(2 * 4096**3 * share) for share in (quarter, three_quarters)}
    single = {round(y) for x, y in bands[1].tolist() if x == 8192}
    assert single == {round(2 * 8192**3 / 4.0)}
