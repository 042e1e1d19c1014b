"""Each trick on trial: what blocks, stochastic rounding, Hadamard and square weight blocks pay.

A recipe adds tricks to a format, and whether one pays depends on the tensors.  `which_trick_pays`
takes x, w and dy from a model (`mpbook.low_precision.capture`), computes the three products of each
linear layer in every combination, and compares them with the exact ones:

* *error*: the root mean square of ``C' - C`` over that of C;
* *cosine*: of C' and C;
* *bias*: the part of the error that stays when draws are averaged.  Without draws it is all of it;
* *spread*: the part that a draw adds.  ``error**2 = bias**2 + spread**2``, on average.

Errors that are spread average out over steps, and those that are bias add up: so stochastic
rounding is judged by the bias, everything else by the error.  A verdict compares pairs, the same
layers and batches with and without the trick; its interval is over batches.

Its chapter, "FP8 and below", is not written yet.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from mpbook.formats.block_description import as_block_format
from mpbook.formats.blocks import ScaleMode
from mpbook.low_precision.capture import Captured, Loss, capture, next_token_loss
from mpbook.low_precision.operands import Operand
from mpbook.low_precision.quantisation import quantised
from mpbook.notebook import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ProductName = Literal["fprop", "dgrad", "wgrad"]
Metric = Literal["error", "cosine", "bias", "spread"]
Verdict = Literal["helps", "hurts", "no difference", "cannot be told"]
FORMATS_ON_TRIAL = ("fp8_per_tensor", "fp8_per_row", "mxfp8_e4m3", "mxfp4", "nvfp4")


@dataclass(frozen=True)
class Variant:
    """One way to compute a product.

    Args:
        block_format: of both operands, a name in `BLOCK_FORMATS`.
        scale_mode: where scales are powers of two.
        stochastic: whether dy is rounded stochastically.
        hadamard: size of the blocks in which both operands are rotated, or None.
        square: whether a block of the weight is as high as it is wide.
    """

    block_format: str
    scale_mode: ScaleMode | None = None
    stochastic: bool = False
    hadamard: int | None = None
    square: bool = False

    @property
    def format_name(self) -> str:
        """The format with its scale mode: what the tricks are added to."""
        return f"{self.block_format}, {self.scale_mode}" if self.scale_mode else self.block_format

    @property
    def tricks(self) -> str:
        """The tricks in words."""
        hadamard = f"Hadamard {self.hadamard}" if self.hadamard else ""
        words = ("stochastic" * self.stochastic, hadamard, "square blocks" * self.square)
        return ", ".join(filter(None, words)) or "none"

    def operands(self, product: str) -> tuple[Operand, Operand]:
        """What becomes of the left and the right matrix of a product."""
        block_format = as_block_format(self.block_format)
        plain = Operand(block_format, self.scale_mode, hadamard=self.hadamard)
        left = right = plain
        if self.stochastic and product != "fprop":
            left = replace(plain, rounding="stochastic")
        if self.square and product != "wgrad":
            size = block_format.block[1]
            tiled = replace(block_format, name=f"{self.block_format}_square", block=(size, size))
            right = replace(plain, block_format=tiled)  # type: ignore[arg-type]
        return left, right


@dataclass(frozen=True)
class Measured:
    """How far one product of one layer is off in one batch; see above."""

    layer: str
    batch: int
    product: str
    variant: Variant
    error: float
    cosine: float
    bias: float
    spread: float


@dataclass(frozen=True)
class Difference:
    """What a trick changes: the metric with it minus without, over pairs.

    Args:
        product: fprop, dgrad or wgrad.
        variant: with the trick.
        baseline: without.
        metric: what is compared.
        before: mean of the metric without.
        after: mean of the metric with.
        interval: of the difference, the t interval over batches.
        verdict: whether it helps: the interval lies below -margin times ``before``, hurts: above
            +margin, no difference: between them; else it cannot be told.
    """

    product: str
    variant: Variant
    baseline: Variant
    metric: Metric
    before: float
    after: float
    interval: tuple[float, float]
    verdict: Verdict


@dataclass(frozen=True)
class Trial:
    """What `which_trick_pays` found.

    Args:
        rows: one for each layer, batch, product and variant.
        confidence: of the intervals.
        margin: the relative difference below which a trick makes none.
        left_out: the combinations that could not be tried, with the reason.
    """

    rows: tuple[Measured, ...]
    confidence: float = 0.95
    margin: float = 0.02
    left_out: tuple[str, ...] = ()

    def mean(self, product: str, variant: Variant, metric: Metric = "error") -> float:
        """The mean over layers and batches."""
        return statistics.fmean(self._by_batch(product, variant, metric))

    def difference(
        self, product: str, variant: Variant, baseline: Variant, *, metric: Metric = "error"
    ) -> Difference:
        """Compare two variants on the same layers and batches.

        Raises:
            ValueError: a variant that was not tried, an unknown metric, fewer than two batches.
        """
        with_, without = (self._by_batch(product, v, metric) for v in (variant, baseline))
        low, high = _t_interval(
            [a - b for a, b in zip(with_, without, strict=True)], self.confidence
        )
        before, after = statistics.fmean(without), statistics.fmean(with_)
        sign = -1 if metric == "cosine" else 1
        worse = sorted((sign * low, sign * high))
        margin = self.margin * (1 - before if metric == "cosine" else before)
        verdict = _verdict(worse[0], worse[1], margin)
        return Difference(product, variant, baseline, metric, before, after, (low, high), verdict)

    def differences(self) -> list[Difference]:
        """Each trick alone, against the format without tricks: what `table` shows."""
        tried = dict.fromkeys((row.product, row.variant) for row in self.rows)
        found = []
        for product, variant in tried:
            baseline = Variant(variant.block_format, variant.scale_mode)
            tricks = variant.stochastic + (variant.hadamard is not None) + variant.square
            if tricks == 1 and (product, baseline) in tried:
                metrics: tuple[Metric, ...] = (
                    ("error", "bias") if variant.stochastic else ("error",)
                )
                found += [self.difference(product, variant, baseline, metric=m) for m in metrics]
        return found

    def table(self) -> Table:
        """Each trick alone: what it changes, with an interval, and the verdict."""
        header = ("format", "product", "trick", "metric", "without", "with", "change", "verdict")
        rows = [
            (
                d.variant.format_name, d.product, d.variant.tricks, d.metric,
                f"{d.before:.4f}", f"{d.after:.4f}", _percentages(d), d.verdict,
            )
            for d in sorted(self.differences(), key=lambda d: d.variant.format_name)
        ]  # fmt: skip
        return Table(header, rows, caption=f"Intervals: {self.confidence:.0%}, over batches")

    def figure(self, *, metric: Metric = "error") -> Figure:
        """A heat map: a row for each format, a column for each combination of tricks."""
        return _heat_maps(self, metric)

    def alt(self, *, metric: Metric = "error") -> str:
        """What `figure` shows, for `mpbook.plots.show`."""
        verdicts = {
            (d.variant.format_name, d.variant.tricks, d.product): d for d in self.differences()
        }
        words = [f"{f}: {t} {d.verdict} in {p}" for (f, t, p), d in verdicts.items()]
        return f"Heat maps of the {metric} of three products by format and tricks. " + "; ".join(
            words
        )

    def _by_batch(self, product: str, variant: Variant, metric: Metric) -> list[float]:
        if metric not in get_args(Metric):
            raise ValueError(f"metric={metric!r}: expected one of {get_args(Metric)}")
        batches: dict[int, list[float]] = {}
        for row in self.rows:
            if row.product == product and row.variant == variant:
                batches.setdefault(row.batch, []).append(getattr(row, metric))
        if not batches:
            raise ValueError(f"variant: {variant} was not tried in {product}; see left_out")
        return [statistics.fmean(batches[b]) for b in sorted(batches)]


def which_trick_pays(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    layers: Sequence[str] | None = None,
    loss: Loss = next_token_loss,
    formats: Sequence[str] = FORMATS_ON_TRIAL,
    scale_modes: Sequence[ScaleMode] = ("rceil",),
    hadamard: Sequence[int] = (16, 32, 128),
    draws: int = 8,
    seed: int = 0,
) -> Trial:
    """Try every combination of tricks on the tensors of a model.

    Args:
        model: any module; it is left as it was.
        batches: two or more, which ``loss`` takes.
        layers: names of linear layers; all by default.
        loss: ``loss(model, batch)``; cross entropy of ``(inputs, targets)`` by default.
        formats: names in `BLOCK_FORMATS`.
        scale_modes: to try where scales are powers of two.
        hadamard: sizes to try, powers of two.
        draws: of stochastic rounding, two or more.
        seed: of the draws.

    Raises:
        ValueError: an argument out of range, or nothing that could be tried.
    """
    if draws < 2:
        raise ValueError(f"draws={draws}: expected 2 or more, to tell bias from spread")
    return trial_of(
        capture(model, batches, layers=layers, loss=loss),
        formats=formats, scale_modes=scale_modes, hadamard=hadamard, draws=draws, seed=seed,
    )  # fmt: skip


def trial_of(
    captured: Sequence[Captured],
    *,
    formats: Sequence[str] = FORMATS_ON_TRIAL,
    scale_modes: Sequence[ScaleMode] = ("rceil",),
    hadamard: Sequence[int] = (16, 32, 128),
    draws: int = 8,
    seed: int = 0,
) -> Trial:
    """The same for tensors that you have."""
    rows, left_out = [], {}
    for layer in captured:
        for product, (left, right) in layer.operands().items():
            for variant in variants(product, formats, scale_modes, hadamard):
                why = _misfit(product, variant, left, right)
                if why is None:
                    measured = _errors(product, variant, left, right, draws, seed)
                    rows.append(Measured(layer.layer, layer.batch, product, variant, *measured))
                else:
                    where = f"{layer.layer}, {product}, {variant.format_name}, {variant.tricks}"
                    left_out[f"{where}: {why}"] = None
    if not rows:
        raise ValueError(f"nothing could be tried: {next(iter(left_out), 'formats is empty')}")
    return Trial(tuple(rows), left_out=tuple(left_out))


def variants(
    product: str,
    formats: Sequence[str],
    scale_modes: Sequence[ScaleMode],
    hadamard: Sequence[int],
) -> Iterator[Variant]:
    """Every combination that has a meaning in a product, those without tricks first."""
    for name in formats:
        block_format = as_block_format(name)
        tiles = isinstance(block_format.block, tuple) and block_format.block[0] == 1
        modes = scale_modes if block_format.has_power_of_two_scale else (None,)
        stochastic = (False,) if product == "fprop" else (False, True)
        square = (False, True) if tiles and product != "wgrad" else (False,)
        for options in itertools.product(modes, stochastic, (None, *hadamard), square):
            yield Variant(name, *options)


# --- One product -------------------------------------------------------------------------------


def _misfit(product: str, variant: Variant, left: Tensor, right: Tensor) -> str | None:
    for matrix, operand in zip((left, right), variant.operands(product), strict=True):
        if any(n % k for n, k in zip(matrix.shape, operand.tile, strict=True)):
            return f"{tuple(matrix.shape)} is no multiple of {operand.tile}"
    return None


def _errors(
    product: str, variant: Variant, left: Tensor, right: Tensor, draws: int, seed: int
) -> tuple[float, float, float, float]:
    """Error, cosine, bias and spread."""
    exact = left.double() @ right.double().T
    norm = exact.square().sum().item()
    if not math.isfinite(norm) or norm == 0:
        raise ValueError(f"{product}: the exact product is zero, infinite or NaN; leave it out")
    products = list(_products(product, variant, left, right, draws, seed))
    n = len(products)
    errors = [p - exact for p in products]
    squares = statistics.fmean(e.square().sum().item() for e in errors)
    mean = torch.stack(errors).mean(0).square().sum().item()
    spread = max(0.0, (squares - mean) * n / (n - 1)) if n > 1 else 0.0
    cosine = statistics.fmean(
        (p * exact).sum().item() / math.sqrt(norm * max(p.square().sum().item(), 1e-300))
        for p in products
    )
    bias = max(0.0, squares - spread)  # the square of the mean error holds spread / n by chance
    return math.sqrt(squares / norm), cosine, math.sqrt(bias / norm), math.sqrt(spread / norm)


def _products(
    product: str, variant: Variant, left: Tensor, right: Tensor, draws: int, seed: int
) -> Iterator[Tensor]:
    """The product in float64, of elements that are exact in it: once for each draw."""
    of_left, of_right = variant.operands(product)
    right = quantised(right, of_right).double().T
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(draws if of_left.rounding == "stochastic" else 1):
            yield quantised(left, of_left).double() @ right


# --- Intervals and verdicts ------------------------------------------------------------------------


def _t_interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    if len(values) < 2:
        raise ValueError(f"batches: {len(values)} cannot give an interval, expected at least 2")
    from scipy import stats

    mean, sd = statistics.fmean(values), statistics.stdev(values)
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * sd / math.sqrt(len(values))
    return mean - half, mean + half


def _verdict(low: float, high: float, margin: float) -> Verdict:
    """Of a change for the worse that lies between ``low`` and ``high``."""
    if high < -margin:
        return "helps"
    if low > margin:
        return "hurts"
    return "no difference" if -margin <= low and high <= margin else "cannot be told"


def _percentages(d: Difference) -> str:
    if d.before == 0:
        return "from 0"
    low, high = (100 * end / d.before for end in d.interval)
    return f"{low:+.1f}% to {high:+.1f}%"


# --- The heat map ----------------------------------------------------------------------------------


def _heat_maps(trial: Trial, metric: Metric) -> Figure:
    from mpbook import plots

    products = list(dict.fromkeys(row.product for row in trial.rows))
    formats = list(dict.fromkeys(row.variant.format_name for row in trial.rows))
    means = {
        (row.product, row.variant): trial.mean(row.product, row.variant, metric)
        for row in trial.rows
    }
    tricks = {p: list(dict.fromkeys(v.tricks for q, v in means if q == p)) for p in products}
    shape = dict(figsize=(10, 1.6 + 0.5 * len(formats) * len(products)))
    figure, axes = plots.figure(len(products), 1, squeeze=False, **shape)
    for axis, product in zip(axes[:, 0], products, strict=True):
        grid = [[math.nan] * len(tricks[product]) for _ in formats]
        for (name, variant), value in means.items():
            if name == product:
                place = formats.index(variant.format_name), tricks[product].index(variant.tricks)
                grid[place[0]][place[1]] = value
        _heat_map(axis, grid, formats, tricks[product])
        axis.set(title=f"{product}: {metric}")
    return figure


def _heat_map(axis: Any, grid: list[list[float]], formats: list[str], tricks: list[str]) -> None:
    """Numbers on a colour that compares the tricks of a format: blue is better than without."""
    relative = [[value / row[0] - 1 if row[0] else 0.0 for value in row] for row in grid]
    axis.imshow(relative, cmap="RdBu_r", vmin=-0.5, vmax=0.5, aspect="auto")
    for (i, row), j in itertools.product(enumerate(grid), range(len(tricks))):
        if not math.isnan(row[j]):
            axis.text(j, i, f"{row[j]:.3g}", ha="center", va="center", fontsize=7)
    names = [trick.replace(", ", "\n").replace("Hadamard", "H") for trick in tricks]
    axis.set_xticks(range(len(tricks)), names, fontsize=6)
    axis.set_yticks(range(len(formats)), formats, fontsize=8)
    axis.grid(False)
