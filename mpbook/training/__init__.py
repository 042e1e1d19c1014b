"""Training in one precision, and comparing several: `train` and `compare`.

* `mpbook.training.loop` is the loop in which precision is the only variable.
* `mpbook.training.comparison_runs` runs it over precisions and seeds, `mpbook.training.nudge` makes
  the control.
* `mpbook.training.comparison` says what the runs show, `mpbook.training.paired` what differences
  within pairs of them settle, and `mpbook.training.comparison_figure` draws it.
"""

from mpbook.training.comparison import Comparison
from mpbook.training.comparison_runs import compare
from mpbook.training.loop import Trainer, environment, loss_of, prepare, train, training_step
from mpbook.training.nudge import nudged
from mpbook.training.paired import PairedDifference, t_test_power
from mpbook.training.runs import Run, Settings, cross_entropy

__all__ = [
    "Comparison",
    "PairedDifference",
    "Run",
    "Settings",
    "Trainer",
    "compare",
    "cross_entropy",
    "environment",
    "loss_of",
    "nudged",
    "prepare",
    "t_test_power",
    "train",
    "training_step",
]
