"""What the runs of several precisions over the same seeds show: values, tables, verdicts.

*Nothing is dropped.*  A run that diverged is counted, and no mean is given over those that did not.

`mpbook.training.comparison_runs` makes the runs; `mpbook.training.paired` says what the differences
within pairs of them settle.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mpbook.cost.measure import Spread, ratios
from mpbook.notebook import Table
from mpbook.synonyms import did_you_mean
from mpbook.training.comparison_figure import draw
from mpbook.training.paired import PairedDifference
from mpbook.training.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Metric = Literal["validation_loss", "loss"] | Callable[[Run], float]

FEW_SEEDS = 8
"""Below this, a table warns: the standard deviation of so few is itself a guess."""


@dataclass(frozen=True)
class Comparison:
    """Runs of several precisions over the same seeds.

    ``runs`` holds by name one `Run` a seed, in the order of ``seeds``.  A ``metric`` is
    ``"validation_loss"``, ``"loss"`` (of training, at the end) or a function of a `Run`; None
    stands for the validation loss, or for the loss if the data holds nothing out.
    """

    runs: dict[str, list[Run]]
    seeds: tuple[int, ...]
    baseline: str

    def values(self, name: str, *, metric: Metric | None = None) -> list[float]:
        """The metric of each seed; NaN for a run that diverged.

        A run diverged if it stopped on NaN or ended on a loss that is not finite.

        Raises:
            ValueError: an unknown name, or a validation loss where nothing was held out.
        """
        runs, chosen = self.runs[one_of("name", name, self.runs)], self._metric(metric)
        return [math.nan if _diverged(run) else _value(run, chosen) for run in runs]

    def diverged(self, name: str, *, metric: Metric | None = None) -> tuple[int, ...]:
        """The seeds whose run diverged, or whose metric is not finite."""
        pairs = zip(self.seeds, self.values(name, metric=metric), strict=True)
        return tuple(seed for seed, value in pairs if not math.isfinite(value))

    def difference(
        self,
        name: str,
        *,
        to: str | None = None,
        confidence: float = 0.95,
        metric: Metric | None = None,
        better: Literal["lower", "higher"] = "lower",
    ) -> PairedDifference:
        """A precision minus another, seed by seed.

        Args:
            name: of the precision.
            to: what to compare it with; the baseline if None.
            confidence: of the interval.
            metric: what is compared.
            better: whether a lower or a higher metric is the better one.

        Raises:
            ValueError: an unknown name, fewer than two seeds, a run of either that diverged.
        """
        base = one_of("to", self.baseline if to is None else to, self.runs)
        for each in (name, base):
            if lost := self.diverged(each, metric=metric):
                raise ValueError(
                    f"{each}: {len(lost)} of {len(self.seeds)} runs diverged (seed "
                    f"{', '.join(map(str, lost))}); a mean over the others would hide that"
                )
        return PairedDifference(
            name=name,
            baseline=base,
            values=tuple(self.values(name, metric=metric)),
            baseline_values=tuple(self.values(base, metric=metric)),
            confidence=confidence,
            better=better,
        )

    def verdict(self, name: str, *, margin: float, **options: Any) -> str:
        """One sentence without measured numbers, for a cell that says the same on every device.

        Args:
            name: of the precision.
            margin: the largest relative difference that does not matter: 0.01 for 1%.
            **options: see `difference`.

        Raises:
            ValueError: as `difference`, but a precision that diverged is a verdict too.
        """
        if lost := self.diverged(name, metric=options.get("metric")):
            share = "every one" if len(lost) == len(self.seeds) else "some"
            return f"diverged in {share} of {len(self.seeds)} seeds"
        return self.difference(name, **options).verdict(margin=margin)

    def table(self, *, metric: Metric | None = None, confidence: float = 0.95) -> Table:
        """Each precision's metric, its paired difference to the baseline, and what diverged."""
        title = f"{100 * confidence:.3g}% interval"
        header = ["", self.title(metric), f"minus {self.baseline}", title, "relative", "diverged"]
        rows = [
            (
                name,
                _mean_and_sd(self.values(name, metric=metric)),
                *self._difference_cells(name, metric, confidence),
                f"{len(self.diverged(name, metric=metric))} of {len(self.seeds)}",
            )
            for name in self.runs
        ]
        return Table(header, rows, caption=self._caption())

    def speed(self) -> Table:
        """Throughput against the baseline's of the same turn: median, lowest and highest.

        Raises:
            ValueError: runs of one step, of which none is timed.
        """
        readings = {
            name: Spread(tuple(run.items_per_second for run in runs))
            for name, runs in self.runs.items()
        }
        if any(math.isnan(reading) for reading in readings[self.baseline].readings):
            raise ValueError(
                f"steps: {self.baseline} made a single one somewhere, which is not timed; "
                "expected at least 2"
            )
        relative = ratios(readings, to=self.baseline)
        header = ["", f"speed against {self.baseline}", f"lowest to highest of {len(self.seeds)}"]
        return Table(header, [(name, *_speed_cells(s)) for name, s in relative.items()])

    def figure(self, *, metric: Metric | None = None, confidence: float = 0.95) -> Figure:
        """Loss curves, and the paired differences with their intervals, to `plots.show`.

        A curve is the median over the seeds and the band their range, both after a running mean;
        where a run diverged, over those that still go on.
        """
        return draw(self, metric=metric, confidence=confidence)

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def _metric(self, metric: Metric | None) -> Metric:
        if metric is None:
            held_out = any(run.validation_losses for runs in self.runs.values() for run in runs)
            return "validation_loss" if held_out else "loss"
        if isinstance(metric, str):
            one_of("metric", metric, ("validation_loss", "loss"))
        return metric

    def title(self, metric: Metric | None) -> str:
        """What tables and figures call a metric."""
        chosen = self._metric(metric)
        name = chosen if isinstance(chosen, str) else getattr(chosen, "__name__", "metric")
        return name.replace("_", " ").strip("<>")

    def _caption(self) -> str:
        n = len(self.seeds)
        caption = f"Mean ± sd over {n} seed{'s' * (n > 1)}; differences and intervals are paired."
        if n == 1:
            return caption + " One seed gives no interval."
        few = f" Fewer than {FEW_SEEDS} seeds: take the intervals as rough."
        return caption + few * (n < FEW_SEEDS)

    def pairs(self, name: str, metric: Metric | None) -> list[float]:
        """The difference to the baseline, seed by seed; NaN where either diverged."""
        values = (self.values(each, metric=metric) for each in (name, self.baseline))
        return [a - b if math.isfinite(a - b) else math.nan for a, b in zip(*values, strict=True)]

    def found(self, name: str, metric: Metric | None, confidence: float) -> PairedDifference | None:
        """The difference to the baseline, if its runs give one."""
        if len(self.seeds) < 2 or any(map(math.isnan, self.pairs(name, metric))):
            return None
        return self.difference(name, metric=metric, confidence=confidence)

    def _difference_cells(
        self, name: str, metric: Metric | None, confidence: float
    ) -> tuple[str, str, str]:
        if name == self.baseline:
            return "baseline", "", ""
        found = self.found(name, metric, confidence)
        if found is None:
            pairs = self.pairs(name, metric)
            lost = any(map(math.isnan, pairs))
            return "none: diverged" if lost else f"{pairs[0]:+.3g}", "", ""
        low, high = found.interval
        cells = f"{found.mean:+.3g}", f"{low:+.3g} to {high:+.3g}"
        if found.baseline_mean == 0:
            return *cells, ""
        low, high = found.relative_interval
        return *cells, f"{100 * low:+.2g}% to {100 * high:+.2g}%"


def _diverged(run: Run) -> bool:
    return run.stopped_on_nan or not all(map(math.isfinite, run.losses[-1:]))


def _value(run: Run, metric: Metric) -> float:
    if not isinstance(metric, str):
        return float(metric(run))
    if metric == "validation_loss" and not run.validation_losses:
        data = run.config.get("data", "the data")
        raise ValueError(f'metric="validation_loss": {data} holds nothing out; use metric="loss"')
    return run.validation_loss if metric == "validation_loss" else run.loss


def _mean_and_sd(values: list[float]) -> str:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "none"
    spread = f" ± {statistics.stdev(finite):.2g}" if len(finite) > 1 else ""
    of = f" (of {len(finite)})" if len(finite) < len(values) else ""
    return f"{statistics.fmean(finite):.4g}{spread}{of}"


def _speed_cells(relative: Spread) -> tuple[str, str]:
    if any(map(math.isnan, relative.readings)):
        return "not timed", ""
    return f"{relative.median:.2f}", f"{relative.low:.2f} to {relative.high:.2f}"


def one_of(argument: str, value: str, known: Collection[str]) -> str:
    """The value, if it is one of those known.

    Raises:
        ValueError: it is not.
    """
    if value not in known:
        hint = did_you_mean(value, known)
        raise ValueError(f'{argument}="{value}": expected one of {", ".join(known)}{hint}')
    return value
