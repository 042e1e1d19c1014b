"""The benchmark: what it times is checked, and what it checks can be wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mpbook import bench
from mpbook.__main__ import main
from mpbook.formats import FORMATS, decode, encode, round_to

SMALL = dict(elements=2048, rounds=2, compiled=False)


def test_every_contender_is_timed_and_the_right_ones_are_right() -> None:
    results = bench.bench_formats(["float8_e4m3fn", "float16"], **SMALL)  # type: ignore[arg-type]
    assert {r.format for r in results} == {"float8_e4m3fn", "float16", *bench.BLOCK_FORMATS_TIMED}
    named = {r.contender: r for r in results if r.format == "float16"}
    assert {"copy_", "mpbook", "mpbook stochastic", f"torch {torch.__version__}"} <= set(named)
    assert {"ml_dtypes", "gfloat"} <= {name.split()[0] for name in named}
    for result in results:
        assert len(result.melements_per_s.readings) == 2 and result.melements_per_s.low > 0
        assert result.wrong in (0, None) or result.contender.split()[0] in ("qtorch", "pychop")
        assert result.inputs > 500
        assert (
            result.wrong == 0
            or result.contender.split()[0] != "mpbook"
            or "stoch" in (result.contender)
        )
    assert named["copy_"].wrong is None and named["copy_"].of_copy.median == 1
    assert named["mpbook"].wrong == 0


def test_hard_inputs_hold_numbers_midpoints_and_their_float32_neighbours() -> None:
    x, expected = bench.hard_inputs(FORMATS["float8_e4m3fn"])
    held = set(x.tolist())
    assert {448.0, -432.0, 1.0625, 1.0} <= held
    up = torch.tensor(1.0625).nextafter(torch.tensor(2.0)).item()
    assert {up, -up} <= held
    assert expected[x == 1.0625].tolist() == [1.0] and expected[x == up].tolist() == [1.125]
    for value, right in zip(x[::97].tolist(), expected[::97].tolist(), strict=True):
        assert decode(encode(value, "float8_e4m3fn", overflow="saturate"), "float8_e4m3fn") == right


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")),
    reason="torch.compile needs a C++ compiler: install g++ or clang++",
)
def test_compiled_rounding_stands_beside_the_least_that_a_compiled_loop_can_do() -> None:
    results = bench.bench_formats(["bfloat16"], elements=2048, rounds=1, blocks=False)
    named = {r.contender: r for r in results}
    assert named[bench.ONE_PRODUCT].wrong is None
    assert named["mpbook compiled"].wrong == 0


def test_blocks_are_timed_where_they_divide_the_tensor() -> None:
    results = bench.bench_formats([], elements=64, rounds=1, compiled=False)
    assert [r.contender for r in results if r.format == "mxfp8_e4m3"][:2] == ["copy_", "mpbook"]
    assert {r.format for r in results} == set(bench.BLOCK_FORMATS_TIMED)
    assert bench.bench_formats([], elements=63, rounds=1, compiled=False) == []
    assert bench.bench_formats([], elements=64, rounds=1, compiled=False, blocks=False) == []


def test_hard_blocks_span_binades_and_follow_the_specification_by_hand() -> None:
    x, expected = bench.hard_blocks("mxfp8_e4m3", blocks=4)
    block, right = x[:32].double(), expected[:32]
    scale = 2.0 ** (block.abs().max().log2().floor() - 8)  # 448 = 1.75 * 2**8
    grid = torch.tensor([decode(code, "float8_e4m3fn") for code in range(127)]).double()
    distance = (block[:, None].abs() / scale - grid).abs().amin(1)
    assert torch.equal((right.abs() - block.abs()).abs() / scale, distance)
    assert block.abs().min() < block.abs().max() / 2**6


def test_an_unsigned_format_has_no_negative_inputs() -> None:
    x, _ = bench.hard_inputs(FORMATS["float8_e8m0fnu"])
    assert bool((x > 0).all())


def test_wrong_counts_what_differs() -> None:
    x, expected = bench.hard_inputs(FORMATS["float8_e5m2"])

    def truncate(x: Tensor) -> Tensor:
        return round_to(x, "float8_e5m2", rounding="toward-zero", overflow="saturate")

    assert bench.wrong(truncate, x, expected) > len(x) / 5
    assert bench.wrong(lambda x: round_to(x, "float8_e5m2", overflow="inf"), x, expected) == 0


def test_the_number_of_threads_is_set_back() -> None:
    before = torch.get_num_threads()
    bench.bench_formats(["float16"], **SMALL)  # type: ignore[arg-type]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("options", [dict(elements=0), dict(rounds=0)])
def test_nothing_to_time_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected at least 1 of each"):
        bench.bench_formats(["float16"], **{**SMALL, **options})  # type: ignore[arg-type]


def test_the_command_prints_a_table_and_draws_a_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "bench formats --formats float16 --elements 1000 --rounds 1 --no-compile --figure"
    for name in ("speed.png", "speed.svg"):
        assert main([*command.split(), str(tmp_path / name)]) == 0
    printed = capsys.readouterr().out
    assert "of copy_" in printed and "ml_dtypes" in printed
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "speed.svg").read_text("utf-8")


def test_the_doctor_says_what_this_machine_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert torch.__version__ in printed and "bfloat16" in printed and "because" in printed


def test_bad_arguments_are_one_line_and_a_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["bench", "formats", "--elements", "100", "--rounds", "1", "--no-compile"]
    assert main([*common, "--formats", "flaot16"]) == 1
    assert "did you mean 'float16'" in capsys.readouterr().err
    figure = str(tmp_path / "absent" / "x.png")
    assert main([*common, "--formats", "float16", "--figure", figure]) == 1
    assert "mpbook: " in capsys.readouterr().err
    assert main(["bench", "formats", "--elements", "0"]) == 1
    with pytest.raises(SystemExit):
        main([])
