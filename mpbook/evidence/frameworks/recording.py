"""Asking the libraries at hand, keeping what they do, and reading what was kept."""

from __future__ import annotations

import logging
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mpbook.evidence import records
from mpbook.evidence.frameworks.base import Question, source_digest
from mpbook.evidence.records import Provenance, Record
from mpbook.evidence.versions.base import order

RECORDED = Path(__file__).parent / "recorded"
"""The folder of the records that come with the package, one for each release of Transformers."""
LIBRARIES = ("transformers", "accelerate", "peft", "lightning")


def installed() -> dict[str, str]:
    """The version of each library.

    Raises:
        ImportError: one is missing.
    """
    try:
        return {library: version(library) for library in LIBRARIES}
    except PackageNotFoundError as missing:
        raise ImportError(
            f"no {missing.name}: in an environment of its own, pip install {' '.join(LIBRARIES)}"
        ) from None


def questions() -> list[Question]:
    """All of them; none runs before it is asked."""
    from mpbook.evidence.frameworks import hugging_face, lightning_precision

    return [*hugging_face.QUESTIONS, *lightning_precision.QUESTIONS]


def measure(asked: Sequence[Question]) -> Record:
    """Ask the libraries at hand, each question in an empty folder.

    Raises:
        ImportError: a library is missing.
    """
    config = {**installed(), "torch": torch.__version__, "source": source_digest()}
    provenance, started = Provenance.here(torch.device("cpu")), time.monotonic()
    _be_quiet()
    cases = [_case(question) for question in asked]
    name = f"transformers-{config['transformers']}"
    return Record(name, config, cases, provenance, time.monotonic() - started)


def record_here(folder: Path) -> Path:
    """Ask everything, and keep the answers as a record.

    Returns:
        The file.

    Raises:
        ImportError: a library is missing.
        FileExistsError: there is one of this release of Transformers on this CPU already.
        OSError: the folder cannot be made or written.
    """
    return records.save(measure(questions()), folder)


def _case(question: Question) -> dict[str, Any]:
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status, results = "measured", question.run(Path(folder))
    except Exception as error:
        status, results = f"failed: {type(error).__name__}: {error}"[:300], {}
    seconds = round(time.monotonic() - started, 3)
    return {"case": question.case, "status": status, "seconds": seconds, "results": results}


def _be_quiet() -> None:
    """Ask no server, draw no bars."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers.utils import logging as of_transformers

    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


def load(folder: Path = RECORDED) -> dict[str, Record]:
    """Every record of a folder by its release of Transformers, the oldest first.

    Raises:
        ValueError: one that was edited or torn, is of another release than it says, or the second
            of its release.
    """
    found: dict[str, Record] = {}
    for path in sorted(folder.glob("transformers-*.json")):
        record = records.load(path)
        release = str(record.config.get("transformers"))
        if record.experiment != f"transformers-{release}":
            raise ValueError(f'record "{path.name}": measured with transformers {release}')
        if release in found:
            raise ValueError(f'record "{path.name}": the second of transformers {release}')
        found[release] = record
    return dict(sorted(found.items(), key=lambda item: order(item[0])))
