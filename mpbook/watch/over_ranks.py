"""One report of what the probes of several ranks have counted.

Each rank counts what it sees: the activations and gradients of its own batches, and of sharded
weights its own parts.  `joined` adds all of that up.  What every rank holds alike counts once:
weights and updates that are not sharded, and copies of a part.

What is only doubted is doubted on every rank: a weight that one rank was seen to use is used, and
gradients are noise where they are noise on each.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from mpbook.distributed import gathered, rank_and_ranks
from mpbook.formats import FORMATS, FloatFormat, as_format
from mpbook.watch.histograms import Histogram
from mpbook.watch.operators_within import Exceeding
from mpbook.watch.report import OF_WEIGHTS, Kind, Report, Sights


@dataclass(frozen=True)
class Seen:
    """What the probe of one rank has counted, as data that can be sent to others.

    ``copies`` are the parameters of which an earlier rank holds the same numbers; ``exceeding`` is
    by the format's name; the rest is as in `Report` and `Sights`.
    """

    kinds: tuple[Kind, ...]
    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    scaled: bool
    watched_steps: int
    histograms: dict[tuple[Kind, str], Histogram]
    dtypes: dict[Kind, set[torch.dtype]]
    copies: frozenset[str]
    inputs: Histogram
    exceeding: dict[str, list[Exceeding]]
    compiled: tuple[str, ...]
    elsewhere: tuple[str, ...]
    noise: tuple[str, ...]


def seen_by(report: Report, *, copies: Collection[str]) -> Seen:
    """What a probe has counted so far."""
    sights = report._sights()
    return Seen(
        kinds=report.kinds,
        modules=tuple(report._module_names),
        parameters=tuple(report._parameter_names),
        scaled=report._scaled,
        watched_steps=report.watched_steps,
        histograms={place: report._counted(*place) for place in report._counters},
        dtypes=report._dtypes,
        copies=frozenset(copies),
        inputs=sights.inputs,
        exceeding={name: sights.exceeding(as_format(name)) for name in FORMATS},
        compiled=tuple(sights.compiled),
        elsewhere=tuple(sights.elsewhere),
        noise=tuple(sights.noise),
    )


class JoinedReport(Report):
    """A `Report` of counts that were made elsewhere; see `joined`."""

    def __init__(self, seen: Sequence[Seen], *, whose: str):
        first = seen[0]
        super().__init__(
            first.kinds, modules=first.modules, parameters=first.parameters, scaled=first.scaled
        )
        self.whose = whose
        self.watched_steps = max(one.watched_steps for one in seen)
        self._of_places: dict[tuple[Kind, str], Histogram] = {}
        for one in seen:
            for kind, dtypes in one.dtypes.items():
                self._dtypes.setdefault(kind, set()).update(dtypes)
            for (kind, layer), histogram in one.histograms.items():
                if not (kind in OF_WEIGHTS and layer in one.copies):
                    before = self._of_places.get((kind, layer), Histogram())
                    self._of_places[kind, layer] = before + histogram
        self._seen = seen

    def _has(self, kind: Kind, layer: str) -> bool:
        return (kind, layer) in self._of_places

    def _counted(self, kind: Kind, layer: str) -> Histogram:
        return self._of_places[kind, layer]

    def _sights(self) -> Sights:
        def by_all(names: Sequence[tuple[str, ...]]) -> list[str]:
            return [name for name in names[0] if all(name in others for others in names)]

        return Sights(
            inputs=sum((one.inputs for one in self._seen), Histogram()),
            exceeding=self._exceeding,
            compiled=list(dict.fromkeys(name for one in self._seen for name in one.compiled)),
            elsewhere=by_all([one.elsewhere for one in self._seen]),
            noise=by_all([one.noise for one in self._seen]),
        )

    def _exceeding(self, format: FloatFormat) -> list[Exceeding]:
        """Each operator once, with the largest magnitude of all ranks."""
        found: dict[tuple[str, str, bool], Exceeding] = {}
        for one in self._seen:
            for new in one.exceeding.get(format.name, []):
                key = new.place, new.operator, new.operand
                if key not in found or new.largest > found[key].largest:
                    found[key] = new
        return list(found.values())


def joined(seen: Sequence[Seen], *, whose: str) -> JoinedReport:
    """One report of what several ranks have seen.

    Args:
        seen: one of each rank, in their order.
        whose: they are, for captions.

    Raises:
        ValueError: ranks that watched different models or kinds.
    """

    def watched(one: Seen) -> tuple[object, ...]:
        return one.kinds, one.modules, one.parameters, one.scaled

    for rank, one in enumerate(seen):
        if watched(one) != watched(seen[0]):
            raise ValueError(
                f"probe: rank {rank} watched another model, other kinds or with another loss_scale "
                "than rank 0, so their counts do not add up; expected the same Probe on every rank"
            )
    return JoinedReport(seen, whose=whose)


class RankReport(Report):
    """A report that one rank fills: it is read where there is no other rank, else joined first."""

    _rank, _ranks = 0, 1

    def over_ranks(self) -> JoinedReport:
        """What all ranks have counted, added up; every rank has to call it, and gets the same.

        Weights and updates that all ranks hold alike count once.

        Raises:
            RuntimeError: the process group that was there has been destroyed.
            ValueError: ranks that watched different models or kinds.
        """
        ranks = rank_and_ranks()[1]
        if ranks != self._ranks:
            raise RuntimeError(
                f"probe: {self._ranks} ranks have counted, and the process group has {ranks} now; "
                "call over_ranks() before destroy_process_group()"
            )
        found = gathered(seen_by(self, copies=self._copies()))
        return joined(found, whose=f"{ranks} ranks" if ranks > 1 else "")

    def of_this_rank(self) -> JoinedReport:
        """What this rank alone has counted, whatever the others saw."""
        whose = f"rank {self._rank} of {self._ranks}" if self._ranks > 1 else ""
        return joined([seen_by(self, copies=())], whose=whose)

    def _copies(self) -> Collection[str]:
        """The parameters of which an earlier rank holds the same numbers."""
        return ()

    def _count_for_this_rank(self) -> None:
        """From here on counts are this rank's, one of so many."""
        self._rank, self._ranks = rank_and_ranks()

    def _check_complete(self) -> None:
        if self._ranks > 1:
            raise RuntimeError(
                f"probe: has counted what rank {self._rank} of {self._ranks} saw; call "
                "over_ranks() on every rank for a report of all, or of_this_rank() for its own"
            )
