"""Make a program for several ranks out of functions that stand in a notebook's cell.

A rank is another process: it has nothing of the notebook's.  So a function has to stand by itself,
but for the names of `PRELUDE`, those that every program for many ranks imports.
"""

from __future__ import annotations

import builtins
import dis
import functools
import inspect
import operator
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
_LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
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
    flags = functools.reduce(operator.or_, map(_future_annotations, functions))
    used = set().union(*(_used(source, flags) for source in sources))
    lines = ["from __future__ import annotations"] if flags else []
    lines += [line for line, given in _LINES if used & given]  # FSDP's takes a second
    if main is None:
        run = [f.__name__ for f in functions if not inspect.signature(f).parameters]
        calls = "".join(f"{name!r}: {name}(), " for name in run)
        sources += [f"def run_all():\n    return {{{calls}}}"]
        main = "run_all"
    last = "from mpbook.many_gpus.rank import run_rank\n\n    run_rank"
    end = f'if __name__ == "__main__":\n    {last}({main})'
    return "\n\n".join(["\n".join(lines), *sources, end]) + "\n"


def _source(function: Callable[..., Any], *, known: set[str]) -> str:
    name = getattr(function, "__name__", repr(function))
    if not inspect.isfunction(function) or name == "<lambda>":
        raise ValueError(f"program={name}: expected a function made with def")
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except OSError:
        raise ValueError(f"{name}: its source is nowhere; define it in a cell or a file") from None
    used = _used(source, _future_annotations(function))
    unknown = sorted(used - known - set(vars(builtins)))
    if unknown:
        raise ValueError(
            f"{name} uses {', '.join(unknown)}, which another process does not have: import or "
            "define it inside the function"
        )
    return source


def _future_annotations(function: Callable[..., Any]) -> int:
    """The compiler's flag, where a module says ``from __future__ import annotations``, else 0."""
    return function.__code__.co_flags & annotations.compiler_flag


def _used(source: str, flags: int) -> set[str]:
    """The names that a function takes from outside itself, for its signature and decorators too."""
    return set(_globals(compile(source, "a program", "exec", flags, dont_inherit=True)))


def _globals(code: CodeType) -> Iterator[str]:
    """The names that code reads from outside, that of functions and classes inside it included."""
    own: set[str] = set()  # a class's body finds its own names first
    for instruction in dis.get_instructions(code):
        if instruction.opname == "STORE_NAME":
            own.add(instruction.argval)
        elif instruction.opname in _LOADS and instruction.argval not in own:
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals(constant)
