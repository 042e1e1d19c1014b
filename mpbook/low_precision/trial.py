"""What a trial of tricks found: paired differences with intervals, and verdicts.

Taught in the chapter "FP8 and below".
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from mpbook.low_precision.variants import Variant
from mpbook.notebook import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Metric = Literal["error", "cosine", "bias", "spread"]
Verdict = Literal["helps", "hurts", "no difference", "cannot be told"]


@dataclass(frozen=True)
class Measured:
    """How far one product of one layer is off in one batch: see `mpbook.low_precision.tricks`."""

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
        changes = [a - b for a, b in zip(with_, without, strict=True)]
        low, high = _t_interval(changes, self.confidence)
        before, after = statistics.fmean(without), statistics.fmean(with_)
        sign = -1 if metric == "cosine" else 1
        worse = sorted((sign * low, sign * high))
        margin = self.margin * (1 - before if metric == "cosine" else before)
        verdict = _verdict(worse[0], worse[1], margin)
        return Difference(product, variant, baseline, metric, before, after, (low, high), verdict)

    def tried(self) -> list[tuple[str, Variant]]:
        """The products with the variants that were tried in them, each pair once."""
        return list(dict.fromkeys((row.product, row.variant) for row in self.rows))

    def differences(self) -> list[Difference]:
        """Each trick alone, against the format without tricks: what `table` shows."""
        tried, found = self.tried(), []
        for product, variant in tried:
            baseline = Variant(variant.block_format, variant.scale_mode)
            tricks = variant.stochastic + (variant.hadamard is not None) + variant.square
            if tricks == 1 and (product, baseline) in tried:
                metrics: list[Metric] = ["error", "bias"] if variant.stochastic else ["error"]
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
        from mpbook.low_precision import trial_figure

        return trial_figure.draw(self, metric)

    def alt(self, *, metric: Metric = "error") -> str:
        """What `figure` shows, for `mpbook.plots.show`."""
        said = "; ".join(
            f"{d.variant.format_name}: {d.variant.tricks}, {d.product}, {d.metric}: {d.verdict}"
            for d in self.differences()
        )
        return f"Heat maps of the {metric} of three products by format and tricks. {said}"

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
