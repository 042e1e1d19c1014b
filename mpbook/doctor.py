"""What is wrong with this environment, and what this machine can do: ``python -m mpbook doctor``.

A problem gives the exit status 1; what a machine merely lacks does not.

The checks come before torch is imported: an environment with two torches, or with a folder that
hides the real one, often fails at that very line, and with other words.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path

HOW_TO_COMPILE = "install g++ (apt install g++; on a Mac, xcode-select --install)"
AGAIN = "pip uninstall torch until none is left, then install one"


def report() -> str:
    """All that the doctor has to say, the problems first."""
    found = [f"problem: {problem}" for problem in problems()]
    if find_spec("torch") is None:
        return "\n".join(found)
    try:
        return "\n".join([*found, machine()])
    except (ImportError, AttributeError) as error:  # what a broken torch raises
        return "\n".join([*found, f"problem: torch cannot be used: {error}"])


def machine() -> str:
    """What this machine does natively, emulates or lacks, and which records it could add."""
    import torch

    from mpbook import __version__, device
    from mpbook.evidence import recorder

    title = f"mpbook {__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    compiler = cpp_compiler() or f"none, so torch.compile fails on the CPU: {HOW_TO_COMPILE}"
    plan = recorder.table(recorder.plan())
    return f"{title}\n{device.table()}\nC++ compiler: {compiler}\n\n{plan}"


def problems(path: Sequence[str] | None = None) -> list[str]:
    """What is wrong with the environment, a sentence each, with what would be right.

    Args:
        path: the folders to look for torch in; those of this Python if not given.
    """
    return [*_python_problems(sys.version_info[:2]), *_torch_problems(path)]


def _python_problems(version: tuple[int, ...]) -> Iterator[str]:
    if not (3, 11) <= version < (3, 14):
        has = ".".join(map(str, version))
        yield f"this is Python {has}; mpbook works with Python 3.11, 3.12 and 3.13"


def _torch_problems(path: Sequence[str] | None) -> Iterator[str]:
    installed = torches(path)
    if len(installed) > 1:
        places = ", ".join(f"{torch.version} in {_place(torch)}" for torch in installed)
        yield f"{len(installed)} torches are installed: {places}; {AGAIN}"
    package = imported_torch(path)
    if package is None:
        yield "torch is not installed: pip install torch"
    elif installed and not any(_is_editable(torch) for torch in installed):
        yield from _mismatches(package, installed[0])


def _mismatches(package: Path, installed: Distribution) -> Iterator[str]:
    """In what the package that `import torch` finds is not the one that was installed."""
    if package.parent != _place(installed):
        yield (
            f"`import torch` gives {package}, but torch {installed.version} is installed in "
            f"{_place(installed)}: rename what hides it, or take its folder off PYTHONPATH"
        )
        return
    says = _version_in(package)
    if says and says.partition("+")[0] != installed.version.partition("+")[0]:
        yield (
            f"the files in {package} are torch {says}, the installed package says "
            f"{installed.version}: half an upgrade; {AGAIN}"
        )


def torches(path: Sequence[str] | None = None) -> list[Distribution]:
    """Every installed torch, once, in the order in which Python looks."""
    search = sys.path if path is None else path
    found = distributions(name="torch", path=[str(Path(folder).resolve()) for folder in search])
    first: dict[tuple[str, Path], Distribution] = {}
    for torch in found:  # a folder may be on the path twice
        first.setdefault((torch.version, _place(torch)), torch)
    return list(first.values())


def imported_torch(path: Sequence[str] | None = None) -> Path | None:
    """The folder or file that ``import torch`` would run, without running it."""
    if path is None:
        spec = find_spec("torch")
    else:
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec("torch", path)
    if spec is None:
        return None
    if spec.origin is None:  # a folder without __init__.py
        return Path(next(iter(spec.submodule_search_locations or [])))
    file = Path(spec.origin).resolve()
    return file.parent if file.name == "__init__.py" else file


def _place(torch: Distribution) -> Path:
    return Path(str(torch.locate_file(""))).resolve()


def _is_editable(torch: Distribution) -> bool:
    """Whether torch was installed from a checkout, whose files lie elsewhere by right."""
    url = json.loads(torch.read_text("direct_url.json") or "{}")
    return bool(url.get("dir_info", {}).get("editable"))


def _version_in(package: Path) -> str | None:
    file = package / "version.py"
    text = file.read_text("utf-8") if file.exists() else ""
    found = re.search(r"""^__version__ = ["'](.+)["']""", text, re.MULTILINE)
    return found[1] if found else None


@functools.cache
def cpp_compiler() -> str | None:
    """The path of the C++ compiler that `torch.compile` uses on a CPU, or None without one.

    Torch takes the one that CXX names, else g++, on a Mac clang++. Source: ``config.cpp.cxx`` in
    torch/_inductor/config.py.
    """
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    found = shutil.which(name)
    if not found:
        return None
    try:  # a Mac without its tools has a clang++ that only asks for them
        done = subprocess.run([found, "--version"], capture_output=True, check=False)
    except OSError:
        return None
    return found if done.returncode == 0 else None
