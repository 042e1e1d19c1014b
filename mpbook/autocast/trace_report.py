"""What a trace of autocast says: each cast, the dtypes of each module, and their tables.

`mpbook.autocast.trace.trace_dtypes` makes one.  Taught in "Autocast".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mpbook.autocast.dtype_grid import dtype_grid
from mpbook.notebook import Table
from mpbook.precision import Precision

if TYPE_CHECKING:
    from matplotlib.figure import Figure

What = Literal["weight", "activation", "gradient"]
Phase = Literal["forward", "backward"]
MODEL, LOSS = "(model)", "(loss)"


@dataclass(frozen=True)
class Cast:
    """One tensor copied into another floating dtype.

    ``parameter`` names the weight that was cast, and is empty for others.  ``cached`` says that
    autocast keeps the copy until its region ends, so that the next use of the weight costs nothing;
    a cast of a weight that the model's own code writes looks the same from below.
    """

    module: str
    what: What
    source: str
    target: str
    bytes_read: int
    bytes_written: int
    phase: Phase
    parameter: str = ""
    cached: bool = False

    @property
    def bytes(self) -> int:
        """What the cast moved: bytes read and bytes written."""
        return self.bytes_read + self.bytes_written


@dataclass
class ModuleDtypes:
    """The dtypes that one module met; a module that was never called met none.

    ``computed_in`` and ``backward_in`` are of the operands of kernels that the module ran itself,
    outside its submodules.
    """

    name: str
    kind: str
    weights: tuple[str, ...] = ()
    calls: int = 0
    inputs: tuple[str, ...] = ()
    computed_in: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    backward_in: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trace:
    """What one batch met on its way through a model in one precision."""

    precision: Precision
    modules: tuple[ModuleDtypes, ...]
    casts: tuple[Cast, ...]

    def of(self, module: str) -> ModuleDtypes:
        """The dtypes of one module, by the name that ``named_modules`` gives it.

        Raises:
            ValueError: no such module.
        """
        for row in self.modules:
            if row.name == (module or MODEL):
                return row
        known = ", ".join(row.name for row in self.modules)
        raise ValueError(f'module="{module}": expected one of {known}')

    @property
    def never_called(self) -> tuple[str, ...]:
        """Names of the modules that this batch did not reach."""
        return tuple(row.name for row in self.modules if not row.calls)

    @property
    def cast_bytes(self) -> int:
        """Bytes read and written by all casts together."""
        return sum(cast.bytes for cast in self.casts)

    @property
    def cache_bytes(self) -> int:
        """Bytes of 16-bit weights that autocast's cache holds when the forward pass ends."""
        return sum(c.bytes_written for c in self.casts if c.cached and c.phase == "forward")

    @property
    def repeated(self) -> tuple[Cast, ...]:
        """Casts of a weight that had been cast to the same dtype before."""
        seen: set[tuple[str, str]] = set()
        again = []
        for cast in self.casts:
            key = cast.parameter, cast.target
            if cast.what == "weight" and key in seen:
                again.append(cast)
            seen.add(key)
        return tuple(again)

    def table(self) -> Table:
        """One row a module, in the order of the model: dtypes, casts and their bytes."""
        header = "module kind input weight computed-in output backward-in casts cast-bytes".split()
        rows = [self._row(row) for row in self.modules]
        return Table([title.replace("-", " ") for title in header], rows, self.precision.name)

    def _row(self, row: ModuleDtypes) -> tuple[Any, ...]:
        own = [cast for cast in self.casts if cast.module == row.name]
        inputs = " + ".join(row.inputs) if row.calls else "never called"
        dtypes = [row.weights, row.computed_in, row.outputs, row.backward_in]
        cells = [" + ".join(d) or "-" for d in dtypes]
        return row.name, row.kind, inputs or "-", *cells, len(own), sum(c.bytes for c in own)

    def diagram(self) -> Figure:
        """One row for each module that computes or holds weights, as `dtype_grid` draws."""
        drawn = [row for row in self.modules if row.computed_in or row.weights]
        columns = {"in": "inputs", "weight": "weights", "compute": "computed_in", "out": "outputs"}
        columns |= {"backward": "backward_in"}
        return dtype_grid(
            {row.name: [getattr(row, field) for field in columns.values()] for row in drawn},
            list(columns),
        )

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()
