// The sum explorer: one module for Jupyter (anywidget's `_esm`) and for the built page (mount.js).
// A format is data, described by Python in the field names of mpbook.formats.FloatFormat. The sums
// are those of mpbook/sums.py, which the tests prove equal.

import { change, chooser, clamp, h, labelled, niceSteps, present, say, significant, superscript, typeset } from "./kit.mjs";
import { gap, roundTo } from "./rounding.mjs";

const LONGEST = 8192;
const SEED = 1; // of the terms; the bits of stochastic rounding come from the next one

// --- The terms ------------------------------------------------------------------------------------

export function mulberry32(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

// `pixels` are the grey levels, base64. Terms are rounded to nearest, once.
export function sourceTerms(source, count, f, pixels) {
  const random = mulberry32(SEED);
  const grey = source === "photograph" ? atob(pixels) : "";
  const make = {
    ones: () => 1,
    photograph: (i) => grey.charCodeAt(i) / 255,
    uniform: () => random(),
    "zero-mean": () => 2 * random() - 1,
  }[source];
  return Array.from({ length: count }, (_, i) => roundTo(make(i), f, "nearest-even"));
}

// --- The sums -------------------------------------------------------------------------------------

function running(terms, add) {
  let total = 0;
  return terms.map((term) => (total = add(total + term)));
}

function kahan(terms, add) {
  let total = 0;
  let lost = 0; // what the total owes
  return terms.map((term) => {
    const wanted = add(term + lost);
    const next = add(total + wanted);
    lost = add(wanted - add(next - total));
    return (total = next);
  });
}

function pairwise(terms, add) {
  let totals = terms;
  while (totals.length > 1) {
    const next = [];
    for (let i = 0; i < totals.length; i += 2) next.push(add(totals[i] + (totals[i + 1] ?? 0)));
    totals = next;
  }
  return totals[0] ?? 0;
}

// The totals of the first `lengths[0]`, `lengths[1]`, ... terms, as the method computes them.
export function totalsAt(terms, lengths, f, rounding, method) {
  const random = mulberry32(SEED + 1);
  const add = (x) => roundTo(x, f, rounding, rounding === "stochastic" ? random() : 0);
  if (method === "pairwise") return lengths.map((n) => pairwise(terms.slice(0, n), add));
  if (method === "float32") {
    const totals = running(terms, Math.fround);
    return lengths.map((n) => add(totals[n - 1]));
  }
  const totals = method === "kahan" ? kahan(terms, add) : running(terms, add);
  return lengths.map((n) => totals[n - 1]);
}

// The exact totals: doubles, with the error of every addition kept beside them.
export function exactTotals(terms) {
  let total = 0;
  let rest = 0;
  return terms.map((term) => {
    const next = total + term;
    const arrived = next - total;
    rest += total - (next - arrived) + (term - arrived);
    total = next;
    return total + rest;
  });
}

// After how many terms the total no longer changes, though terms keep coming; null if it does.
export function stuckAfter(totals, terms) {
  let last = totals.length - 1;
  while (last > 0 && totals[last - 1] === totals[last]) last -= 1;
  const lost = terms.slice(last + 1).filter((term) => term !== 0).length;
  return lost >= Math.max(16, terms.length / 16) ? last + 1 : null;
}

// --- Numbers as text ------------------------------------------------------------------------------

const short = (x, digits = 6) => significant(x, digits);
function percent(ratio) {
  if (!Number.isFinite(ratio)) return "—";
  if (ratio === 0) return "0";
  return ratio < 1e-4 ? typeset(ratio.toExponential(1)) : `${Number((100 * ratio).toPrecision(2))}%`;
}

// --- Parts. Each is {el, draw(s)}, where s is what readState gives ---------------------------------

const ROUNDINGS = [["nearest-even", "to nearest, even"], ["toward-zero", "toward zero"], ["stochastic", "stochastic, seeded"]];
const METHODS = [["running", "one by one"], ["pairwise", "pairwise"], ["kahan", "Kahan"], ["float32", "float32 accumulator"]];
const SOURCES = [["ones", "ones"], ["photograph", "photograph"], ["uniform", "random, 0 to 1"], ["zero-mean", "random, −1 to 1"]];
const PRESETS = [
  ["ones in bf16", { n: 1000, format: "bfloat16", rounding: "nearest-even", method: "running", source: "ones" }],
  ["the same, Kahan", { n: 1000, format: "bfloat16", rounding: "nearest-even", method: "kahan", source: "ones" }],
  ["the same, stochastic", { n: 1000, format: "bfloat16", rounding: "stochastic", method: "running", source: "ones" }],
  ["photograph in fp16", { n: 8192, format: "float16", rounding: "nearest-even", method: "running", source: "photograph" }],
  ["toward zero", { n: 1024, format: "float16", rounding: "toward-zero", method: "running", source: "uniform" }],
];
const OCTAVE = 8; // steps of the slider in which n doubles

function controls(act, formats) {
  const slider = h("input", { type: "range", min: 0, max: OCTAVE * Math.log2(LONGEST), step: 1, class: "mp-slider" });
  const number = h("input", { type: "number", min: 1, max: LONGEST, step: 1, class: "mp-count" });
  slider.addEventListener("input", () => act({ n: Math.round(2 ** (slider.value / OCTAVE)) }));
  number.addEventListener("change", () => act({ n: clamp(Math.round(Number(number.value)) || 1, 1, LONGEST) }));
  let own = null;
  const describe = (name) => formats.find((f) => f.name === name) ?? own;
  const format = chooser("Format", formats.map((f) => [f.name, f.name]), (name) => act({ format: describe(name) }));
  const rounding = chooser("Rounding", ROUNDINGS, (value) => act({ rounding: value }));
  const method = chooser("Added", METHODS, (value) => act({ method: value }));
  const source = chooser("Terms", SOURCES, (value) => act({ source: value }));
  const presets = PRESETS.map(([text, change]) =>
    h("button", { type: "button", onclick: () => act({ ...change, format: describe(change.format) }) }, text));
  return {
    el: h("div", { class: "mp-controls" },
      h("div", { class: "mp-row" }, source.el, format.el, method.el, rounding.el),
      h("div", { class: "mp-row mp-length" }, labelled("How many", slider), labelled("n", number)),
      h("div", { class: "mp-row mp-presets", role: "group", "aria-label": "Try a sum" }, h("span", {}, "Try"), ...presets)),
    draw(s) {
      own = s.f;
      const known = formats.some((f) => f.name === s.f.name) ? formats : [...formats, s.f];
      format.offer(known.map((f) => [f.name, f.name]), s.f.name);
      for (const [part, value] of [[rounding, s.rounding], [method, s.method], [source, s.source]]) part.select.value = value;
      slider.value = Math.round(OCTAVE * Math.log2(s.n));
      slider.setAttribute("aria-valuetext", `${s.n} terms`);
      if (document.activeElement !== number) number.value = s.n;
    },
  };
}

function facts() {
  const live = h("output", { class: "mp-live", "aria-live": "polite" });
  const value = h("strong", { class: "mp-value" });
  const verdict = h("span", { class: "mp-kind" });
  const cells = {};
  const entry = (name) => h("div", {}, h("dt", {}, name), (cells[name] = h("dd")));
  return {
    el: h("div", { class: "mp-facts" }, h("div", { class: "mp-result" }, value, " ", verdict),
      h("dl", {}, ...["exact", "error", "relative error", "gap there", "stuck after term", "one term is"].map(entry)), live),
    draw(s) {
      const error = s.total - s.exact;
      value.textContent = short(s.total, 9);
      verdict.textContent = s.stuck ? "stuck" : error === 0 ? "exact" : `${percent(s.relative)} off`;
      cells.exact.textContent = short(s.exact, 9);
      cells.error.textContent = error === 0 ? "0" : short(error, 4);
      cells["relative error"].textContent = percent(s.relative);
      cells["gap there"].textContent = Number.isFinite(s.total) ? short(gap(s.total, s.f)) : "—";
      cells["stuck after term"].textContent = s.stuck ?? "—";
      cells["one term is"].textContent = s.source === "zero-mean" ? "−1 to 1" : s.source === "ones" ? "1" : "0 to 1";
      const name = (pairs, value) => pairs.find(([key]) => key === value)[1];
      const said = `${s.n} terms in ${s.f.name}, ${name(METHODS, s.method)}, ${name(ROUNDINGS, s.rounding)}: ` +
        `${short(s.total, 9)} instead of ${short(s.exact, 9)}` + (s.stuck ? `, stuck after term ${s.stuck}` : "");
      say(live, said);
    },
  };
}

// --- The chart: the sum against the exact one, and under it the relative error ---------------------

const LEFT = 54, RIGHT = 10, SUM_TOP = 12, SUM_BOTTOM = 190, ERROR_TOP = 222, ERROR_BOTTOM = 300, HEIGHT = 338;
const WORST = 0, BEST = -8; // log10 of the relative errors at the ends of the lower axis

function chart() {
  const svg = h("svg", { role: "img", height: HEIGHT });
  const key = h("p", { class: "mp-hint mp-key" },
    h("span", { class: "mp-key-exact" }), " exact ", h("span", { class: "mp-key-computed" }), " computed ",
    h("span", { class: "mp-key-stuck" }), " stuck from here on");
  const el = h("div", { class: "mp-chart" }, svg, key);
  let pixels = 640;
  let state = null;
  function paint() {
    const s = state;
    svg.setAttribute("viewBox", `0 0 ${pixels} ${HEIGHT}`);
    svg.setAttribute("aria-label", `The sum grows to ${short(s.total)}, the exact one to ${short(s.exact)}, over ${s.n} terms`);
    const ends = [0, ...s.totals, ...s.exacts].filter(Number.isFinite);
    const low = Math.min(...ends), high = Math.max(...ends);
    const x = (n) => LEFT + (n / s.n) * (pixels - LEFT - RIGHT);
    const y = (v) => SUM_BOTTOM - ((v - low) / (high - low || 1)) * (SUM_BOTTOM - SUM_TOP);
    const e = (r) => ERROR_BOTTOM - ((clamp(Math.log10(r), BEST, WORST) - BEST) / (WORST - BEST)) * (ERROR_BOTTOM - ERROR_TOP);
    svg.replaceChildren(...axes(s, x, y, e, low, high, pixels),
      h("path", { class: "mp-sum-exact", d: path(s.lengths, s.exacts, x, y) }),
      h("path", { class: "mp-sum-computed", d: path(s.lengths, s.totals, x, y) }),
      h("path", { class: "mp-sum-computed", d: path(s.lengths, s.errors, x, e) }),
      ...stuckMark(s, x, y, pixels));
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

function path(lengths, values, x, y) {
  let d = "";
  let pen = "M";
  lengths.forEach((n, i) => {
    if (!Number.isFinite(values[i])) { pen = "M"; return; }
    d += `${pen}${x(n).toFixed(1)} ${y(values[i]).toFixed(1)}`;
    pen = "L";
  });
  return d;
}

function axes(s, x, y, e, low, high, pixels) {
  const right = pixels - RIGHT;
  const line = (height) => h("line", { class: "mp-grid", x1: LEFT, x2: right, y1: height, y2: height });
  const text = (px, py, words, anchor) => h("text", { class: "mp-axis-label", x: px, y: py, "text-anchor": anchor }, words);
  const parts = [text(LEFT, 9, "sum", "start"), text(LEFT, ERROR_TOP - 7, "relative error", "start")];
  for (const value of niceSteps(low, high)) parts.push(line(y(value)), text(LEFT - 6, y(value) + 4, short(value, 3), "end"));
  for (const power of [0, -4, -8]) parts.push(line(e(10 ** power)), text(LEFT - 6, e(10 ** power) + 4, power ? `10${superscript(power)}` : "1", "end"));
  for (const [n, anchor] of [[0, "start"], [s.n / 2, "middle"], [s.n, "end"]]) parts.push(text(x(n), ERROR_BOTTOM + 17, short(n), anchor));
  parts.push(text((LEFT + right) / 2, HEIGHT - 5, "terms added", "middle"));
  return parts;
}

function stuckMark(s, x, y, pixels) {
  if (!s.stuck) return [];
  const px = x(s.stuck), py = y(s.total);
  const words = `stuck at ${short(s.total, 9)} after term ${s.stuck}`;
  const room = words.length * 6.6;
  const at = clamp(px + 6, LEFT, pixels - RIGHT - room);
  return [h("line", { class: "mp-stuck", x1: px, x2: px, y1: SUM_TOP, y2: ERROR_BOTTOM }),
    h("circle", { class: "mp-rounded", cx: px, cy: py, r: 5 }),
    h("text", { class: "mp-marker-label", x: at, y: Math.min(py + 18, SUM_BOTTOM - 5) }, words)];
}

// --- All together ---------------------------------------------------------------------------------

const TRAITS = ["n", "format", "rounding", "method", "source"];
const POINTS = 360; // of a curve

function readState(model) {
  const [n, f, rounding, method, source] = TRAITS.map((name) => model.get(name));
  const terms = sourceTerms(source, n, f, model.get("pixels"));
  const count = Math.min(n, method === "pairwise" ? POINTS / 3 : POINTS);
  const lengths = Array.from({ length: count }, (_, i) => Math.max(1, Math.round(((i + 1) * n) / count)));
  const totals = totalsAt(terms, lengths, f, rounding, method);
  const all = exactTotals(terms);
  const exacts = lengths.map((k) => all[k - 1]);
  let size = 0;
  const sizes = terms.map((term) => (size += Math.abs(term)));
  const errors = lengths.map((k, i) => Math.abs(totals[i] - exacts[i]) / (sizes[k - 1] || 1));
  const everyLength = terms.map((_, i) => i + 1);
  const stuck = method === "running" ? stuckAfter(totalsAt(terms, everyLength, f, rounding, method), terms) : null;
  const [total, exact, relative] = [totals, exacts, errors].map((values) => values.at(-1));
  return { n, f, rounding, method, source, lengths, totals, exacts, errors, total, exact, relative, stuck };
}

function render({ model, el }) {
  const act = (changes) => change(model, changes);
  const parts = [controls(act, model.get("formats")), facts(), chart()];
  return present({ model, el }, { name: "Sum explorer", traits: TRAITS, parts, state: () => readState(model) }).remove;
}

export default { render };
