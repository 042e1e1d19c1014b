"""Which devices have room for a peak: their memory, and what is left free of it.

Taught in the chapter "Memory".
"""

from __future__ import annotations

from mpbook.device_facts import GIB, memory_sizes

DEVICE_GIB: dict[str, float] = memory_sizes()
"""The memory that GPUs report, in gibibytes: `mpbook.device_facts.memory_sizes`."""

RESERVE = 0.1
"""Share of a device's memory left free for what no formula here counts: CUDA's context, the
libraries' workspaces, fragmentation.  A round allowance, not a measurement."""


def fits_on(peak: float, *, reserve: float = RESERVE) -> dict[str, bool]:
    """For each of `DEVICE_GIB`, whether so many bytes leave the reserve free.

    Raises:
        ValueError: a reserve that is no share.
    """
    if not 0 <= reserve < 1:
        raise ValueError(f"reserve={reserve}: expected a share of the memory, 0 to below 1")
    return {name: peak <= (1 - reserve) * gib * GIB for name, gib in DEVICE_GIB.items()}
