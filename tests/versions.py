"""The suite on other versions of torch and Python, each in an environment of its own.

``make versions`` makes the environments that are missing, several gigabytes each, and runs the
suite in one after the other; ``python tests/versions.py --only torch2.15.0 --tests tests/formats``
runs some tests in some of them, ``--only none`` nothing at all but the list.  They lie outside the
tree, in the user's cache unless ``--folder`` or ``MPBOOK_ENVIRONMENTS`` names another place, and
hold the lock's packages but for torch and what a torch insists on; the lock itself stays.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from suite_runs import LOGS, NO_PAGES, ROOT, Outcome, conclude, run_pytest, workers

LOCK = ROOT / "requirements.txt"
UNPINNED = {"setuptools"}
"""Torch decides on these: up to 2.12.1 it wants a setuptools that is older than the lock's."""


@dataclass(frozen=True)
class Versions:
    """A Python and a torch that the package says it works with."""

    python: str
    torch: str

    @property
    def name(self) -> str:
        """The name of the environment's folder."""
        return f"py{self.python}-torch{self.torch}"

    @property
    def requirements(self) -> str:
        """The lock with this torch, without what a torch decides itself."""
        lines = []
        for line in LOCK.read_text(encoding="utf-8").splitlines():
            package = re.split(r"[=<> ]", line)[0]
            if package not in UNPINNED:
                lines.append(f"torch=={self.torch}" if package == "torch" else line)
        return "\n".join([*lines, *sorted(UNPINNED), ""])


ENVIRONMENTS = (
    *(Versions("3.11", torch) for torch in ("2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0")),
    Versions("3.12", "2.13.0"),
    Versions("3.13", "2.13.0"),
)


def main() -> int:
    """Make the environments that were asked for, and run the suite in each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="those whose name holds one of these words")
    parser.add_argument("--tests", nargs="+", default=["tests", "book"], help="paths to run")
    parser.add_argument("--folder", type=Path, default=_default_folder(), help="environments' home")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    if ROOT in options.folder.resolve().parents:
        parser.error(f"--folder {options.folder}: lies in the tree, where tools would find it")
    chosen = chosen_by(options.only)
    if not chosen:
        parser.error(f"--only {options.only}: expected a part of one of {_names()}")
    return conclude([run(versions, options) for versions in chosen])


def chosen_by(only: str) -> list[Versions]:
    """The environments whose name holds one of the words; all of them where there is none."""
    words = re.split(r"[,\s]+", only.strip()) if only.strip() else [""]
    return [v for v in ENVIRONMENTS if any(word in v.name for word in words)]


def run(versions: Versions, options: argparse.Namespace) -> Outcome:
    """Run the tests in one environment, made if need be; that it cannot be made is an outcome."""
    home = options.folder / versions.name
    log = LOGS / "versions" / f"{versions.name}.log"
    try:
        python = ready(versions, home)
    except (OSError, subprocess.CalledProcessError) as error:
        return Outcome(versions.name, 1, f"no environment: {error}", (), 0.0)
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    environment = os.environ | {
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": os.pathsep.join(paths),  # the tree is not installed there
        "TORCHINDUCTOR_CACHE_DIR": str(home / "inductor"),
    }
    arguments = [*NO_PAGES, "-p", "no:cacheprovider", *workers(python, options.workers)]
    return run_pytest(versions.name, python, [*arguments, *options.tests], environment, log)


def ready(versions: Versions, home: Path) -> Path:
    """The Python of the environment: as it is, or made, or brought up to the lock of today.

    An environment without this file's note was made by hand, and is left as it is.

    Raises:
        FileNotFoundError: no such Python.
        subprocess.CalledProcessError: something did not install.
    """
    python, note = home / "bin" / "python", home / "requirements.sha256"
    digest = hashlib.sha256(versions.requirements.encode()).hexdigest()
    if python.exists() and (not note.exists() or note.read_text() == digest):
        return python
    print(f"{versions.name}: making {home}", flush=True)
    install = _make(versions.python, home)
    wanted = home / "requirements.txt"
    wanted.write_text(versions.requirements, encoding="utf-8")
    subprocess.run([*install, "-r", str(wanted)], check=True)
    note.write_text(digest)
    return python


def _make(python: str, home: Path) -> list[str]:
    """Make an empty environment there; return the command that installs into it."""
    uv = shutil.which("uv")
    if uv:
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", python, home], check=True)
        return [uv, "pip", "install", "--quiet", "--python", str(home / "bin" / "python")]
    base = shutil.which(f"python{python}")
    # What pyenv puts there for a Python that is not active does nothing but fail.
    if base is None or subprocess.run([base, "-c", ""], capture_output=True).returncode:
        raise FileNotFoundError(
            f"no python{python} that runs is on PATH, nor uv, which could fetch it"
        )
    subprocess.run([base, "-m", "venv", "--clear", str(home)], check=True)
    return [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet"]


def _default_folder() -> Path:
    """Where environments lie that nobody named a place for."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    named = os.environ.get("MPBOOK_ENVIRONMENTS")
    return Path(named) if named else cache / "mpbook" / "environments"


def _names() -> str:
    return ", ".join(versions.name for versions in ENVIRONMENTS)


if __name__ == "__main__":
    sys.exit(main())
