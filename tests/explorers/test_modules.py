"""The explorers' JavaScript as one text, and what its shared modules compute."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random

import pytest
from explorer_pages import LoadModule
from sphinx_extension import APART, BUNDLE, bundle_sources

from mpbook.explorers.modules import STATIC, explorer_modules, linked
from mpbook.formats import FORMATS
from mpbook.plots import COLOURS


def test_an_imported_module_is_written_in_with_a_scope_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.mjs").write_text('import { f } from "./b.mjs";\nexport const own = f();\n')
    (tmp_path / "b.mjs").write_text(
        'import { one } from "./c.mjs";\nconst own = 1;\nexport function f() {}\n'
    )
    (tmp_path / "c.mjs").write_text("export const one = 1;\n")
    text = linked(tmp_path / "a.mjs")
    assert "import" not in text
    assert text.count("export") == 1
    assert text.index("const { one }") > text.index("const { f }")


def test_a_missing_module_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.mjs").write_text('import { f } from "./b.mjs";\n')
    with pytest.raises(FileNotFoundError, match=r"b\.mjs"):
        linked(tmp_path / "a.mjs")


def test_every_explorer_is_bundled_whole_and_nothing_else() -> None:
    modules = explorer_modules()
    assert sorted(modules) == [
        "block_explorer", "float_explorer", "gpu_explorer", "loss_scale_explorer",
        "memory_explorer", "published_explorer", "range_resolution_explorer", "record_explorer",
        "reduction_explorer",
        "roofline_explorer", "sum_explorer",
    ]  # fmt: skip
    files = bundle_sources(STATIC)
    assert list(files) == [BUNDLE, "gpu_explorer.js"]
    bundled = [
        json.loads(re.search(r" \?\? \{\}, (.*)\);", file)[1])  # type: ignore[index]
        for file in files.values()
    ]
    assert bundled[0] | bundled[1] == modules and set(bundled[1]) == APART
    for name, text in modules.items():
        assert not re.search(r"^\s*import\b", text, re.MULTILINE), name
        assert "export default { render };" in text, name


@pytest.mark.browser
def test_the_largest_number_of_a_format_equals_pythons(load_module: LoadModule) -> None:
    page = load_module("kit")
    formats = [vars(format) for format in FORMATS.values()]
    found = page.evaluate("(formats) => formats.map((f) => [m.maxCode(f), m.largest(f)])", formats)
    assert found == [[f.max_code, f.max] for f in FORMATS.values()]


@pytest.mark.browser
def test_powers_are_set_as_superscripts(load_module: LoadModule) -> None:
    page = load_module("kit")
    assert page.evaluate("m.powers('2^-16 to 2^30.')") == "2⁻¹⁶ to 2³⁰."


@pytest.mark.browser
def test_an_axis_has_two_round_numbers_at_least_and_not_many(load_module: LoadModule) -> None:
    random = Random(0)
    ends = [(0.0, high) for high in (1.0, 3e-8, 256.0, 1000.0, 65504.0, 999.9999999999999)]
    for _ in range(2000):
        low = random.choice([0.0, -1.0, 1.0]) * random.random() * 10.0 ** random.randint(-9, 9)
        ends.append((low, low + (0.1 + random.random()) * (abs(low) or 1)))
    found = load_module("kit").evaluate("(ends) => ends.map((e) => m.niceSteps(...e))", ends)
    for (low, high), steps in zip(ends, found, strict=True):
        assert 2 <= len(steps) <= 6, (low, high, steps)
        assert low <= steps[0] and steps[-1] <= high
        step = (steps[-1] - steps[0]) / (len(steps) - 1)
        assert float(f"{step:.6e}"[0:8]) in (1, 2, 5)
        assert steps == pytest.approx([steps[0] + k * step for k in range(len(steps))])


def test_colours_of_formats_are_those_of_the_plots() -> None:
    css = (STATIC / "explorers.css").read_text("utf-8")
    hues = re.findall(r'\[data-format="(\w+)"\] \{ --mp-hue: var\(--mp-([\w-]+), (#\w+)\)', css)
    assert len(hues) == 10
    for name, variable, colour in hues:
        assert variable == name.replace("_", "-")
        assert colour == COLOURS[name]
