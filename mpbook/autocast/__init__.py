"""What autocast does: which operator runs in which dtype, and how a model's tensors are cast.

* `mpbook.autocast.tiny` is autocast on a screen, equal to torch's.
* `mpbook.autocast.policy` measures the rule of each operator of `mpbook.autocast.operators`.
* `mpbook.autocast.trace` says what happened in a model, `mpbook.autocast.dtype_grid` draws it.

The context that turns torch's own on is `mpbook.precision.autocast`.  Taught in "Autocast".
"""

from mpbook.autocast.policy import (
    Policy,
    Rule,
    autocast_set,
    computes,
    measure_policy,
    side_by_side,
)
from mpbook.autocast.tiny import FLOAT32, LOWER_PRECISION, TinyAutocast
from mpbook.autocast.trace import trace_dtypes
from mpbook.autocast.trace_report import Trace

__all__ = [
    "FLOAT32",
    "LOWER_PRECISION",
    "Policy",
    "Rule",
    "TinyAutocast",
    "Trace",
    "autocast_set",
    "computes",
    "measure_policy",
    "side_by_side",
    "trace_dtypes",
]
