"""A measured result with its provenance: saved whole, found again, and never quietly changed.

A record is one experiment on one device: its configuration, every case with its raw samples, and
where, when and by which code it was measured.  It is a JSON file, so that it can be read without
this package and compared in a review.  A digest over the whole content stands in it: a file that
was torn, or edited by hand, is refused.  It guards against accidents, not against forgery.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from mpbook import device as devices

SCHEMA = 1
RECORDED = Path(__file__).parent / "recorded"
"""The folder of the records that come with the package."""


@dataclass(frozen=True)
class Provenance:
    """Where, when and by which code something was measured.

    ``commit`` is the code's git commit, with ``+changes`` where files differed from it, or
    ``"unknown"`` outside a repository; ``source`` is a digest of the package's Python files, which
    is known in any case.  ``started`` is a UTC time.
    """

    device: str
    device_type: str
    capability: str
    driver: str
    torch_version: str
    cuda: str
    cudnn: str
    python: str
    platform: str
    threads: int
    mpbook: str
    commit: str
    source: str
    started: str

    @classmethod
    def here(cls, device: torch.device) -> Provenance:
        """That of a measurement which starts now on this device."""
        from mpbook import __version__

        on_gpu = device.type == "cuda"
        return cls(
            device=devices.name(device),
            device_type=device.type,
            capability=_capability(device) if on_gpu else "",
            driver=gpu_state("driver_version", device) if on_gpu else "",
            torch_version=torch.__version__,
            cuda=(torch.version.cuda or "") if on_gpu else "",
            cudnn=str(torch.backends.cudnn.version() or "") if on_gpu else "",
            python=platform.python_version(),
            platform=f"{platform.system()} {platform.machine()}",
            threads=torch.get_num_threads(),
            mpbook=__version__,
            commit=_commit(),
            source=source_digest(),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )


@dataclass(frozen=True)
class Record:
    """One experiment on one device.

    ``cases`` are dictionaries of ``case`` (what was varied), ``status`` (``"measured"``, ``"out of
    memory"``, or ``"failed: "`` and the error), ``seconds`` that it took and ``results``.  Times in
    results are lists of raw samples in seconds, memory is in bytes.
    """

    experiment: str
    config: dict[str, Any]
    cases: list[dict[str, Any]]
    provenance: Provenance
    seconds: float

    def measured(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """The case and the results of each case that was measured."""
        for row in self.cases:
            if row["status"] == "measured":
                yield row["case"], row["results"]

    def results(self, **case: Any) -> dict[str, Any]:
        """The results of the one measured case with these values.

        Raises:
            LookupError: no such case, more than one, or one without results.
        """
        rows = [row for row in self.cases if case.items() <= row["case"].items()]
        if len(rows) != 1:
            raise LookupError(f"{self.experiment}: {len(rows)} cases have {case}; expected one")
        if rows[0]["status"] != "measured":
            raise LookupError(f"{self.experiment}: {case} has no results: {rows[0]['status']}")
        return dict(rows[0]["results"])

    @property
    def caption(self) -> str:
        """Where and when, as a page says it."""
        return f"recorded on {self.provenance.device}, {self.provenance.started[:10]}"

    @property
    def file_name(self) -> str:
        """How its file is called: the experiment and the device."""
        return file_name(self.experiment, self.provenance.device)


def file_name(experiment: str, device: str) -> str:
    """Of the record of an experiment on the device of this name."""
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") or "device"
    return f"{experiment}--{slug}.json"


def save(record: Record, folder: Path) -> Path:
    """Write a record, whole or not at all, and never over another.

    Returns:
        The file.

    Raises:
        FileExistsError: there is a record of this experiment on this device already.
        ValueError: a number that JSON cannot hold exactly as it is (write NaN as None).
        OSError: the folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / record.file_name
    content = {"schema": SCHEMA, **asdict(record)}
    _check_finite(content)
    text = _text({**content, "digest": _digest(content)})
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.link(temporary, path)  # unlike a rename, it fails where there is a file already
    except FileExistsError:
        raise FileExistsError(f'"{path}": there is a record already; move it away first') from None
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def load(path: Path) -> Record:
    """Read a record.

    Raises:
        ValueError: a file that is torn, was edited, or has another schema.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f'record "{path.name}": torn, or not JSON ({error})') from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else None
        raise ValueError(f'record "{path.name}": schema {found!r}, expected {SCHEMA}')
    if content.pop("digest", None) != _digest(content):
        raise ValueError(f'record "{path.name}": its digest does not fit; it was edited or torn')
    try:
        parts = {f.name: content[f.name] for f in fields(Record)}
        return Record(**{**parts, "provenance": Provenance(**content["provenance"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f'record "{path.name}": not what save() writes: {error!r}') from error


def find(
    experiment: str, *, device: str | None = None, folders: Sequence[Path] | None = None
) -> Record | None:
    """The newest record of an experiment, or None: then the page says "not recorded yet".

    Args:
        experiment: its name.
        device: what the device calls itself; by default any GPU, never a CPU.
        folders: where to look; by default what comes with the package.

    Raises:
        ValueError: a file among them that `load` refuses.
    """
    found = [
        record
        for folder in (folders or [RECORDED])
        for record in map(load, sorted(folder.glob(f"{experiment}--*.json")))
        if record.experiment == experiment
        and (
            record.provenance.device == device
            if device is not None
            else record.provenance.device_type == "cuda"
        )
    ]
    return max(found, key=lambda record: record.provenance.started, default=None)


def gpu_state(query: str, device: torch.device) -> str:
    """What ``nvidia-smi`` says of this GPU, as it words it; empty where it says nothing."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        command.append(f"--id={_smi_id(device)}")
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, RuntimeError, subprocess.SubprocessError):  # torch's, once a GPU has failed
        return ""
    return done.stdout.strip()


def _smi_id(device: torch.device) -> str:
    """How ``nvidia-smi`` calls it: CUDA_VISIBLE_DEVICES renumbers torch's GPUs, not its own."""
    uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
    if not uuid:
        return str(device.index or 0)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


def source_digest() -> str:
    """SHA-256 over the package's Python files, by name and content, shortened to 16 digits."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0")
        digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _capability(device: torch.device) -> str:
    return ".".join(map(str, torch.cuda.get_device_capability(device)))


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _text(content: Mapping[str, Any]) -> str:
    """JSON with one line for each case, for people who read a difference."""
    head = json.dumps({k: v for k, v in content.items() if k != "cases"}, indent=1)
    cases = ",\n  ".join(json.dumps(row) for row in content["cases"])
    return f'{head[:-2]},\n "cases": [\n  {cases}\n ]\n}}\n'


def _digest(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _check_finite(value: Any, where: str = "record") -> None:
    if isinstance(value, Mapping):
        for key, part in value.items():
            _check_finite(part, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            _check_finite(part, f"{where}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}={value}: JSON has no such number; write None")
