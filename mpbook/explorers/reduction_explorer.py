"""The reduction explorer: the sum over ranks on its way, beside the exact one, and its bytes.

Taught in the chapter "Many GPUs".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mpbook.explorers.base import Checked, Explorer, one_of, static_facts
from mpbook.explorers.modules import STATIC, linked
from mpbook.explorers.sum_explorer import random_numbers
from mpbook.many_gpus import (
    Algorithm,
    Average,
    OnTheWire,
    all_reduce,
    divisors,
    error_bound,
    on_the_wire,
)
from mpbook.many_gpus.reductions import DTYPES

Values = Literal["equal", "noisy", "signs", "one_large"]
MOST_RANKS = 4096
EXPONENTS = (-30, 16)
LARGE = 1024
NAMES = tuple(str(dtype)[6:] for dtype in DTYPES)


def parts_of(values: Values, ranks: int, exponent: int = 0) -> Tensor:
    """One gradient of each rank, the same numbers as in the page; float32 of shape (ranks, 1).

    Args:
        values: ``"equal"``; ``"noisy"``, between 0 and twice the size; ``"signs"``, between minus
            and plus the size; ``"one_large"``, where the last rank has 1024 times the others'.
        ranks: how many.
        exponent: the size is ``2**exponent``.
    """
    if values in ("equal", "one_large"):
        made = torch.ones(ranks, dtype=torch.float64)
        made[-1] = LARGE if values == "one_large" else 1
    else:
        made = 2 * torch.tensor(random_numbers(ranks), dtype=torch.float64)
        made = made if values == "noisy" else made - 1
    return (made * 2.0**exponent).float()[:, None]


def _as_ranks(ranks: Any) -> int:
    if not _is_whole(ranks) or not 2 <= ranks <= MOST_RANKS or ranks & (ranks - 1):
        raise ValueError(f"ranks={ranks!r}: expected a power of two from 2 to {MOST_RANKS}")
    return int(ranks)


def _as_dtype_name(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    return str(one_of("dtype", NAMES)(name))


def _whole(name: str, low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if not _is_whole(value) or not low <= value <= high:
            raise ValueError(f"{name}={value!r}: expected an integer from {low} to {high}")
        return int(value)

    return check


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _as_rate(gigabytes: Any) -> float:
    number = isinstance(gigabytes, int | float) and not isinstance(gigabytes, bool)
    if not number or not 0 < gigabytes < math.inf:
        raise ValueError(f"gigabytes_per_second={gigabytes!r}: expected a number above 0")
    return float(gigabytes)


class ReductionExplorer(Explorer):
    """The gradients of many ranks added up: choose ranks, dtype, algorithm and the gradient's size.

    The traits have the names of the arguments and follow the reader, and the picture follows them:
    ``explorer.ranks = 4096``.

    Args:
        ranks: a power of two from 2 to 4096.
        dtype: float32, bfloat16 or float16, by name or torch dtype: what is sent and summed in.
        algorithm: ``"ring"``, ``"tree"`` or ``"halving"``.
        average: ``"before"``, ``"after"``, ``"split"`` or ``"no"``: where the sum is divided.
        values: what the ranks have; see `parts_of`.
        exponent: a gradient has the size ``2**exponent``, from -30 to 16.
        parameters: how many numbers are reduced, for the bytes.
        gigabytes_per_second: of the wire of a rank, in each direction; 1e9 bytes each.

    Raises:
        ValueError: an argument that cannot be drawn; it names what would be right.

    >>> ReductionExplorer(1024, "bfloat16", average="no").reduced()
    256.0
    """

    _esm = linked(STATIC / "reduction_explorer.mjs")
    _twin = "reduction_explorer"
    _twin_traits = (
        "ranks", "dtype", "algorithm", "average", "values", "exponent", "parameters",
        "gigabytes_per_second",
    )  # fmt: skip

    ranks = Checked(_as_ranks, 1024).tag(sync=True)
    dtype = Checked(_as_dtype_name, "bfloat16").tag(sync=True)
    algorithm = Checked(one_of("algorithm", get_args(Algorithm)), "ring").tag(sync=True)
    average = Checked(one_of("average", get_args(Average)), "after").tag(sync=True)
    values = Checked(one_of("values", get_args(Values)), "equal").tag(sync=True)
    exponent = Checked(_whole("exponent", *EXPONENTS), 0).tag(sync=True)
    parameters = Checked(_whole("parameters", 1, 10**13), 10**9).tag(sync=True)
    gigabytes_per_second = Checked(_as_rate, 50.0).tag(sync=True)

    def __init__(
        self,
        ranks: int = 1024,
        dtype: str | torch.dtype = "bfloat16",
        *,
        algorithm: Algorithm = "ring",
        average: Average = "after",
        values: Values = "equal",
        exponent: int = 0,
        **traits: Any,
    ) -> None:
        chosen = dict(algorithm=algorithm, average=average, values=values, exponent=exponent)
        super().__init__(ranks=ranks, dtype=dtype, **chosen, **traits)

    def parts(self) -> Tensor:
        """What the ranks have; see `parts_of`."""
        return parts_of(self.values, self.ranks, self.exponent)

    def reduced(self) -> float:
        """What every rank holds after the reduction; `exact` is what it should be."""
        return float(all_reduce(self.parts(), **self._options()))

    def exact(self) -> float:
        """The same in exact arithmetic, rounded once, to float64."""
        before, after = divisors(self.ranks, self.average)
        return math.fsum(self.parts()[:, 0].tolist()) / (before * after)

    def bound(self) -> float:
        """The most by which the two can differ where nothing overflows."""
        return float(error_bound(self.parts(), **self._options()))

    def wire(self) -> OnTheWire:
        """What a rank sends."""
        size = getattr(torch, self.dtype).itemsize
        return on_the_wire(
            self.ranks, self.parameters, element_bytes=size, algorithm=self.algorithm
        )

    def _options(self) -> dict[str, Any]:
        dtype = getattr(torch, self.dtype)
        return {"dtype": dtype, "algorithm": self.algorithm, "average": self.average}

    def _fallback(self) -> str:
        reduced, exact, wire = self.reduced(), self.exact(), self.wire()
        rows = {
            "gradients": f"{self.ranks} ranks, {self.values}, size 2^{self.exponent}",
            "added": f"{self.algorithm}, in {self.dtype}, divided: {self.average}",
            "computed": f"{reduced:.6g}",
            "exact": f"{exact:.6g}",
            "error, at most": f"{self.bound():.2g}, where nothing overflows",
            "a rank sends": f"{wire.bytes / 1e9:.4g} GB for {self.parameters:,} parameters",
        }
        title = f"A sum over {self.ranks} ranks in {self.dtype}: {reduced:.6g}, exactly {exact:.6g}"
        return static_facts(title, rows)

    def __repr__(self) -> str:
        return (
            f"ReductionExplorer({self.ranks}, {self.dtype!r}, algorithm={self.algorithm!r}, "
            f"average={self.average!r}, values={self.values!r}, exponent={self.exponent})"
        )
