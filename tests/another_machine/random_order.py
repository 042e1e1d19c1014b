"""A pytest plugin that runs the files, and the tests of each file, in a random order.

``pytest -p random_order`` with the seed in ``MPBOOK_ORDER_SEED``, which every worker of xdist then
shares.  The cells of a notebook stay in their order, and a file in one piece.
"""

import os
import random

from nbval.plugin import IPyNbFile

SEED = int(os.environ.get("MPBOOK_ORDER_SEED", "0"))


def pytest_report_header():
    return f"random order: MPBOOK_ORDER_SEED={SEED}"


def pytest_collection_modifyitems(items):
    """Shuffle; an order that depends on the tests' names alone, not on what came before."""
    draw = random.Random(SEED)
    files = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    order = sorted(files)
    draw.shuffle(order)
    for path in order:
        if not isinstance(files[path][0].parent, IPyNbFile):
            draw.shuffle(files[path])
    items[:] = [item for path in order for item in files[path]]
