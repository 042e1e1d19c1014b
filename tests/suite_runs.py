"""Running the suite in one environment after the other, and saying how it went in each."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOGS = ROOT / "_build"
NO_PAGES = ("-m", "not browser and not book")
"""Leaves out what drives a browser or builds the pages: neither looks at this machine's numbers."""


@dataclass(frozen=True)
class Outcome:
    """How one run of pytest ended: its name, its exit status, its last line, and what failed."""

    name: str
    status: int
    last_line: str
    failures: tuple[str, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every test passed or was skipped with a reason."""
        return self.status == 0


def run_pytest(
    name: str, python: Path, arguments: Sequence[str], environment: Mapping[str, str], log: Path
) -> Outcome:
    """Run pytest in the tree with this Python and environment; its output goes to the log.

    Each process has one of torch's threads, as with ``make test``, unless the environment says
    otherwise: two on each of as many workers as cores take twice as long.  A run that a signal
    kills, such as a segmentation fault, is an outcome like any other.
    """
    command = [str(python), "-X", "faulthandler", "-m", "pytest", "-q", "-rfE", *arguments]
    variables = {"OMP_NUM_THREADS": "1", **environment}
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{name}: {log}", flush=True)
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT
        )
    said = log.read_text(encoding="utf-8", errors="replace")
    failures = tuple(re.findall(r"^(?:FAILED|ERROR) (\S+(?: \d+)?)", said, re.MULTILINE))
    outcome = Outcome(name, done.returncode, _last(said), failures, time.monotonic() - start)
    print(f"  {_verdict(outcome)}", flush=True)
    return outcome


def workers(python: Path, count: int) -> list[str]:
    """The options for that many processes, where this Python has pytest-xdist."""
    probe = "import importlib.util as u, sys; sys.exit(u.find_spec('xdist') is None)"
    there = subprocess.run([str(python), "-c", probe]).returncode == 0
    return ["-n", str(count), "--dist", "loadfile"] if there and count > 1 else []


def conclude(outcomes: Sequence[Outcome]) -> int:
    """Print one line for each run and the names of what failed; return the exit status."""
    width = max((len(outcome.name) for outcome in outcomes), default=0)
    print()
    for outcome in outcomes:
        print(f"{outcome.name:<{width}}  {_verdict(outcome)}")
        for test in outcome.failures:
            print(f"{'':<{width}}    {test}")
    return 0 if outcomes and all(outcome.passed for outcome in outcomes) else 1


def choose(which: str, names: Sequence[str]) -> list[str]:
    """The names that a list separated by commas or spaces asks for; all of them if it is empty."""
    asked = re.split(r"[,\s]+", which.strip()) if which.strip() else list(names)
    unknown = [name for name in asked if name not in names]
    if unknown:
        sys.exit(f"{unknown[0]!r}: expected some of {', '.join(names)}")
    return asked


def _last(said: str) -> str:
    """The last line with anything on it, without the rules that pytest draws beside it."""
    lines = [line.strip(" =") for line in said.splitlines() if line.strip(" =")]
    return lines[-1] if lines else ""


def _verdict(outcome: Outcome) -> str:
    killed = f"killed by signal {-outcome.status}: " if outcome.status < 0 else ""
    word = "passed" if outcome.passed else "FAILED"
    return f"{word}  {outcome.seconds / 60:5.1f} min  {killed}{outcome.last_line}"
