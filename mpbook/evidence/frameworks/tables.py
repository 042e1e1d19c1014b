"""What the libraries did, as tables for a page."""

from __future__ import annotations

from typing import Any

from mpbook.evidence.records import Record
from mpbook.notebook import Table

HELD = ("parameters", "gradients", "state", "checkpoint")


def two_by_two(record: Record) -> Table:
    """The loaded dtype and ``bf16``: what each part holds, and bytes for each parameter."""
    rows = []
    for case, found in _measured(record, "transformers", "training"):
        held = [f"{found[part]}, {per_parameter(found, part):g}" for part in HELD]
        rows.append([f"{case['loaded']}, bf16={case['bf16']}", found["computes in"], *held])
    return Table(["dtype loaded", "computes in", "parameters", "gradients", "Adam's state",
                  "checkpoint"], rows, caption="dtype, and bytes for each parameter")  # fmt: skip


def sizes(record: Record) -> Table:
    """The loaded dtype and ``bf16``: bytes for each parameter in memory and on disk, in all."""
    rows = []
    for case, found in _measured(record, "transformers", "training"):
        memory = sum(per_parameter(found, part) for part in HELD[:3])
        weights, state = (per_parameter(found, x) for x in ("checkpoint", "optimizer.pt"))
        setting = f"{case['loaded']}, bf16={case['bf16']}"
        rows.append([setting, memory, weights, state, f"{found['unchanged']:.0%}"])
    return Table(["dtype loaded", "in memory", "model.safetensors", "optimizer.pt",
                  "weights unmoved"], rows, caption="bytes for each parameter")  # fmt: skip


def per_parameter(found: dict[str, Any], part: str) -> float:
    """Bytes of a part for each parameter of the model, to one digit after the point."""
    return round(float(found[f"{part} bytes"]) / found["count"], 1)


def lightning_words(record: Record) -> Table:
    """What each word for ``precision`` makes of the parts, and the scaler that a checkpoint has."""
    rows = []
    for case, found in _measured(record, "lightning", "training"):
        scaler = "yes" if found["scaler"] else "no"
        held = [found[part] for part in ("parameters", "gradients", "state", "checkpoint")]
        rows.append([case["precision"], found["computes in"], *held, scaler])
    return Table(["precision=", "computes in", "parameters", "gradients", "Adam's state",
                  "checkpoint", "loss scale"], rows)  # fmt: skip


def accelerate_words(record: Record) -> Table:
    """What ``Accelerator(mixed_precision=...)`` does to a layer on a CPU."""
    rows = [
        [case["word"], found["parameters"], found["inside"], found["returned"]]
        for case, found in _measured(record, "accelerate", "mixed_precision")
    ]
    return Table(["mixed_precision=", "parameters", "inside", "returned"], rows)


def loaded_without_dtype(found: dict[str, Record]) -> Table:
    """What `from_pretrained` makes of a checkpoint if no dtype is named, by release."""
    stored = [case["stored"] for case, _ in _measured(next(iter(found.values())), *_NO_DTYPE)]
    rows = [[f"{kept}", *(_answer(record, kept) for record in found.values())] for kept in stored]
    return Table(["the file holds", *(f"transformers {release}" for release in found)], rows)


_NO_DTYPE = ("transformers", "no dtype named")


def _answer(record: Record, stored: str) -> str:
    library, what = _NO_DTYPE
    return str(record.results(library=library, what=what, stored=stored)["parameters"])


def _measured(record: Record, library: str, what: str) -> list[tuple[dict[str, Any], Any]]:
    return [
        (case, found) for case, found in record.measured()
        if (case["library"], case["what"]) == (library, what)
    ]  # fmt: skip
