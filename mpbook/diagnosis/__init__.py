"""One call that says what 16 bits will do to your own model, and where.

`diagnose` runs a few steps of a copy in float32 and in each format, under CUDA's autocast also on a
CPU, and watches every operator from below.  Its report, a `Diagnosis`, says

* whether the format **survives**, and which operator fails first, with its module and line;
* whether a **loss scale** is needed, and the window of those that fit;
* what is lost in **silence**: gradients that point elsewhere, choices that flip, whole numbers that
  16 bits cannot tell apart;
* which **states stand still**: weights, decay, moments, averages, buffers;
* **memory** and the **speed** to expect;
* what it did **not see**, and what to **do**: the fewest parts to keep in float32 among it.

Each line has its number, its place and how it is known.  How often the verdicts are right is
measured on `mpbook.diagnosis.zoo` by `mpbook.diagnosis.score`.
"""

from mpbook.diagnosis.diagnosing import diagnose
from mpbook.diagnosis.report import Diagnosis

__all__ = ["Diagnosis", "diagnose"]
