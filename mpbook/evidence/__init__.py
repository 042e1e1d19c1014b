"""What is known about mixed precision, from whom, and what follows.

* `mpbook.evidence.experiments` measure; `mpbook.evidence.recorder` runs them within a budget, and
  `mpbook.evidence.records` keeps what they found, with its provenance.
* `mpbook.evidence.claims` decides what is often said, from arithmetic, from runs and from records.
* `mpbook.evidence.case_study` and `mpbook.evidence.ladders` read records for the chapters.
"""

from mpbook.evidence.records import Provenance, Record

__all__ = [
    "Provenance",
    "Record",
]
