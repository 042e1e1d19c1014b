"""The directive `{symptoms}`: every symptom that the notebooks carry, by kind, with its cure.

The page is made from the notebooks at each build, so it cannot say something else than they do. It
is complete without a script; `symptoms.js` adds a box that leaves the entries with what is typed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective
from symptoms import KINDS, Symptom, plain, symptoms

SCRIPT = "symptoms.js"
FILTER = '<div class="mp-filter"></div>'
_MESSAGE = re.compile(r"^[\w.]*(?:Error|Warning|Exception)\b")


def carried(env: BuildEnvironment) -> list[Symptom]:
    """Return the symptoms of every notebook, by the alphabet of what is seen first."""
    sources = (Path(str(env.doc2path(name))) for name in sorted(env.found_docs))
    found = [
        symptom
        for source in sources
        if source.suffix == ".ipynb"
        for symptom in symptoms(nbformat.read(source, as_version=4))
        if symptom.seen and symptom.target  # the lint says what is wrong with another
    ]
    return sorted(found, key=lambda symptom: re.sub(r"\W+", " ", symptom.seen[0]).strip().lower())


def hidden(text: str) -> nodes.raw:
    """What the box finds and nobody reads."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return nodes.raw("", f'<p class="mp-words" hidden>{escaped}</p>', format="html")


class Symptoms(SphinxDirective):
    """All symptoms, a section for each kind and in it one for each symptom."""

    def run(self) -> list[nodes.Node]:
        """Return the box, the list of kinds, and their sections."""
        found = carried(self.env)
        self.env.note_reread()  # a notebook may change while this page does not
        kinds = {kind: [s for s in found if s.kind == kind] for kind in KINDS}
        kinds = {kind: those for kind, those in kinds.items() if those}
        if not kinds:
            return [nodes.paragraph("", "No page carries symptoms yet.")]
        made: list[nodes.Node] = [nodes.raw("", FILTER, format="html"), self._kinds(kinds)]
        return made + [self._kind(kind, those) for kind, those in kinds.items()]

    def _kinds(self, kinds: dict[str, list[Symptom]]) -> nodes.Node:
        listed = nodes.bullet_list(classes=["mp-kinds"])
        for kind, those in kinds.items():
            link = nodes.reference("", KINDS[kind], refid=f"symptoms-{kind}", internal=True)
            listed += nodes.list_item(
                "", nodes.paragraph("", "", link, nodes.Text(f" ({len(those)})"))
            )
        return listed

    def _kind(self, kind: str, those: Iterable[Symptom]) -> nodes.Node:
        section = nodes.section(ids=[f"symptoms-{kind}"], classes=["mp-kind"])
        section += nodes.title("", KINDS[kind])
        section.extend(map(self._entry, those))
        return section

    def _entry(self, symptom: Symptom) -> nodes.Node:
        entry = nodes.section(ids=[f"symptom-{symptom.target}"], classes=["mp-symptom"])
        first, *others = symptom.seen
        entry += nodes.title("", "", *self._seen(symptom.kind, first))
        if others:
            entry += nodes.bullet_list(
                "", *self._variants(symptom.kind, others), classes=["mp-seen"]
            )
        entry += nodes.paragraph("", "", *self._inline(symptom.means))
        entry += nodes.literal_block(symptom.cure, symptom.cure, language="python")
        entry += nodes.paragraph(
            "", "", nodes.Text("Why, and the cells that prove it: "), self._proof(symptom)
        )
        entry += hidden(" ".join([*symptom.words, plain(symptom.title)]))
        return entry

    def _variants(self, kind: str, others: Iterable[str]) -> Iterator[nodes.Node]:
        for seen in others:
            yield nodes.list_item("", nodes.paragraph("", "", *self._seen(kind, seen)))

    def _seen(self, kind: str, seen: str) -> list[nodes.Node]:
        """What is seen: a message as code, anything else as the sentence that it is."""
        if "`" not in seen and (kind == "error" or _MESSAGE.search(seen)):
            return [nodes.literal(seen, seen)]
        # Word for word: straight quotes stay straight.
        return [nodes.inline("", "", *self._inline(seen), support_smartquotes=False)]

    def _inline(self, text: str) -> list[nodes.Node]:
        parsed, messages = self.state.inline_text(text, self.lineno)
        return [*parsed, *messages]

    def _proof(self, symptom: Symptom) -> nodes.Node:
        """A link to the section, by its heading; a target that nobody has fails the build."""
        link = addnodes.pending_xref(
            "", nodes.inline("", symptom.title), refdomain="std", reftype="ref",
            reftarget=symptom.target, refexplicit=False, refwarn=True, refdoc=self.env.docname,
        )  # fmt: skip
        link.source, link.line = self.get_source_info()
        return link


def load_filter(
    app: Sphinx, _page: str, _template: str, context: dict[str, Any], _: object
) -> None:
    """Load the box's script on the page that has the box, and on no other."""
    if FILTER in context.get("body", ""):
        app.add_js_file(SCRIPT, loading_method="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive."""
    app.add_directive("symptoms", Symptoms)
    app.connect("html-page-context", load_filter)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
