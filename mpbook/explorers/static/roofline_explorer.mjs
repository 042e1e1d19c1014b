// The roofline explorer: one module for Jupyter (anywidget's `_esm`) and for the built page (mount.js).
// Work of a chosen size under the roof of a device. Counts and sentences are those of mpbook/cost/roofline.py
// and mpbook/explorers/roofline_explorer.py, which the tests prove equal.

import { button, change, chooser, h, present, say } from "./kit.mjs";
import { digits, roofPicture, size } from "./roof.mjs";

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

// --- The chart -----------------------------------------------------------------------------------------------

function chart() {
  const picture = roofPicture(["The slope is bandwidth, the level the peak. Filled: this work at its best. Hollow: the same in float32. Thin lines: the device's other formats."]);
  return {
    ...picture,
    draw({ roof, work, wide, format }) {
      const wider = { intensity: wide.intensity, rate: wide.rate, kind: "mp-typed" };
      const here = { intensity: work.intensity, rate: work.rate, kind: "mp-here", stem: true };
      picture.draw({
        roof, format, shown: work.parts.some((part) => part.product) ? format : "float32",
        points: format === "float32" ? [here] : [wider, here],
        label: `Roofline of ${roof.name}, with this work in ${format}`,
      });
    },
  };
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
