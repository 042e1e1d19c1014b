"""Training in one precision, and comparing several: `train` and `compare`.

* `mpbook.training.step` is one step of it, `mpbook.training.loop` the loop in which precision is
  the only variable; `settings` is what a run is asked to do, `run` what it did.
* `mpbook.training.environment` sets the global switches, `mpbook.training.resume` saves a run and
  goes on from it.
* `mpbook.training.comparison` runs it over precisions and seeds, `mpbook.training.paired` says what
  the differences settle, `mpbook.training.nudge` makes the control.
"""

from mpbook.training.comparison import Comparison, compare
from mpbook.training.environment import environment
from mpbook.training.loop import train
from mpbook.training.nudge import nudged
from mpbook.training.paired import PairedDifference, t_test_power
from mpbook.training.run import Run
from mpbook.training.settings import Settings, cross_entropy
from mpbook.training.step import Trainer, loss_of, prepare, training_step

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
