"""What Hugging Face's Trainer, Accelerate, PEFT and Lightning do to dtypes, asked of them.

Their words, ``bf16=True``, ``dtype=``, ``precision="bf16-mixed"``, are settings of things that this
book explains in torch's words.  What each makes of the parameters, the gradients, the optimizer's
state and the checkpoint is tried here on a Llama of 57,536 random weights, on a CPU, and kept as a
record (`mpbook.evidence.records`), one for each release of Transformers, with the versions of all
libraries.  The book's page "Hugging Face, Lightning, Accelerate" shows them.

The libraries are not among the book's own.  In an environment that has them::

    python -m mpbook frameworks                      # ask them, and show
    python -m mpbook frameworks --out recorded       # and keep the answers

Where a setting needs a GPU (``fp16=True``), torch's ``GradScaler`` for a CPU takes the place of the
library's own, and the page says so.
"""

from __future__ import annotations

from mpbook.evidence.frameworks.recording import (
    LIBRARIES,
    RECORDED,
    installed,
    load,
    measure,
    questions,
    record_here,
)
from mpbook.evidence.frameworks.tables import (
    accelerate_words,
    lightning_words,
    loaded_without_dtype,
    sizes,
    two_by_two,
)

__all__ = [
    "LIBRARIES", "RECORDED", "accelerate_words", "installed", "lightning_words", "load",
    "loaded_without_dtype", "measure", "questions", "record_here", "sizes", "two_by_two",
]  # fmt: skip
