"""Cases of an experiment that are measured already, kept on disk until its record is whole."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mpbook.evidence import records
from mpbook.evidence.experiments import base


class Kept:
    """The cases of one experiment that are measured already, each on a line of a file.

    They count only for the same code, device and configuration.  Of a record that is finished but
    for cases that failed, all others count.
    """

    def __init__(self, out: Path, experiment: base.Experiment, device: torch.device) -> None:
        self.provenance = records.Provenance.here(device)
        self.config = experiment.config(device)
        self.cases = experiment.cases(self.config, device)
        self._out = out
        self._record = out / records.file_name(experiment.name, self.provenance.device)
        self._file = self._record.with_suffix(".cases")
        self.rows = self._read()

    def _read(self) -> list[dict[str, Any]]:
        if self._file.exists():
            text = self._file.read_text("utf-8")
            head, *rows = [_parsed(line) for line in text.splitlines()] or [None]
            if head == self._head():
                kept = [row for row in rows if row]
                if not text.endswith("\n"):  # killed while it wrote: the next line needs its own
                    self._write(kept)
                return kept
        elif self._record.exists():  # finished, but for what failed
            old = records.load(self._record)
            if _belongs(asdict(old.provenance), old.config) == self._head():
                return [row for row in old.cases if row not in failed_rows(old)]
        return []

    def _write(self, rows: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(line) + "\n" for line in (self._head(), *rows))
        whole = self._file.with_suffix(".writing")
        whole.write_text(lines, "utf-8")
        whole.replace(self._file)

    def _head(self) -> dict[str, Any]:
        return _belongs(asdict(self.provenance), plain(asdict(self.config)))

    def row(self, case: base.Case) -> dict[str, Any] | None:
        """What was measured of a case, or None."""
        return next((row for row in self.rows if row["case"] == plain(case)), None)

    def missing(self) -> float:
        """The share of the cases that are still to be measured."""
        return sum(self.row(case) is None for case in self.cases) / len(self.cases)

    def add(self, row: dict[str, Any]) -> None:
        """Keep one more, on disk before the next is begun."""
        self.rows.append(row)
        if len(self.rows) == 1 or not self._file.exists():
            self._write(self.rows)
        else:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def finish(self, record: records.Record) -> Path:
        """Save the whole record, over an unfinished one only, and forget the single cases."""
        if self._record.exists() and failed_rows(records.load(self._record)):
            self._record.unlink()
        path = records.save(record, self._out)
        self._file.unlink(missing_ok=True)
        return path


def _belongs(provenance: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for two cases to stand in one record: all but the time."""
    return {**provenance, "started": "", "commit": "", "config": config}


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        parsed = json.loads(line)
    except ValueError:  # the last line of a run that was killed
        return None
    return parsed if isinstance(parsed, dict) else None


def failed_rows(record: records.Record) -> list[dict[str, Any]]:
    """The cases of a record that failed; running out of memory is a result."""
    return [row for row in record.cases if row["status"].startswith("failed")]


def plain(value: Any) -> Any:
    """The value as JSON gives it back: tuples become lists."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value
