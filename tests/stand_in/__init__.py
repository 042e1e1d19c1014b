"""A CUDA device that is not there, to rehearse on a CPU what a GPU will run.

A stood-in tensor has CUDA's dispatch keys and a device of ``cuda:0``, and its numbers lie on the
CPU.  So torch itself applies CUDA's autocast lists, CUDA's choice of optimizer loops, CUDA's
attention operators and their derivatives; only the kernels are the CPU's.  Mixing devices raises,
as on a GPU.  The allocator's count, the random state, events, float32 statistics of LayerNorm and
the padded logsumexp of attention are CUDA's too.

Not stood in for: the rounding of CUDA's kernels, atomic additions, streams, speed, the workspaces
of cuBLAS, and the compiler (``torch.compile`` returns its argument: a dispatch mode that is active
everywhere and the compiler do not go together).  It needs Linux, g++, and the lock's torch, built
without CUDA.

Importing this package installs the device; it must come before torch.  `rehearse` does that in
every Python that it starts, by ``sitecustomize.py`` in the folder ``another_machine``.
``MPBOOK_STAND_IN`` names the capability of the GPU: 8.0 for an A100, 7.5 for a T4.
"""

from __future__ import annotations

import sys

if "torch" in sys.modules:
    raise ImportError("the stand-in must be imported before torch")

from stand_in import guard

guard.load()

from stand_in import gpu  # noqa: E402  # only now can torch hold such a tensor

gpu.install()
