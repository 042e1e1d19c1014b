"""Make a program for several ranks out of functions that stand in a notebook's cell.

A rank is another process: it has nothing of the notebook's.  So a function has to stand by itself,
but for the names of `PRELUDE`, those that every program for many ranks imports.
"""

from __future__ import annotations

import builtins
import dis
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from types import CodeType
from typing import Any

PRELUDE = """\
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
"""
"""The imports that a function may use without importing them itself."""

_LINES = [
    (line, set(re.split(r" as | import |^import ", line)[-1].split(", ")))
    for line in PRELUDE.splitlines()
]
_KNOWN = set().union(*(names for _, names in _LINES))


def program_text(functions: Sequence[Callable[..., Any]], *, main: str | None) -> str:
    """The source of a script that every rank runs.

    Args:
        functions: whose source to take; they may call each other.
        main: which one to run with the options; None runs those without parameters, in order, and
            answers with a dictionary of what they returned.

    Raises:
        ValueError: no functions, one without source, or one that needs a name which a rank does not
            have.
    """
    if not functions:
        raise ValueError("functions: none given")
    names = {function.__name__ for function in functions}
    sources = [_source(function, known=_KNOWN | names) for function in functions]
    used = set().union(*(_used(function) for function in functions))
    prelude = "\n".join(line for line, given in _LINES if used & given)  # FSDP's takes a second
    if main is None:
        run = [f.__name__ for f in functions if not inspect.signature(f).parameters]
        calls = "".join(f"{name!r}: {name}(), " for name in run)
        sources += [f"def run_all():\n    return {{{calls}}}"]
        main = "run_all"
    last = "from mpbook.many_gpus.rank import run_rank\n\n    run_rank"
    end = f'if __name__ == "__main__":\n    {last}({main})'
    return "\n\n".join([prelude, *sources, end]) + "\n"


def _source(function: Callable[..., Any], *, known: set[str]) -> str:
    name = getattr(function, "__name__", repr(function))
    if not inspect.isfunction(function) or name == "<lambda>":
        raise ValueError(f"program={name}: expected a function made with def")
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except OSError:
        raise ValueError(f"{name}: its source is nowhere; define it in a cell or a file") from None
    unknown = sorted(_used(function) - known - set(vars(builtins)))
    if unknown:
        raise ValueError(
            f"{name} uses {', '.join(unknown)}, which another process does not have: import or "
            "define it inside the function"
        )
    return source


def _used(function: Callable[..., Any]) -> set[str]:
    """The names that a function takes from outside itself."""
    return {*function.__code__.co_freevars, *_globals(function.__code__)}


def _globals(code: CodeType) -> Iterator[str]:
    """The global names that a function reads, those of the functions inside it included."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals(constant)
