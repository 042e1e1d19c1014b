"""What every explorer shares: one JavaScript module with two mounts.

In Jupyter an explorer is an anywidget: its traits live in the kernel, and its module (``_esm``)
draws them.  A built page has no kernel, so the explorer also leaves an HTML twin in the notebook:
an ``<mp-widget>`` element that holds the same state as JSON and a static picture.  There
``static/mount.js`` runs the same module on it; without JavaScript, and on paper, the picture stays.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import anywidget
import traitlets

STATIC = Path(__file__).parent / "static"


class BadTraitError(traitlets.TraitError, ValueError):
    """A value that a trait cannot take; as a TraitError it makes traitlets restore the old one."""


class Checked(traitlets.TraitType[Any, Any]):
    """A trait whose values pass through ``check``, which returns them normalised or raises."""

    def __init__(self, check: Callable[[Any], Any], default: Any) -> None:
        self._check = check
        super().__init__(default)

    def validate(self, obj: Any, value: Any) -> Any:
        """Return what ``check`` makes of the value."""
        try:
            return self._check(value)
        except (TypeError, ValueError) as error:
            raise BadTraitError(str(error)) from error


class Explorer(anywidget.AnyWidget):
    """An anywidget with a kernel-less twin.

    A subclass sets ``_esm``, names its module in ``_twin``, lists in ``_twin_traits`` what the
    module reads, and draws the number's static picture in ``_fallback``.
    """

    _css = STATIC / "explorers.css"
    _twin: ClassVar[str]
    _twin_traits: ClassVar[tuple[str, ...]]

    def _fallback(self) -> str:
        """HTML that says the same without JavaScript."""
        raise NotImplementedError

    def _twin_html(self) -> str:
        """The ``<mp-widget>`` element: the same text for the same state, on every run."""
        state = json.dumps(self.get_state(self._twin_traits), sort_keys=True)
        state = state.replace("</", "<\\/")  # or a name could close the script element
        return (
            f'<mp-widget data-widget="{html.escape(self._twin)}">'
            f'<script type="application/json">{state}</script>'
            f"{self._fallback()}</mp-widget>"
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle
        return {**data, "text/plain": repr(self), "text/html": self._twin_html()}, metadata
