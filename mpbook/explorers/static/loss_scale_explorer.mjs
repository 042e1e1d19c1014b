// The loss-scale explorer: one module for Jupyter (anywidget's `_esm`) and for the built page (mount.js).
// A histogram of gradients moves under a slider of the loss scale; the scales that fit are lit on it.
// The sentences are those of mpbook/explorers/loss_scale_explorer.py, which the tests prove equal.

import { button, change, chooser, clamp, h, powers, present, say, superscript } from "./kit.mjs";
import { SHIFTS, bars, binadeAxis, ends, fates, fittingScales, overflowShare, percent, powerLabels, zones } from "./census.mjs";

const [LOWEST, HIGHEST] = SHIFTS;

// --- In words -------------------------------------------------------------------------------------------

function whatHappens({ seen, census, f, exponent }) {
  const parts = seen.underflow
    ? [`${percent(seen.underflow / seen.nonzero)} of the non-zero ${census.name} round to zero`]
    : [`none of the non-zero ${census.name} rounds to zero`];
  if (seen.subnormal) parts.push(`${percent(seen.subnormal / seen.nonzero)} are subnormal`);
  const over = overflowShare(seen);
  parts.push(over ? `${over} overflow` : "none overflows");
  return `At 2^${exponent} in ${f.name}, ${parts.join(", ")}.`;
}

function whatGradScalerDoes({ seen, nextUp, f, exponent, interval }) {
  const back = `back off to 2^${exponent - 1}`;
  if (seen.overflow && f.specials !== "inf_nan") {
    return `GradScaler would ${back} where the cast makes NaN of an overflow; a cast that saturates hides it.`;
  }
  if (seen.overflow) return `GradScaler would skip this step and ${back}.`;
  if (seen.doubtful) return `GradScaler may have to skip this step and ${back}.`;
  const stay = `GradScaler would stay here, and try 2^${exponent + 1} after ${interval} such steps`;
  if (nextUp.overflow) return `${stay}, which overflows.`;
  return nextUp.doubtful ? `${stay}, which may overflow.` : `${stay}.`;
}

function whichFit({ fitting, lost }) {
  const terms = `at most ${percent(lost)} to zero`;
  if (!fitting) return `No scale from 2^${LOWEST} to 2^${HIGHEST} loses ${terms} and overflows nothing.`;
  const low = `2^${fitting[0]}${fitting[0] === LOWEST ? " or less" : ""}`;
  const high = `2^${fitting[1]}${fitting[1] === HIGHEST ? " or more" : ""}`;
  return `Scales from ${low} to ${high} lose ${terms} and overflow nothing.`;
}

export function sentences(s) {
  return [whatHappens(s), whatGradScalerDoes(s), whichFit(s)];
}

// What the traits, by name, come to; `get` gives one.
export function readState(get) {
  const [histograms, exponent, tensor, f, lost, interval] = TRAITS.map(get);
  const census = histograms.find((c) => c.name === tensor);
  const fitting = fittingScales(census, f, lost);
  const [seen, nextUp] = [0, 1].map((more) => fates(census, f, exponent + more));
  return { histograms, exponent, census, f, lost, interval, fitting, seen, nextUp };
}

// --- Parts. Each is {el, draw(s)}, where s is what readState gives ---------------------------------------

const START = 0; // where reset goes: a scale of 1, so no scaling

function controls(act, formats, names) {
  let own = null;
  let best = null;
  const format = chooser("Format", [], (name) => act({ format: formats.find((f) => f.name === name) ?? own }));
  const tensor = chooser("Tensor", names.map((name) => [name, name]), (name) => act({ tensor: name }));
  const slider = h("input", { type: "range", min: LOWEST, max: HIGHEST, step: 1, class: "mp-slider mp-scale" });
  const safe = button("largest scale that fits", () => act({ exponent: best }), { "aria-keyshortcuts": "m" });
  const reset = button("no scaling", () => act({ exponent: START }), { "aria-keyshortcuts": "0" });
  const lit = h("div", { class: "mp-lit" });
  const name = h("span", {});
  slider.addEventListener("input", () => act({ exponent: Number(slider.value) }));
  slider.addEventListener("keydown", (event) => {
    const pressed = { m: safe, 0: reset }[event.key];
    if (!pressed || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    pressed.click();
  });
  const track = h("div", { class: "mp-track" }, lit, slider);
  return {
    el: h("div", { class: "mp-controls" },
      h("div", { class: "mp-row" }, tensor.el, format.el),
      h("div", { class: "mp-row mp-length" }, h("label", { class: "mp-control" }, name, track)),
      h("div", { class: "mp-row mp-presets" }, safe, reset,
        h("span", {}, "On the slider: arrow keys, m for the largest that fits, 0 for none."))),
    draw(s) {
      own = s.f;
      best = s.fitting?.[1] ?? null;
      const known = formats.some((f) => f.name === s.f.name) ? formats : [...formats, s.f];
      format.offer(known.map((f) => [f.name, f.name]), s.f.name);
      tensor.select.value = s.census.name;
      slider.value = s.exponent;
      const fits = s.fitting && s.exponent >= s.fitting[0] && s.exponent <= s.fitting[1];
      slider.setAttribute("aria-valuetext", `2${superscript(s.exponent)}, ${fits ? "fits" : "does not fit"}`);
      name.textContent = `Loss scale 2${superscript(s.exponent)} = ${2 ** s.exponent}`;
      safe.disabled = !s.fitting;
      lit.hidden = !s.fitting;
      if (s.fitting) {
        lit.style.setProperty("--from", (s.fitting[0] - LOWEST) / (HIGHEST - LOWEST));
        lit.style.setProperty("--to", (s.fitting[1] - LOWEST) / (HIGHEST - LOWEST));
      }
    },
  };
}

function words() {
  const said = [h("p", { class: "mp-said" }), h("p"), h("p")];
  return {
    el: h("div", { class: "mp-words", "aria-live": "polite" }, ...said),
    draw(s) { sentences(s).forEach((text, i) => say(said[i], powers(text))); },
  };
}

// --- The chart: the histogram over the ends of the format, which a drag moves ----------------------------

const TOP = 22, BOTTOM = 190, HEIGHT = 236;

function chart(act) {
  const svg = h("svg", { role: "img", height: HEIGHT });
  const hint = h("p", { class: "mp-hint" }, "Bars: how many of the non-zero values lie in each binade, once multiplied by the loss scale. Hollow: lost. Drag them, or the slider.");
  const el = h("div", { class: "mp-chart mp-shifted" }, svg, hint);
  let pixels = 640;
  let state = null;

  // Room for every scale of every tensor, and for the format; the same whatever is dragged.
  function view({ histograms, f }) {
    const { survives, last } = ends(f);
    const lowest = Math.min(...histograms.map((c) => c.binades[0][0])) + LOWEST;
    const highest = Math.max(...histograms.map((c) => c.binades.at(-1)[0])) + HIGHEST;
    return [Math.min(lowest, survives - 6), Math.max(highest, last + 6) + 1];
  }
  function paint() {
    const s = state;
    const axis = binadeAxis(view(s), pixels);
    el.dataset.format = s.f.name;
    svg.setAttribute("viewBox", `0 0 ${pixels} ${HEIGHT}`);
    svg.setAttribute("aria-label", `Histogram of ${s.census.name} times 2${superscript(s.exponent)} over the range of ${s.f.name}`);
    svg.replaceChildren(...zones(axis, s.f, TOP, BOTTOM), ...bars(axis, s.census, s.f, s.exponent, TOP, BOTTOM),
      ...powerLabels(axis, BOTTOM), h("text", { class: "mp-axis-label", x: pixels / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "|gradient × loss scale|"));
  }

  let grabbed = null; // where, and at which exponent, a drag began
  svg.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    grabbed = { x: event.clientX, exponent: state.exponent };
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", (event) => {
    if (!grabbed) return;
    const moved = Math.round((event.clientX - grabbed.x) / binadeAxis(view(state), pixels).step);
    const exponent = clamp(grabbed.exponent + moved, LOWEST, HIGHEST);
    if (exponent !== state.exponent) act({ exponent });
  });
  for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, () => { grabbed = null; });

  return {
    el,
    draw(s) { state = s; paint(); },
    resize(width) {
      pixels = Math.max(Math.round(width), 240);
      if (state) paint();
    },
  };
}

// --- All together -----------------------------------------------------------------------------------------

const TRAITS = ["histograms", "exponent", "tensor", "format", "lost", "growth_interval"];

function render({ model, el }) {
  const act = (changes) => change(model, changes);
  const get = (name) => model.get(name);
  const parts = [controls(act, get("formats"), get("histograms").map((c) => c.name)), words(), chart(act)];
  return present({ model, el }, { name: "Loss-scale explorer", traits: TRAITS, parts, state: () => readState(get), later: queueMicrotask }).remove;
}

export default { render };
