"""``python -m mpbook diagnose MODULE:FUNCTION``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpbook.diagnosis.diagnosing import diagnose
from mpbook.diagnosis.report import Diagnosis


def called(what: str) -> Mapping[str, Any]:
    """What ``MODULE:FUNCTION`` returns; the module is looked for in the working directory first.

    Raises:
        ValueError: not of that form, no such function, or one that returns no model and batches.
        ImportError: no such module.
    """
    module, _, function = what.partition(":")
    if not function:
        raise ValueError(f'"{what}": expected MODULE:FUNCTION, such as train:what_to_diagnose')
    module = module.removesuffix(".py").replace("/", ".")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        make = getattr(importlib.import_module(module), function, None)
    finally:
        sys.path.remove(here)
    if not callable(make):
        raise ValueError(f'"{what}": {module} has no function {function}')
    given = make()
    if not isinstance(given, Mapping) or not {"model", "batches"} <= set(given):
        raise ValueError(
            f'"{what}": returned a {type(given).__name__}; expected a dict with "model" and '
            '"batches", and with "loss" and "optimizer" as mpbook.diagnose takes them'
        )
    return given


def diagnosed(given: Mapping[str, Any], *, formats: Sequence[str], steps: int) -> Diagnosis:
    """The diagnosis of what a function returned; what it says itself wins over the options."""
    options: dict[str, Any] = {"formats": formats, "steps": steps, **given}
    model, batches = options.pop("model"), options.pop("batches")
    return diagnose(model, batches, **options)
