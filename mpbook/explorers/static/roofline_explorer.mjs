// The roofline explorer: one module for Jupyter (anywidget's `_esm`) and for the built page (mount.js).
// Work of a chosen size under the roof of a device. Counts and sentences are those of mpbook/cost/roofline.py
// and mpbook/explorers/roofline_explorer.py, which the tests prove equal.

import { button, change, chooser, h, present, say, superscript } from "./kit.mjs";

// --- What work takes: mpbook/cost/roofline.py -----------------------------------------------------------------

const BYTES = { float32: 4, tfloat32: 4, float16: 2, bfloat16: 2, float8_e4m3fn: 1 };
const product = (m, k, n, format) => ({ flops: 2 * m * k * n, bytes: (m * k + k * n + m * n) * BYTES[format], product: true });
const moved = (bytes) => ({ flops: 0, bytes, product: false });
const sum = (list, key) => list.reduce((total, item) => total + item[key], 0);

function gptStep({ batch, context, layers, width, vocabulary }, format) {
  const tokens = batch * context, narrow = BYTES[format];
  const shapes = [[width, 3 * width], [width, width], [width, 4 * width], [4 * width, width]];
  const linear = shapes.map(([a, b]) => product(tokens, a, b, format));
  const logits = product(tokens, width, vocabulary, format);
  const weights = layers * 12 * width * width + vocabulary * width;
  const block = 2 * 20 + 20 * narrow + 2 * (20 + narrow);
  const parts = [
    { flops: 3 * layers * sum(linear, "flops"), bytes: 3 * layers * sum(linear, "bytes"), product: true },
    { flops: 3 * logits.flops, bytes: 3 * logits.bytes, product: true },
    { flops: 12 * layers * tokens * context * width, bytes: 12 * layers * tokens * width * narrow, product: true },
    moved(layers * tokens * width * block),
    moved(16 * tokens * vocabulary),
  ];
  if (narrow === 2) parts.push(moved(6 * (2 * weights + tokens * (6 * layers * width + 2 * width + 2 * vocabulary))));
  parts.push(moved(28 * (weights + context * width)));
  return parts;
}

const OPERATIONS = {
  "matrix product": { sizes: ["m", "k", "n"], parts: (s, format) => [product(s.m, s.k, s.n, format)] },
  addition: { sizes: ["elements"], parts: (s, format) => [{ flops: s.elements, bytes: 3 * s.elements * BYTES[format], product: false }] },
  "GPT step": { sizes: ["batch", "context", "layers", "width", "vocabulary"], parts: gptStep },
};
const PRESETS = {
  "matrix product": [
    ["square", { m: 4096, k: 4096, n: 4096 }],
    ["GPT-2's MLP", { m: 16384, k: 768, n: 3072 }],
    ["one token of it", { m: 1, k: 768, n: 3072 }],
  ],
  addition: [["residual of GPT-2", { elements: 16384 * 768 }]],
  "GPT step": [
    ["GPT-2 124M", { batch: 16, context: 1024, layers: 12, width: 768, vocabulary: 50257 }],
    ["tiny", { batch: 16, context: 64, layers: 2, width: 64, vocabulary: 256 }],
  ],
};

// --- What a device can do ----------------------------------------------------------------------------------

const unit = (work, format) => (work.product ? format : "float32");

function seconds(roof, parts, format) {
  return parts.reduce((total, work) => total + Math.max(work.flops / roof.peaks.get(unit(work, format)), work.bytes / roof.bandwidth), 0);
}

function offered(roof, operation) {
  return [...roof.peaks.keys()].filter((name) => operation !== "GPT step" || BYTES[name] > 1);
}

// What the traits, by name, come to; `get` gives one.
export function readState(get) {
  const [roofs, device, format, operation, sizes] = TRAITS.map(get);
  const found = roofs.find((r) => r.name === device);
  const roof = { ...found, peaks: new Map(found.peaks) };
  const formats = offered(roof, operation);
  const shown = [format, "bfloat16", "float16", "float32"].find((name) => formats.includes(name));
  const at = (name) => {
    const parts = OPERATIONS[operation].parts(sizes, name);
    const [flops, bytes, time] = [sum(parts, "flops"), sum(parts, "bytes"), seconds(roof, parts, name)];
    return { parts, flops, bytes, time, intensity: flops / bytes, rate: flops / time };
  };
  return { roofs, roof, formats, format: shown, operation, sizes, work: at(shown), wide: at("float32") };
}

// --- In words ------------------------------------------------------------------------------------------------

const PREFIXES = [[1e-9, "n"], [1e-6, "µ"], [1e-3, "m"], [1, ""], [1e3, "k"], [1e6, "M"], [1e9, "G"], [1e12, "T"], [1e15, "P"], [1e18, "E"]];

function digits(value) {
  const places = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  const scale = 10 ** places;
  const units = Math.floor(value * scale + 0.5);
  const whole = Math.floor(units / scale);
  return places ? `${whole}.${String(units - whole * scale).padStart(places, "0")}` : String(whole);
}

function size(value, of) {
  const [scale, prefix] = PREFIXES.find(([scale]) => value < 999.5 * scale) ?? PREFIXES.at(-1);
  return `${digits(value / scale)} ${prefix}${of}`;
}

function whatHoldsItBack({ roof, format, work }) {
  const speed = unit(work.parts[0], format);
  const peak = roof.peaks.get(speed), ridge = peak / roof.bandwidth;
  const where = `on ${roof.name} in ${speed}, whose ridge is at ${digits(ridge)}`;
  if (work.intensity >= ridge) return `Compute-bound ${where}: at most the peak, ${size(peak, "flop/s")}.`;
  const rate = Math.min(peak, work.intensity * roof.bandwidth);
  return `Memory-bound ${where}: at most ${size(rate, "flop/s")}, ${digits((100 * rate) / peak)}% of the peak.`;
}

function whatAStepReaches({ roof, format, work }) {
  const ofProducts = seconds(roof, work.parts.filter((part) => part.product), format);
  const share = digits((100 * ofProducts) / work.time);
  const mfu = digits((100 * work.rate) / roof.peaks.get(format));
  return `On ${roof.name} in ${format}, ${share}% of that time is matrix products: ${size(work.rate, "flop/s")}, an MFU of ${mfu}%.`;
}

export function sentences(s) {
  const { work, wide, format } = s;
  const first = `${size(work.flops, "flop")} over ${size(work.bytes, "B")}: ${digits(work.intensity)} operations per byte.`;
  const second = s.operation === "GPT step" ? whatAStepReaches(s) : whatHoldsItBack(s);
  const last = `On paper ${size(work.time, "s")}`;
  return [first, second, format === "float32" ? `${last}.` : `${last}; in float32 ${digits(wide.time / work.time)} times as long.`];
}

// --- Parts. Each is {el, draw(s)}, where s is what readState gives ------------------------------------------

// Sizes go in half-octaves: 1, 2, 3, 4, 6, 8, 12 ...
const GRID = [1];
for (let power = 2; power <= 2 ** 30; power *= 2) GRID.push(power, ...(power < 2 ** 30 ? [1.5 * power] : []));
const ENDS = { m: [1, 65536], k: [1, 65536], n: [1, 65536], elements: [1024, 2 ** 30], batch: [1, 512], context: [64, 8192], layers: [1, 96], width: [64, 12288], vocabulary: [256, 131072] };
const nearest = (value) => GRID.reduce((best, x, i) => (Math.abs(Math.log(x / value)) < Math.abs(Math.log(GRID[best] / value)) ? i : best), 0);

function sizeSlider(name, resize) {
  const [low, high] = ENDS[name].map((end) => GRID.indexOf(end));
  const slider = h("input", { type: "range", class: "mp-slider", min: low, max: high, step: 1 });
  const label = h("span", {});
  slider.addEventListener("input", () => resize({ [name]: GRID[Number(slider.value)] }));
  return {
    el: h("label", { class: "mp-control mp-size" }, label, slider),
    draw({ sizes }) {
      slider.value = nearest(sizes[name]);
      label.textContent = `${name} ${sizes[name]}`;
      slider.setAttribute("aria-valuetext", String(sizes[name]));
    },
  };
}

function controls(act, get) {
  const resize = (sizes) => act({ sizes: { ...get("sizes"), ...sizes } });
  const names = get("roofs").map((r) => [r.name, r.name]);
  const device = chooser("Device", names, (name) => act({ device: name }));
  const format = chooser("Format", [], (name) => act({ format: name }));
  const operation = chooser("Work", Object.keys(OPERATIONS).map((name) => [name, name]), (name) => act({ operation: name }));
  const sliders = new Map(Object.keys(ENDS).map((name) => [name, sizeSlider(name, resize)]));
  const sizes = h("div", { class: "mp-sizes" });
  const presets = h("div", { class: "mp-row mp-presets" });
  let shown = "";
  return {
    el: h("div", { class: "mp-controls" }, h("div", { class: "mp-row" }, device.el, format.el, operation.el), sizes, presets),
    draw(s) {
      device.select.value = s.roof.name;
      operation.select.value = s.operation;
      format.offer(s.formats.map((name) => [name, name]), s.format);
      const mine = OPERATIONS[s.operation].sizes.map((name) => sliders.get(name));
      if (shown !== s.operation) { // a slider that is moved must stay where it is, or it loses the focus
        shown = s.operation;
        sizes.replaceChildren(...mine.map((slider) => slider.el));
        presets.replaceChildren(...PRESETS[s.operation].map(([name, to]) => button(name, () => resize(to))));
      }
      mine.forEach((slider) => slider.draw(s));
    },
  };
}

function words() {
  const said = [h("p", { class: "mp-said" }), h("p"), h("p")];
  return {
    el: h("div", { class: "mp-words", "aria-live": "polite" }, said[1], said[0], said[2]),
    draw(s) {
      const [first, second, third] = sentences(s);
      say(said[0], second);
      say(said[1], first);
      say(said[2], third);
    },
  };
}

// --- The chart: both axes logarithmic ------------------------------------------------------------------------

const TOP = 20, BOTTOM = 236, HEIGHT = 278, LEFT = 46, RIGHT = 12;

// Decades that hold every roof of the device and the point, so that they move only when they must.
export function view(s) {
  const ridges = [...s.roof.peaks.values()].map((peak) => peak / s.roof.bandwidth);
  const peak = Math.max(...s.roof.peaks.values());
  const low = Math.floor(Math.log10(Math.min(0.1, s.wide.intensity / 2)));
  const high = Math.ceil(Math.log10(Math.max(1000, 2 * Math.max(...ridges), 2 * s.work.intensity)));
  return { x: [low, high], y: [Math.floor(Math.log10(10 ** low * s.roof.bandwidth)), Math.ceil(Math.log10(1.5 * peak))] };
}

function chart() {
  const svg = h("svg", { role: "img", height: HEIGHT });
  const hint = h("p", { class: "mp-hint" }, "The slope is bandwidth, the level the peak. Filled: this work at its best. Hollow: the same in float32. Thin lines: the device's other formats.");
  const el = h("div", { class: "mp-chart mp-roofs" }, svg, hint);
  let pixels = 640;
  let state = null;

  function paint() {
    const s = state;
    const right = pixels - RIGHT, to = view(s);
    const x = (value) => LEFT + ((Math.log10(value) - to.x[0]) / (to.x[1] - to.x[0])) * (right - LEFT);
    const y = (value) => BOTTOM - ((Math.log10(value) - to.y[0]) / (to.y[1] - to.y[0])) * (BOTTOM - TOP);
    const shown = s.work.parts.some((part) => part.product) ? s.format : "float32";
    const ridge = s.roof.peaks.get(shown) / s.roof.bandwidth;
    el.dataset.format = s.format;
    svg.setAttribute("viewBox", `0 0 ${pixels} ${HEIGHT}`);
    svg.setAttribute("aria-label", `Roofline of ${s.roof.name}, with this work in ${s.format}`);
    const parts = [...decades(to, x, y, right)];
    for (const name of s.roof.peaks.keys()) if (name !== shown) parts.push(roofLine(s.roof, name, to, x, y, "mp-roof-other"));
    parts.push(h("line", { class: "mp-stuck", x1: x(ridge), x2: x(ridge), y1: y(s.roof.peaks.get(shown)), y2: BOTTOM }));
    parts.push(roofLine(s.roof, shown, to, x, y, "mp-roof"));
    parts.push(h("text", { class: "mp-marker-label", x: LEFT + 8, y: TOP + 16 }, `peak in ${shown}: ${size(s.roof.peaks.get(shown), "flop/s")}`));
    const tight = x(ridge) > right - 90;
    parts.push(h("text", { class: "mp-axis-label", x: x(ridge) + (tight ? -6 : 6), y: BOTTOM - 8, "text-anchor": tight ? "end" : "start" }, `ridge ${digits(ridge)}`));
    const px = x(s.work.intensity), py = y(s.work.rate);
    parts.push(h("line", { class: "mp-stem", x1: px, x2: px, y1: py, y2: BOTTOM }));
    if (s.format !== "float32") parts.push(h("circle", { class: "mp-typed", cx: x(s.wide.intensity), cy: y(s.wide.rate), r: 5 }));
    parts.push(h("circle", { class: "mp-here", cx: px, cy: py, r: 6.5 }));
    svg.replaceChildren(...parts);
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

function roofLine(roof, name, to, x, y, kind) {
  const peak = roof.peaks.get(name), ridge = peak / roof.bandwidth;
  const start = 10 ** Math.max(to.x[0], to.y[0] - Math.log10(roof.bandwidth));
  const points = [[start, start * roof.bandwidth], [ridge, peak], [10 ** to.x[1], peak]];
  return h("path", { class: kind, d: points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("") });
}

function* decades(to, x, y, right) {
  for (let power = to.x[0]; power <= to.x[1]; power += 1) {
    const px = x(10 ** power);
    yield h("line", { class: "mp-grid", x1: px, x2: px, y1: TOP, y2: BOTTOM });
    yield h("text", { x: px, y: BOTTOM + 17, "text-anchor": power === to.x[1] ? "end" : "middle" }, power ? `10${superscript(power)}` : "1");
  }
  for (let power = to.y[0]; power <= to.y[1]; power += 1) {
    const py = y(10 ** power);
    yield h("line", { class: "mp-grid", x1: LEFT, x2: right, y1: py, y2: py });
    yield h("text", { x: LEFT - 6, y: py + 4, "text-anchor": "end" }, `10${superscript(power)}`);
  }
  yield h("text", { class: "mp-axis-label", x: (LEFT + right) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "operations per byte");
  yield h("text", { class: "mp-axis-label", x: 0, y: 11 }, "operations per second");
}

// --- All together -----------------------------------------------------------------------------------------

const TRAITS = ["roofs", "device", "format", "operation", "sizes"];

function render({ model, el }) {
  const act = (changes) => change(model, changes);
  const get = (name) => model.get(name);
  const parts = [controls(act, get), words(), chart()];
  return present({ model, el }, { name: "Roofline explorer", traits: TRAITS, parts, state: () => readState(get), later: queueMicrotask }).remove;
}

export default { render };
