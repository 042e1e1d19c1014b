// The block explorer: one module for Jupyter (anywidget's `_esm`) and for the built page (mount.js).
// A row of a tensor, and what it becomes in a format whose scale is shared by a block.

import { E4M3, FLOAT32, POWER_OF_TWO, SATURATED, ZERO, fateOf, keysOf, largestOf, quantise } from "./blocks.mjs";
import { encode, width } from "./codes.mjs";
import { gap } from "./rounding.mjs";
import { button, change, chooser, clamp, floorLog2, h, labelled, largest, present, say, superscript, typeset } from "./kit.mjs";

// --- Numbers as text ------------------------------------------------------------------------------

function short(x, digits = 3) {
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞"; // near the largest float32, element × scale can overflow
  const exponent = x === 0 ? 0 : Math.floor(Math.log10(Math.abs(x)));
  const plain = exponent >= -3 && exponent < 6;
  return typeset(plain ? String(Number(x.toPrecision(digits))) : x.toExponential(digits - 1).replace(/\.?0+e/, "e"));
}
const percent = (ratio) => (ratio === 0 ? "0" : `${short(100 * ratio, 2)}%`);
const decibels = (ratio) => (ratio === 0 ? "" : ` (${short(Math.round(-20 * Math.log10(ratio)))} dB)`);
const signed = (x, digits) => (Object.is(x, -0) ? "−0" : short(x, digits));
const scaleText = (x, f) => (f.name === POWER_OF_TWO ? `2${superscript(floorLog2(x))}` : short(x));

function bitsText(code, f) {
  const text = code.toString(2).padStart(width(f), "0");
  return [text.slice(0, 1), text.slice(1, 1 + f.exponent_bits), text.slice(1 + f.exponent_bits)].join(" ");
}

// --- Parts. Each is {el, draw(s)}, where s is what readState gives ---------------------------------

const BLOCKS = [["tensor", "the tensor"], ...[128, 64, 32, 16].map((n) => [String(n), `${n} numbers`])];
const SCALES = [[FLOAT32, "float32"], [POWER_OF_TWO, "E8M0: 2ⁿ"], [E4M3, "E4M3 × float32"]];
const MODES = [["floor", "floor (OCP)"], ["round-to-nearest-even", "nearest, even"], ["rceil", "rceil"], ["ceil", "ceil"]];
const ROUNDINGS = [["nearest-even", "nearest, even"], ["stochastic", "stochastic"]];
const ROTATIONS = [["null", "none"], ["16", "16 numbers"], ["32", "32 numbers"]];
const elementText = (f) => `${f.name.replace(/^float\d+_|fn$/g, "").toUpperCase()}, ${width(f)} bits`; // E4M3, 8 bits
const nameOf = (pairs, value) => pairs.find(([key]) => key === String(value))[1];

function controls(act, rows, presets, elements) {
  const tensor = chooser("Row of", rows.map((row) => [row.name, row.name]), (value) => act({ tensor: value }));
  const element = chooser("Elements", elements.map((f) => [f.name, elementText(f)]), (value) => act({ element: value }));
  const block = chooser("A scale for", BLOCKS, (value) => act({ block: value === "tensor" ? value : Number(value) }));
  const scale = chooser("Scale", SCALES, (value) => act({ scale: value }));
  const mode = chooser("Scale mode", MODES, (value) => act({ scale_mode: value }));
  const rounding = chooser("Rounding", ROUNDINGS, (value) => act({ rounding: value }));
  const rotation = chooser("Hadamard", ROTATIONS, (value) => act({ hadamard: JSON.parse(value) }));
  let seed = 0;
  const again = button("Draw again", () => act({ seed: (seed + 1) % 2 ** 31 }));
  const buttons = presets.map(([name, choices]) => [name, button(name, () => act(choices))]);
  return {
    el: h("div", { class: "mp-controls" },
      h("div", { class: "mp-row mp-presets", role: "group", "aria-label": "Formats with a name" }, h("span", {}, "Format"), ...buttons.map(([, b]) => b)),
      h("div", { class: "mp-sizes mp-choices" }, ...[element, block, scale, mode, tensor, rotation, rounding].map((part) => part.el), again)),
    draw(s) {
      ({ seed } = s);
      const shown = [[tensor, s.tensor], [element, s.format.element.name], [block, s.format.block], [scale, s.format.scale.name],
        [mode, s.mode], [rounding, s.rounding], [rotation, s.hadamard]];
      for (const [part, value] of shown) part.select.value = String(value);
      mode.select.disabled = s.format.scale.name !== POWER_OF_TWO; // no other scale has one
      again.hidden = s.rounding !== "stochastic";
      buttons.forEach(([name, b]) => b.setAttribute("aria-pressed", String(name === s.preset)));
    },
  };
}

const ofAll = (count, s) => `${count} of ${s.row.length}`;

function facts() {
  const live = h("output", { class: "mp-live", "aria-live": "polite" });
  const cells = {};
  const entry = (name) => h("div", {}, h("dt", {}, name), (cells[name] = h("dd")));
  return {
    el: h("div", { class: "mp-facts mp-fate" },
      h("dl", {}, ...["became zero", "saturated", "row off by", "median off by", "bits a number"].map(entry)), live),
    draw(s) {
      const { fate } = s;
      cells["became zero"].textContent = ofAll(fate.zeros, s);
      cells.saturated.textContent = ofAll(fate.saturated, s);
      cells["row off by"].textContent = percent(fate.error) + decibels(fate.error);
      cells["median off by"].textContent = percent(fate.medianError);
      cells["bits a number"].textContent = String(fate.bits);
      const { format } = s;
      const how = `${s.tensor}: ${elementText(format.element)}, a scale for ${nameOf(BLOCKS, format.block)}, ${nameOf(SCALES, format.scale.name)}`;
      const what = `${fate.zeros} became zero, ${fate.saturated} saturated, the row is off by ${percent(fate.error)}`;
      say(live, `${how}: of ${s.row.length} numbers ${what}`);
    },
  };
}

// --- The chart: every number of the row, over what the scale of its block can hold -------------------

const LEFT = 30, RIGHT = 4, TOP = 34, PLOT = 250, LANE = 18, HEIGHT = TOP + PLOT + LANE;
const STUB = 4; // height of a bar that lies below the axis

function chart(act) {
  const svg = h("svg", { role: "img", height: HEIGHT });
  const slider = h("input", { type: "range", step: 1, min: 0, class: "mp-slider mp-along" });
  slider.addEventListener("input", () => act({ number: Number(slider.value) }));
  const swatch = (kind) => h("span", { class: `mp-block-key mp-block-key-${kind}` });
  const key = h("p", { class: "mp-hint", "aria-hidden": "true" }, swatch("number"), "number ", swatch("becomes"), "what it becomes ",
    swatch("band"), "what the scale can hold ", "○ became zero ", "▲ saturated");
  const hint = h("p", { class: "mp-hint" });
  const el = h("div", { class: "mp-chart mp-block-chart" }, svg, labelled("Look at number", slider), key, hint);
  let pixels = 640, state = null;
  const slot = () => (pixels - LEFT - RIGHT) / state.row.length;
  const toPointer = (event) => {
    const at = Math.floor((event.clientX - svg.getBoundingClientRect().left - LEFT) / slot());
    act({ number: clamp(at, 0, state.row.length - 1) });
  };
  svg.addEventListener("pointerdown", toPointer);
  svg.addEventListener("pointermove", (event) => { if (event.buttons) toPointer(event); });
  function paint() {
    const s = state, map = mapping(s, slot());
    el.dataset.format = s.format.element.name;
    svg.setAttribute("viewBox", `0 0 ${pixels} ${HEIGHT}`);
    svg.setAttribute("aria-label", `${s.row.length} numbers of ${s.tensor}, ${s.quantised.scales.length} scales: ${s.fate.zeros} became zero, ${s.fate.saturated} saturated`);
    svg.replaceChildren(column(s, map), ...axis(map, pixels), ...bands(s, map, pixels), ...s.row.flatMap((_, i) => bar(i, s, map)));
    slider.max = s.row.length - 1;
    slider.value = s.number;
    slider.setAttribute("aria-valuetext", `number ${s.number}, ${short(s.row[s.number])} becomes ${short(s.quantised.numbers[s.number])}`);
    say(hint, hintOf(s));
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

function hintOf({ hadamard, row }) {
  const rotated = hadamard ? " Rotated in blocks: in a product, the rotations of both operands cancel." : "";
  return `${row.length} numbers in a row, magnitudes on a logarithmic axis; signs are kept and not drawn.${rotated}`;
}

// Where numbers lie: an axis that stays while formats change.
function mapping(s, slot) {
  const logs = s.row.filter((x) => x !== 0).map((x) => Math.log2(Math.abs(x))).sort((a, b) => a - b);
  const high = Math.ceil(Math.log2(s.amax || 1) + 0.6);
  const low = Math.floor(clamp((logs[logs.length >> 4] ?? high) - 1, high - 30, high - 14));
  const perBinade = PLOT / (high - low);
  const y = (size) => TOP + clamp((high - Math.log2(size)) * perBinade, 0, PLOT);
  return { high, low, y, slot, x: (i) => LEFT + i * slot };
}

const rectangle = (kind, x, y, wide, bottom) =>
  h("rect", { class: kind, x: x.toFixed(2), y: y.toFixed(1), width: Math.max(wide, 0.5).toFixed(2), height: Math.max(bottom - y, 0).toFixed(1) });

function axis({ high, low, y }, pixels) {
  const step = [1, 2, 4, 8].find((k) => (high - low) / k <= 7);
  const parts = [];
  for (let power = Math.ceil(low / step) * step; power <= high; power += step) {
    const at = y(2 ** power);
    parts.push(h("line", { class: "mp-grid", x1: LEFT, x2: pixels - RIGHT, y1: at, y2: at }),
      h("text", { class: "mp-axis-label", x: LEFT - 5, y: at + 4, "text-anchor": "end" }, `2${superscript(power)}`));
  }
  parts.push(h("text", { class: "mp-axis-label", x: LEFT - 5, y: HEIGHT - 5, "text-anchor": "end" }, "0"));
  return parts;
}

const column = (s, { x, slot }) => rectangle("mp-block-column", x(s.number), TOP - 16, slot, HEIGHT);

// From half the smallest element, below which all is rounded to 0, to the largest, each times the scale.
function bands({ format, quantised, number }, { x, y, slot }, pixels) {
  const { size, scales, combined } = quantised, blockWidth = size * slot;
  const most = largest(format.element), least = gap(0, format.element) / 2;
  return scales.flatMap((scale, block) => {
    const first = block * size, held = combined[first], left = x(first);
    const label = scaleText(scale, format.scale), chosen = Math.floor(number / size) === block;
    const fits = label.length * 6.4 + 6 < blockWidth || chosen;
    const middle = clamp(left + blockWidth / 2, LEFT + label.length * 3.2, pixels - RIGHT - label.length * 3.2);
    const parts = held > 0 ? [rectangle("mp-block-band", left + 0.5, y(most * held), blockWidth - 1, y(least * held)),
      h("line", { class: "mp-block-end", x1: left + 0.5, x2: left + blockWidth - 0.5, y1: y(most * held), y2: y(most * held) })] : [];
    if (first > 0) parts.push(h("line", { class: "mp-block-edge", x1: left, x2: left, y1: TOP - 16, y2: HEIGHT }));
    if (fits) parts.push(h("text", { class: chosen ? "mp-block-scale mp-block-chosen" : "mp-block-scale", x: middle, y: TOP - 20, "text-anchor": "middle" }, label));
    return parts;
  });
}

// What a number becomes is filled, what it loses is hollow; a line is drawn where the number was.
function bar(i, { row, quantised, fate }, { x, y, slot }) {
  const size = Math.abs(row[i]);
  if (size === 0) return [];
  const floor = TOP + PLOT, loss = fate.losses[i], becomes = Math.abs(quantised.numbers[i]);
  const left = x(i) + slot * 0.14, wide = slot * 0.72, middle = x(i) + slot / 2;
  const heightOf = (value) => Math.min(y(value), floor - STUB);
  const parts = [];
  if (loss) parts.push(rectangle("mp-block-lost", left, heightOf(size), wide, floor));
  if (becomes > 0) parts.push(rectangle("mp-block-bar", left, heightOf(becomes), wide, floor));
  parts.push(h("line", { class: "mp-block-number", x1: x(i) + slot * 0.04, x2: x(i) + slot * 0.96, y1: heightOf(size), y2: heightOf(size) }));
  if (loss === ZERO) parts.push(h("circle", { class: "mp-block-zero", cx: middle, cy: floor + LANE / 2, r: clamp(slot * 0.36, 0.8, 3.2) }));
  if (loss === SATURATED) {
    const half = clamp(slot * 0.6, 2.5, 4.5), tip = heightOf(size) - 2 * half - 2;
    parts.push(h("path", { class: "mp-block-saturated", d: `M${middle - half} ${tip + 2 * half}h${2 * half}L${middle} ${tip}z` }));
  }
  return parts;
}

// --- One number, step by step -----------------------------------------------------------------------

function steps() {
  const cells = {};
  const title = h("p", { class: "mp-said" });
  const entry = (name) => h("div", {}, h("dt", {}, name), (cells[name] = h("dd")));
  return {
    el: h("div", { class: "mp-facts mp-steps" }, title,
      h("dl", {}, ...["largest of its block", "scale", "number ÷ scale", "element", "its bits", "element × scale"].map(entry))),
    draw(s) {
      const { number: i, quantised: q, format, row } = s, block = Math.floor(i / q.size), becomes = q.numbers[i];
      const amax = format.block === "tensor" ? s.amax : largestOf(row.slice(block * q.size, (block + 1) * q.size));
      const off = row[i] === 0 ? 0 : Math.abs(becomes - row[i]) / Math.abs(row[i]);
      title.textContent = `Number ${i}: ${short(row[i], 5)} becomes ${short(becomes, 5)}, ${off === 0 ? "exactly" : `off by ${percent(off)}`}${s.fate.losses[i] === SATURATED ? ", saturated" : ""}`;
      cells["largest of its block"].textContent = short(amax, 5);
      cells.scale.textContent = scaleText(q.scales[block], format.scale) + (q.tensorScale === null ? "" : ` × ${short(q.tensorScale, 4)}`);
      cells["number ÷ scale"].textContent = short(q.quotients[i], 5);
      cells.element.textContent = signed(q.elements[i], 5);
      cells["its bits"].textContent = bitsText(encode(q.elements[i], format.element, "saturate"), format.element);
      cells["element × scale"].textContent = signed(becomes, 5);
    },
  };
}

// --- The same row in the formats with a name ---------------------------------------------------------

function comparison() {
  const body = h("tbody", {});
  const head = ["", "became zero", "saturated", "row off by", "median off by", "bits"].map((name) => h("th", { scope: "col" }, name));
  return {
    el: h("div", { class: "mp-wide" }, h("table", { class: "mp-table" }, h("caption", {}, "The same row in each format"), h("thead", {}, h("tr", {}, ...head)), body)),
    draw(s) {
      body.replaceChildren(...s.others.map(({ name, fate }) => h("tr", { class: name === s.preset ? "mp-chosen" : null },
        h("th", { scope: "row" }, name), ...[fate.zeros, fate.saturated, percent(fate.error), percent(fate.medianError), fate.bits].map((text) => h("td", {}, String(text))))));
    },
  };
}

// --- All together ---------------------------------------------------------------------------------

const TRAITS = ["tensor", "element", "block", "scale", "scale_mode", "rounding", "hadamard", "seed", "number"];

// The row and the largest magnitude of its tensor: float32 in base64.
export function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const numbers = [...new Float32Array(bytes.buffer)];
  return { row: numbers.slice(0, -1), amax: numbers.at(-1) };
}

function readState(get) {
  const [tensor, element, block, scale, mode, rounding, hadamard, seed, number] = TRAITS.map(get), formats = get("formats");
  const { row, amax } = unpacked(get("rows").find(({ name }) => name === tensor).values[hadamard ?? "None"]);
  const keys = rounding === "stochastic" ? keysOf([seed, 0]) : null;
  const described = (choices) => ({
    element: formats[choices.element], scale: formats[choices.scale], block: choices.block, mode, tensorScale: choices.scale === E4M3,
  });
  const become = (format) => quantise(row, amax, format, keys);
  const format = described({ element, block, scale }), quantised = become(format), presets = get("presets");
  const others = presets.map(([name, choices]) => ({ name, fate: fateOf(row, become(described(choices)), described(choices)) }));
  const [preset] = presets.find(([, c]) => c.element === element && c.block === block && c.scale === scale) ?? [null];
  return { tensor, row, amax, format, mode, rounding, hadamard, seed, number, quantised, fate: fateOf(row, quantised, format), others, preset };
}

function render({ model, el }) {
  const act = (changes) => change(model, changes);
  const get = (name) => model.get(name);
  const elements = get("elements").map((name) => get("formats")[name]);
  const parts = [controls(act, get("rows"), get("presets"), elements), facts(), chart(act), steps(), comparison()];
  return present({ model, el }, { name: "Block explorer", traits: TRAITS, parts, state: () => readState(get), later: queueMicrotask }).remove;
}

export default { render };
