"""Explorers: pictures that a reader plays with, live in Jupyter and kernel-less in the built page.

Importing this package needs nothing beyond mpbook; using an explorer needs anywidget.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpbook.explorers.block_explorer import BlockExplorer
    from mpbook.explorers.float_explorer import FloatExplorer
    from mpbook.explorers.gpu_explorer import GpuExplorer
    from mpbook.explorers.loss_scale_explorer import LossScaleExplorer
    from mpbook.explorers.memory_explorer import MemoryExplorer
    from mpbook.explorers.published_explorer import PublishedExplorer
    from mpbook.explorers.range_resolution_explorer import RangeResolutionExplorer
    from mpbook.explorers.record_explorer import RecordExplorer
    from mpbook.explorers.reduction_explorer import ReductionExplorer
    from mpbook.explorers.roofline_explorer import RooflineExplorer
    from mpbook.explorers.sum_explorer import SumExplorer

__all__ = [
    "BlockExplorer",
    "FloatExplorer",
    "GpuExplorer",
    "LossScaleExplorer",
    "MemoryExplorer",
    "PublishedExplorer",
    "RangeResolutionExplorer",
    "RecordExplorer",
    "ReductionExplorer",
    "RooflineExplorer",
    "SumExplorer",
]

_MODULES = {
    "BlockExplorer": "block_explorer",
    "FloatExplorer": "float_explorer",
    "GpuExplorer": "gpu_explorer",
    "LossScaleExplorer": "loss_scale_explorer",
    "MemoryExplorer": "memory_explorer",
    "PublishedExplorer": "published_explorer",
    "RangeResolutionExplorer": "range_resolution_explorer",
    "RecordExplorer": "record_explorer",
    "ReductionExplorer": "reduction_explorer",
    "RooflineExplorer": "roofline_explorer",
    "SumExplorer": "sum_explorer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    except ModuleNotFoundError as error:
        if error.name not in ("anywidget", "ipywidgets", "traitlets"):
            raise
        raise ImportError(
            f'{name} needs {error.name}, which is missing: pip install "mpbook[notebook]"'
        ) from error
    return getattr(module, name)
