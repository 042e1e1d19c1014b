"""Compiles `guard.cpp` against torch's headers, once for each torch, and loads it before torch."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("guard.cpp")


def load() -> None:
    """Load torch's libraries and the guard, so that the guard is there when torch starts."""
    spec = importlib.util.find_spec("torch")
    assert spec and spec.origin
    root = Path(spec.origin).parent
    library = _built(root)
    for openmp in sorted((root / "lib").glob("libgomp*")):
        ctypes.CDLL(str(openmp), ctypes.RTLD_GLOBAL)
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(root / "lib" / name), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library))


def _built(torch: Path) -> Path:
    """The compiled guard; several processes may start at once, so it is put in place whole."""
    version = (torch / "version.py").read_text("utf-8")
    key = hashlib.sha256((version + str(torch) + SOURCE.read_text("utf-8")).encode()).hexdigest()
    library = Path(tempfile.gettempdir(), f"mpbook-stand-in-{os.getuid()}-{key[:16]}.so")
    if not library.exists():
        part = library.with_suffix(f".{os.getpid()}")
        subprocess.run(
            ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", f"-I{torch / 'include'}", str(SOURCE),
             "-o", str(part), f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"], check=True,
        )  # fmt: skip
        part.replace(library)
    return library
