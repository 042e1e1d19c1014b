"""The suite as other machines would run it: threads, instruction sets, order, locale, build.

A variant is a set of environment variables and the tests whose result it could change.  ``make
portability`` runs all variants, those together that do not exclude each other, and the files that
fail once more under each of them alone; ``make portability WHICH="avx2 locale+cu130"`` runs one
variant and then two together, and ``python tests/portability.py --list`` says what there is.  The
browser's tests are in none: they draw pages that are built already, and `make test` runs them.

A variant has caches of its own.  Inductor's holds C++ that was generated for the vectors of one
instruction set, and its key does not name the set: shared with a simulated AVX2, 16 lanes are read
from vectors that have 8, and the process dies.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from suite_runs import LOGS, NO_PAGES, ROOT, Outcome, choose, conclude, run_pytest, workers

LOG_FOLDER = LOGS / "portability"
SHIMS = ROOT / "tests" / "another_machine"
COMMA_LOCALES = ("de_DE", "fr_FR", "es_ES", "it_IT")
"""Locales that write a half as 0,5."""

DRAWN = {"pages", "explorers"}
ROOMS = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")} - DRAWN
NUMBERS = tuple(
    f"tests/{name}"
    for name in (
        *sorted(ROOMS),
        "test_bench.py", "test_data.py", "test_device.py", "test_master_weights.py",
        "test_models.py", "test_peers.py", "test_precision.py", "test_sixteen_bit_checkpoints.py",
    )
)  # fmt: skip
"""What computes with torch: the tests that a kernel's choice of order or of width could change."""
EVERYTHING = ("tests",)
MORE_THAN_CORES = {"MKL_DYNAMIC": "FALSE"}
"""Without it MKL, and torch after it, has no more threads than the machine has cores."""
NOTEBOOKS = ("book",)


@dataclass(frozen=True)
class Variant:
    """Another machine: what it sets, and the tests that could notice."""

    set: Mapping[str, str]
    tests: tuple[str, ...]
    options: tuple[str, ...] = field(default=())


VARIANTS = {
    "threads-1": Variant({"OMP_NUM_THREADS": "1"}, NUMBERS),
    "threads-2": Variant({"OMP_NUM_THREADS": "2", **MORE_THAN_CORES}, NUMBERS),
    "threads-4": Variant({"OMP_NUM_THREADS": "4", **MORE_THAN_CORES}, NUMBERS + NOTEBOOKS),
    "avx2": Variant(
        {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}, NUMBERS + NOTEBOOKS
    ),
    "avx512": Variant(
        {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, NUMBERS
    ),
    "random-order": Variant({}, EVERYTHING, ("-p", "random_order")),
    "locale": Variant(
        {"LC_ALL": "a decimal comma", "TZ": "Asia/Kathmandu"}, EVERYTHING + NOTEBOOKS
    ),
    "nvidia-container": Variant({"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}, EVERYTHING + NOTEBOOKS),
    "cu130": Variant(
        {"MPBOOK_TORCH_BUILD": "cu130", "MPBOOK_TRITON": "silent"}, EVERYTHING + NOTEBOOKS
    ),
    "ranks-4": Variant({"MPBOOK_RANKS": "4"}, ("tests/many_gpus",)),
}
"""Every instruction set that this CPU has is what `threads-1` runs on, and ``make test``."""

RUNS = (
    "threads-1",
    "threads-2+avx512",
    "threads-4+avx2",
    "random-order+locale+nvidia-container+cu130",
    "ranks-4",
)
"""What is run if nobody asks for a few: each variant once."""


def main() -> int:
    """Run the variants that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--which", default="", help="names; joined by +, they are run together")
    parser.add_argument("--tests", nargs="+", default=[], help="these paths, whatever the variant")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the order")
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    options = parser.parse_args()
    if options.list:
        for name, variant in VARIANTS.items():
            print(f"{name:<13} {_settings(variant)}\n{'':<13} {' '.join(variant.tests)}")
        return 0
    print(f"random order: --seed {options.seed}")
    outcomes = []
    for names in chosen_by(options.which):
        outcomes += run(names, options)
    return conclude(outcomes)


def chosen_by(which: str) -> list[list[str]]:
    """The variants of each run that a list such as "avx2 locale+cu130" asks for; `RUNS` if empty.

    Raises:
        SystemExit: no such variant.
    """
    asked = re.split(r"[,\s]+", which.strip()) if which.strip() else RUNS
    return [choose(run.replace("+", " "), list(VARIANTS)) for run in asked]


def together(names: Sequence[str]) -> Variant:
    """One variant that sets what all of these set and runs the tests that any of them runs.

    Raises:
        SystemExit: two of them set one variable to two values.
    """
    settings: dict[str, str] = {}
    for name in names:
        for variable, value in VARIANTS[name].set.items():
            if settings.setdefault(variable, value) != value:
                sys.exit(
                    f"{'+'.join(names)}: {variable} cannot be {settings[variable]} and {value}"
                )
    paths = dict.fromkeys(path for name in names for path in VARIANTS[name].tests)
    whole = [path for path in paths if not any(Path(o) in Path(path).parents for o in paths)]
    options = dict.fromkeys(option for name in names for option in VARIANTS[name].options)
    return Variant(settings, tuple(whole), tuple(options))


def run(names: Sequence[str], options: argparse.Namespace) -> list[Outcome]:
    """Run some variants together; of a failure, its files again under each variant alone."""
    tests = options.tests or together(names).tests
    found = [run_variant("+".join(names), together(names), tests, options)]
    if len(names) > 1 and (failed := {name.partition("::")[0] for name in found[0].failures}):
        found += [run_variant(name, VARIANTS[name], sorted(failed), options) for name in names]
    return found


def run_variant(
    name: str, variant: Variant, tests: Sequence[str], options: argparse.Namespace
) -> Outcome:
    """Run these tests as the variant's machine would."""
    python = Path(sys.executable)
    with tempfile.TemporaryDirectory() as caches:
        environment = _environment(variant, Path(caches), options.seed)
        arguments = [
            *NO_PAGES, "-p", "no:cacheprovider", *variant.options,
            *workers(python, options.workers), *tests,
        ]  # fmt: skip
        return run_pytest(name, python, arguments, environment, LOG_FOLDER / f"{name}.log")


def _environment(variant: Variant, caches: Path, seed: int) -> dict[str, str]:
    """This process's variables, changed as the variant says."""
    path = [str(SHIMS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": os.pathsep.join(path),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "MPBOOK_ORDER_SEED": str(seed),
    }
    environment |= variant.set
    if "LC_ALL" in variant.set:
        environment |= _comma_locale(caches)
    return environment


def _comma_locale(folder: Path) -> dict[str, str]:
    """The variables of a locale with a decimal comma: an installed one, or one compiled here."""
    listed = subprocess.run(["locale", "-a"], capture_output=True, text=True).stdout.split()
    for name in COMMA_LOCALES:
        if f"{name}.utf8" in listed:
            return {"LC_ALL": f"{name}.UTF-8"}
    made = f"{COMMA_LOCALES[0]}.UTF-8"
    command = ["localedef", "-i", COMMA_LOCALES[0], "-f", "UTF-8", str(folder / made)]
    if shutil.which("localedef") and not subprocess.run(command, capture_output=True).returncode:
        return {"LC_ALL": made, "LOCPATH": str(folder)}
    print("  no locale with a decimal comma here: LC_ALL=C instead")
    return {"LC_ALL": "C"}


def _settings(variant: Variant) -> str:
    return " ".join([*(f"{k}={v}" for k, v in variant.set.items()), *variant.options])


if __name__ == "__main__":
    sys.exit(main())
