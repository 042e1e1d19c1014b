"""mpbook: mixed-precision training, measured.

The package that the book "Mixed precision, measured" runs on, made to be taken home.  Import the
module of the concept you need:

* `mpbook.diagnose`: what 16 bits will do to your own model, operator by operator, before it runs
* `mpbook.formats`: what a number format is; decode, encode and round to any of them
* `mpbook.precision`: the dtypes, loss scale and rounding of one way to train
* `mpbook.device`: what this machine does natively, emulates or lacks, and how that was found
* `mpbook.training`: one training loop, in which the precision is the only variable
* `mpbook.training.compare`: several precisions over paired seeds, with intervals and a verdict
* `mpbook.watch.Probe`: where your model's numbers lie, and whether it needs loss scaling
* `mpbook.watch.updates_lost`: how many of its updates 16-bit weights swallow
* `mpbook.autocast.trace_dtypes`: what autocast did to it, cast by cast
* `mpbook.cost.plan_memory`: what a training will hold in memory, before it runs
* `mpbook.master_weights`, `mpbook.loss_scaling`: the cures, around a torch optimizer

Importing the package imports nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpbook.diagnosis import diagnose as diagnose

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`diagnose`, imported when it is first asked for."""
    if name == "diagnose":
        from mpbook.diagnosis import diagnose

        return diagnose
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "diagnose"])
