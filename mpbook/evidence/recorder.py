"""Runs what has no record on this device yet, cheapest evidence first, and saves each at once.

``python -m mpbook record`` is all that a machine with a GPU needs: it reads no network, and needs
torch, numpy and scikit-learn alone.  Killed half-way, it goes on where it stopped; a case that runs
out of memory is recorded as one that did; no record is ever overwritten.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mpbook import device as devices
from mpbook.evidence import records
from mpbook.evidence.experiments import EXPERIMENTS, Case, Experiment
from mpbook.notebook import Table

Say = Callable[[str], None]


@dataclass(frozen=True)
class Planned:
    """One experiment on this device: where its record is, if it is, and about how long it takes."""

    experiment: Experiment
    recorded: Path | None
    predicted_s: float


def plan(
    names: Sequence[str] = (), *, device: str | torch.device | None = None, out: Path | None = None
) -> list[Planned]:
    """What `record` would run, in this order.

    Args:
        names: of experiments; all of them if none is given.
        device: ``"cuda"``, ``"cpu"`` or None for the best there is.
        out: the folder of new records, which counts beside those of the package.

    Raises:
        ValueError: an unknown name.
        RuntimeError, ValueError: as `mpbook.device.pick`.
    """
    chosen = devices.pick(device)
    if unknown := [name for name in names if name not in EXPERIMENTS]:
        raise ValueError(f'"{unknown[0]}": expected one of {", ".join(EXPERIMENTS)}')
    folders = [records.RECORDED, *([out] if out else [])]
    planned = []
    for name, experiment in EXPERIMENTS.items():
        if not names or name in names:
            file = records.file_name(name, devices.name(chosen))
            there = next((f / file for f in folders if (f / file).exists()), None)
            planned.append(Planned(experiment, there, experiment.predicted_s[chosen.type]))
    return planned


def table(planned: Sequence[Planned], *, device: str | torch.device | None = None) -> Table:
    """A plan as a table."""
    rows = [
        (p.experiment.name, p.experiment.question, _when(p), "" if p.recorded else p.predicted_s)
        for p in planned
    ]
    header = ["experiment", "question", "record", "about seconds"]
    return Table(header, rows, caption=f"Records of {devices.name(device)}")


def _when(planned: Planned) -> str:
    return "is there" if planned.recorded else "not yet"


def record(
    names: Sequence[str] = (),
    *,
    out: Path,
    device: str | torch.device | None = None,
    budget_s: float | None = None,
    say: Say | None = None,
) -> list[Path]:
    """Run every experiment that has no record on this device, and save each when it is done.

    Args:
        names: of experiments; all of them if none is given.
        out: the folder of new records, made if need be.
        device: ``"cuda"``, ``"cpu"`` or None for the best there is.
        budget_s: seconds after which no further experiment is begun, nor one whose prediction does
            not fit into what is left.
        say: gets each line of progress; by default they go to stderr.

    Returns:
        The files written.

    Raises:
        FileExistsError: an experiment that was asked for by name has its record already.
        OSError: a folder that cannot be written, before anything is run.
        ValueError, RuntimeError: as `plan`.
    """
    say = say or _to_stderr
    chosen, planned = devices.pick(device), plan(names, device=device, out=out)
    if names and (there := [p.recorded for p in planned if p.recorded]):
        raise FileExistsError(f'"{there[0]}": there is a record already; move it away first')
    _check_writable(out)
    to_run = [p for p in planned if p.recorded is None]
    since, written = time.monotonic(), []
    for index, item in enumerate(to_run):
        spent = time.monotonic() - since
        if budget_s is not None and spent + item.predicted_s > budget_s:
            say(
                f"{item.experiment.name}: left out, {budget_s - spent:.0f} s of the budget are left"
            )
            continue
        left = sum(p.predicted_s for p in to_run[index:])
        say(f"{item.experiment.name}: {index + 1} of {len(to_run)}, about {left:.0f} s remain")
        written.append(records.save(run(item.experiment, chosen, say=say), out))
        say(f"{item.experiment.name}: saved as {written[-1].name}")
    return written


def run(experiment: Experiment, device: torch.device, *, say: Say | None = None) -> records.Record:
    """Measure every case of one experiment."""
    say = say or _to_stderr
    provenance = records.Provenance.here(device)
    config = experiment.config(device)
    cases, since = experiment.cases(config, device), time.monotonic()
    rows = []
    for number, case in enumerate(cases, 1):
        rows.append(_run_case(experiment, config, case, device))
        status = rows[-1]["status"]
        if status != "measured" or number % 10 == 0:
            say(f"  {number} of {len(cases)}: {' '.join(map(str, case.values()))}: {status}")
    seconds = round(time.monotonic() - since, 3)
    return records.Record(experiment.name, _plain(asdict(config)), rows, provenance, seconds)


def _run_case(
    experiment: Experiment, config: Any, case: Case, device: torch.device
) -> dict[str, Any]:
    """One row of a record; whatever goes wrong is its status."""
    since, results, status = time.monotonic(), {}, "measured"
    state = records.gpu_state(_STATE) if device.type == "cuda" else ""
    try:
        results = experiment.measure(config, case, device)
    except torch.OutOfMemoryError:
        status = "out of memory"
    except Exception as error:  # one case must not take the others along
        status = f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
    if status != "measured" and device.type == "cuda":
        torch.cuda.empty_cache()
    row = {"case": case, "status": status, "seconds": round(time.monotonic() - since, 3)}
    return _plain({**row, **({"gpu": state} if state else {}), "results": results})


_STATE = "clocks.sm,temperature.gpu,power.draw,clocks_throttle_reasons.active"


def _plain(value: Any) -> Any:
    """The value as JSON gives it back: tuples become lists."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _check_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".mpbook-can-write"
    probe.touch()
    probe.unlink()


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
