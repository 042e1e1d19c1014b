"""What a version of torch decides: one small question each, asked of every supported release.

The same line of code can mean something else after an upgrade.  Each such behaviour stands here as
a `Probe`: a function that runs on a CPU in seconds and returns a word or a number that depends on
the release alone, not on the processor, the number of threads or the build.  `record_here` asks all
of them of the torch at hand and keeps the answers as a record (`mpbook.evidence.records`), one for
each release, in the folder ``recorded``.  The book's page "Torch, by version" shows them, and a
test compares with them whatever a page says of a version.
"""

from __future__ import annotations

from mpbook.evidence.versions import library, mixed, numbers
from mpbook.evidence.versions.base import Probe, UnavailableError, release
from mpbook.evidence.versions.recording import RECORDED, answer, load, record_here
from mpbook.evidence.versions.tables import Here, Span, Timeline, spans

__all__ = [
    "PROBES", "RECORDED", "Here", "Probe", "Span", "Timeline", "UnavailableError", "answer", "here",
    "load", "record_here", "release", "spans", "timeline",
]  # fmt: skip

PROBES: dict[str, Probe] = {
    probe.id: probe for probe in (*numbers.PROBES, *mixed.PROBES, *library.PROBES)
}
"""By id, in the order of the page."""


def timeline(*ids: str) -> Timeline:
    """What the supported releases answered, all behaviours if none is named.

    Raises:
        ValueError: an unknown id, or a record that was edited.
    """
    return Timeline(_chosen(ids), load())


def here(*ids: str) -> Here:
    """What the torch at hand answers now, beside the records; all behaviours if none is named.

    Raises:
        ValueError: an unknown id, or a record that was edited.
    """
    chosen = _chosen(ids)
    return Here(chosen, load(), {probe.id: answer(probe) for probe in chosen})


def _chosen(ids: tuple[str, ...]) -> tuple[Probe, ...]:
    if unknown := [name for name in ids if name not in PROBES]:
        raise ValueError(f'"{unknown[0]}": expected one of {", ".join(PROBES)}')
    return tuple(PROBES[name] for name in ids or PROBES)
