"""What the book adds to Sphinx: explorers without a kernel, alt text, and no other site.

* Writes the explorers' modules as strings into one script. A page opened from disk may not
  import a module file, but it may import a blob made from such a string.
* Loads the explorers' scripts and style only on pages that hold an explorer.
* Gives a notebook's pictures the alt text that `mpbook.plots.show` stored beside them, and
  warns about a picture without one, which fails a build with `-W`.
* Lets a link say `page.ipynb#target`.
* Lets a keyboard reach tables that scroll, and names the folds of the contents.
* Adds buttons that open a notebook in Colab or Binder where the build knows its repository, from
  `MPBOOK_REPOSITORY=OWNER/NAME` in the environment.
* Drops sphinx-thebe, whose scripts name a CDN and declare the same constants twice, and keeps
  MathJax off pages without maths.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from base64 import b64decode
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

from mpbook.explorers.modules import explorer_modules

# What the theme's and docutils' own HTML lacks for people who use a keyboard or a screen reader.
ACCESSIBLE = {
    '<div class="pst-scrollable-table-container">': (
        '<div class="pst-scrollable-table-container" tabindex="0" role="region" aria-label="Table">'
    ),
    '<div role="list" class="citation-list">': '<div class="citation-list">',
    ' role="doc-biblioentry"': "",
}
MODULES = Path("mpbook/explorers/static")
BUNDLE = "explorers_bundle.js"
APART = {"gpu_explorer"}  # as large as the others together, and on one page

Context = dict[str, Any]

logger = logging.getLogger(__name__)


def bundle_sources(folder: Path) -> dict[str, str]:
    """Return, by file name, the scripts that hold the explorer modules of `folder` as strings."""
    modules = explorer_modules(folder)
    files = {f"{name}.js": {name: modules.pop(name)} for name in APART if name in modules}
    return {
        file: "window.MPBOOK_EXPLORERS = "
        f"Object.assign(window.MPBOOK_EXPLORERS ?? {{}}, {json.dumps(held, sort_keys=True)});\n"
        for file, held in {BUNDLE: modules, **files}.items()
    }


def write_bundles(app: Sphinx, _error: Exception | None = None) -> None:
    """Write the explorers' bundles beside the other static files."""
    if app.builder.format == "html":
        folder = Path(app.outdir, "_static")
        folder.mkdir(parents=True, exist_ok=True)
        for file, source in bundle_sources(Path(app.srcdir, MODULES)).items():
            (folder / file).write_text(source, "utf-8")


def load_explorers(app: Sphinx, _page: str, _template: str, context: Context, _: object) -> None:
    """Load the explorers on a page that holds one, and on no other."""
    held = set(re.findall(r'<mp-widget data-widget="(\w+)"', context.get("body", "")))
    if not held:
        return
    app.add_css_file("explorers.css")
    for file in [f"{name}.js" for name in APART if name in held] + [BUNDLE] * bool(held - APART):
        app.add_js_file(file)
    app.add_js_file("mount.js")


def make_accessible(_app: Sphinx, _page: str, _template: str, context: Context, _: object) -> None:
    """Mend the page's HTML where axe finds it wanting."""
    for html, better in ACCESSIBLE.items():
        context["body"] = context.get("body", "").replace(html, better)


def name_folds(_app: Sphinx, _page: str, _template: str, context: Context, _: object) -> None:
    """Give each fold of the contents a name for a screen reader: the theme's is a bare arrow."""
    make = context.get("generate_toctree_html")
    if make is None:
        return

    def named(*arguments: Any, **options: Any) -> Any:
        contents = make(*arguments, **options)
        for summary in contents.select("li > details > summary"):
            if link := summary.find_parent("li").find("a"):
                summary["aria-label"] = f"Pages of {link.get_text().strip()}"
        return contents

    context["generate_toctree_html"] = named


def drop_mathjax(_app: Sphinx, _page: str, _template: str, context: Context, _: object) -> None:
    """Keep MathJax off a page without maths, even if a page below it in the contents has some."""
    if 'class="math ' not in context.get("body", ""):
        scripts = context.get("script_files", [])
        context["script_files"] = [s for s in scripts if "mathjax" not in str(vars(s)).lower()]


def add_launch_buttons(_app: Sphinx, config: Any) -> None:
    """Let the theme link each notebook to where it runs, on the branch that `launch` writes."""
    if repository := os.environ.get("MPBOOK_REPOSITORY"):
        config.html_theme_options |= {
            "repository_url": f"https://github.com/{repository}",
            "repository_branch": "notebooks",
            "launch_buttons": {
                "colab_url": "https://colab.research.google.com",
                "binderhub_url": "https://mybinder.org",
            },
        }


def drop_thebe(app: Sphinx) -> None:
    """Unregister sphinx-thebe, which Jupyter Book always loads."""
    for listeners in app.events.listeners.values():
        listeners[:] = [x for x in listeners if not x.handler.__module__.startswith("sphinx_thebe")]
    app.registry.css_files[:] = [css for css in app.registry.css_files if "thebe" not in css[0]]


def alt_texts(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """Map the SHA-256 of each picture in a notebook's outputs to its alt text.

    myst-nb names the files of its pictures by that hash, so the two can be joined later.
    """
    found = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for mime, content in output.get("data", {}).items():
                alt = output.get("metadata", {}).get(mime, {}).get("alt")
                if "image/" in mime and alt:
                    found[hashlib.sha256(_as_file(mime, content)).hexdigest()] = alt
    return found


def _as_file(mime: str, content: str) -> bytes:
    """A picture as myst-nb writes it: an SVG loses the newline at its end."""
    if mime.endswith("svg+xml"):
        return os.linesep.join(content.splitlines()).encode()
    return b64decode(content)


def add_alt_texts(app: Sphinx, doctree: nodes.document) -> None:
    """Complete the alt text of a page's pictures; warn about each that stays without."""
    source = Path(str(app.env.doc2path(app.env.docname)))
    texts = alt_texts(nbformat.read(source, as_version=4)) if source.suffix == ".ipynb" else {}
    for image in doctree.findall(nodes.image):
        if not image.get("alt"):
            image["alt"] = texts.get(Path(image["uri"]).stem, "")
        if not image["alt"].strip():
            logger.warning("image without alt text: %s", image["uri"], location=image, type="alt")


def let_paths_name_targets(app: Sphinx, doctree: nodes.document) -> None:
    """Let a link say `page.ipynb#target`, which opens in Jupyter too; MyST knows headings alone."""
    places = app.env.metadata[app.env.docname].setdefault("myst_slugs", {})
    for section in doctree.findall(nodes.section):
        for place in section["ids"]:
            places.setdefault(place, (section.line or 0, place, section[0].astext()))


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the handlers above."""
    drop_thebe(app)
    app.connect("config-inited", add_launch_buttons)
    app.connect("doctree-read", add_alt_texts)
    app.connect("doctree-read", let_paths_name_targets)
    app.connect("html-page-context", load_explorers)
    app.connect("html-page-context", make_accessible)
    app.connect("html-page-context", drop_mathjax, priority=900)
    app.connect("html-page-context", name_folds, priority=900)
    app.connect("build-finished", write_bundles)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
