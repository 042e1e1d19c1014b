"""Training in one precision, and comparing several: `train` and `compare`.

* `mpbook.training.step` is one step of it, `mpbook.training.loop` the loop in which precision is
  the only variable; `settings` is what a run is asked to do, `run` what it did.
* `mpbook.training.environment` sets the global switches, `mpbook.training.resume` saves a run and
  goes on from it.
* `mpbook.training.parallel` shares a run among ranks, under torch's DDP or FSDP2.
* `mpbook.training.comparison_runs` runs it over precisions and seeds, `mpbook.training.nudge` makes
  the control.
* `mpbook.training.comparison` says what the runs show, `mpbook.training.paired` what differences
  within pairs of them settle, and `mpbook.training.comparison_figure` draws it.
"""

from mpbook.training.comparison import Comparison
from mpbook.training.comparison_runs import compare
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
