"""Places in a model's code, and what was seen of the operator that stands there."""

from __future__ import annotations

import linecache
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Literal

import torch
from torch import Tensor

import mpbook
from mpbook.watch.histograms import Histogram

Phase = Literal["forward", "inner", "backward", "update"]
"""Inner is the backward pass of a gradient that a loss is made of: no loss scale reaches it."""
MODEL, LOSS, OPTIMIZER = "(model)", "(loss)", "(optimizer)"
OVERFLOWS = 65520.0
"""The smallest magnitude that float16 rounds to infinity."""


@dataclass(frozen=True)
class Place:
    """Where an operator stands: module, and file and line of the code that called it."""

    module: str
    file: str = ""
    line: int = 0

    @property
    def where(self) -> str:
        """File and line; of a notebook's cell, whose file is a number, the line's own words."""
        if not is_a_cell(self.file):
            return f"{Path(self.file).name}:{self.line}" if self.file else ""
        source = linecache.getline(self.file, self.line).strip()
        return f"line {self.line} of a cell" + (f": {shorten(source, 48)}" if source else "")

    def __str__(self) -> str:
        return f"{self.module} ({self.where})" if self.file else self.module


@dataclass(frozen=True)
class Key:
    """One operator of a step: the same in each run, whatever its dtype."""

    phase: Phase
    place: Place
    operator: str
    nth: int


@dataclass
class Seen:
    """What one operator put out, over all steps.

    ``largest`` is the largest finite magnitude.  ``began`` says that a result was not finite
    though all operands were, ``began_nan`` that it was NaN and no operand was; ``signs`` has "+",
    "-" and "nan" of what was not; ``overflows_at`` is the step of the first overflow of float16;
    ``of_a_mask`` says that an operand held a mask's values already; ``caller`` is where
    `torch.autograd.grad` was called, of what is inner.
    """

    key: Key
    dtype: torch.dtype
    order: int
    shape: tuple[int, ...]
    largest: float = 0.0
    step: int = 0
    began: bool = False
    nonfinite: bool = False
    signs: set[str] = field(default_factory=set)
    cause: str = ""
    histogram: Histogram | None = None
    cancelled: bool = False
    highest: float = -math.inf
    overflows_at: int = 0
    began_nan: bool = False
    of_a_mask: bool = False
    caller: Place | None = None

    @property
    def operator(self) -> str:
        """Its name, as ``torch.ops.aten`` has it."""
        return self.key.operator

    @property
    def headroom(self) -> float:
        """Binades between the largest magnitude and float16's largest number."""
        return math.log2(65504.0 / self.largest) if self.largest else math.inf

    def __str__(self) -> str:
        backward = "the backward pass of " if self.key.phase in ("inner", "backward") else ""
        return f"{self.operator} in {backward}{self.key.place}"


# --- Infinities that are meant ----------------------------------------------------------------

_FILLS = frozenset("masked_fill masked_fill_ where full full_like fill_ scalar_tensor".split())
PASS_ON = frozenset(
    "_to_copy copy_ add add_ sub sub_ mul mul_ div div_ neg cat stack constant_pad_nd index gather "
    "index_select take roll flip repeat tril triu clamp clamp_min clamp_max minimum maximum amax "
    "amin slice_scatter select_scatter index_put index_put_ scatter scatter_ _to_dense".split()
)
"""Operators that hand a mask's values on."""
MASKED_FROM = 0.99 * 65504.0
"""The size of what fills a mask: float16's smallest number, with scores added to it, or more."""
_NOTHING_ELSE = 1e6


def is_like_a_mask(seen: Seen) -> bool:
    """Whether it is infinite, or huge, as a mask is: by constants, or below zero by a mask's."""
    only_below = seen.signs == {"-"} or (not seen.signs and seen.highest < MASKED_FROM)
    huge = seen.nonfinite or seen.largest >= MASKED_FROM
    return is_a_fill(seen) or (seen.of_a_mask and only_below and huge)


def is_a_mask(value: object) -> bool:
    """Whether a number or a tensor holds what masks are filled with: the huge, or one value.

    >>> [is_a_mask(value) for value in (-1e9, -100.0, torch.tensor([0.0, -65504.0, -65504.0]))]
    [True, False, True]
    """
    if not isinstance(value, Tensor):
        return isinstance(value, int | float) and abs(value) >= MASKED_FROM
    sizes = value.detach().abs().flatten() if value.is_floating_point() else value.new_zeros(0)
    beyond = sizes[sizes >= MASKED_FROM]
    if not beyond.numel():
        return False
    low, high = beyond.min(), beyond.max()
    return bool(high > _NOTHING_ELSE or (beyond.numel() > 1 and low > 0.99 * high))


def is_a_fill(seen: Seen) -> bool:
    """Whether an operator writes constants, so that an infinity in it is somebody's intention."""
    return seen.operator in _FILLS


# --- Lines -----------------------------------------------------------------------------------

_TORCH, _OURS = str(Path(torch.__file__).parent), str(Path(mpbook.__file__).parent)
_MODELS = tuple(str(Path(_OURS, *part)) for part in (("models.py",), ("diagnosis", "zoo")))
"""The package's own models and losses, whose lines are worth naming."""
_IPYTHON = "<ipython-input-"
_RUNNER = str(Path(_OURS, "diagnosis", "stepping.py"))


def is_a_cell(file: str) -> bool:
    """Whether a file is a notebook's cell, as Jupyter, IPython or Colab name it."""
    path = Path(file)
    return path.parent.name.startswith("ipykernel_") or "ipython-input-" in path.name


def is_installed(file: str) -> bool:
    """Whether a file belongs to a library, so that nobody should edit it."""
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


def is_theirs(file: str) -> bool:
    """Whether a file is neither torch's nor this package's, but for its models."""
    inside = file.startswith((_TORCH, _OURS, "<")) and not file.startswith((*_MODELS, _IPYTHON))
    return not inside and not file.endswith("/contextlib.py")


def line_of_the_caller() -> tuple[str, int]:
    """File and line of the innermost frame that is neither torch's nor this room's."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file == _RUNNER and frame.f_code.co_name == "_step":
            break  # what is further out is the call of `diagnose` itself
        if is_theirs(file):
            return file, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return "", 0
