"""What every explorer shares: one JavaScript module with two mounts.

In Jupyter an explorer is an anywidget: its traits live in the kernel, and its module (``_esm``)
draws them.  A built page has no kernel, so the explorer also leaves an HTML twin in the notebook:
an ``<mp-widget>`` element that holds the same state as JSON and a static picture.  There
``static/mount.js`` runs the same module on it; without JavaScript, and on paper, the picture stays.
"""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import anywidget
import traitlets

from mpbook.explorers.modules import STATIC
from mpbook.formats import FloatFormat
from mpbook.synonyms import did_you_mean


class BadTraitError(traitlets.TraitError, ValueError):
    """A value that a trait cannot take; as a TraitError it makes traitlets restore the old one."""


class Checked(traitlets.TraitType[Any, Any]):
    """A trait whose values pass through ``check``, which returns them normalised or raises."""

    def __init__(self, check: Callable[[Any], Any], default: Any, **options: Any) -> None:
        self._check = check
        super().__init__(default, **options)

    def validate(self, obj: Any, value: Any) -> Any:
        """Return what ``check`` makes of the value."""
        try:
            return self._check(value)
        except (TypeError, ValueError) as error:
            raise BadTraitError(str(error)) from error


def one_of(name: str, choices: tuple[str, ...]) -> Callable[[Any], Any]:
    """A check for `Checked`: the trait of this name is one of the choices."""

    def check(value: Any) -> Any:
        if value not in choices:
            hint = did_you_mean(value, choices)
            raise ValueError(f"{name}={value!r}: expected one of {choices}{hint}")
        return value

    return check


def format_trait(check: Callable[[Any], FloatFormat], default: FloatFormat) -> Any:
    """A trait that holds a `FloatFormat` here and its fields in JavaScript."""
    return Checked(check, default).tag(
        sync=True,
        to_json=lambda format, widget: dataclasses.asdict(format),
        from_json=lambda fields, widget: FloatFormat(**fields),
    )


class Explorer(anywidget.AnyWidget):
    """An anywidget with a kernel-less twin.

    A subclass names its module in ``_twin`` and gives it to anywidget as ``_esm``, lists in
    ``_twin_traits`` what the module reads, and says the same in ``_fallback``.
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


def static_facts(title: str, facts: Mapping[str, str], *, words: str = "") -> str:
    """The static picture of an explorer that comes to a few facts: a title and a table of them.

    Args:
        title: above the table.
        facts: by what stands before each.
        words: a paragraph below, if any.
    """
    rows = (
        f"<tr><th scope='row'>{name}</th><td>{html.escape(text)}</td></tr>"
        for name, text in facts.items()
    )
    below = f"<p>{html.escape(words)}</p>" if words else ""
    return (
        f"<figure class='mp-static'><figcaption>{html.escape(title)}</figcaption>"
        f"<table>{''.join(rows)}</table>{below}</figure>"
    )
