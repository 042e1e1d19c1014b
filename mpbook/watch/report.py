"""What was counted of a model's numbers: by kind and layer, as tables, a verdict and a figure.

`mpbook.watch.probe.Probe` is a `Report` that fills itself from a live model.  The kinds of numbers:

* **activations**: what modules put out,
* **activation gradients**: with respect to those outputs; the smallest numbers of a training run,
  and the reason for loss scaling,
* **weights**, **weight gradients** and **updates**, what an optimizer step adds to the weights.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from mpbook.formats import FORMATS, FloatFormat, as_format
from mpbook.notebook import Table
from mpbook.watch.binades import BinCounter
from mpbook.watch.histograms import Fates, Histogram, plot
from mpbook.watch.operators_within import LOSS, Exceeding
from mpbook.watch.scaling_verdict import ScalingVerdict, judge, listed, words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["activations", "activation_gradients", "weights", "weight_gradients", "updates"]

KINDS: tuple[Kind, ...] = get_args(Kind)
"""What can be counted."""

OF_MODULES: tuple[Kind, ...] = ("activations", "activation_gradients")
"""The kinds whose layers are modules; those of the others are parameters."""

OF_WEIGHTS: tuple[Kind, ...] = ("weights", "updates")
"""The kinds of which ranks that hold the same weights have the same numbers."""


@dataclass(frozen=True)
class Sights:
    """What a verdict has to know besides the counts, and what was not seen.

    Attributes:
        inputs: of the model, all together.
        exceeding: the operators that left a format's range.
        compiled: modules that are compiled.
        elsewhere: parameters with a gradient that no operator was seen to take.
        noise: parameters whose gradients are nothing but rounding.
    """

    inputs: Histogram = field(default_factory=Histogram)
    exceeding: Callable[[FloatFormat], list[Exceeding]] = lambda _: []
    compiled: Sequence[str] = ()
    elsewhere: Sequence[str] = ()
    noise: Sequence[str] = ()


class Report:
    """Exact counts of a model's numbers, by kind and layer, and what follows from them.

    Args:
        kinds: what is counted.
        modules: names of the modules whose outputs are, in the model's order.
        parameters: names of the parameters, in the model's order.
        scaled: whether gradients are counted as divided by a loss scale.

    Attributes:
        watched_steps: how many steps were looked at.
        whose: which ranks' counts these are, if there are several; for captions.
    """

    def __init__(
        self,
        kinds: Sequence[Kind],
        *,
        modules: Iterable[str],
        parameters: Iterable[str],
        scaled: bool,
    ):
        self.kinds = checked_kinds(kinds)
        self.watched_steps = 0
        self.whose = ""
        self._module_names, self._parameter_names = list(modules), list(parameters)
        self._scaled = scaled
        self._counters: dict[tuple[Kind, str], BinCounter] = {}
        self._dtypes: dict[Kind, set[torch.dtype]] = {}

    def count(self, kind: Kind, layer: str, x: Tensor, *, divisor: float | Tensor = 1.0) -> None:
        """Count the values of ``x / divisor``; see `mpbook.watch.binades.BinCounter.add`."""
        if not x.numel():
            return
        self._dtypes.setdefault(kind, set()).add(x.dtype)
        self._counters.setdefault((kind, layer), BinCounter()).add(x, divisor=divisor)

    def layers(self, kind: Kind) -> list[str]:
        """The layers with numbers of this kind, in the model's order.

        Modules by name for the first two kinds, ``"(model)"`` for the model itself; parameters by
        name for the others.

        Raises:
            ValueError: a kind that is not watched.
        """
        if kind not in self.kinds:
            raise ValueError(f"kind={kind!r}: expected one that is watched: {listed(self.kinds)}")
        names = self._module_names if kind in OF_MODULES else self._parameter_names
        return [name for name in names if self._has(kind, name)]

    def _has(self, kind: Kind, layer: str) -> bool:
        """Whether anything was counted."""
        return (kind, layer) in self._counters

    def _counted(self, kind: Kind, layer: str) -> Histogram:
        """What was counted of one layer."""
        return Histogram(*self._counters[kind, layer].counts())

    def _check_complete(self) -> None:
        """Refuse to report of a part of what there is to count."""

    def histogram(self, kind: Kind, layer: str | None = None) -> Histogram:
        """All numbers of one kind, of all layers together or of one.

        Raises:
            ValueError: a kind or a layer that is not watched.
            RuntimeError: nothing of the kind has been seen yet, or this is one rank's part of it.
        """
        layers = self.layers(kind)
        self._check_complete()
        if not layers:
            raise self._nothing(words(kind))
        if layer is not None and layer not in layers:
            close = difflib.get_close_matches(layer, layers, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"expected one of {listed(layers)}"
            raise ValueError(f"layer={layer!r}: has no {words(kind)}; {hint}")
        names = layers if layer is None else [layer]
        return sum((self._counted(kind, name) for name in names), Histogram())

    def _nothing(self, what: str) -> RuntimeError:
        return RuntimeError(
            f"probe: has seen no {what} in {self.watched_steps} watched steps; train inside its "
            "context, with this very model, and neither compiled nor by torch.func"
        )

    def _no_finite_gradient(self, gradients: Iterable[Histogram]) -> RuntimeError:
        """Why there is nothing to judge: the run has failed, or has not been seen."""
        seen = sum(gradients, Histogram())
        if failed := seen.infinities + seen.nans:
            return RuntimeError(
                f"probe: all {seen.total:,} gradients that it saw were infinite, NaN or zero "
                f"({failed:,} not finite), so this run has failed already, and a scaler skips its "
                "steps; watch a float32 or bfloat16 run of the model instead"
            )
        if seen.total:
            return RuntimeError(
                f"probe: all {seen.total:,} gradients that it saw were zero, so there is nothing "
                "to judge; in 16 bits they may have underflowed: watch a float32 run"
            )
        return self._nothing("gradients but zeros")

    def _sights(self) -> Sights:
        """What the verdict has to know besides the counts."""
        return Sights()

    def _shown(self, kinds: Sequence[Kind] | None) -> list[Kind]:
        """The kinds among these, or among all that are watched, of which something was seen."""
        shown = [
            k for k in (self.kinds if kinds is None else checked_kinds(kinds)) if self.layers(k)
        ]
        if not shown:
            raise self._nothing("numbers")
        return shown

    def _histograms(self, kinds: Iterable[Kind]) -> dict[tuple[str, str], Histogram]:
        """What was seen of some kinds, layer by layer."""
        return {
            (kind, layer): self.histogram(kind, layer)
            for kind in kinds
            for layer in self.layers(kind)
        }

    def table(
        self,
        format: str | torch.dtype | FloatFormat,
        *,
        by: Literal["kind", "layer"] = "kind",
        kinds: Sequence[Kind] | None = None,
    ) -> Table:
        """What the format would make of the numbers: the `Fates` in percent, a row for each.

        Args:
            format: name, dtype or `FloatFormat`.
            by: a row for each kind, or for each layer of each kind.
            kinds: some of those that are watched; all of them when not given.

        Raises:
            ValueError: another ``by``, or a kind that is not watched.
            RuntimeError: nothing has been seen yet.
        """
        if by not in ("kind", "layer"):
            raise ValueError(f'by={by!r}: expected "kind" or "layer"')
        format = as_format(format)
        rows = []
        for kind in self._shown(kinds):
            for layer in self.layers(kind) if by == "layer" else (None,):
                histogram = self.histogram(kind, layer)
                names = [words(kind), *([] if layer is None else [layer])]
                rows.append([*names, histogram.total, *histogram.fates(format).percent()])
        header = ["", *(["layer"] if by == "layer" else []), "values", *Fates.__dataclass_fields__]
        caption = f"In {format.name}, percent of the values in {self.watched_steps} watched steps"
        caption += f" of {self.whose}" if self.whose else ""
        return Table(header, rows, caption=caption)

    def needs_loss_scaling(
        self, format: str | torch.dtype | FloatFormat, *, lost: float = 0.1
    ) -> ScalingVerdict:
        """Whether gradients of this format need a loss scale, and which one would do.

        The layer that is worst off decides: see `mpbook.watch.scaling_verdict.judge`.  A gradient
        that is nothing but the rounding of its own sum has no vote.  Where weights, activations,
        or operators inside of modules overflow the format, the verdict says that no loss scale
        helps.  Where something overflows that may be computed in float32, or was not seen at all,
        it is not "not needed" but "not known".

        Args:
            format: what gradients and activations would be computed in.
            lost: the share of a layer's sum of ``|gradient|`` that may underflow.

        Raises:
            ValueError: no kind of gradients is watched, or ``lost`` is no share below 1.
            RuntimeError: no gradient that is finite and not zero has been seen yet.
        """
        format = as_format(format)
        kinds: list[Kind] = [kind for kind in self.kinds if kind.endswith("gradients")]
        if not kinds:
            raise ValueError(f"kinds: no gradients are watched, only {listed(self.kinds)}")
        gradients, sights = self._histograms(kinds), self._sights()
        if not any(histogram.nonzero for histogram in gradients.values()):
            raise self._no_finite_gradient(gradients.values())
        voting = {
            place: histogram
            for place, histogram in gradients.items()
            if place[0] != "weight_gradients" or place[1] not in sights.noise
        }
        if not any(histogram.nonzero for histogram in voting.values()):
            voting = gradients
        exceeding = sights.exceeding(format)
        certain = [e for e in exceeding if not e.float32_on_cuda and e.place != LOSS]
        return judge(
            voting,
            format,
            lost=lost,
            overflowing=self._overflowing("activations", format),
            overflowing_weights=self._overflowing("weights", format),
            inside=list(map(str, certain)),
            perhaps=[
                *self._of_inputs(sights.inputs, format),
                *(str(e) for e in exceeding if e not in certain),
            ],
            unseen=self._unseen(sights),
            flushed=self._flushed(format, kinds),
        )

    def _overflowing(self, kind: Kind, format: FloatFormat) -> list[str]:
        """The layers of which something overflows."""
        layers = self.layers(kind) if kind in self.kinds else []
        return [x for x in layers if self.histogram(kind, x).fates(format).overflows]

    def _of_inputs(self, inputs: Histogram, format: FloatFormat) -> list[str]:
        if not inputs.total or not inputs.fates(format).overflows:
            return []
        return [f"inputs of the model reach 2**{max(inputs.bins)[0]}"]

    def _unseen(self, sights: Sights) -> list[str]:
        """What a verdict would have to see and has not, in words."""
        unseen = [f"{kind}, which are not watched" for kind in ("activations", "weights")]
        unseen = [text for text in unseen if text.split(",")[0] not in self.kinds]
        if "activations" not in self.kinds:
            return unseen
        if sights.compiled:
            unseen.append(f"the inside of {listed(sights.compiled)}, compiled")
        if not self.layers("activations"):
            unseen.append("any activation: what trains is compiled, or not this model")
        elif sights.elsewhere and not sights.compiled:
            unseen.append(f"where {listed(sights.elsewhere)} are used: in compiled code, perhaps")
        return unseen

    def _flushed(self, format: FloatFormat, kinds: Iterable[Kind]) -> list[str]:
        """Dtypes of unscaled gradients in which what underflows in the format has done so."""
        if self._scaled:
            return []
        dtypes = {dtype for kind in kinds for dtype in self._dtypes.get(kind, ())}
        names = {str(dtype).removeprefix("torch.") for dtype in dtypes if dtype.itemsize < 4}
        seen = [FORMATS[name] for name in names if name in FORMATS]
        return sorted(f.name for f in seen if _smallest(f) >= _smallest(format))

    def plot(
        self, format: str | torch.dtype | FloatFormat, *, kinds: Sequence[Kind] | None = None
    ) -> Figure:
        """Shares by binade, a panel for each kind, with the format's regions behind them.

        A figure to `plots.show`.

        Raises:
            ValueError: a kind that is not watched.
            RuntimeError: nothing has been seen yet.
        """
        return plot({words(kind): self.histogram(kind) for kind in self._shown(kinds)}, format)


def checked_kinds(kinds: Sequence[Kind]) -> tuple[Kind, ...]:
    """The kinds in their usual order, each once."""
    unknown = [kind for kind in ([kinds] if isinstance(kinds, str) else kinds) if kind not in KINDS]
    if isinstance(kinds, str) or unknown or not kinds:
        raise ValueError(f"kinds={kinds!r}: expected a list, of {listed(KINDS)}")
    return tuple(kind for kind in KINDS if kind in kinds)


def _smallest(format: FloatFormat) -> int:
    """log2 of the smallest positive number."""
    return format.lowest_binade - format.mantissa_bits
