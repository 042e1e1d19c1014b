"""A function or an object in words that say exactly what it is, the same in every process.

``partial(AdamW, lr=1e-3)`` is more than its name: two runs with different rates are different runs.
So a description holds arguments, closed-over values, defaults and a digest of the code; objects are
their class and their attributes.  Addresses in memory are nowhere in it.  What cannot be described
so is marked, and `is_exact` finds the mark.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import types
from typing import Any

import numpy
import torch

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))
_NAMED = (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, slice, range)
_MARK = "<not described exactly: "
_LONGEST = 2000
_OURS = ("torch", "mpbook", "numpy")
"""Packages whose functions are known by their names; all others' may change under one name."""


def describe(value: Any) -> str:
    """What the value is, in words that are the same for the same value, in any process.

    >>> describe(functools.partial(torch.optim.SGD, lr=0.1))
    'partial(torch.optim.sgd.SGD, lr=0.1)'
    """
    try:
        return _describe(value, _Walk())
    except Exception as error:  # whatever an object of somebody's may raise when it is looked at
        return f"{_MARK}{_path(type(value))}, {type(error).__name__}>"


def is_exact(description: str) -> bool:
    """Whether a description says all that there is to say."""
    return _MARK not in description


class _Walk:
    """Where a description stands, and what it has described: each object once."""

    def __init__(self) -> None:
        self.path: list[int] = []
        self.done: dict[int, tuple[Any, str]] = {}  # the object too, or its id may be another's


def _describe(value: Any, walk: _Walk) -> str:
    if isinstance(value, enum.Enum):
        return f"{_path(type(value))}.{value.name}"
    if type(value) in _PLAIN or isinstance(value, _NAMED):
        return repr(value)
    if id(value) in walk.path:
        return f"<itself, {len(walk.path) - walk.path.index(id(value))} up>"
    if id(value) not in walk.done:
        walk.path.append(id(value))
        walk.done[id(value)] = value, _shortened(_of_a_value(value, walk))
        walk.path.pop()
    return walk.done[id(value)][1]


def _shortened(text: str) -> str:
    """Long texts as their beginning and a digest, so that nested ones do not grow without end."""
    if len(text) <= _LONGEST:
        return text
    mark = "" if is_exact(text) else f", {_MARK}in it>"
    return f"{text[: _LONGEST // 4]}... sha256 {hashlib.sha256(text.encode()).hexdigest()}{mark}"


def _of_a_value(value: Any, walk: _Walk) -> str:
    if isinstance(value, type | types.ModuleType | types.BuiltinFunctionType):
        return _of_a_name(value, walk)
    if isinstance(value, torch.Tensor | numpy.ndarray | numpy.generic):
        return _of_numbers(torch.as_tensor(value))
    if isinstance(value, functools.partial):
        return f"partial({_arguments([value.func, *value.args], value.keywords, walk)})"
    if isinstance(value, types.MethodType):
        return f"{_describe(value.__self__, walk)}.{_describe(value.__func__, walk)}"
    if isinstance(value, types.FunctionType):
        return _of_a_function(value, walk)
    return _of_an_object(value, walk)


def _arguments(args: Any, named: dict[str, Any], walk: _Walk) -> str:
    shown = [_describe(one, walk) for one in args]
    return ", ".join(shown + [f"{k}={_describe(v, walk)}" for k, v in named.items()])


def _path(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _of_a_name(value: Any, walk: _Walk) -> str:
    """A class, a module, or a function written in C, which may be bound to an object."""
    if isinstance(value, types.ModuleType):
        return value.__name__
    owner = getattr(value, "__self__", None)
    if isinstance(value, types.BuiltinFunctionType) and not isinstance(
        owner, type | types.ModuleType | None
    ):
        return f"{_describe(owner, walk)}.{value.__name__}"
    return _path(value)


def _of_numbers(tensor: torch.Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    digest = hashlib.sha256(flat.numpy().tobytes()).hexdigest()[:16]
    return f"tensor({tensor.dtype}, {tuple(tensor.shape)}, sha256 {digest})"


def _of_a_function(function: types.FunctionType, walk: _Walk) -> str:
    """The name, and unless it is a package's: the code, the defaults, and what it refers to."""
    if function.__module__.partition(".")[0] in _OURS and "<" not in function.__qualname__:
        return _path(function)
    code = function.__code__
    parts = {"code": _code_digest(code), **_referred(function)}
    given: dict[str, Any] = {"defaults": function.__defaults__, "named": function.__kwdefaults__}
    parts |= {name: value for name, value in given.items() if value}
    shown = [f"{name}={_describe(value, walk)}" for name, value in parts.items()]
    return f"{_path(function)}({', '.join(shown)})"


def _referred(function: types.FunctionType) -> dict[str, Any]:
    """Closed-over values, and global ones that the code or a function within it names."""
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        found[name] = cell.cell_contents if _is_filled(cell) else None
    names = sorted(_names(function.__code__))
    return found | {n: function.__globals__[n] for n in names if n in function.__globals__}


def _is_filled(cell: types.CellType) -> bool:
    try:
        return bool(cell.cell_contents) or True
    except ValueError:
        return False


def _names(code: types.CodeType) -> set[str]:
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _code_digest(code: types.CodeType) -> str:
    """Of the instructions, names and constants, without file names and line numbers."""
    consts = [
        _code_digest(c) if isinstance(c, types.CodeType) else _const(c) for c in code.co_consts
    ]
    parts = [code.co_code.hex(), *code.co_names, *code.co_varnames, *consts]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _const(constant: Any) -> str:
    if isinstance(constant, types.CodeType):
        return _code_digest(constant)
    if isinstance(constant, frozenset):  # in no order of its own
        return repr(sorted(map(repr, constant)))
    return repr(constant)


def _of_an_object(value: Any, walk: _Walk) -> str:
    kind = type(value)
    if kind in (list, tuple):
        return f"{kind.__name__}({_arguments(value, {}, walk)})"
    if kind in (set, frozenset):
        return f"{kind.__name__}({', '.join(sorted(_describe(one, walk) for one in value))})"
    if isinstance(value, dict):
        pairs = [f"{_describe(k, walk)}: {_describe(v, walk)}" for k, v in value.items()]
        return f"{_path(kind)}({', '.join(pairs)})"
    if not hasattr(value, "__dict__") or kind.__module__ == "builtins" or _has_hidden_state(kind):
        return f"{_MARK}{_path(kind)}>"
    state = dict(sorted(vars(value).items()))
    return f"{_of_a_class(kind, walk)}({_arguments((), state, walk)})"


def _of_a_class(kind: type, walk: _Walk) -> str:
    """The name, and unless it is a package's what it does when called."""
    call = getattr(kind, "__call__", None)  # noqa: B004
    if isinstance(call, types.FunctionType) and kind.__module__.partition(".")[0] not in _OURS:
        return f"{_path(kind)}<{_describe(call, walk)}>"
    return _path(kind)


def _has_hidden_state(kind: type) -> bool:
    """Whether objects of a class keep something beside their attributes: slots, or a C struct."""
    return any("__slots__" in vars(c) and vars(c)["__slots__"] for c in kind.__mro__) or (
        not issubclass(kind, torch.nn.Module) and kind.__basicsize__ > _SIZE
    )


class _Empty:
    pass


_SIZE = _Empty.__basicsize__
