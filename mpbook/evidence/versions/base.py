"""What a probe is: a question that a release of torch answers by itself."""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch


class UnavailableError(RuntimeError):
    """What a probe needs is not on this machine, such as a compiler; says nothing of torch."""


@dataclass(frozen=True)
class Probe:
    """One behaviour that a release of torch decides.

    ``run`` returns the answer as a short text, the same on every CPU and build of a release.
    ``pages`` are the pages with a sentence that rests on it, as paths below ``book/`` without their
    ending; such a sentence links to ``version-ID``.  ``advice`` is what to do about it.
    """

    id: str
    question: str
    run: Callable[[], str]
    advice: str
    pages: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of the source of ``run`` and its helpers, shortened to 12 digits."""
        return hashlib.sha256("".join(_sources(self.run)).encode()).hexdigest()[:12]


def _sources(function: Any) -> Iterator[str]:
    """The source of a function, then of the functions and classes of its module that it names."""
    yield inspect.getsource(function)
    if inspect.isfunction(function):
        for name in sorted(function.__code__.co_names):
            named = function.__globals__.get(name)
            own = getattr(named, "__module__", "") == function.__module__
            if own and (inspect.isfunction(named) or inspect.isclass(named)):
                yield from _sources(named)


def release(version: str | None = None) -> str:
    """A version of torch without its local part; by default that of the torch at hand.

    >>> release("1.2.3+cu130")
    '1.2.3'
    """
    return (version or torch.__version__).partition("+")[0]


def order(version: str) -> tuple[int, ...]:
    """By which versions are sorted.

    >>> order("1.9.1") < order("1.10.0")
    True
    """
    return tuple(int(part) for part in re.findall(r"\d+", release(version)))


def in_fresh_process(function: Callable[[], str]) -> str:
    """What a probe's function returns in a process of its own, whose switches are as torch's.

    Raises:
        UnavailableError: it did not end well there.
    """
    code = f"from {function.__module__} import {function.__name__} as ask; print(ask())"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("TORCH_", "NVIDIA_TF32"))}
    env = {**inherited, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-W", "ignore", "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    except (OSError, subprocess.SubprocessError) as error:
        raise UnavailableError(f"no process of its own: {error}") from error
    if done.returncode != 0:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise UnavailableError(f"in a process of its own: {last}")
    return done.stdout.strip().splitlines()[-1]
