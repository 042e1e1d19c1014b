// The reduction explorer: one module for Jupyter (anywidget's `_esm`) and for the built page (mount.js).
// Its arithmetic is in reductions.mjs.

import { change, chooser, clamp, h, labelled, niceSteps, present, say, significant, superscript, typeset } from "./kit.mjs";
import { bound, divisors, onTheWire, partsOf, result, way } from "./reductions.mjs";

// --- Numbers as text ------------------------------------------------------------------------------------

const short = (x, digits = 5) => significant(x, digits);
function share(ratio) {
  if (!Number.isFinite(ratio)) return "—";
  if (ratio === 0) return "0";
  return ratio < 1e-4 || ratio >= 100 ? typeset(ratio.toExponential(1)) : `${Number((100 * ratio).toPrecision(2))}%`;
}
function withUnit(x, units) {
  const [size, unit] = units.find(([size]) => x >= size) ?? units.at(-1);
  return `${Number((x / size).toPrecision(3))} ${unit}`;
}
const bytesText = (x) => withUnit(x, [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]]);
const timeText = (s) => withUnit(s, [[1, "s"], [1e-3, "ms"], [1e-6, "µs"], [1e-9, "ns"]]);
const named = (pairs, value) => pairs.find(([key]) => key === value)[1];

// --- What is chosen, and what follows ---------------------------------------------------------------------

const DTYPE_NAMES = ["float32", "bfloat16", "float16"].map((name) => [name, name]);
const ALGORITHMS = [["ring", "ring"], ["tree", "tree"], ["halving", "recursive halving"]];
const AVERAGES = [["after", "after the sum"], ["before", "before it is sent (DDP)"], ["split", "half before, half after (FSDP2, fp16)"], ["no", "not at all"]];
const VALUES = [["equal", "all equal"], ["noisy", "alike, with noise"], ["signs", "random signs"], ["one_large", "one rank 1024 times larger"]];
const TRAITS = ["ranks", "dtype", "algorithm", "average", "values", "exponent", "parameters", "gigabytes_per_second"];
const LOWEST = -30, HIGHEST = 16, MOST_DOUBLINGS = 12;

// After how many parts the sum no longer changes though parts keep coming; null if it does.
export function stalledAfter(steps) {
  let last = steps.length - 1;
  while (last > 0 && steps[last - 1].total === steps[last].total) last -= 1;
  const still = steps.length - 1 - last;
  return Number.isFinite(steps[last].total) && still >= Math.max(4, steps.length / 16) ? steps[last].count : null;
}

export function readState(model) {
  const s = Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));
  const steps = way(partsOf(s.values, s.ranks, s.exponent), s), last = steps.at(-1);
  const [before, after] = divisors(s.ranks, s.average);
  const reduced = result(steps, s), exact = last.exact / after;
  const most = bound(s.ranks, last.size, s, before, after);
  const overflowed = steps.find((step) => !Number.isFinite(step.total))?.count ?? null;
  const stalled = s.algorithm === "ring" ? stalledAfter(steps) : null;
  const shown = thinned(steps).map((step) => ({
    ...step,
    error: Math.abs(step.total - step.exact) / (step.size || 1),
    most: bound(step.count, step.size, s, before, 1) / (step.size || 1),
  }));
  const wire = onTheWire(s.ranks, s.parameters, s.dtype, s.algorithm);
  return { ...s, before, after, shown, reduced, exact, most, overflowed, stalled, wire };
}

const POINTS = 400;
function thinned(steps) {
  if (steps.length <= POINTS) return steps;
  return Array.from({ length: POINTS }, (_, i) => steps[Math.round((i * (steps.length - 1)) / (POINTS - 1))]);
}

function verdict(s) {
  if (s.overflowed) return `overflows after ${s.overflowed} of ${s.ranks} ranks`;
  if (s.reduced === s.exact) return "exact";
  if (s.reduced === 0) return "rounded to zero";
  const off = `${share(Math.abs(s.reduced - s.exact) / Math.abs(s.exact))} off`;
  return s.stalled ? `stalls after ${s.stalled} of ${s.ranks} ranks, ${off}` : off;
}

// --- Parts. Each is {el, draw(s)}, where s is what readState gives -----------------------------------------

const PRESETS = [
  ["bf16 ring stalls", { ranks: 1024, dtype: "bfloat16", algorithm: "ring", average: "after", values: "equal", exponent: 0 }],
  ["the same, tree", { ranks: 1024, dtype: "bfloat16", algorithm: "tree", average: "after", values: "equal", exponent: 0 }],
  ["fp16 overflows", { ranks: 2048, dtype: "float16", algorithm: "ring", average: "after", values: "equal", exponent: 6 }],
  ["divided before", { ranks: 2048, dtype: "float16", algorithm: "ring", average: "before", values: "equal", exponent: 6 }],
  ["fp16 underflows", { ranks: 4096, dtype: "float16", algorithm: "tree", average: "before", values: "noisy", exponent: -14 }],
  ["one large rank", { ranks: 1024, dtype: "bfloat16", algorithm: "ring", average: "after", values: "one_large", exponent: 0 }],
];

function controls(act) {
  const slider = (min, max, onchange) => {
    const element = h("input", { type: "range", min, max, step: 1, class: "mp-slider" });
    element.addEventListener("input", () => onchange(Number(element.value)));
    return element;
  };
  const ranks = slider(1, MOST_DOUBLINGS, (doublings) => act({ ranks: 2 ** doublings }));
  const size = slider(LOWEST, HIGHEST, (exponent) => act({ exponent }));
  const [ranksText, sizeText] = [h("span", {}), h("span", {})];
  const choosers = {
    dtype: chooser("Sent and added in", DTYPE_NAMES, (dtype) => act({ dtype })),
    algorithm: chooser("Algorithm", ALGORITHMS, (algorithm) => act({ algorithm })),
    values: chooser("Gradients", VALUES, (values) => act({ values })),
    average: chooser("Divided by the ranks", AVERAGES, (average) => act({ average })),
  };
  const presets = PRESETS.map(([text, changes]) => h("button", { type: "button", onclick: () => act(changes) }, text));
  return {
    el: h("div", { class: "mp-controls" },
      h("div", { class: "mp-row" }, ...Object.values(choosers).map((part) => part.el)),
      h("div", { class: "mp-sizes" },
        h("label", { class: "mp-control mp-size" }, ranksText, ranks), h("label", { class: "mp-control mp-size" }, sizeText, size)),
      h("div", { class: "mp-row mp-presets", role: "group", "aria-label": "Try a reduction" }, h("span", {}, "Try"), ...presets)),
    draw(s) {
      for (const [name, part] of Object.entries(choosers)) part.select.value = s[name];
      ranks.value = Math.log2(s.ranks);
      ranks.setAttribute("aria-valuetext", `${s.ranks} ranks`);
      ranksText.textContent = `Ranks: ${s.ranks}`;
      size.value = s.exponent;
      size.setAttribute("aria-valuetext", short(2 ** s.exponent, 3));
      sizeText.textContent = `Size of a gradient: 2${superscript(s.exponent)} = ${short(2 ** s.exponent, 3)}`;
    },
  };
}

function facts() {
  const live = h("output", { class: "mp-live", "aria-live": "polite" });
  const value = h("strong", { class: "mp-value" });
  const kind = h("span", { class: "mp-kind" });
  const names = ["exact", "relative error", "at most, by the formula"];
  const cells = Object.fromEntries(names.map((name) => [name, h("dd")]));
  return {
    el: h("div", { class: "mp-facts" },
      h("div", { class: "mp-result" }, "Each rank gets ", value, " ", kind),
      h("dl", {}, ...names.map((name) => h("div", {}, h("dt", {}, name), cells[name]))), live),
    draw(s) {
      const said = verdict(s), size = Math.abs(s.exact);
      value.textContent = short(s.reduced);
      kind.textContent = said;
      cells.exact.textContent = short(s.exact);
      cells["relative error"].textContent = share(Math.abs(s.reduced - s.exact) / size);
      cells["at most, by the formula"].textContent = s.overflowed ? "— (it overflows)" : share(s.most / size);
      say(live, `${s.ranks} ranks, ${s.dtype}, ${named(ALGORITHMS, s.algorithm)}, divided ${named(AVERAGES, s.average)}: ` +
        `${short(s.reduced)} instead of ${short(s.exact)}, ${said}`);
    },
  };
}

function bytes(act) {
  const field = (name, trait, scale, most) => {
    const input = h("input", { type: "number", min: 0, step: "any", class: "mp-count" });
    input.addEventListener("change", () => {
      const typed = Number(input.value) * scale;
      if (typed > 0 && typed <= most) act({ [trait]: trait === "parameters" ? Math.max(1, Math.round(typed)) : typed });
      else act({});
    });
    return { el: labelled(name, input), draw: (s) => { if (document.activeElement !== input) input.value = s[trait] / scale; } };
  };
  const fields = [field("Parameters, millions", "parameters", 1e6, 1e13), field("GB/s of a rank", "gigabytes_per_second", 1, 1e9)];
  const body = h("tbody");
  const table = h("table", { class: "mp-table" }, h("caption", {}, "On the wire, for one all-reduce"),
    h("thead", {}, h("tr", {}, ...["", "a rank sends", "messages in a row", "takes at least"].map((text) => h("th", { scope: "col" }, text)))), body);
  const row = (s, algorithm, text) => {
    const wire = onTheWire(s.ranks, s.parameters, s.dtype, algorithm);
    const cells = [bytesText(wire.bytes), wire.messages, timeText(wire.inARow / (1e9 * s.gigabytes_per_second))];
    return h("tr", { class: algorithm === s.algorithm ? "mp-chosen" : null },
      h("th", { scope: "row" }, text), ...cells.map((cell) => h("td", {}, String(cell))));
  };
  return {
    el: h("div", {}, table, h("div", { class: "mp-row mp-wire" }, ...fields.map((part) => part.el)),
      h("p", { class: "mp-hint" }, "The tree sends the whole tensor from level to level, and its row is the rank that sends most; NCCL pipelines its trees. Latency is left out.")),
    draw(s) {
      fields.forEach((part) => part.draw(s));
      body.replaceChildren(...ALGORITHMS.map(([algorithm, text]) => row(s, algorithm, text)));
    },
  };
}

// --- The chart: the sum on its way against the exact one, and under it the error against its bound -----------

const LEFT = 54, RIGHT = 12, SUM_TOP = 22, SUM_BOTTOM = 180, ERROR_TOP = 226, ERROR_BOTTOM = 312, HEIGHT = 350;
const WORST = 0, BEST = -8; // log10 of the errors at the ends of the lower axis

function chart() {
  const svg = h("svg", { role: "img", height: HEIGHT });
  const item = (kind, text) => h("span", { class: "mp-key-item" }, h("span", { class: kind }), text);
  const key = h("p", { class: "mp-hint mp-key" }, item("mp-key-exact", "exact; below: the error at most"),
    item("mp-key-of-format", "computed"), item("mp-key-stuck", "lost from there on"));
  const el = h("div", { class: "mp-chart" }, svg, key);
  let pixels = 640;
  let state = null;
  function paint() {
    const s = state, right = pixels - RIGHT;
    el.dataset.format = s.dtype;
    svg.setAttribute("viewBox", `0 0 ${pixels} ${HEIGHT}`);
    svg.setAttribute("aria-label", `The sum on its way over ${s.ranks} ranks: ${verdict(s)}`);
    const ends = [0, ...s.shown.flatMap((step) => [step.total, step.exact])].filter(Number.isFinite);
    const low = Math.min(...ends), high = Math.max(...ends);
    const scales = {
      x: (n) => LEFT + ((n - 1) / (s.ranks - 1)) * (right - LEFT),
      y: (v) => SUM_BOTTOM - ((v - low) / (high - low || 1)) * (SUM_BOTTOM - SUM_TOP),
      e: (r) => ERROR_BOTTOM - ((clamp(Math.log10(r), BEST, WORST) - BEST) / (WORST - BEST)) * (ERROR_BOTTOM - ERROR_TOP),
    };
    svg.replaceChildren(...axes(s, scales, low, high, right), ...curves(s, scales), ...mark(s, scales, right));
  }
  return {
    el,
    draw(s) { state = s; paint(); },
    resize(width) {
      pixels = Math.max(Math.round(width), 240);
      if (state) paint();
    },
  };
}

function curves(s, { x, y, e }) {
  const line = (kind, key, scale) => h("path", { class: kind, d: path(s.shown, key, x, scale) });
  const dots = s.shown.length > 16 ? [] : s.shown.filter((step) => Number.isFinite(step.total)).map((step) =>
    h("circle", { class: "mp-here", cx: x(step.count), cy: y(step.total), r: 4 }));
  return [line("mp-sum-exact", "exact", y), line("mp-sum-computed mp-of-format", "total", y),
    line("mp-sum-exact", "most", e), line("mp-sum-computed mp-of-format", "error", e), ...dots];
}

function path(steps, key, x, scale) {
  let d = "";
  for (const step of steps) {
    if (!Number.isFinite(step[key])) break; // and none after it is
    d += `${d ? "L" : "M"}${x(step.count).toFixed(1)} ${scale(step[key]).toFixed(1)}`;
  }
  return d;
}

function axes(s, { x, y, e }, low, high, right) {
  const line = (height) => h("line", { class: "mp-grid", x1: LEFT, x2: right, y1: height, y2: height });
  const text = (px, py, words, anchor) => h("text", { class: "mp-axis-label", x: px, y: py, "text-anchor": anchor }, words);
  const way = s.before === 1 ? "the sum on its way" : `the sum on its way, of parts divided by ${s.before}`;
  const parts = [text(4, 11, way, "start"), text(4, ERROR_TOP - 10, "its error, as a share of the sizes added", "start")];
  for (const value of niceSteps(low, high)) parts.push(line(y(value)), text(LEFT - 6, y(value) + 4, short(value, 3), "end"));
  for (const power of [0, -4, -8]) parts.push(line(e(10 ** power)), text(LEFT - 6, e(10 ** power) + 4, power ? `10${superscript(power)}` : "1", "end"));
  for (const [n, anchor] of [[1, "start"], [s.ranks / 2, "middle"], [s.ranks, "end"]])
    if (s.ranks > 2 || anchor !== "middle") parts.push(text(x(n), ERROR_BOTTOM + 17, String(n), anchor));
  parts.push(text((LEFT + right) / 2, HEIGHT - 4, "ranks whose gradients are in the sum", "middle"));
  return parts;
}

function mark(s, { x, y }, right) {
  const at = s.overflowed ?? s.stalled;
  if (!at) return [];
  const words = s.overflowed ? `∞ after ${at} ranks` : `stalls after ${at} rank${at === 1 ? "" : "s"}`;
  const step = s.shown.findLast((one) => one.count <= at && Number.isFinite(one.total));
  const room = words.length * 6.6;
  return [h("line", { class: "mp-stuck", x1: x(at), x2: x(at), y1: SUM_TOP, y2: SUM_BOTTOM }),
    h("text", { class: "mp-marker-label", x: clamp(x(at) + 6, LEFT, right - room), y: Math.min(y(step?.total ?? 0) + 18, SUM_BOTTOM - 6) }, words)];
}

// --- All together ---------------------------------------------------------------------------------------------

function render({ model, el }) {
  const act = (changes) => change(model, changes);
  const parts = [controls(act), facts(), chart(), bytes(act)];
  return present({ model, el }, { name: "Reduction explorer", traits: TRAITS, parts, state: () => readState(model) }).remove;
}

export default { render };
