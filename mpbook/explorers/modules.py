"""An explorer's JavaScript as one text: the one form that works in both places it runs in.

Jupyter is handed a module as text, and a page opened from disk may import a module only from a
blob of text; neither can follow an ``import`` to a second file.  So explorers keep what they share
in files of their own, import it in plain JavaScript, and `linked` writes the imported file into
the text that imports it.  Nothing is generated on disk, and an editor sees ordinary modules.
"""

from __future__ import annotations

import re
from pathlib import Path

STATIC = Path(__file__).parent / "static"

_IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([\w.]+)";$', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=async function|function|const)", re.MULTILINE)


def linked(module: Path) -> str:
    """The text of a module with the modules it imports written in, each in a scope of its own.

    Args:
        module: a file whose imports all read ``import { a, b } from "./other.mjs";``.

    Raises:
        FileNotFoundError: the module, or one that it imports, is not there.
    """

    def written_in(match: re.Match[str]) -> str:
        names, file = match.groups()
        body = _EXPORT.sub("", linked(module.with_name(file)))
        return f"const {{{names}}} = (() => {{\n{body}\nreturn {{{names}}};\n}})();"

    return _IMPORT.sub(written_in, module.read_text("utf-8"))


def explorer_modules(folder: Path = STATIC) -> dict[str, str]:
    """The linked text of every explorer in a folder, by the name that its element gives it."""
    return {path.stem: linked(path) for path in sorted(folder.glob("*_explorer.mjs"))}
