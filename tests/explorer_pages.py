"""What the explorers' tests share: their modules in a browser, and a page with nothing but them.

The fixtures `load_module` and `open_explorer` in conftest.py hand these out.
"""

from __future__ import annotations

import re
from pathlib import Path
from random import Random
from typing import Any, Protocol

import numpy as np
from playwright.sync_api import Browser, Locator, Page
from sphinx_extension import bundle_sources

from mpbook.explorers.base import Explorer
from mpbook.explorers.modules import STATIC, linked

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Explorer</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>:root {{ color-scheme: light dark }} body {{ margin: 16px; font-family: sans-serif }}</style>
<style>{css}</style>
{bundles}<script src="{static}/mount.js"></script></head>
<body><main><h1>Explorer</h1>{twins}<div style="height: 2000px"></div></main></body></html>"""

IMPORT = """async (source) => {
  const url = URL.createObjectURL(new Blob([source], {type: "text/javascript"}));
  window.m = await import(url);
}"""


def import_module(browser: Browser, name: str) -> Page:
    """A page whose ``window.m`` is a module, imported from a blob: URL as the built page does."""
    page = browser.new_page()
    page.evaluate(IMPORT, linked(STATIC / f"{name}.mjs"))
    return page


class LoadModule(Protocol):
    """Gives the page that has a module of `static/` as ``window.m``; one for each test file."""

    def __call__(self, name: str) -> Page: ...


class OpenExplorer(Protocol):
    """Opens explorers from disk, in a page with nothing else; nothing may go wrong on it."""

    def __call__(self, *explorers: Explorer, width: int = 800, **options: Any) -> Page: ...


def twin(explorer: Explorer) -> str:
    """The explorer's element in the built page."""
    data, _ = explorer._repr_mimebundle_()
    return str(data["text/html"])


def write_page(folder: Path, explorers: tuple[Explorer, ...]) -> Path:
    for name, source in bundle_sources(STATIC).items():
        (folder / name).write_text(source, "utf-8")
    bundles = "".join(f'<script src="{name}"></script>' for name in bundle_sources(STATIC))
    css = (STATIC / "explorers.css").read_text("utf-8")
    twins = "".join(map(twin, explorers))
    file = folder / "page.html"
    file.write_text(
        PAGE.format(static=STATIC.as_uri(), css=css, bundles=bundles, twins=twins), "utf-8"
    )
    return file


def drag(page: Page, start: Locator, end: Locator | tuple[float, float], steps: int = 10) -> None:
    """Press on the middle of one element and let go on the middle of another, or so far away."""
    x, y = middle(start)
    target = (x + end[0], y + end[1]) if isinstance(end, tuple) else middle(end)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(*target, steps=steps)
    page.mouse.up()


def middle(element: Locator) -> tuple[float, float]:
    box = element.bounding_box()
    assert box
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def random_histogram(random: Random) -> dict[str, Any]:
    """A histogram that a tensor could have: a few values or many, anywhere in float32's range."""
    first = random.randint(-60, 20)
    binades = [
        [exponent, random.choice([1, 2, random.randint(1, 10**6)])]
        for exponent in range(first, first + random.randint(1, 40))
        if random.random() < 0.8
    ] or [[first, 1]]
    largest = random.choice([None, 2.0 ** binades[-1][0] * random.choice([1, 1.8125, 1.999999])])
    return {"zeros": random.randint(0, 99), "binades": binades, "largest": largest}


# --- Pictures, read back --------------------------------------------------------------------------

MINUS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻−", "0123456789--")
NUMBER = re.compile(r"−?\d[\d.]*(e−?\d+)?%?|−?(2|10)[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
LABELS = """(part) => [...part.querySelectorAll("text")].map((text) =>
  [Number(text.getAttribute("x")), Number(text.getAttribute("y")), text.textContent])"""


def as_number(text: str) -> float:
    """A number as a page writes it, a share in percent and a power such as 2⁻²⁴ too."""
    if power := re.fullmatch(r"(−?)(2|10)([⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+)", text):
        return (-1 if power[1] else 1) * float(power[2]) ** int(power[3].translate(MINUS))
    plain = text.translate(MINUS).replace("∞", "inf")
    return float(plain.removesuffix("%")) / (100 if plain.endswith("%") else 1)


def numbers_of(part: Locator) -> list[tuple[float, float, float]]:
    """The labels of a picture that are numbers: where each stands, and the number."""
    labels = [(x, y, text) for x, y, text in part.evaluate(LABELS) if NUMBER.fullmatch(text)]
    return [(x, y, as_number(text)) for x, y, text in labels]


def curve(path: Locator) -> list[tuple[float, float]]:
    """The points of a path of straight lines."""
    points = re.findall(r"[ML](\S+?) ([^ML]+)", path.get_attribute("d") or "")
    return [(float(x), float(y)) for x, y in points]


BARS = """(picture) => [...picture.querySelectorAll(".mp-bar")].flatMap((path) =>
  path.getAttribute("d").split("z").filter(Boolean).map((bar) =>
    [path.classList[1].slice("mp-bar-".length), ...bar.match(/-?[\\d.]+/g).map(Number)]))"""
ENDS = """(picture) => Object.fromEntries([...picture.querySelectorAll(".mp-end")].map((zone) =>
  [zone.classList[1].slice("mp-end-".length), [zone.x.baseVal.value, zone.width.baseVal.value]]))"""


def drawn_bars(picture: Locator) -> list[tuple[str, float, float, float, float]]:
    """The bars of a histogram, from the left: their fate, left edge, bottom, height and width."""
    found = [
        (fate, x, y, -height, width) for fate, x, y, height, width, _ in picture.evaluate(BARS)
    ]
    return sorted(found, key=lambda bar: bar[1])


def drawn_ends(picture: Locator) -> dict[str, tuple[float, float]]:
    """The stretches of a format by name, each from its left edge to its right one."""
    return {name: (x, x + width) for name, (x, width) in picture.evaluate(ENDS).items()}


class Axis:
    """Labels that stand evenly, whose numbers `values` are, or logarithms of them, at `pixels`."""

    def __init__(self, values: list[float], pixels: list[float]) -> None:
        self._slope, self._zero = np.polyfit(values, pixels, 1)
        assert np.abs(self.pixel(np.array(values)) - pixels).max() < 1, "they do not stand evenly"

    def pixel(self, value: Any) -> Any:
        """Where a number stands."""
        return self._slope * value + self._zero

    def value(self, pixel: float) -> float:
        """The number that stands there."""
        return float((pixel - self._zero) / self._slope)
