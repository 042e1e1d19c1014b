"""The house: a room imports from the floors below its own, and never in a circle.

A room is a package or a module of `mpbook`.  Inside a package, modules import each other by module;
its ``__init__`` hands names on to the outside and to nobody within.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from visits import ROOT

FLOORS = [
    {"notebook", "optimizers", "device_facts", "tf32", "nests", "copies", "synonyms", "lint"},
    {"plots", "device", "models", "decoder", "data", "shards"},
    {"formats", "distributed"},
    {"low_precision"},
    {"precision"},
    {"loss_scaling", "master_weights", "autocast"},
    {"watch"},
    {"cost"},
    {"training", "diagnosis"},
    {"many_gpus"},
    {"evidence"},
    {"explorers", "exercises"},
    {"peers", "doctor"},
    {"bench"},
    {"__main__"},
]
"""From the ground up.  Rooms of one floor do not know each other."""

PACKAGE = ROOT / "mpbook"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def floor_of(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def room_of(module: str) -> str:
    """The second part of a dotted name; empty for `mpbook` itself."""
    return module.split(".")[1] if "." in module else ""


def imported(module: str, path: Path, *, for_types: bool) -> Iterator[str]:
    """The modules of `mpbook` that one imports, those inside functions included."""
    tree = ast.parse(path.read_text("utf-8"))
    if not for_types:
        tree.body = [node for node in tree.body if not _is_for_types(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("mpbook"))
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: a relative import does not say what it imports"
            if node.module and node.module.split(".")[0] == "mpbook":
                for name in node.names:
                    inner = f"{node.module}.{name.name}"
                    yield inner if inner in MODULES else node.module


def _is_for_types(node: ast.stmt) -> bool:
    """Whether this is an ``if TYPE_CHECKING:``, which never runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


IMPORTS = {m: set(imported(m, path, for_types=True)) for m, path in MODULES.items()}
RUN = {m: set(imported(m, path, for_types=False)) for m, path in MODULES.items()}
"""The same without what only a type checker reads."""


def test_every_room_is_on_a_floor() -> None:
    rooms = {room_of(module) for module in MODULES} - {""}
    assert rooms - set().union(*FLOORS) == set()


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m)])
def test_imports_go_down_or_stay_in_the_room(module: str) -> None:
    own = room_of(module)
    others = {room_of(target) for target in IMPORTS[module]} - {"", own}
    assert {room for room in others if floor_of(room) >= floor_of(own)} == set()


@pytest.mark.parametrize("module", [m for m, p in MODULES.items() if p.name != "__init__.py"])
def test_no_module_goes_through_a_package_that_it_is_in(module: str) -> None:
    parents = {module.rsplit(".", n)[0] for n in range(1, module.count("."))}
    assert IMPORTS[module] & parents == set()


def test_there_is_no_circle() -> None:
    done: set[str] = set()

    def walk(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for target in sorted(RUN[module]):
                if target != "mpbook":
                    walk(target, (*way, module))
            done.add(module)

    for module in MODULES:
        walk(module, ())
