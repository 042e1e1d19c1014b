"""Another machine in every Python that starts, kernels and children too.

Python imports this file at its start where this folder is on ``PYTHONPATH``, as `portability` and
`rehearse` put it.  ``MPBOOK_TORCH_BUILD`` names a build, such as ``cu130``: torch calls itself so.
A build for CUDA has Triton, which what stands in for it has not: torch says so on stderr, unless
``MPBOOK_TRITON=silent``.  ``MPBOOK_STAND_IN`` names a capability, such as ``8.0``: torch has a GPU
of it (`stand_in`).
"""

import importlib.machinery
import logging
import os
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

BUILD = os.environ.get("MPBOOK_TORCH_BUILD", "")


class _VersionOfABuild(MetaPathFinder):
    """Finds ``torch.version`` where it is, and changes what it says once it has run."""

    def find_spec(self, name, path, target=None):
        spec = None
        if name == "torch.version":
            spec = importlib.machinery.PathFinder.find_spec(name, path, target)
            run = spec.loader.exec_module

            def run_and_rename(module):
                run(module)
                module.__version__ = f"{module.__version__.partition('+')[0]}+{BUILD}"
                if BUILD.startswith("cu"):
                    module.cuda = f"{BUILD[2:-1]}.{BUILD[-1]}"

            spec.loader.exec_module = run_and_rename
        return spec


if BUILD and os.environ.get("MPBOOK_TRITON") == "silent":
    logging.getLogger("torch.utils.flop_counter").addFilter(lambda record: False)
if BUILD:
    sys.meta_path.insert(0, _VersionOfABuild())

if os.environ.get("MPBOOK_STAND_IN"):
    sys.path.append(str(Path(__file__).parents[1]))
    import stand_in  # noqa: F401  # installs the device
