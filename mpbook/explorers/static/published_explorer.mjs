// The explorer of published measurements: one module for Jupyter (anywidget's `_esm`) and for the built
// page (mount.js). Every ratio is a dot, in a row of its GPU's generation and its baseline. Sentences
// are those of mpbook/explorers/published_explorer.py, which the tests prove equal.

import { button, change, chooser, clamp, h, present, say } from "./kit.mjs";

const QUANTITIES = {
  speed: "times as fast",
  memory: "times the memory",
  batch: "times the batch",
  quality: "times the baseline's score or loss",
  peak: "times the stated peak",
};
const FILTERS = { precision: "Precision", baseline: "Compared with", generation: "GPU", kind_of_model: "Model", year: "Year" };
const NONE = "No published figure agrees with this choice. Widen it: choose “all” somewhere.";

// --- What is chosen, and what it adds up to ---------------------------------------------------------

export function readState(get) {
  const quantity = get("quantity");
  const ofQuantity = get("rows").filter((row) => row.quantity === quantity);
  const rows = ofQuantity.filter((row) => Object.keys(FILTERS).every((name) => ["", row[name]].includes(get(name))));
  const groups = [...grouped(rows, "generation", "baseline").values()];
  const order = groups.flatMap((group) => [...group].sort((a, b) => a.ratio - b.ratio));
  return { quantity, ofQuantity, rows, groups, order, filters: Object.fromEntries(Object.keys(FILTERS).map((name) => [name, get(name)])),
    chosen: order.find((row) => row.id === get("chosen")) ?? null };
}

function grouped(rows, ...fields) {
  const found = new Map();
  for (const row of rows) {
    const key = fields.map((field) => row[field]).join("|");
    found.set(key, [...(found.get(key) ?? []), row]);
  }
  return found;
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

const ratios = (rows) => rows.map((row) => row.ratio);
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

function digits(value) {
  const units = Math.floor(value * 100 + 0.5);
  return `${Math.floor(units / 100)}.${String(units % 100).padStart(2, "0")}`;
}

function sentence(baseline, rows, quantity) {
  const all = ratios(rows);
  const sources = [...grouped(rows, "source").values()];
  const low = digits(Math.min(...all)), high = digits(Math.max(...all));
  const what = `${plural(all.length, "figure")} of ${plural(sources.length, "source")}`;
  const said = `Over ${baseline}: ${what}, ${all.length > 1 ? `${low} to ${high}` : low} ${QUANTITIES[quantity]}`;
  if (all.length === 1) return `${said}.`;
  const vote = `, with one vote a source ${digits(median(sources.map((group) => median(ratios(group)))))}`;
  return `${said}; median ${digits(median(all))}${sources.length > 2 ? vote : ""}.`;
}

export function sentences({ rows, quantity }) {
  const said = [...grouped(rows, "baseline")].map(([name, group]) => sentence(name, group, quantity));
  return said.length ? said : [NONE];
}

// --- Parts. Each is {el, draw(s)}, where s is what readState gives ------------------------------------

function controls(act) {
  const quantity = chooser("Ratio of", Object.keys(QUANTITIES).map((name) => [name, name]),
    (name) => act({ quantity: name, ...Object.fromEntries(Object.keys(FILTERS).map((filter) => [filter, ""])) }));
  const filters = Object.entries(FILTERS).map(([name, label]) => [name, chooser(label, [], (value) => act({ [name]: value }))]);
  return {
    el: h("div", { class: "mp-controls mp-row" }, quantity.el, ...filters.map(([, filter]) => filter.el)),
    draw(s) {
      quantity.select.value = s.quantity;
      for (const [name, filter] of filters) {
        const values = [...new Set(s.ofQuantity.map((row) => row[name]))];
        if (name === "year") values.sort();
        filter.offer([["", "all"], ...values.map((value) => [value, value])], s.filters[name]);
      }
    },
  };
}

function words() {
  const el = h("div", { class: "mp-words", "aria-live": "polite" });
  let shown = "";
  return {
    el,
    draw(s) {
      const lines = sentences(s);
      if (shown === lines.join()) return;
      shown = lines.join();
      el.replaceChildren(...lines.map((line) => h("p", {}, line)));
    },
  };
}

// The figure behind a dot: who measured what, where it stands, and what to know before comparing.
function details(act) {
  let state = null;
  const step = (by) => {
    const { order, chosen } = state;
    const place = order.indexOf(chosen);
    const next = place < 0 ? (by > 0 ? 0 : order.length - 1) : clamp(place + by, 0, order.length - 1);
    if (order.length) act({ chosen: order[next].id });
  };
  const before = button("‹ lower", () => step(-1)), after = button("higher ›", () => step(1));
  const text = h("p", { class: "mp-source" });
  const caveat = h("p", { class: "mp-hint" });
  return {
    el: h("div", {}, h("div", { class: "mp-row mp-tools" }, before, after), h("div", { "aria-live": "polite" }, text, caveat)),
    draw(s) {
      state = s;
      before.disabled = !s.order.length || s.chosen === s.order[0];
      after.disabled = !s.order.length || s.chosen === s.order.at(-1);
      if (!s.chosen) {
        text.replaceChildren("Click a dot, or step through them, to read who measured it and where it is published.");
        say(caveat, "");
        return;
      }
      const row = s.chosen;
      const link = h("a", { href: row.url, rel: "noopener" }, row.source);
      text.replaceChildren(h("b", {}, `${digits(row.ratio)} ${QUANTITIES[row.quantity]}`),
        `: ${row.model}, ${row.hardware}, ${row.year}. From ${row.from} to ${row.to}: ${row.values}. Published by `, link, `, ${row.where}.`);
      say(caveat, row.caveat ? `Before you compare: ${row.caveat}.` : "");
    },
  };
}

// --- The chart: a logarithmic axis of ratios, a row for each generation and baseline ------------------

const TICKS = [0.1, 0.2, 0.5, 0.7, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.2, 1.4, 2, 3, 4, 6];
const ROW = 44, TOP = 8, LEFT = 8, RIGHT = 12, LABEL = 15;
const HUES = { float32: "float32", TF32: "tfloat32", "16 bits": "bfloat16" };

export function scale(all, pixels) {
  const low = Math.log(Math.min(0.95, ...all)) - 0.03, high = Math.log(Math.max(1.05, ...all)) + 0.03;
  return (ratio) => LEFT + ((Math.log(ratio) - low) / (high - low)) * (pixels - LEFT - RIGHT);
}

function chart(act) {
  const svg = h("svg", { role: "img" });
  const hint = h("p", { class: "mp-hint" }, "A dot is one published figure, the bar the median of a row, the diamond the median with one vote a source. The upright line is “no change”.");
  const el = h("div", { class: "mp-chart mp-forest" }, svg, hint);
  let pixels = 640, state = null, dots = [];

  function paint() {
    const s = state;
    const x = scale(ratios(s.rows), pixels);
    const bottom = TOP + ROW * Math.max(1, s.groups.length);
    svg.setAttribute("viewBox", `0 0 ${pixels} ${bottom + 36}`);
    svg.setAttribute("height", bottom + 36);
    svg.setAttribute("aria-label", `Forest plot of ${plural(s.rows.length, "published ratio")} in ${plural(s.groups.length, "row")}`);
    dots = [];
    const parts = [...axis(x, pixels, bottom, QUANTITIES[s.quantity])];
    s.groups.forEach((group, row) => parts.push(...drawGroup(group, TOP + ROW * row, x, s.chosen, dots)));
    svg.replaceChildren(...parts);
  }

  // The nearest dot within a finger's breadth: a dot alone is too small to hit.
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    const px = ((event.clientX - box.left) / box.width) * pixels, py = event.clientY - box.top;
    const near = dots.map((dot) => ({ dot, far: Math.hypot(dot.x - px, dot.y - py) })).sort((a, b) => a.far - b.far)[0];
    if (near && near.far < 22) act({ chosen: near.dot.row.id });
  });

  return {
    el,
    draw(s) { state = s; paint(); },
    resize(width) {
      pixels = Math.max(Math.round(width), 240);
      if (state) paint();
    },
  };
}

function* axis(x, pixels, bottom, label) {
  let free = -Infinity;
  for (const tick of TICKS) {
    const px = x(tick);
    const crowded = px - free < 30 || (tick < 1 && x(1) - px < 30);
    if (px < LEFT || px > pixels - RIGHT || (crowded && tick !== 1)) continue;
    free = px;
    yield h("line", { class: tick === 1 ? "mp-one" : "mp-grid", x1: px, x2: px, y1: TOP, y2: bottom });
    yield h("text", { x: px, y: bottom + 15, "text-anchor": "middle" }, String(tick));
  }
  yield h("text", { class: "mp-axis-label", x: pixels - RIGHT, y: bottom + 31, "text-anchor": "end" }, label);
}

function* drawGroup(group, top, x, chosen, dots) {
  const { generation, baseline } = group[0];
  const hue = { "data-hue": HUES[baseline] ?? "other" };
  const middle = top + LABEL + (ROW - LABEL) / 2;
  yield h("text", { class: "mp-row-label", x: LEFT, y: top + 12 }, `${generation}, over ${baseline} (${group.length})`);
  const sorted = [...group].sort((a, b) => a.ratio - b.ratio);
  for (const [place, row] of sorted.entries()) {
    const dot = { row, x: x(row.ratio), y: middle + ((place % 5) - 2) * 4 };
    dots.push(dot);
    yield h("circle", { class: row === chosen ? "mp-dot mp-dot-chosen" : "mp-dot", ...hue, cx: dot.x, cy: dot.y, r: row === chosen ? 6 : 3.5, "data-id": row.id });
  }
  const half = (ROW - LABEL) / 2 - 2;
  const m = x(median(ratios(group)));
  yield h("line", { class: "mp-median", ...hue, x1: m, x2: m, y1: middle - half, y2: middle + half });
  const v = x(median([...grouped(group, "source").values()].map((rows) => median(ratios(rows)))));
  yield h("path", { class: "mp-vote", ...hue, d: `M${v - 5} ${middle}l5 -6 5 6 -5 6z` });
}

// --- All together -------------------------------------------------------------------------------------

const TRAITS = ["rows", "quantity", ...Object.keys(FILTERS), "chosen"];

function render({ model, el }) {
  const act = (changes) => change(model, changes);
  const parts = [controls(act), words(), chart(act), details(act)];
  return present({ model, el }, { name: "Explorer of published measurements", traits: TRAITS, parts, state: () => readState((name) => model.get(name)), later: queueMicrotask }).remove;
}

export default { render };
