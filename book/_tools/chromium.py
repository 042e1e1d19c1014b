"""Where a Chromium is, and how the tests and the printer start it."""

from __future__ import annotations

import shutil

NAMES = (
    "chromium-headless-shell",  # a window's code left out: the tests take three fifths of the time
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
MISSING = f"no browser found: install one of {', '.join(NAMES)} (apt install chromium)"


def executable() -> str | None:
    """Return the path of a Chromium, or None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)
