"""A precision: the dtypes, the scale and the weight update of one way to train.

Every training run in this book differs from its neighbour in one object of this kind.  The names
are those of Lightning, which say both halves of what is meant: the bits, and whether everything
uses them (``-true``) or only the computation does (``-mixed``).

Taught in the quickstart.
"""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import nn

from mpbook.low_precision.recipes import RECIPES, Recipe, as_recipe
from mpbook.notebook import Table
from mpbook.synonyms import did_you_mean

_SIXTEEN_BIT = (torch.float16, torch.bfloat16)

WeightUpdate = Literal["plain", "master_weights", "stochastic_rounding", "kahan_summation"]
"""How an updated weight is stored: as the optimizer leaves it, or by one of three cures."""


@dataclass(frozen=True)
class Cure:
    """One way not to lose the small updates of 16-bit weights.

    Args:
        stores: how the updated weight is stored, as a table says it.
        refuses_float32: why float32 parameters have no use for it.
        kept_bytes: what it keeps beside a parameter from step to step.
        copied_bytes: what it makes for a parameter during an update: float32 copies of the
            gradient, and of the weight if it keeps none.
    """

    stores: str
    refuses_float32: str
    kept_bytes: int
    copied_bytes: int


CURES: dict[WeightUpdate, Cure] = {
    "master_weights": Cure(
        "in float32, on a master copy",
        "float32 parameters are their own master copy",
        kept_bytes=4,
        copied_bytes=4,
    ),
    "stochastic_rounding": Cure(
        "in float32, rounded stochastically",
        "needs 16-bit parameters to round to",
        kept_bytes=0,
        copied_bytes=8,
    ),
    "kahan_summation": Cure(
        "in float32, what rounding discards is kept",
        "needs 16-bit parameters, whose rounding it makes up for",
        kept_bytes=2,
        copied_bytes=8,
    ),
}
"""The cures by name, all but ``"plain"`` of `WeightUpdate`; `mpbook.master_weights` has them."""


@dataclass(frozen=True)
class Precision:
    """One way to train: what is stored in which dtype, and how it is rounded.

    Args:
        name: how plots and tables call it.
        parameter_dtype: of the weights that the model holds: float32, float16 or bfloat16.
        compute_dtype: of matrix products and of the activations kept for the backward pass.  If
            it is narrower than the parameters, `torch.autocast` does the casts.
        float32_matmul: whether float32 products are computed as such (``"ieee"``) or in TF32.
        loss_scale: ``"dynamic"``, a number for a static scale (`checked_loss_scale`), or None.
        weight_update: of 16-bit parameters.  ``"plain"`` updates them in their own dtype; the
            others update in float32, as `mpbook.master_weights` says: ``"master_weights"``,
            ``"stochastic_rounding"`` or ``"kahan_summation"``.  Parameters that are float32
            themselves need none of them: they are the master copy.
        recipe: by which the linear layers quantise the operands of their products to 8 or 4 bits,
            a `mpbook.low_precision.Recipe` or the name of one; None for no quantisation.  All
            that is not quantised computes in ``compute_dtype``.

    Raises:
        ValueError: a combination that cannot train, with the one that can.
    """

    name: str
    parameter_dtype: torch.dtype = torch.float32
    compute_dtype: torch.dtype = torch.float32
    float32_matmul: Literal["ieee", "tf32"] = "ieee"
    loss_scale: float | Literal["dynamic"] | None = None
    weight_update: WeightUpdate = "plain"
    recipe: Recipe | None = None

    def __post_init__(self) -> None:
        if self.recipe is not None:
            object.__setattr__(self, "recipe", as_recipe(self.recipe))
        for field in ("parameter_dtype", "compute_dtype"):
            if getattr(self, field) not in (torch.float32, *_SIXTEEN_BIT):
                raise ValueError(
                    f"{field}={getattr(self, field)!r}: expected torch.float32, float16 or bfloat16"
                )
        if self.parameter_dtype not in (torch.float32, self.compute_dtype):
            raise ValueError(
                f"compute_dtype={self.compute_dtype}: {self.parameter_dtype} weights compute in "
                "their own dtype; mixed precision keeps float32 weights"
            )
        if self.float32_matmul not in ("ieee", "tf32"):
            raise ValueError(f'float32_matmul={self.float32_matmul!r}: expected "ieee" or "tf32"')
        self._check_weight_update()
        self._check_loss_scale()

    def _check_loss_scale(self) -> None:
        scale = self.loss_scale
        if scale is not None and scale != "dynamic":
            checked_loss_scale("loss_scale", scale, or_else='"dynamic", None or ')
        if scale is not None and not self.updates_in_float32:
            raise ValueError(
                f"loss_scale={scale!r}: unscaling {self.parameter_dtype} gradients in place "
                'rounds away what the scale saved; use weight_update="master_weights", or float32 '
                "parameters"
            )

    def _check_weight_update(self) -> None:
        if self.weight_update == "plain":
            return
        if self.weight_update not in list(CURES):  # a list: what is asked for may be unhashable
            *some, last = (f'"{name}"' for name in ("plain", *CURES))
            raise ValueError(
                f"weight_update={self.weight_update!r}: expected {', '.join(some)} or {last}"
            )
        if self.parameter_dtype == torch.float32:
            why = CURES[self.weight_update].refuses_float32
            raise ValueError(f'weight_update="{self.weight_update}": {why}')

    @property
    def is_mixed(self) -> bool:
        """Whether computation is narrower than the weights, so that autocast is at work."""
        return self.compute_dtype != self.parameter_dtype

    @property
    def cure(self) -> Cure | None:
        """What keeps small updates of 16-bit weights; None for plain updates."""
        return CURES.get(self.weight_update)

    @property
    def updates_in_float32(self) -> bool:
        """Whether the optimizer computes its update in float32."""
        return self.parameter_dtype == torch.float32 or self.weight_update != "plain"

    @property
    def gradient_dtype(self) -> torch.dtype:
        """What ``parameter.grad`` holds: in PyTorch always the parameter's own dtype."""
        return self.parameter_dtype

    @property
    def optimizer_state_dtype(self) -> torch.dtype:
        """Of momentum and second moments: the dtype that the optimizer updates in."""
        return torch.float32 if self.updates_in_float32 else self.parameter_dtype

    def _rows(self) -> list[tuple[str, str]]:
        master = "the parameters themselves" if self.is_mixed else "none"
        if self.weight_update == "master_weights":
            master = "kept by the optimizer"
        plain = f"in {_short(self.parameter_dtype)}"
        in_tf32 = self.float32_matmul == "tf32" and self.compute_dtype == torch.float32
        products = "tf32" if in_tf32 else _short(self.compute_dtype)
        quantised = [] if self.recipe is None else [("linear layers", self.recipe.name)]
        return [
            ("parameters", _short(self.parameter_dtype)),
            ("compute", f"{products}, by autocast" if self.is_mixed else products),
            *quantised,
            ("gradients", _short(self.gradient_dtype)),
            ("optimizer state", _short(self.optimizer_state_dtype)),
            ("float32 master copy", master),
            ("loss scale", "none" if self.loss_scale is None else f"{self.loss_scale}"),
            ("weight update", plain if self.cure is None else self.cure.stores),
        ]

    def described(self) -> dict[str, str]:
        """Everything that it says, as short words by name; the recipe's own words among them."""
        own = {f.name: str(getattr(self, f.name)) for f in fields(self) if f.name != "recipe"}
        if self.recipe is None:
            return own
        words = {f"recipe: {name}": value for name, value in self.recipe.described().items()}
        return own | {"recipe": self.recipe.name} | words

    def table(self) -> Table:
        """This precision as a table of what is stored and computed how."""
        return Table(["", self.name], self._rows())

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


SMALLEST_LOSS_SCALE = 2.0**-127
LARGEST_LOSS_SCALE = torch.finfo(torch.float32).max


def checked_loss_scale(name: str, scale: object, *, or_else: str = "") -> float:
    """A loss scale as the float32 number that it is kept in, or an error: the one check of it.

    A loss scale is multiplied by, and its reciprocal afterwards, both in float32.  So it may be
    whatever float32 holds together with its reciprocal, neither of them 0 or infinite: from 2**-127
    to the largest float32.  Within that, every power of two scales and unscales exactly.

    Args:
        name: of the argument, for the error.
        scale: what was given.
        or_else: what else would have been right, for the error.

    Raises:
        ValueError: not such a number.

    >>> checked_loss_scale("scale", 1000.3)
    1000.2999877929688
    """
    number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if not (number and SMALLEST_LOSS_SCALE <= scale <= LARGEST_LOSS_SCALE):  # type: ignore[operator]
        raise ValueError(
            f"{name}={scale!r}: expected {or_else}a positive number that float32 holds together "
            "with its reciprocal, from 2**-127 to 3.4e38; 2.0**16, for example"
        )
    return as_float32(scale)  # type: ignore[arg-type]


def as_float32(value: float) -> float:
    """The nearest float32 number, infinite beyond the largest."""
    return ctypes.c_float(value).value


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _precisions() -> dict[str, Precision]:
    half, bfloat = torch.float16, torch.bfloat16
    described = (
        Precision("32-true"),
        Precision("tf32", float32_matmul="tf32"),
        Precision("16-mixed", compute_dtype=half, loss_scale="dynamic"),
        Precision("bf16-mixed", compute_dtype=bfloat),
        Precision("16-true", parameter_dtype=half, compute_dtype=half),
        Precision("bf16-true", parameter_dtype=bfloat, compute_dtype=bfloat),
    )
    return {precision.name: precision for precision in described}


PRECISIONS: dict[str, Precision] = _precisions()
"""The six precisions of 16 and 32 bits that have a name of their own."""

QUANTISED: dict[str, Precision] = {
    f"{name}-mixed": Precision(f"{name}-mixed", compute_dtype=torch.bfloat16, recipe=recipe)
    for name, recipe in RECIPES.items()
}
"""For each recipe of `mpbook.low_precision`, the precision that computes all else in bfloat16."""


def _several(*prefixes: str) -> str:
    """The precisions of 8 or of 4 bits, as an error lists them."""
    *some, last = (f'"{name}"' for name in QUANTISED if name.startswith(prefixes))
    return f"{', '.join(some)} or {last}"


_AMBIGUOUS = {
    "32": '"32-true" (float32 throughout) or "tf32" (float32 stored, products in TF32)',
    "16": '"16-mixed" (fp32 weights, fp16 compute, loss scaling) or "16-true" (everything in fp16)',
    "bf16": '"bf16-mixed" (fp32 weights, bf16 compute) or "bf16-true" (everything in bf16)',
    "fp8": _several("float8", "mxfp8"),
    "fp4": _several("mxfp4", "nvfp4"),
}
_ALIASES = {"fp16": "16", "float16": "16", "half": "16", "bfloat16": "bf16"}
_ALIASES |= {"fp32": "32", "float32": "32", "float": "32"}
_ALIASES |= {"fp8-mixed": "fp8", "float8-mixed": "fp8", "float8": "fp8", "8-mixed": "fp8"}
_ALIASES |= {"fp4-mixed": "fp4", "float4-mixed": "fp4", "float4": "fp4", "4-mixed": "fp4"}


def as_precision(precision: str | Precision) -> Precision:
    """The `Precision` that a name stands for; a `Precision` is returned as it is.

    Raises:
        ValueError: an unknown name, or one that could mean two precisions.
        TypeError: anything else.

    >>> as_precision("bf16-mixed").compute_dtype
    torch.bfloat16
    """
    if isinstance(precision, Precision):
        return precision
    if not isinstance(precision, str):
        raise TypeError(f"precision={precision!r}: expected a name or a Precision")
    short = _ALIASES.get(precision.lower(), precision.lower())
    if short in _AMBIGUOUS:
        raise ValueError(f'precision="{precision}": ambiguous, use {_AMBIGUOUS[short]}')
    named = PRECISIONS | QUANTISED
    if precision not in named:
        hint = did_you_mean(precision, named)
        raise ValueError(f'precision="{precision}": expected one of {", ".join(named)}{hint}')
    return named[precision]


def cast_module(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast a module's real floating-point parameters and buffers, in place, and return it.

    ``module.to(dtype)`` would cast complex ones too, to real numbers, and drop the imaginary part.

    >>> layer = nn.Linear(1, 1)
    >>> layer.weight = nn.Parameter(torch.tensor([[1 + 2j]]))
    >>> [str(p.dtype) for p in cast_module(layer, torch.bfloat16).parameters()]
    ['torch.complex64', 'torch.bfloat16']
    """
    return module._apply(lambda t: t.to(dtype) if t.is_floating_point() else t)


def autocast(precision: Precision, device: torch.device) -> Any:
    """`torch.autocast` for a mixed precision, nothing for the others."""
    if not precision.is_mixed:
        return nullcontext()
    return torch.autocast(device.type, dtype=precision.compute_dtype)


def side_by_side(*precisions: str | Precision) -> Table:
    """A table with a column for each precision; for all that have a name if none is given."""
    chosen = [as_precision(p) for p in precisions or PRECISIONS]
    columns = [dict(p._rows()) for p in chosen]
    rows = max(columns, key=len)  # a precision without a recipe has none to name
    return Table(
        ["", *(p.name for p in chosen)],
        [[row, *(column.get(row, "not quantised") for column in columns)] for row in rows],
    )
