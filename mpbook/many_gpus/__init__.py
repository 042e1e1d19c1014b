"""Many ranks: how their gradients are added up, and small programs that really run on several.

* `mpbook.many_gpus.reductions` replays the sums of a ring, a tree and recursive halving;
  `mpbook.many_gpus.reduction_error` bounds and measures their error, `mpbook.many_gpus.wire`
  counts their bytes, and `mpbook.many_gpus.replayed_training` trains with such sums.
* `mpbook.many_gpus.launch` starts a program on several ranks of this machine, through
  ``torch.distributed.run``; `mpbook.many_gpus.rank` is what each of them does around the program,
  and `mpbook.many_gpus.program_text` makes one out of a notebook's functions.
* `mpbook.many_gpus.programs` has the programs.

Taught in the chapter "Many GPUs".
"""

from mpbook.many_gpus.launch import RankError, cannot_launch, launch, launch_all
from mpbook.many_gpus.reduction_error import Found, error_bound, errors_by_ranks
from mpbook.many_gpus.reductions import (
    Algorithm,
    Average,
    additions,
    all_reduce,
    divisors,
    reduce_scatter,
    ring_chunks,
    ring_order,
)
from mpbook.many_gpus.replayed_training import Replayed, rank_gradients, train_over_ranks
from mpbook.many_gpus.wire import OnTheWire, on_the_wire

__all__ = [
    "Algorithm",
    "Average",
    "Found",
    "OnTheWire",
    "RankError",
    "Replayed",
    "additions",
    "all_reduce",
    "cannot_launch",
    "divisors",
    "error_bound",
    "errors_by_ranks",
    "launch",
    "launch_all",
    "on_the_wire",
    "rank_gradients",
    "reduce_scatter",
    "ring_chunks",
    "ring_order",
    "train_over_ranks",
]
