"""Which devices have room for a peak: their memory, and what is left free of it.

Taught in the chapter "Memory".
"""

from __future__ import annotations

from mpbook.device_facts import GIB, memory_sizes

DEVICE_GIB: dict[str, float] = memory_sizes()
"""The memory that GPUs report, in gibibytes: `mpbook.device_facts.memory_sizes`."""

BESIDE_ON_CUDA: dict[str, int] = {
    "CUDA's context": 300 * 2**20,
    "workspace of cuBLAS": 32 * 2**20,
}
"""Bytes that a process takes on a GPU beside its tensors, as others state them: no allocator counts
the first, and a plan neither.  The context is about 300 MB since CUDA 11.7 loads its kernels when
they are needed, and was more than 1000 MB before; the workspace is that of a Hopper, and 8 MiB on
most cards before it.

Sources: https://github.com/pytorch/pytorch/issues/107667 for the context, and
https://github.com/pytorch/pytorch/pull/120925 with
https://discuss.pytorch.org/t/178671 for the workspaces."""

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
