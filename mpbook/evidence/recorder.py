"""Runs what has no record on this device yet, cheapest evidence first, and keeps each case at once.

``python -m mpbook record`` is all that a machine with a GPU needs: it reads no network, and needs
torch, numpy and scikit-learn alone.  Each case is kept the moment it is measured, so that a run
which is killed, or whose budget ends, goes on where it stopped.  A case that runs out of memory is
recorded as one that did; one that failed is tried again by the next run.  No finished record is
ever overwritten.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mpbook import device as devices
from mpbook.cost.measure import time_calls
from mpbook.evidence import records
from mpbook.evidence.experiments import EXPERIMENTS, Case, Experiment
from mpbook.evidence.kept_cases import Kept, failed_rows, plain
from mpbook.notebook import Table

Say = Callable[[str], None]

REFERENCE_TFLOPS = {"cuda": 50.0, "cpu": 0.1}
"""Of float32 products on the devices that `Experiment.predicted_s` was written for."""


@dataclass(frozen=True)
class Planned:
    """One experiment on this device: its finished record, if there is one, and about how long.

    ``failed`` is how many cases of a record that is there have failed, so that it is not finished,
    and ``cannot`` why this machine cannot run it.
    """

    experiment: Experiment
    recorded: Path | None
    predicted_s: float
    failed: int = 0
    cannot: str | None = None


def plan(
    names: Sequence[str] = (), *, device: str | torch.device | None = None, out: Path | None = None
) -> list[Planned]:
    """What `record` would run, in this order.

    Args:
        names: of experiments; all of them if none is given.
        device: ``"cuda"``, ``"cpu"`` or None for the best there is.
        out: the folder of new records, which counts beside those of the package.

    Raises:
        ValueError: an unknown name, or a record that is torn or was edited.
        RuntimeError, ValueError: as `mpbook.device.pick`.
    """
    chosen = devices.pick(device)
    if unknown := [name for name in names if name not in EXPERIMENTS]:
        raise ValueError(f'"{unknown[0]}": expected one of {", ".join(EXPERIMENTS)}')
    folders = [records.RECORDED, *([out] if out else [])]
    return [
        _planned(experiment, chosen, folders)
        for name, experiment in EXPERIMENTS.items()
        if not names or name in names
    ]


def _planned(experiment: Experiment, device: torch.device, folders: Sequence[Path]) -> Planned:
    file = records.file_name(experiment.name, devices.name(device))
    there = {
        f / file: len(failed_rows(records.load(f / file))) for f in folders if (f / file).exists()
    }
    finished = next((path for path, failed in there.items() if not failed), None)
    failed = 0 if finished else min(there.values(), default=0)
    predicted_s = experiment.predicted_s[device.type]
    return Planned(experiment, finished, predicted_s, failed, experiment.cannot(device))


def table(planned: Sequence[Planned], *, device: str | torch.device | None = None) -> Table:
    """A plan as a table."""
    rows = [
        (
            p.experiment.name,
            p.experiment.question,
            _when(p),
            "" if p.recorded or p.cannot else p.predicted_s,
        )
        for p in planned
    ]
    header = ["experiment", "question", "record", "about seconds"]
    return Table(header, rows, caption=f"Records of {devices.name(device)}")


def _when(planned: Planned) -> str:
    if planned.cannot and not planned.recorded:
        return f"not here: {planned.cannot}"
    if planned.failed:
        return f"{planned.failed} cases failed"
    return "is there" if planned.recorded else "not yet"


def record(
    names: Sequence[str] = (),
    *,
    out: Path,
    device: str | torch.device | None = None,
    budget_s: float | None = None,
    say: Say | None = None,
) -> list[Path]:
    """Run every experiment that has no finished record on this device, and save each when done.

    One that this machine cannot run is left out, and why is said.

    Args:
        names: of experiments; all of them if none is given.
        out: the folder of new records, made if need be.
        device: ``"cuda"``, ``"cpu"`` or None for the best there is.
        budget_s: seconds after which no further case is begun, nor an experiment whose prediction
            does not fit into what is left.  What was measured of one is kept for the next run.
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
    missing = [p for p in planned if p.recorded is None]
    for item in missing:
        if item.cannot:
            say(f"{item.experiment.name}: left out: {item.cannot}")
    to_run = [p for p in missing if not p.cannot]
    slower = slowness(chosen) if to_run else 1.0
    predicted = [p.predicted_s * slower for p in to_run]
    ends = math.inf if budget_s is None else time.monotonic() + budget_s
    written = []
    for index, item in enumerate(to_run):
        name, left = item.experiment.name, ends - time.monotonic()
        kept = Kept(out, item.experiment, chosen)
        if predicted[index] * kept.missing() > left:
            say(f"{name}: left out, {left:.0f} s of the budget are left")
            continue
        say(f"{name}: {index + 1} of {len(to_run)}, about {sum(predicted[index:]):.0f} s remain")
        measured = run(item.experiment, chosen, say=say, kept=kept, ends=ends)
        if measured is None:
            say(f"{name}: the budget has ended; the next run goes on here")
            break
        written.append(kept.finish(measured))
        say(f"{name}: saved as {written[-1].name}")
    return written


def slowness(device: torch.device) -> float:
    """How many times slower than the predictions' device this one is, at least 1.

    Of one product of float32 matrices.
    """
    size = devices.sized(cpu=512, gpu=4096, device=device)
    a = torch.randn(size, size, device=device)
    spread = time_calls(torch.mm, [(a, a)], device=device, readings=3)
    tflops = 2 * size**3 / spread.low / 1e12
    return max(1.0, REFERENCE_TFLOPS[device.type] / tflops)


def run(
    experiment: Experiment,
    device: torch.device,
    *,
    say: Say | None = None,
    kept: Kept | None = None,
    ends: float = math.inf,
) -> records.Record | None:
    """Measure every case of one experiment that is not kept already.

    Returns:
        Its record; None if ``ends``, of `time.monotonic`, came first.
    """
    say = say or _to_stderr
    provenance = kept.provenance if kept else records.Provenance.here(device)
    config = kept.config if kept else experiment.config(device)
    cases, rows = experiment.cases(config, device), []
    for number, case in enumerate(cases, 1):
        row = kept.row(case) if kept else None
        if row is None:
            if time.monotonic() > ends:
                return None
            row = _run_case(experiment, config, case, device)
            if kept:
                kept.add(row)
            if row["status"] != "measured":
                _check_answers(device)
        rows.append(row)
        if row["status"] != "measured" or number % 10 == 0:
            say(f"  {number} of {len(cases)}: {' '.join(map(str, case.values()))}: {row['status']}")
    seconds = round(sum(row["seconds"] for row in rows), 3)
    return records.Record(experiment.name, plain(asdict(config)), rows, provenance, seconds)


def _run_case(
    experiment: Experiment, config: Any, case: Case, device: torch.device
) -> dict[str, Any]:
    """One row of a record; whatever goes wrong is its status."""
    since, results, status = time.monotonic(), {}, "measured"
    state = records.gpu_state(_STATE, device) if device.type == "cuda" else ""
    try:
        results = experiment.measure(config, case, device)
    except torch.OutOfMemoryError:
        status = "out of memory"
    except Exception as error:  # one case must not take the others along
        status = f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
    row = {"case": case, "status": status, "seconds": round(time.monotonic() - since, 3)}
    return plain({**row, **({"gpu": state} if state else {}), "results": results})


def _check_answers(device: torch.device) -> None:
    """Give memory back; some errors of CUDA stay with the process, and then it refuses even that.

    Raises:
        RuntimeError: no further case can be measured in this process.
    """
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except RuntimeError as error:
        raise RuntimeError(
            "the GPU answers no longer in this process; run the command again, and it goes on "
            f"after this case ({str(error).partition(chr(10))[0]})"
        ) from error


_STATE = "clocks.sm,temperature.gpu,power.draw,clocks_throttle_reasons.active"


def _check_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".mpbook-can-write"
    probe.touch()
    probe.unlink()


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
