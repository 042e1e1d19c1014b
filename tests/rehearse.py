"""What a GPU will run, rehearsed on a CPU: notebooks, the tests that ask for CUDA, the recorder.

``make rehearse`` runs everything for two GPUs that are not there, an A100 and a T4;
``make rehearse WHICH=T4`` for one.  The device is `stand_in`: CUDA's rules with a CPU's kernels.
The notebooks take a CPU's sizes (``MPBOOK_SIZES=cpu``), and nbval compares their strict cells with
what a CPU printed.  What fails only because the device is a stand-in is listed in `ARTEFACTS`, with
the reason; anything else is a fault of the book.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import nbformat
from suite_runs import LOGS, NO_PAGES, ROOT, Outcome, choose, conclude, run_pytest, workers

GPUS = {"A100": "8.0", "T4": "7.5"}
"""The GPUs that are stood in for, by their compute capability."""
SHIMS = ROOT / "tests" / "another_machine"
LOG_FOLDER = LOGS / "rehearsal"
WHAT = {
    "notebooks": ("book",),
    "tests": ("tests", "-k", "cuda and not cuda_build and not compile"),
}
"""What is run: the notebooks, and the tests that are asked of a CUDA device."""
SUBCLASS = (
    "its tensors are of a subclass, so the probe says that it has not seen where they are used"
)
NO_COMPILER = "torch.compile returns its argument: a dispatch mode is active everywhere"


@dataclass(frozen=True)
class Artefact:
    """What fails on the stand-in alone: a file, words of its one cell or test, and why."""

    file: str
    words: str
    why: str

    def names(self) -> list[str]:
        """How pytest calls what has these words: ``FILE::Cell 3``, or ``FILE::test_name``."""
        if not self.file.endswith(".ipynb"):
            return [f"{self.file}::{self.words}"]
        cells = nbformat.read(ROOT / self.file, as_version=4).cells
        sources = [cell.source for cell in cells if cell.cell_type == "code"]
        return [f"{self.file}::Cell {n}" for n, text in enumerate(sources) if self.words in text]


ARTEFACTS = (
    Artefact("book/recipe/autocast_traps.ipynb", "def count(graph, example_inputs)", NO_COMPILER),
    Artefact(
        "book/recipe/autocast_traps.ipynb", "def bits(function, outer=nullcontext", NO_COMPILER
    ),
    Artefact("book/practice/speed_traps.ipynb", "def counting(graph, inputs)", NO_COMPILER),
    Artefact(
        "book/practice/speed_traps.ipynb",
        "make_graphed_callables(graphed, (batch,))",
        "torch._C has no _CUDAGraph",
    ),
    Artefact(
        "book/recipe/autocast_traps.ipynb", "nn.DataParallel(Model", "torch._C has no _scatter"
    ),
    Artefact("book/recipe/loss_scaling.ipynb", '"identifiers": (full.model', SUBCLASS),
    Artefact("book/recipe/loss_scaling.ipynb", 'expected = ["not needed"', SUBCLASS),
    Artefact(
        "book/practice/own_model_traps.ipynb",
        "loss = ctc(log_probabilities, targets",
        "of a subclass torch divides CTC's loss by the lengths where they lie, on the CPU",
    ),
    Artefact(
        "book/practice/memory_traps.ipynb", "_record_memory_history()", "there is no allocator"
    ),
    Artefact(
        "book/practice/memory_traps.ipynb",
        'for name, run in (\n    ("torch\'s checkpoint"',
        "checkpoint restores CUDA's random state, and dropout's kernel draws from the CPU's",
    ),
)
"""What is no fault of the book."""


def main() -> int:
    """Rehearse for the GPUs that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--which", default="", help=f"some of {', '.join(GPUS)}")
    parser.add_argument("--tests", nargs="+", default=[], help="these paths, and nothing else")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    parts = {"chosen": tuple(options.tests)} if options.tests else WHAT
    return conclude(
        [
            without_artefacts(rehearse(gpu, name, tests, options.workers))
            for gpu in choose(options.which, list(GPUS))
            for name, tests in parts.items()
        ]
    )


def rehearse(gpu: str, what: str, tests: tuple[str, ...], processes: int) -> Outcome:
    """Run some tests as a machine with this GPU would."""
    python, name = Path(sys.executable), f"{gpu}-{what}"
    arguments = [*NO_PAGES, "-p", "no:cacheprovider", *workers(python, processes), *tests]
    return run_pytest(name, python, arguments, environment(gpu), LOG_FOLDER / f"{name}.log")


def environment(gpu: str) -> dict[str, str]:
    """This process's variables, with the stand-in in every Python that starts."""
    path = [str(SHIMS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "MPBOOK_SIZES": "cpu",
        "MPBOOK_STAND_IN": GPUS[gpu],
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": os.pathsep.join(path),
    }


def without_artefacts(outcome: Outcome) -> Outcome:
    """An outcome without the failures that are the stand-in's; with none left, it has passed."""
    expected = {name for artefact in ARTEFACTS for name in artefact.names()}
    faults = tuple(name for name in outcome.failures if name.partition("[")[0] not in expected)
    artefacts = len(outcome.failures) - len(faults)
    if not artefacts:
        return outcome
    line = f"{outcome.last_line} ({artefacts} of the stand-in's)"
    status = outcome.status if faults or outcome.status != 1 else 0
    return replace(outcome, status=status, failures=faults, last_line=line)


if __name__ == "__main__":
    sys.exit(main())
