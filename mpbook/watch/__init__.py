"""What happens to the numbers of a live model: where they lie, and what a format would lose.

* `mpbook.watch.probe` watches a training run, `mpbook.watch.report` says what it has seen, and
  `mpbook.watch.optimizer_steps` where a step begins and ends; the counts are exact histograms
  (`mpbook.watch.histograms`, counted in `mpbook.watch.binades`).
* `mpbook.watch.scaling_verdict` says whether gradients need a loss scale, and which.
* `mpbook.watch.lost_updates` counts the weight updates that rounding swallows.

Taught in "Loss scaling" and "Master weights".
"""

from mpbook.watch.histograms import Fates, Histogram, log2_histogram
from mpbook.watch.lost_updates import LostUpdates, updates_lost
from mpbook.watch.probe import Probe
from mpbook.watch.report import KINDS, Kind
from mpbook.watch.scaling_verdict import ScalingVerdict

__all__ = [
    "KINDS",
    "Fates",
    "Histogram",
    "Kind",
    "LostUpdates",
    "Probe",
    "ScalingVerdict",
    "log2_histogram",
    "updates_lost",
]
