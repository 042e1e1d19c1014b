"""The roofs that an explorer offers: what may be one, and how its JavaScript reads it."""

from __future__ import annotations

from typing import Any

from mpbook.cost.roofline import Roof


def as_roofs(roofs: Any) -> list[Roof]:
    """A list of roofs, each with a peak in float32.

    Raises:
        ValueError: something else.
    """
    listed = list(roofs)
    for roof in listed:
        if not isinstance(roof, Roof) or "float32" not in roof.peaks:
            raise ValueError(f"roofs={roof!r}: expected Roof objects with a peak in float32")
    if not listed:
        raise ValueError("roofs=[]: expected at least one")
    return listed


def plain(roofs: list[Roof], _widget: Any) -> list[dict[str, Any]]:
    """Roofs as a module reads them, peaks as pairs, which keep their order."""
    return [
        {"name": r.name, "bandwidth": r.bandwidth, "peaks": list(map(list, r.peaks.items()))}
        for r in roofs
    ]
