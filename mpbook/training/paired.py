"""Is a precision worse, or was the seed unlucky?  Paired differences and what they settle.

The loss of one run depends on its seed more than on its precision, so two runs decide nothing.
Pairing takes most of that noise away: train both precisions from each seed, on the same batches,
and look at the difference *within* each pair.  With n seeds, the mean difference d and their
standard deviation s, the t interval

    d ± t s / √n

holds the true difference with the confidence that the quantile t was chosen for.  Three things
follow from the interval, and nothing from the sign of d:

* it does not reach a difference x: a true difference of x is excluded;
* it lies within ± a margin: the two are *equivalent* up to the margin.  "No significant
  difference" does not say that: few seeds never find one;
* it reaches across the margin: not settled.  The *power* says how many seeds would settle it.

The t interval takes the differences as independent and about normal.  A single seed with another
outcome, such as a run that diverged, is no noise around a mean, and is refused.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any, Literal

_MOST_SEEDS = 2**20


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """One metric of two precisions over the same seeds, and what the pairs say of the difference.

    ``mean``, ``sd`` and ``interval`` have the metric's unit.  Whatever is *relative*, the arguments
    of the methods too, is a fraction of the magnitude of the baseline's mean: 0.01 for 1%.  That
    mean is taken as exact: its own error of some percent is one of some percent of the difference.

    Args:
        name, baseline: what is compared, and with what.
        values, baseline_values: the metric of each seed, in the same order.
        confidence: of every statement, between 0 and 1.
        better: whether a ``"lower"`` or a ``"higher"`` metric is the better one.

    Raises:
        ValueError: fewer than two pairs, a value that is not finite, a confidence out of range.

    >>> pairs = PairedDifference(
    ...     name="bf16-mixed", baseline="32-true", values=(3.0, 2.0), baseline_values=(2.0, 2.0)
    ... )
    >>> pairs.differences, pairs.mean, pairs.relative
    ((1.0, 0.0), 0.5, 0.25)
    """

    name: str
    baseline: str
    values: tuple[float, ...]
    baseline_values: tuple[float, ...]
    confidence: float = 0.95
    better: Literal["lower", "higher"] = "lower"

    def __post_init__(self) -> None:
        if len(self.values) != len(self.baseline_values):
            raise ValueError(
                f"values: {len(self.values)} of {self.name} for {len(self.baseline_values)} of "
                f"{self.baseline}, expected one of each for every seed"
            )
        if len(self.values) < 2:
            raise ValueError(
                f"seeds: {len(self.values)} cannot give an interval, expected at least 2; "
                "8 or more give a useful one"
            )
        for name, values in ((self.name, self.values), (self.baseline, self.baseline_values)):
            if bad := [value for value in values if not math.isfinite(value)]:
                raise ValueError(f"values: {bad[0]} in {name}, expected finite numbers")
        _check_confidence(self.confidence)
        if self.better not in ("lower", "higher"):
            raise ValueError(f'better={self.better!r}: expected "lower" or "higher"')

    @property
    def seeds(self) -> int:
        """How many pairs there are."""
        return len(self.values)

    @property
    def differences(self) -> tuple[float, ...]:
        """The metric minus the baseline's, for each seed."""
        return tuple(a - b for a, b in zip(self.values, self.baseline_values, strict=True))

    @property
    def mean(self) -> float:
        """The mean difference, in the metric's unit."""
        return statistics.fmean(self.differences)

    @property
    def sd(self) -> float:
        """Standard deviation of the differences over the seeds, with n - 1 below."""
        return statistics.stdev(self.differences)

    @property
    def interval(self) -> tuple[float, float]:
        """The t interval of the true difference, in the metric's unit."""
        quantile = _stats().t.ppf((1 + self.confidence) / 2, self.seeds - 1)
        half = float(quantile) * self.sd / math.sqrt(self.seeds)
        return self.mean - half, self.mean + half

    @property
    def baseline_mean(self) -> float:
        """The mean of the baseline's values."""
        return statistics.fmean(self.baseline_values)

    @property
    def relative(self) -> float:
        """The mean difference as a fraction of the baseline's mean."""
        return self.mean / self._unit

    @property
    def relative_interval(self) -> tuple[float, float]:
        """The interval as fractions of the baseline's mean."""
        low, high = self.interval
        return low / self._unit, high / self._unit

    @property
    def _unit(self) -> float:
        if self.baseline_mean == 0:
            raise ValueError(
                f"relative: the mean of {self.baseline} is 0, of which nothing is a fraction; "
                "use mean and interval"
            )
        return abs(self.baseline_mean)

    # What the interval settles

    def excludes(self, difference: float) -> bool:
        """Whether a true relative difference of this size and sign can be excluded.

        >>> same = PairedDifference(
        ...     name="16-mixed", baseline="32-true", values=(2.0, 3.0), baseline_values=(2.0, 3.0)
        ... )
        >>> same.excludes(0.0), same.excludes(0.001)
        (False, True)
        """
        low, high = self.relative_interval
        return not low <= difference <= high

    def within(self, margin: float) -> bool:
        """Whether the two are equivalent: the whole interval lies within ± the relative margin.

        That is two one-sided t tests (Schuirmann 1987), each at the level (1 - confidence) / 2.
        At the usual level, 1 - confidence, this could hold while the interval that the reader sees
        reaches beyond the margin.
        """
        _check_fraction("margin", margin)
        low, high = self.relative_interval
        return -margin <= low and high <= margin

    def verdict(self, *, margin: float) -> str:
        """What the interval says of a relative margin, as one sentence without measured numbers."""
        low, high = self.relative_interval
        if self.within(margin):
            said = f"within {_percent(margin)} of {self.baseline}"
        elif low > margin or high < -margin:
            word = "worse" if (low > margin) == (self.better == "lower") else "better"
            said = f"{word} than {self.baseline} by more than {_percent(margin)}"
        else:
            said = f"not settled: perhaps within {_percent(margin)} of {self.baseline}, perhaps not"
        return f"{said} ({_percent(self.confidence)} confidence, {self.seeds} seeds)"

    # What it could settle

    def detectable(self, *, power: float = 0.8) -> float:
        """The smallest true relative difference that so many seeds would show with that power.

        Shown means that the interval leaves out 0.  The standard deviation found here is taken for
        the true one, though its own relative error is about 1 / √(2 n - 2): a quarter at 8 seeds.

        Raises:
            ValueError: a power that is not above 1 - confidence, which chance alone reaches.
        """
        self._check_power(power)
        low, high = 0.0, 1.0
        while t_test_power(high, seeds=self.seeds, confidence=self.confidence) < power:
            low, high = high, 2 * high
        while high - low > 1e-9 * high:
            middle = (low + high) / 2
            enough = t_test_power(middle, seeds=self.seeds, confidence=self.confidence) >= power
            low, high = (low, middle) if enough else (middle, high)
        return high * self.sd / self._unit

    def seeds_needed(self, difference: float, *, power: float = 0.8) -> int:
        """How many seeds would show a true relative difference with that power.

        Raises:
            ValueError: a difference of 0, one that takes more than a million seeds, a power that
                is not above 1 - confidence.
        """
        self._check_power(power)
        if difference == 0:
            raise ValueError("difference=0: no number of seeds shows it; use within(margin)")
        if self.sd == 0:
            return 2
        effect, low, high = difference * self._unit / self.sd, 1, 2
        while t_test_power(effect, seeds=high, confidence=self.confidence) < power:
            low, high = high, 2 * high
            if high > _MOST_SEEDS:
                raise ValueError(f"difference={difference}: takes more than {_MOST_SEEDS:,} seeds")
        while high - low > 1:
            middle = (low + high) // 2
            enough = t_test_power(effect, seeds=middle, confidence=self.confidence) >= power
            low, high = (low, middle) if enough else (middle, high)
        return high

    def _check_power(self, power: float) -> None:
        if not 1 - self.confidence < power < 1:
            raise ValueError(
                f"power={power}: expected more than {1 - self.confidence:.3g}, which chance alone "
                "reaches, and less than 1"
            )


def t_test_power(effect: float, *, seeds: int, confidence: float = 0.95) -> float:
    """Chance that the t interval of so many seeds leaves out 0, by the noncentral t distribution.

    Args:
        effect: the true mean difference, in standard deviations of the differences.
        seeds: how many pairs.
        confidence: of the interval.

    Raises:
        ValueError: fewer than two seeds, a confidence out of range.
        ImportError: scipy is not installed.

    >>> round(t_test_power(0.0, seeds=8), 4)
    0.05
    """
    if seeds < 2:
        raise ValueError(f"seeds={seeds}: expected at least 2")
    _check_confidence(confidence)
    stats, freedom, shift = _stats(), seeds - 1, abs(effect) * math.sqrt(seeds)
    critical = stats.t.ppf((1 + confidence) / 2, freedom)
    same_sign = float(stats.nct.sf(critical, freedom, shift))
    # scipy gives NaN far out in this tail; from 6 on it holds less than 1e-9
    other_sign = float(stats.nct.cdf(-critical, freedom, shift)) if shift < 6 else 0.0
    return same_sign + other_sign


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.6g}%"


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected between 0 and 1, 0.95 for 95%")


def _check_fraction(argument: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{argument}={value}: expected between 0 and 1, 0.01 for 1%")


def _stats() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError('intervals need scipy: pip install "mpbook[notebook]"') from error
    return stats
