"""What holds for every explorer with controls: all of it follows the reader, and the kernel too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from explorer_pages import LoadModule, OpenExplorer

from mpbook.explorers import (
    BlockExplorer,
    FloatExplorer,
    LossScaleExplorer,
    MemoryExplorer,
    PublishedExplorer,
    RangeResolutionExplorer,
    ReductionExplorer,
    RooflineExplorer,
    SumExplorer,
)
from mpbook.explorers.base import Explorer
from mpbook.explorers.loss_scale_explorer import OFFERED
from mpbook.explorers.range_resolution_explorer import PRESETS
from mpbook.explorers.reduction_explorer import NAMES
from mpbook.low_precision.hadamard import random_signs
from mpbook.plots import COLOURS

HISTOGRAMS: dict[str, Any] = {
    "gradients": {"zeros": 9, "binades": [[-30, 50], [-20, 700], [-12, 249]]},
    "weights": {"zeros": 0, "binades": [[-8, 500], [-3, 1499]], "largest": 0.2},
}
LOPSIDED = random_signs(128, torch.Generator().manual_seed(0)) * torch.arange(1.0, 129) ** 3
TENSORS = {"a tensor": torch.stack([LOPSIDED, LOPSIDED / 7]), "alike": torch.ones(1, 128)}

MADE: dict[str, Callable[[], Explorer]] = {
    "block": lambda: BlockExplorer(TENSORS),
    "float": lambda: FloatExplorer(0.3),
    "loss_scale": lambda: LossScaleExplorer(HISTOGRAMS),
    "memory": lambda: MemoryExplorer("GPT-2 1.5B", ranks=2),
    "published": lambda: PublishedExplorer("batch"),
    "range_resolution": lambda: RangeResolutionExplorer(HISTOGRAMS),
    "reduction": lambda: ReductionExplorer(64),
    "roofline": lambda: RooflineExplorer(),
    "sum": lambda: SumExplorer(200),
}

# Tries each control of an explorer whose other end is made up. After each change another copy of it
# is opened with the state that was reached: `differ` names the controls after which the two do not
# look the same, `unsent` those whose change would not have reached a kernel, and `lost` those that
# no longer show what was chosen. Neither copy is in the page, where it would wait for frames.
TRY_ALL = """async (state) => {
  globalThis.requestAnimationFrame = queueMicrotask;
  const drawn = async () => { for (let i = 0; i < 3; i++) await null; };
  function modelOf(state) {
    const listeners = {}, unsent = new Set();
    return {
      state, unsent, get: (name) => state[name],
      set(name, value) {
        if (JSON.stringify(state[name]) === JSON.stringify(value)) return;
        state[name] = value;
        unsent.add(name);
        for (const listener of listeners[`change:${name}`] ?? []) listener();
      },
      save_changes() { unsent.clear(); },
      on(event, listener) { (listeners[event] ??= new Set()).add(listener); },
      off(event, listener) { listeners[event].delete(listener); },
    };
  }
  function open(model) {
    const el = document.createElement("div");
    return [el, m.default.render({ model, el })];
  }
  const controlsOf = (el) => [...el.querySelectorAll("select, input, button")];
  function look(el) {
    const copy = el.cloneNode(true);
    copy.querySelectorAll(".mp-line").forEach((line) => line.remove()); // its view is the reader's
    const shown = (control) => [control.value, control.checked, control.disabled];
    const html = copy.innerHTML.replaceAll(' class=""', ""); // a class that came and went
    return JSON.stringify([html, controlsOf(el).map(shown)]);
  }
  const fire = (control, kind) => control.dispatchEvent(new Event(kind, { bubbles: true }));
  function* changesOf(control) {
    const to = (value, kind) => () => { control.value = value; fire(control, kind); };
    const { tagName: tag, type } = control;
    if (tag === "BUTTON") yield () => control.click();
    else if (type === "checkbox") yield () => { control.checked = !control.checked; fire(control, "change"); };
    else if (tag === "SELECT") {
      const values = [...control.options].map((option) => option.value);
      for (const value of [values.at(-1), values[values.length >> 1]]) yield to(value, "change");
    } else if (type === "range") {
      const { min, max } = control;
      for (const value of [max, min, (Number(min) + Number(max)) >> 1]) yield to(value, "input");
    } else if (type === "number") yield to("3", "change");
  }
  const model = modelOf(state), [el, close] = open(model), [differ, unsent, lost] = [1, 2, 3].map(() => new Set());
  let changed = 0;
  for (let place = 0; place < controlsOf(el).length; place++) {
    const control = controlsOf(el)[place];
    if (control.closest(".mp-line")) continue;
    for (const change of changesOf(control)) {
      const before = JSON.stringify(model.state);
      if (el.contains(control) && !control.disabled) change();
      const chosen = control.value;
      await drawn();
      const name = control.closest("label")?.textContent ?? control.textContent;
      changed += JSON.stringify(model.state) !== before;
      if (model.unsent.size) unsent.add(name);
      if (el.contains(control) && control.value !== chosen) lost.add(name);
      const [other, closeOther] = open(modelOf(structuredClone(model.state)));
      await drawn();
      if (look(el) !== look(other)) differ.add(name);
      closeOther();
    }
  }
  close();
  return { changed, differ: [...differ], unsent: [...unsent], lost: [...lost] };
}"""  # noqa: E501


@pytest.mark.browser
@pytest.mark.parametrize("name", MADE)
def test_every_control_changes_all_that_follows_it_and_tells_the_kernel(
    load_module: LoadModule, name: str
) -> None:
    explorer = MADE[name]()
    state = explorer.get_state(explorer._twin_traits)
    found = load_module(f"{name}_explorer").evaluate(TRY_ALL, state)
    assert found["changed"] > 5
    assert (found["differ"], found["unsent"], found["lost"]) == ([], [], [])


@pytest.mark.browser
@pytest.mark.parametrize("name", MADE)
def test_pictures_are_as_wide_as_their_place(open_explorer: OpenExplorer, name: str) -> None:
    page = open_explorer(MADE[name](), width=700)
    places = """() => [...document.querySelectorAll(".mp-explorer svg[viewBox]")].map((svg) =>
      [svg.viewBox.baseVal.width, svg.getBoundingClientRect().width])"""
    for width in (700, 420):
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_function("""() => new Promise((done) => requestAnimationFrame(() =>
          requestAnimationFrame(() => done(true))))""")
        for drawn, place in page.evaluate(places):
            assert abs(drawn - place) <= 1


COLOURED: dict[str, tuple[tuple[str, ...], Callable[[str], Explorer]]] = {
    "block": (
        ("float8_e4m3fn", "float4_e2m1fn"),
        lambda name: BlockExplorer(TENSORS, element=name),
    ),
    "loss_scale": (OFFERED, lambda name: LossScaleExplorer(HISTOGRAMS, format=name)),
    "range_resolution": (
        tuple(format.name for format in PRESETS if format.name in COLOURS),
        lambda name: RangeResolutionExplorer(HISTOGRAMS, name),
    ),
    "reduction": (NAMES, lambda name: ReductionExplorer(64, name)),
    "roofline": (
        ("float32", "bfloat16", "float16", "float8_e4m3fn"),
        lambda name: RooflineExplorer("H100 SXM", name),
    ),
}


@pytest.mark.browser
@pytest.mark.parametrize("name", COLOURED)
def test_a_picture_has_the_colour_of_its_format(open_explorer: OpenExplorer, name: str) -> None:
    formats, make = COLOURED[name]
    page = open_explorer(*map(make, formats))
    charts = page.locator(".mp-chart")
    assert charts.evaluate_all("(all) => all.map((chart) => chart.dataset.format)") == [*formats]
