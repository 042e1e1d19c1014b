"""Explorers: pictures that a reader plays with, live in Jupyter and kernel-less in the built page.

Importing this package needs nothing beyond mpbook; using an explorer needs anywidget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpbook.explorers.float_explorer import FloatExplorer

__all__ = ["FloatExplorer"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from mpbook.explorers import float_explorer
    except ModuleNotFoundError as error:
        if error.name not in ("anywidget", "ipywidgets", "traitlets"):
            raise
        raise ImportError(
            f'{name} needs {error.name}, which is missing: pip install "mpbook[notebook]"'
        ) from error
    return getattr(float_explorer, name)
