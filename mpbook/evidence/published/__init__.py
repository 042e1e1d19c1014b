"""What others measured on GPUs and published: 653 figures, each with its source and its place.

A `Measurement` compares two precisions, and names the file, the commit and the line in which it was
read.  It is not a record of this project, and is never shown as one: a record
(`mpbook.evidence.records`) outranks it.  `published` selects figures, and `Figures.summary` adds up
what they say, but only figures of one quantity against one baseline; "float32" on a recent GPU may
mean TF32, and the two are never mixed.

Taught in "Claims on trial" and "GPT-2: a famous claim on trial".
"""

from __future__ import annotations

from mpbook.evidence.published.figures import Figures, Summary, published, summaries
from mpbook.evidence.published.forest import forest
from mpbook.evidence.published.measurement import Measurement, load
from mpbook.evidence.published.sources import SOURCES, Source

__all__ = [
    "SOURCES", "Figures", "Measurement", "Source", "Summary", "forest", "load", "published",
    "summaries",
]  # fmt: skip
