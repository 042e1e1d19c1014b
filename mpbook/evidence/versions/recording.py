"""Asking the torch at hand, keeping what it says, and reading what others said."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from mpbook.evidence import records
from mpbook.evidence.records import Provenance, Record
from mpbook.evidence.versions.base import Probe, UnavailableError, order, release

RECORDED = Path(__file__).parent / "recorded"
"""The folder of the records that come with the package, one for each release of torch."""


def answer(probe: Probe) -> str:
    """What the torch at hand answers; ``"not here: "`` and the reason where it cannot be asked."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return probe.run()
    except UnavailableError as lacking:
        return f"not here: {lacking}"


def record_here(probes: Iterable[Probe], folder: Path) -> Path:
    """Ask the torch at hand, and keep the answers as a record of its release.

    Returns:
        The file.

    Raises:
        FileExistsError: there is one of this release on this CPU already.
        OSError: the folder cannot be made or written.
    """
    provenance, started = Provenance.here(torch.device("cpu")), time.monotonic()
    cases = [_case(probe) for probe in probes]
    name = f"torch-{release()}"
    record = Record(name, {"torch": release()}, cases, provenance, time.monotonic() - started)
    return records.save(record, folder)


def _case(probe: Probe) -> dict[str, Any]:
    started, found = time.monotonic(), answer(probe)
    lacks = found.startswith("not here: ")
    return {
        "case": {"probe": probe.id, "source": probe.digest},
        "status": f"failed: {found}" if lacks else "measured",
        "seconds": round(time.monotonic() - started, 3),
        "results": {} if lacks else {"answer": found},
    }


def load(folder: Path = RECORDED) -> dict[str, Record]:
    """Every record of a folder by the release it is of, the oldest release first.

    Raises:
        ValueError: one that was edited or torn, is of another release than it says, or the second
            of its release.
    """
    found: dict[str, Record] = {}
    for path in sorted(folder.glob("torch-*.json")):
        record = records.load(path)
        version = release(record.provenance.torch_version)
        if record.config != {"torch": version} or record.experiment != f"torch-{version}":
            raise ValueError(f'record "{path.name}": measured with torch {version}')
        if version in found:
            raise ValueError(f'record "{path.name}": the second of torch {version}; keep one')
        found[version] = record
    return dict(sorted(found.items(), key=lambda item: order(item[0])))


def answers(probe: Probe, found: Mapping[str, Record]) -> dict[str, str]:
    """What each release answered to a probe; one that was not asked is ``"not recorded"``."""
    return {version: _answered(probe, record) for version, record in found.items()}


def _answered(probe: Probe, record: Record) -> str:
    try:
        return str(record.results(probe=probe.id)["answer"])
    except LookupError:
        return "not recorded"
