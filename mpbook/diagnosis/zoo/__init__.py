"""Tiny models and losses on which `mpbook.diagnose` is scored.

Healthy ones, the failures of this book, their cures, and near misses that look like failures and
are none.  What becomes of each is not written here: `mpbook.diagnosis.zoo.truth` trains it.
"""

from mpbook.diagnosis.zoo.cases import Case
from mpbook.diagnosis.zoo.failing import FAILING
from mpbook.diagnosis.zoo.healthy import HEALTHY
from mpbook.diagnosis.zoo.near_misses import NEAR_MISSES
from mpbook.diagnosis.zoo.truth import Outcome, outcome

ZOO: tuple[Case, ...] = (*HEALTHY, *FAILING, *NEAR_MISSES)

__all__ = ["FAILING", "HEALTHY", "NEAR_MISSES", "ZOO", "Case", "Outcome", "outcome"]
