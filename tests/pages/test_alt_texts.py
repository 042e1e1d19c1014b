"""`sphinx_extension.alt_texts` against the names that myst-nb gives to pictures."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from myst_nb.core.render import MimeData, NbElementRenderer
from sphinx_extension import alt_texts

from mpbook.plots import figure, render


class _Named(Exception):  # noqa: N818 - not an error: carries a name out of myst-nb
    pass


class _Renderer(NbElementRenderer):
    """Stops where myst-nb would write the picture."""

    def __init__(self) -> None:
        pass

    def write_file(self, path: list[str], *_: Any, **__: Any) -> str:
        raise _Named(path[-1])


def name_of(mime: str, content: str) -> str:
    """The name of the file, without its extension, that myst-nb writes the picture to."""
    with pytest.raises(_Named) as named:
        _Renderer().render_image(MimeData(mime, content))
    return Path(str(named.value)).stem


def notebook(mime: str, content: str) -> nbformat.NotebookNode:
    data = {mime: content}
    output = nbformat.v4.new_output("display_data", data, metadata={mime: {"alt": "Lines."}})
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[output])])


def svg() -> str:
    drawn, axes = figure()
    axes.plot([0, 1])
    text: str = render(drawn, "svg")
    return text


@pytest.mark.parametrize(
    ("mime", "content"), [("image/png", "iVBORw0KGgo="), ("image/svg+xml", svg())]
)
def test_a_picture_is_found_by_the_name_that_myst_nb_gives_it(mime: str, content: str) -> None:
    assert alt_texts(notebook(mime, content)) == {name_of(mime, content): "Lines."}
