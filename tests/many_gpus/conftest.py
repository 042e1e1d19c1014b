"""Real ranks; the tests that ask for them skip where none can be started."""

from __future__ import annotations

import os

import pytest

from mpbook.many_gpus.launch import cannot_launch

PATIENCE_S = 300.0
"""Much longer than anything takes here: a machine may be slow, or busy."""


@pytest.fixture(scope="session", params=sorted({2, int(os.environ.get("MPBOOK_RANKS", "2"))}))
def ranks(request: pytest.FixtureRequest) -> int:
    """How many to start: two, and as many as the environment asks for besides."""
    return int(request.param)


@pytest.fixture(scope="session")
def patience_s() -> float:
    """How long to wait for real ranks, on a machine that can start them."""
    if reason := cannot_launch():
        pytest.skip(reason)
    return PATIENCE_S
