"""`roofline`: counts by hand, by torch and by the trace of a real step; and the roof."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from mpbook import device
from mpbook.autocast.trace import trace_dtypes
from mpbook.cost import roofline
from mpbook.cost.measure import Spread, count_flops
from mpbook.cost.roofline import (
    STATED,
    Roof,
    Work,
    attainable,
    attention,
    bytes_each,
    elementwise,
    gpt_step,
    matmul,
    measure_roof,
    ridge_point,
)
from mpbook.device import Capability, pick
from mpbook.device_facts import GPUS
from mpbook.evidence.experiments import model_flops_per_token
from mpbook.models import GPT, GPT2_124M, GPTConfig

SMALL = GPTConfig(vocabulary=300, context=16, layers=3, width=32, bias=False)
ROOF = Roof("device", 100.0, {"float32": 1000.0, "float16": 8000.0})

sizes = st.integers(1, 300)
positive = st.floats(1e-3, 1e18)


# --- What work takes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "expected"),
    [("float32", 4), ("tfloat32", 4), ("float16", 2), ("bfloat16", 2), ("float8_e4m3fn", 1)],
)
def test_a_number_takes_the_bytes_that_torch_gives_it(format: str, expected: float) -> None:
    assert bytes_each(format) == expected
    if format != "tfloat32":
        assert getattr(torch, format).itemsize == expected


def test_a_product_counted_by_hand() -> None:
    # 2 rows of 3 times 5 columns: 10 results of 3 products; 6 + 15 + 10 numbers
    assert matmul(2, 3, 5, "float32") == Work("2 x 3 x 5", 60, 124)
    assert matmul(2, 3, 5, "float16").bytes == 62
    assert matmul(2, 3, 5, "float4_e2m1fn").bytes == 16


@given(sizes, sizes, sizes)
def test_a_product_has_the_operations_that_torch_counts(m: int, k: int, n: int) -> None:
    a, b = torch.empty(m, k, device="meta"), torch.empty(k, n, device="meta")
    work = matmul(m, k, n, "float32")
    assert work.flops == count_flops(lambda: a @ b)
    assert work.bytes == a.nbytes + b.nbytes + (a @ b).nbytes


@given(sizes, sizes, sizes)
def test_half_the_bytes_are_twice_the_intensity(m: int, k: int, n: int) -> None:
    wide, narrow = matmul(m, k, n, "float32"), matmul(m, k, n, "bfloat16")
    assert narrow.intensity == pytest.approx(2 * wide.intensity)
    assert matmul(m, k, n, "tfloat32").intensity == wide.intensity


def test_the_intensity_of_squares_is_their_size_over_the_bytes() -> None:
    assert matmul(999, 999, 999, "float32").intensity == 999 / 6
    assert matmul(1, 4096, 4096, "bfloat16").intensity == pytest.approx(1, rel=1e-3)


def test_elementwise_work_counted_by_hand() -> None:
    work = elementwise(1000, "float16", reads=2, operations=5)
    assert (work.flops, work.bytes, work.product) == (5000, 6000, False)
    assert elementwise(8, "float32").intensity == 1 / 8
    assert elementwise(8, "float32", writes=3).bytes == 128


@pytest.mark.parametrize("kernel", ["fused", "unfused"])
def test_attention_counted_by_torch_and_by_hand(kernel: roofline.Kernel) -> None:
    batch, heads, time, head_width = 2, 3, 16, 8
    x = torch.randn(batch, heads, time, head_width)
    with sdpa_kernel(SDPBackend.MATH):
        counted = count_flops(lambda: scaled_dot_product_attention(x, x, x))
    work = attention(batch, heads, time, head_width, "float32", kernel=kernel)
    assert work.flops == counted
    scores = 4 * batch * heads * time * time  # bytes of one copy
    assert work.bytes == 4 * x.nbytes + (4 * scores if kernel == "unfused" else 0)


@pytest.mark.parametrize("config", [SMALL, GPT2_124M])
def test_a_step_has_the_operations_of_the_formula(config: GPTConfig) -> None:
    parts = gpt_step(config, batch=4, format="bfloat16")
    counted = sum(part.flops for part in parts)
    assert counted == pytest.approx(
        model_flops_per_token(config) * 4 * config.context, rel=0.02 if config is SMALL else 1e-3
    )


def test_a_step_has_the_operations_that_torch_counts() -> None:
    model, tokens = GPT(SMALL), torch.randint(300, (4, 16))
    with sdpa_kernel(SDPBackend.MATH):
        counted = count_flops(lambda: cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()))
        both = count_flops(
            lambda: cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        )
    parts = gpt_step(SMALL, batch=4, format="float32")
    assert sum(part.flops for part in parts) == both == 3 * counted


@pytest.mark.parametrize(
    ("precision", "format"), [("bf16-mixed", "bfloat16"), ("16-mixed", "float16")]
)
def test_the_casts_of_a_step_are_those_that_autocast_makes(precision: str, format: str) -> None:
    tokens = torch.randint(300, (4, 16))
    traced = trace_dtypes(
        GPT(SMALL),
        tokens,
        precision,
        loss=lambda logits: cross_entropy(logits.float().flatten(0, 1), tokens.flatten()),
    )
    parts = {part.name: part for part in gpt_step(SMALL, batch=4, format=format)}
    assert parts["casts"].bytes == traced.cast_bytes


def test_a_step_moves_what_was_counted_by_hand() -> None:
    config = GPTConfig(vocabulary=10, context=3, layers=1, heads=1, width=4)
    wide = {p.name: p.bytes for p in gpt_step(config, batch=2, format="float32")}
    tokens, weights = 6, 12 * 16 + 10 * 4
    products = [(4, 12), (4, 4), (4, 16), (16, 4)]
    moved = 4 * sum(6 * a + a * b + 6 * b for a, b in products)
    assert wide["linear layers"] == 3 * moved
    assert wide["logits"] == 3 * 4 * (6 * 4 + 4 * 10 + 6 * 10)
    assert wide["attention"] == 3 * 4 * 4 * tokens * 4
    assert wide["elementwise"] == 4 * 42 * tokens * 4  # norms 10, GELU 20, additions 12
    assert wide["loss"] == 4 * 4 * tokens * 10
    assert wide["optimizer"] == 28 * (weights + 3 * 4)
    assert "casts" not in wide
    narrow = {p.name: p.bytes for p in gpt_step(config, batch=2, format="float16")}
    assert narrow["linear layers"] == wide["linear layers"] // 2
    assert narrow["elementwise"] == (4 * 20 + 2 * 22) * tokens * 4 - 0
    for same in ("loss", "optimizer"):
        assert narrow[same] == wide[same]


def test_what_does_not_multiply_matrices_is_marked() -> None:
    marked = {p.name: p.product for p in gpt_step(SMALL, batch=1, format="bfloat16")}
    products = {"linear layers", "logits", "attention"}
    assert marked == {name: name in products for name in marked}
    assert len(marked) == 7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: matmul(0, 1, 1, "float32"), "m=0: expected at least 1"),
        (lambda: matmul(1, 1, -1, "float32"), "n=-1"),
        (lambda: matmul(1, 1, 1, "float31"), "float31"),
        (lambda: elementwise(1, "float32", writes=0), "writes=0"),
        (lambda: attention(1, 1, 0, 1, "float32"), "time=0"),
        (lambda: attention(1, 1, 1, 1, "float32", kernel="flash"), "kernel=.flash.: expected"),  # type: ignore[arg-type]
        (lambda: gpt_step(SMALL, batch=0, format="float32"), "batch=0"),
        (lambda: gpt_step(SMALL, batch=1, format="float8_e5m2"), "expected one of float32, tf"),
    ],
)
def test_what_cannot_be_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


# --- The roof ---------------------------------------------------------------------------------


@given(st.floats(0, 1e9), positive, positive)
def test_no_rate_is_above_either_roof_and_one_of_them_is_touched(
    intensity: float, peak: float, bandwidth: float
) -> None:
    rate = attainable(intensity, peak=peak, bandwidth=bandwidth)
    assert rate <= peak and rate <= intensity * bandwidth
    assert rate in (peak, intensity * bandwidth)


@given(positive, positive)
def test_the_roofs_meet_at_the_ridge(peak: float, bandwidth: float) -> None:
    ridge = ridge_point(peak, bandwidth)
    assert attainable(ridge, peak=peak, bandwidth=bandwidth) == pytest.approx(peak)
    assert attainable(ridge / 2, peak=peak, bandwidth=bandwidth) == pytest.approx(peak / 2)
    assert attainable(ridge * 2, peak=peak, bandwidth=bandwidth) == peak


def test_a_roof_judges_work_on_both_sides_of_its_ridge() -> None:
    assert (ROOF.ridge("float32"), ROOF.ridge("float16")) == (10.0, 80.0)
    left, at, right = (Work("w", flops, 100) for flops in (999, 1000, 1001))
    assert [ROOF.bound(w, "float32") for w in (left, at, right)] == ["memory", "compute", "compute"]
    assert ROOF.bound(right, "float16") == "memory"
    assert ROOF.attainable(left, "float32") == pytest.approx(999)
    assert ROOF.attainable(right, "float32") == 1000
    assert ROOF.seconds(left, "float32") == 1.0
    assert ROOF.seconds(Work("w", 4000, 100), "float32") == 4.0


def test_work_without_products_runs_on_float32_units() -> None:
    work = Work("w", 5000, 100, product=False)
    assert ROOF.bound(work, "float16") == "compute"
    assert ROOF.seconds(work, "float16") == 5.0
    assert ROOF.attainable(work, "float16") == 1000.0


def test_a_format_without_a_peak_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="device has float32, float16"):
        ROOF.ridge("bfloat16")


@pytest.mark.parametrize("wrong", [dict(peak=0.0, bandwidth=1.0), dict(peak=1.0, bandwidth=-1.0)])
def test_a_roof_is_positive(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected positive ones"):
        ridge_point(**wrong)
    with pytest.raises(ValueError, match="expected positive ones"):
        attainable(1.0, **wrong)
    with pytest.raises(ValueError, match="intensity=-1"):
        attainable(-1.0, peak=1.0, bandwidth=1.0)


def test_stated_roofs_are_those_of_the_table_of_gpus() -> None:
    assert list(STATED) == list(GPUS)
    for name, roof in STATED.items():
        gpu = GPUS[name]
        assert (roof.name, roof.bandwidth, roof.source) == (name, gpu.bandwidth, gpu.source)
        left_out = {"float8_e5m2", "float4_e2m1fn"}
        assert set(gpu.dense_peaks) - set(roof.peaks) <= left_out and left_out - set(roof.peaks)
        for format, peak in roof.peaks.items():
            assert peak == gpu.dense_peaks[format]


def test_stated_ridges() -> None:
    assert STATED["H100 SXM"].ridge("bfloat16") == pytest.approx(295.4, abs=0.1)
    # The guides of NVIDIA: an A100's 312 teraflops over 2039 gigabytes; a V100's 125 over 900.
    assert STATED["A100 SXM 80GB"].ridge("float16") == pytest.approx(153, abs=0.5)
    assert STATED["V100 SXM2"].ridge("float16") == pytest.approx(139, abs=0.5)


def test_the_fastest_reading_makes_the_roof(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def timed(function: Any, inputs: Any, **options: Any) -> Spread:
        calls.append((inputs, options))
        return Spread((4.0, 2.0, 3.0))

    monkeypatch.setattr(roofline, "time_calls", timed)
    monkeypatch.setattr(device, "capabilities", lambda _: [
        Capability("float32", "native", ""), Capability("bfloat16", "native", ""),
        Capability("float16", "emulated", ""), Capability("float8_e5m2", "native", ""),
    ])  # fmt: skip
    roof = measure_roof("cpu", size=10, elements=100, readings=3)
    assert roof.bandwidth == 2 * 400 / 2.0
    assert dict(roof.peaks) == {"float32": 1000.0, "bfloat16": 1000.0}
    assert [options["readings"] for _, options in calls] == [3, 3, 3]
    dtypes = [[x.dtype for x in inputs[0]] for inputs, _ in calls]
    assert dtypes == [[torch.float32], [torch.float32] * 2, [torch.bfloat16] * 2]


def test_this_device_has_a_roof() -> None:
    roof = measure_roof(size=64, elements=2**16, readings=2)
    assert roof.bandwidth > 1e6 and roof.peaks["float32"] > 1e6
    with pytest.raises(ValueError, match="elements=-1"):
        measure_roof(pick("cpu"), elements=-1)


def test_a_figure_draws_every_roof_and_every_point() -> None:
    work = matmul(64, 64, 64, "float16")
    drawn = roofline.figure(ROOF, [(work, "float16", 50.0)])
    axis = drawn.axes[0]
    roofs, points = axis.lines[:2], axis.lines[2:]
    for line, (format, peak) in zip(roofs, ROOF.peaks.items(), strict=True):
        for x, y in np.asarray(line.get_xydata()):
            assert y == pytest.approx(attainable(x, peak=peak, bandwidth=ROOF.bandwidth))
        assert line.get_label() == format
    assert [tuple(np.asarray(p.get_xydata())[0]) for p in points] == [(work.intensity, 50.0)]
    assert axis.get_xlim()[1] > ROOF.ridge("float16")
