"""Build the book's HTML, warnings as errors, and note from what it was built.

    python book/_tools/build_html.py

The note lies beside the pages: a checksum of each source, and the versions that turn them into
pages. Where it still holds, the tests read these pages instead of building them again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("_config.yml", "_toc.yml", "book", "mpbook")
MADE = {"__pycache__", ".ipynb_checkpoints"}
TOOLS = ("jupyter-book", "myst-nb", "numpy", "sphinx", "torch")
NOTE = "built_from.json"

State = dict[str, str]


class BuildError(Exception):
    """The book does not build; the message is the end of what the build said."""


def state() -> State:
    """Say what a build made now is made from: the sources' checksums and the tools' versions."""
    found = [path for name in SOURCES for path in (ROOT / name, *(ROOT / name).rglob("*"))]
    files = sorted(path for path in found if path.is_file() and not MADE & set(path.parts))
    checksums = {
        path.relative_to(ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
    tools = {tool: version(tool) for tool in TOOLS} | {"python": platform.python_version()}
    return tools | {"repository": os.environ.get("MPBOOK_REPOSITORY", "")} | checksums


def is_current(folder: Path) -> bool:
    """Whether the pages in ``folder`` were built from the sources as they are now."""
    return (folder / "html").exists() and _note(folder) == state()


def _note(folder: Path) -> State:
    try:
        return dict(json.loads((folder / NOTE).read_text("utf-8")))
    except (OSError, ValueError):  # never built, or stopped while writing
        return {}


def build(target: Path = ROOT, *, quiet: bool = False) -> Path:
    """Build the pages into ``target``/_build; return the folder of the HTML.

    Sphinx shows a warning once, when it reads the page. So everything is read again after a build
    that failed, and after a source came or went.

    Args:
        target: the folder to build in.
        quiet: keep what the build says for the error.

    Raises:
        BuildError: an error or a warning, nitpicks included.
    """
    folder, now = target / "_build", state()
    if _note(folder).keys() != now.keys():
        for made in ("html", ".doctrees"):
            shutil.rmtree(folder / made, ignore_errors=True)
    (folder / NOTE).unlink(missing_ok=True)
    _run("build", str(ROOT), "-W", "-n", "--keep-going", "--path-output", str(target), quiet=quiet)
    (folder / NOTE).write_text(json.dumps(now, indent=1) + "\n", "utf-8")
    return folder / "html"


def _run(*arguments: str, quiet: bool) -> None:
    command = [str(Path(sys.executable).with_name("jupyter-book")), *arguments]
    pipe = subprocess.PIPE if quiet else None
    done = subprocess.run(command, text=True, check=False, stdout=pipe, stderr=pipe)
    if done.returncode:
        said = (done.stdout or "") + (done.stderr or "")
        plain = re.sub(r"\x1b\[[\d;]*m", "", said)
        raise BuildError(f"the book does not build\n{plain[-6000:]}".strip())


if __name__ == "__main__":
    try:
        print(f"The book is in {build() / 'index.html'}")
    except BuildError as error:
        sys.exit(f"build_html: {error}")
