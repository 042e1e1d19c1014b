"""Which trick pays: against a reference in numpy, and on tensors whose answer is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from product_references import E2M1, in_blocks, layer_data, nvfp4, rotate
from torch import Tensor, nn

from mpbook.low_precision import tricks
from mpbook.low_precision.capture import Captured
from mpbook.low_precision.tricks import (
    Measured,
    Trial,
    Variant,
    trial_of,
    variants,
    which_trick_pays,
)

MXFP4, NVFP4 = Variant("mxfp4", "rceil"), Variant("nvfp4")


def layer(x: Tensor | None = None, dy: Tensor | None = None, *, batch: int = 0) -> Captured:
    """Gaussian where nothing else is given."""
    generator = torch.Generator().manual_seed(100 + batch)
    normal = [torch.randn(n, 128, generator=generator) for n in (256, 128, 256)]
    own = [o if given is None else given for o, given in zip(normal, (x, None, dy), strict=True)]
    return Captured("layer", batch, *own)


def heavy_tails(seed: int) -> Tensor:
    """Student's t with 3 degrees of freedom: a normal number over the root of a chi-squared."""
    normal = torch.randn(4, 256, 128, generator=torch.Generator().manual_seed(seed))
    return normal[0] / normal[1:].square().mean(0).sqrt()


def of(trial: Trial, product: str, variant: Variant) -> Any:
    (row,) = [r for r in trial.rows if (r.product, r.variant) == (product, variant)]
    return row


@pytest.mark.parametrize("hadamard", [None, 16])
@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_errors_are_those_of_a_reference_in_numpy(name: str, hadamard: int | None) -> None:
    x, w, dy = layer_data(64, 64, 64, spread=1)
    trial = trial_of([Captured("l", 0, x, w, dy)], formats=[name], hadamard=(16,), draws=2)
    mode = "rceil" if name == "mxfp4" else None
    signs = Variant(name, mode, hadamard=16).operands("wgrad")[0].signs
    for product, square in (("fprop", False), ("dgrad", False), ("fprop", True), ("wgrad", False)):
        left, right = {"fprop": (x, w), "dgrad": (dy, w.T), "wgrad": (dy.T, x.T)}[product]
        a, b = left.double().numpy(), right.double().numpy()
        exact = a @ b.T
        if hadamard:
            a, b = (rotate(m, signs).astype(np.float32) for m in (a, b))
        if name == "mxfp4":
            a, b = in_blocks(a, 1, 32, E2M1), in_blocks(b, 32 if square else 1, 32, E2M1)
        else:
            a, b = nvfp4(a), nvfp4(b, rows=16 if square else 1)
        got, row = a @ b.T, of(trial, product, Variant(name, mode, False, hadamard, square))
        # a rotation in float32 may move a number across a tie: a few elements of thousands
        tolerance = 1e-6 if hadamard is None else 2e-2
        error = np.linalg.norm(got - exact) / np.linalg.norm(exact)
        assert row.error == pytest.approx(error, rel=tolerance)
        cosine = (got * exact).sum() / np.linalg.norm(got) / np.linalg.norm(exact)
        assert row.cosine == pytest.approx(cosine, abs=tolerance)
        assert (row.bias, row.spread) == (pytest.approx(row.error), 0)


def test_a_rotation_of_heavy_tails_cures_mxfp4() -> None:
    layers = [layer(heavy_tails(b), heavy_tails(50 + b), batch=b) for b in range(4)]
    trial = trial_of(layers, formats=["mxfp4"], hadamard=(32,), draws=2)
    found = trial.difference("wgrad", Variant("mxfp4", "rceil", hadamard=32), MXFP4)
    assert found.verdict == "helps"
    assert found.after < 0.9 * found.before


def test_a_rotation_hurts_what_is_exact_without_it() -> None:
    """Signs alone are exact in FP4: their block's scale is, and a sum of signs is not."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randn(6, 128, 128, generator=generator).sign().unbind()
    layers = [Captured("l", b, signs[b], signs[5], signs[b + 2]) for b in range(3)]
    trial = trial_of(layers, formats=["mxfp4"], hadamard=(16,), draws=2)
    for product in ("fprop", "dgrad", "wgrad"):
        assert trial.mean(product, MXFP4) == 0
        found = trial.difference(product, Variant("mxfp4", "rceil", hadamard=16), MXFP4)
        assert (found.verdict, found.after > 0.02) == ("hurts", True)


def test_a_rotation_of_gaussian_numbers_changes_little() -> None:
    layers = [layer(batch=b) for b in range(4)]
    trial = trial_of(layers, formats=["nvfp4"], hadamard=(16,), draws=2)
    for product in ("fprop", "dgrad", "wgrad"):
        found = trial.difference(product, Variant("nvfp4", hadamard=16), NVFP4)
        assert abs(found.after / found.before - 1) < 0.05


def test_stochastic_rounding_trades_bias_for_spread() -> None:
    """dy = 0.3 in blocks whose largest is 6: nearest gives 0.5 always, a draw 0.3 on average."""
    dy = torch.full((128, 128), 0.3)
    dy[:, ::32] = dy[::32] = 6.0
    x = torch.ones(128, 128)
    layers = [Captured("l", b, x, torch.ones(128, 128), dy) for b in range(2)]
    trial = trial_of(layers, formats=["mxfp4"], hadamard=(), draws=16)
    stochastic = Variant("mxfp4", "rceil", stochastic=True)
    for product in ("dgrad", "wgrad"):
        nearest, drawn = (of(only(trial, 0), product, v) for v in (MXFP4, stochastic))
        assert drawn.bias < 0.3 * nearest.bias
        assert drawn.spread > 0 == nearest.spread
        assert drawn.error**2 == pytest.approx(drawn.bias**2 + drawn.spread**2)
        assert trial.difference(product, stochastic, MXFP4, metric="bias").verdict == "helps"
        assert trial.difference(product, stochastic, MXFP4, metric="spread").verdict == "hurts"


@pytest.mark.parametrize("draws", [1, 2, 5])
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_bias_and_spread_are_the_unbiased_estimates(draws: int, shift: float) -> None:
    generator = torch.Generator().manual_seed(draws)
    exact = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    noise = torch.randn(draws, 8, 6, generator=generator, dtype=torch.float64)
    products = exact + shift + noise
    norm = exact.square().sum().item()
    error, _, bias, spread = tricks._errors("fprop", exact, list(products))
    variance = products.var(0).sum().item() if draws > 1 else 0.0
    of_mean = (products.mean(0) - exact).square().sum().item()
    assert error**2 * norm == pytest.approx((products - exact).square().sum().item() / draws)
    assert spread**2 * norm == pytest.approx(variance)
    expected = max(0.0, of_mean - variance / draws)
    assert bias**2 * norm == pytest.approx(expected, rel=1e-6, abs=1e-9)


def only(trial: Trial, batch: int) -> Trial:
    return Trial(tuple(row for row in trial.rows if row.batch == batch))


def test_blocks_keep_a_small_token_that_a_tensor_scale_loses() -> None:
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    x[0] *= 1e7
    w = torch.randn(128, 128, generator=torch.Generator().manual_seed(1))
    dy = torch.randn(64, 128, generator=torch.Generator().manual_seed(2))
    dy[0] *= 1e-7  # so that the large token does not drown the others in wgrad
    captured = [Captured("l", 0, x, w, dy)]
    trial = trial_of(captured, formats=["fp8_per_tensor", "fp8_per_row"], hadamard=())
    assert trial.mean("fprop", Variant("fp8_per_row")) < 0.1
    assert trial.mean("wgrad", Variant("fp8_per_tensor")) > 0.5


def test_every_combination_that_has_a_meaning_is_tried_once() -> None:
    counts = {"fprop": 4 * 2, "dgrad": 4 * 2 * 2, "wgrad": 4 * 2}
    for product, count in counts.items():
        found = list(variants(product, ["nvfp4"], (), (16, 32, 128)))
        assert len(set(found)) == len(found) == count
        assert found[0] == NVFP4
    modes = list(variants("fprop", ["mxfp4"], ("floor", "rceil"), ()))
    assert {v.scale_mode for v in modes} == {"floor", "rceil"}
    assert not any(v.square for v in variants("fprop", ["fp8_per_row"], (), ()))


def test_what_does_not_divide_is_left_out_and_said() -> None:
    x, w, dy = (torch.randn(n, 64) for n in (48, 64, 48))
    captured = [Captured("odd", b, x, w, dy) for b in range(2)]
    trial = trial_of(captured, formats=["mxfp4", "nvfp4"], hadamard=(16,), draws=2)
    assert not any(r.product == "wgrad" and r.variant.block_format == "mxfp4" for r in trial.rows)
    assert "odd, wgrad, mxfp4, rceil, none: (64, 48) is no multiple of (1, 32)" in trial.left_out
    with pytest.raises(ValueError, match="was not tried in wgrad; see left_out"):
        trial.mean("wgrad", MXFP4)


def test_square_blocks_need_blocks_within_a_row() -> None:
    with pytest.raises(ValueError, match="fp8_per_row has no blocks within a row"):
        Variant("fp8_per_row", square=True).operands("fprop")


def test_one_seed_gives_one_answer_and_leaves_torchs_generator_alone() -> None:
    state = torch.get_rng_state()
    first, second, other = (
        trial_of([layer()], formats=["nvfp4"], hadamard=(), draws=2, seed=s) for s in (0, 0, 1)
    )
    assert first == second != other
    assert torch.equal(state, torch.get_rng_state())


def test_a_model_is_tried_and_shown() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
    batches = [(torch.randn(32, 32), torch.randint(0, 32, (32,))) for _ in range(2)]
    trial = which_trick_pays(net, batches, formats=["mxfp4", "nvfp4"], hadamard=(16,), draws=2)
    assert {row.layer for row in trial.rows} == {"0", "2"}
    table = trial.table()
    verdicts = {"helps", "hurts", "no difference", "cannot be told"}
    assert {row[-1] for row in table.rows} <= verdicts
    tricks = {row[2] for row in table.rows}
    assert tricks == {"stochastic", "Hadamard 16", "square blocks"}
    pytest.importorskip("matplotlib")
    figure = trial.figure()
    assert [axis.get_title(loc="left") or axis.get_title() for axis in figure.axes] == [
        "fprop: error", "dgrad: error", "wgrad: error"
    ]  # fmt: skip
    written = [t.get_text() for axis in figure.axes for t in axis.texts]
    assert f"{trial.mean('fprop', NVFP4):.3g}" in written
    assert "nvfp4: Hadamard 16" in trial.alt()


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.3, -0.1, "helps"),
        (0.1, 0.3, "hurts"),
        (-0.001, 0.001, "no difference"),
        (-0.3, 0.001, "cannot be told"),
        (-0.004, -0.002, "no difference"),  # below the margin, of 0.005
        (0.002, 0.004, "no difference"),
        (-0.01, -0.001, "cannot be told"),
        (0.001, 0.01, "cannot be told"),
    ],
)
def test_a_verdict_is_where_the_interval_lies(low: float, high: float, verdict: str) -> None:
    """Three batches with the differences of an interval, for the error and for the cosine."""
    half = (high - low) / 2 / 4.302652729911275 * math.sqrt(3)  # the t quantile at 2 degrees
    middle = (low + high) / 2
    other = Variant("nvfp4", hadamard=16)
    rows = []
    for batch, step in enumerate((-half, 0, half)):
        error = 0.25 + middle + step
        rows.append(Measured("l", batch, "fprop", NVFP4, 0.25, 0.75, 0.25, 0.0))
        rows.append(Measured("l", batch, "fprop", other, error, 1 - error, error, 0.0))
    trial = Trial(tuple(rows))
    for metric in ("error", "cosine"):
        found = trial.difference("fprop", other, NVFP4, metric=metric)  # type: ignore[arg-type]
        assert found.verdict == verdict
    found = trial.difference("fprop", other, NVFP4)
    assert found.interval == pytest.approx((low, high))


def test_bad_arguments_are_named() -> None:
    trial = trial_of([layer()], formats=["nvfp4"], hadamard=(), draws=2)
    net = nn.Linear(32, 32)
    with pytest.raises(ValueError, match="draws=1"):
        which_trick_pays(net, [], draws=1)
    with pytest.raises(ValueError, match="draws=1"):
        trial_of([layer()], draws=1)
    with pytest.raises(ValueError, match=r"nothing could be tried: .*no multiple"):
        trial_of([Captured("l", 0, *(torch.randn(3, 3) for _ in range(3)))], formats=["nvfp4"])
    with pytest.raises(ValueError, match="metric='loss'"):
        trial.mean("fprop", NVFP4, "loss")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 2"):
        trial.table()
    zero = Captured("l", 0, torch.zeros(32, 32), torch.ones(32, 32), torch.ones(32, 32))
    with pytest.raises(ValueError, match="fprop: the exact product is zero"):
        trial_of([zero], formats=["nvfp4"])
