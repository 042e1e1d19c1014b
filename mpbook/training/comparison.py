"""`compare`: several precisions, several seeds, one table, one figure.

An honest comparison of precisions is more than two runs side by side:

* *Paired seeds.*  Each seed trains every precision on the same batches, and from the same initial
  weights; `mpbook.training.paired` says what the differences within the pairs settle.
* *Taking turns.*  A seed is one turn in which each precision trains once, and the next turn begins
  with another one, so whatever slows the machine down slows all of them.
* *A control.*  Training amplifies any difference, however small.  The control trains in the
  baseline's own precision after one weight was moved to the next number (`mpbook.training.nudge`):
  what that alone does to the loss is chaos, and no merit or fault of a precision.
* *Nothing dropped.*  A run that diverged is counted, and no mean is given over those that did not.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from mpbook.cost.measure import Spread, ratios
from mpbook.data import Data
from mpbook.notebook import Progress, Table
from mpbook.precision import Precision, as_precision
from mpbook.training.loop import train
from mpbook.training.nudge import nudged
from mpbook.training.paired import PairedDifference
from mpbook.training.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Metric = Literal["validation_loss", "loss"] | Callable[[Run], float]

CONTROL = "1-ulp nudge"
"""What tables and figures call the control."""

FEW_SEEDS = 8
"""Below this, a table warns: the standard deviation of so few is itself a guess."""

_TRAIN_ONLY = ("precision", "seed", "save_to", "save_every", "resume_from")

# --- The runs -----------------------------------------------------------------------------------


def compare(
    model: nn.Module | Callable[[int], nn.Module],
    data: Data,
    precisions: Sequence[str | Precision],
    *,
    steps: int,
    seeds: int | Sequence[int] = 8,
    baseline: str | None = None,
    control: Literal["none", "1-ulp nudge"] = "none",
    keep_models: Literal["none", "all"] = "none",
    progress: bool = True,
    **settings: Any,
) -> Comparison:
    """Train a model in each precision from each seed.

    Args:
        model: a module, from whose weights every run starts; or a function from a seed to a module,
            called once a seed, with torch's generator seeded so: initial weights of its own.
        data: as for `mpbook.training.loop.train`.
        precisions: names or `Precision` objects, each with a name of its own.
        steps: updates of each run.
        seeds: how many, counted from 0, or which.
        baseline: the name of the precision to compare with; the first one if None.
        control: whether to train the baseline's precision once more, from a start that is
            `mpbook.training.nudge.nudged`; it is called so in ``runs``.
        keep_models: whether each `Run` keeps its trained model, which a metric may need.
        progress: show a progress line to a person who waits.
        **settings: of every run, as for `mpbook.training.loop.train`.

    Raises:
        ValueError: no precision, an unknown one, two of one name, a baseline that is not among
            them, no seed, one given twice, a setting that each run needs for itself.
        TypeError: a name where a list of names is meant, a function that gives no module.
    """
    _one_of("keep_models", keep_models, ("none", "all"))
    _one_of("control", control, ("none", CONTROL))
    if taken := [name for name in _TRAIN_ONLY if name in settings]:
        raise ValueError(
            f"{taken[0]}={settings[taken[0]]!r}: cannot be the same for every run; "
            "use precisions=, seeds= and keep_models="
        )
    chosen, entries = _seeds(seeds), _precisions(precisions)
    base = _one_of("baseline", next(iter(entries)) if baseline is None else baseline, entries)
    if control == CONTROL:
        entries = _with_control(entries, base)
    settings |= {"steps": steps, "progress": False}
    runs: dict[str, list[Run]] = {name: [] for name in entries}
    with Progress(len(chosen) * len(entries), label="comparing", enabled=progress) as line:
        for turn, seed in enumerate(chosen):
            starts = dict.fromkeys(entries, _initial(model, seed))
            if control == CONTROL:
                starts[CONTROL] = nudged(starts[base], dtype=entries[base].parameter_dtype)
            for name in _rotated(list(entries), turn):
                line.update(sum(map(len, runs.values())), f"seed {seed}, {name}")
                run = train(starts[name], data, precision=entries[name], seed=seed, **settings)
                runs[name].append(run if keep_models == "all" else replace(run, model=nn.Module()))
    return Comparison(runs, chosen, base)


def _rotated(names: list[str], turn: int) -> list[str]:
    first = turn % len(names)
    return names[first:] + names[:first]


def _initial(model: nn.Module | Callable[[int], nn.Module], seed: int) -> nn.Module:
    """The model that the runs of a seed start from; the global random state stays as it is."""
    if isinstance(model, nn.Module):
        return model
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        made = model(seed)
    if not isinstance(made, nn.Module):
        raise TypeError(f"model: gave {made!r} for seed {seed}, expected a torch module")
    return made


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen:
        raise ValueError(f"seeds={seeds!r}: expected at least 1, and 2 for an interval")
    if repeated := [seed for seed in chosen if chosen.count(seed) > 1]:
        raise ValueError(f"seeds: {repeated[0]} is there more than once; repeats prove nothing")
    return chosen


def _precisions(precisions: Sequence[str | Precision]) -> dict[str, Precision]:
    if isinstance(precisions, str | Precision):
        raise TypeError(f"precisions={precisions!r}: expected a list of names or Precisions")
    entries: dict[str, Precision] = {}
    for precision in map(as_precision, precisions):
        if precision.name in entries:
            raise ValueError(f'precisions: two are called "{precision.name}"; rename one')
        entries[precision.name] = precision
    if not entries:
        raise ValueError("precisions: none given, expected at least one")
    return entries


def _with_control(entries: dict[str, Precision], baseline: str) -> dict[str, Precision]:
    if CONTROL in entries:
        raise ValueError(f'precisions: "{CONTROL}" is what the control is called; rename it')
    return entries | {CONTROL: replace(entries[baseline], name=CONTROL)}


def _one_of(argument: str, value: str, known: Collection[str]) -> str:
    if value not in known:
        raise ValueError(f'{argument}="{value}": expected one of {", ".join(known)}')
    return value


# --- What they show -----------------------------------------------------------------------------


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
        runs, chosen = self.runs[_one_of("name", name, self.runs)], self._metric(metric)
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
        base = _one_of("to", self.baseline if to is None else to, self.runs)
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
        header = ["", self._title(metric), f"minus {self.baseline}", title, "relative", "diverged"]
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
        from mpbook import plots

        others = [name for name in self.runs if name != self.baseline]
        shape = dict(figsize=(9, 3.6), width_ratios=[3, 2]) if others else dict(figsize=(5.4, 3.6))
        figure, axes = plots.figure(1, 2 if others else 1, squeeze=False, **shape)
        styles = _styles(self.runs)
        for name, runs in self.runs.items():
            lost = len(self.diverged(name, metric=metric))
            label = f"{name} ({lost} of {len(runs)} diverged)" if lost else name
            _draw_curves(axes[0, 0], [run.losses for run in runs], label=label, **styles[name])
        axes[0, 0].set(title="Training loss", xlabel="step")
        axes[0, 0].legend()
        if others:
            for row, name in enumerate(others):
                found = self._found(name, metric, confidence)
                _draw_pairs(axes[0, 1], row, self._pairs(name, metric), found, styles[name])
            title = f"{self._title(metric)} minus {self.baseline}"
            axes[0, 1].set(
                title=title[0].upper() + title[1:], yticks=range(len(others)), yticklabels=others
            )
            axes[0, 1].set(ylim=(len(others) - 0.5, -0.5), xlabel="dots: seeds; line: interval")
            axes[0, 1].axvline(0, color="black", linewidth=0.8)
        return figure

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def _metric(self, metric: Metric | None) -> Metric:
        if metric is None:
            held_out = any(run.validation_losses for runs in self.runs.values() for run in runs)
            return "validation_loss" if held_out else "loss"
        if isinstance(metric, str):
            _one_of("metric", metric, ("validation_loss", "loss"))
        return metric

    def _title(self, metric: Metric | None) -> str:
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

    def _pairs(self, name: str, metric: Metric | None) -> list[float]:
        """The difference to the baseline, seed by seed; NaN where either diverged."""
        values = (self.values(each, metric=metric) for each in (name, self.baseline))
        return [a - b if math.isfinite(a - b) else math.nan for a, b in zip(*values, strict=True)]

    def _found(
        self, name: str, metric: Metric | None, confidence: float
    ) -> PairedDifference | None:
        """The difference to the baseline, if its runs give one."""
        if len(self.seeds) < 2 or any(map(math.isnan, self._pairs(name, metric))):
            return None
        return self.difference(name, metric=metric, confidence=confidence)

    def _difference_cells(
        self, name: str, metric: Metric | None, confidence: float
    ) -> tuple[str, str, str]:
        if name == self.baseline:
            return "baseline", "", ""
        found = self._found(name, metric, confidence)
        if found is None:
            pairs = self._pairs(name, metric)
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


# --- Drawing ------------------------------------------------------------------------------------

_PATTERNS: tuple[Any, ...] = ("--", (0, (6, 1, 1, 1, 1, 1)), (0, (9, 3)), ":")
"""For what has no line style of its own: the control, and precisions that a reader makes."""


def _styles(runs: dict[str, list[Run]]) -> dict[str, dict[str, Any]]:
    """Colour and line style by name: without a colour of its own, that of the compute dtype."""
    from mpbook import plots

    styles, patterns = {}, itertools.cycle(_PATTERNS)
    for name, (run, *_) in runs.items():
        if name in plots.COLOURS:
            styles[name] = plots.line(name)
        else:
            format = str(run.precision.compute_dtype).removeprefix("torch.")
            styles[name] = plots.line(format) | {"linestyle": next(patterns)}
    return styles


def _draw_curves(axes: Axes, losses: list[list[float]], *, label: str, **style: Any) -> None:
    """Median and range of the running means over the seeds, of those that are finite."""
    steps = max(map(len, losses))
    padded = torch.full((len(losses), steps), math.nan, dtype=torch.float64)
    for row, values in zip(padded, losses, strict=True):
        row[: len(values)] = torch.tensor(values)
    padded[padded.isinf()] = math.nan
    window = max(1, steps // 20)
    smooth = padded.unfold(1, window, 1).mean(-1)
    ends = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    low, median, high = smooth.nanquantile(ends, dim=0)
    x = range(window, steps + 1)
    axes.plot(x, median, label=label, **style)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _draw_pairs(
    axes: Axes,
    row: int,
    pairs: list[float],
    found: PairedDifference | None,
    style: dict[str, Any],
) -> None:
    """The difference of every seed, and above them the mean with its interval."""
    axes.plot(pairs, [row + 0.15] * len(pairs), "o", color=style["color"], markersize=3)
    if found is not None:
        axes.plot(found.interval, [row - 0.15] * 2, color=style["color"])
        axes.plot([found.mean], [row - 0.15], "D", color=style["color"])
    elif lost := sum(map(math.isnan, pairs)):
        text = f"{lost} of {len(pairs)} pairs diverged"
        axes.text(0.5, row - 0.15, text, transform=axes.get_yaxis_transform(), ha="center")
