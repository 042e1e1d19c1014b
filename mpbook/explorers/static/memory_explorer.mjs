// The memory planner: one module for Jupyter (anywidget's `_esm`) and for the built page (mount.js).
// Choose a model, a batch and a precision, and see where every byte of a training step goes, and where it
// fits. The formulas are those of mpbook/cost/gpt_plan.py and decoder_plan.py, which the tests prove equal, as
// is the sentence.

import { button, change, chooser, clamp, h, labelled, present, say } from "./kit.mjs";
import { digits, percent } from "./census.mjs";

// --- The formula --------------------------------------------------------------------------------------------

export const GIB = 2 ** 30;

// Tensors are listed as [rows, columns, times], a vector with 0 columns.
const numbersOf = ([rows, columns]) => rows * (columns || 1);
const sum = (sizes, of) => sizes.reduce((total, size) => total + size[2] * of(size), 0);

// What a rule of an optimizer keeps for tensors, and what its step makes for itself. Newton-Schulz holds a
// hidden matrix, and in bfloat16 two more of them and two square ones.
function keeps(rule, sizes, bytes) {
  const each = (size) => {
    const [rows, columns] = size, n = numbersOf(size);
    if (rule.keeps === "factors") return bytes * (columns ? rows + columns : n);
    if (rule.keeps === "8 bits") return rule.state_tensors * (n < 4096 ? 4 * n : n + 4 * Math.ceil(n / 256));
    return rule.state_tensors * n * bytes;
  };
  return sum(sizes, (size) => each(size) + (rule.counts_steps ? 4 : 0));
}

function makes(rule, sizes, bytes) {
  const matrices = sizes.filter(([, columns]) => columns);
  const most = (of) => Math.max(0, ...matrices.map(of));
  if (rule.allocates === "denominators") return bytes * sum(sizes, numbersOf);
  if (rule.allocates === "estimates") return bytes * most(numbersOf);
  if (rule.allocates !== "Newton-Schulz") return 0;
  return most((size) => (bytes + 4) * numbersOf(size) + 4 * Math.min(size[0], size[1]) ** 2);
}

function optimizing({ rule, hidden_rule: hidden }, { outside, matrices }, layers, bytes) {
  const inside = matrices.map(([rows, columns, times]) => [rows, columns, times * layers]);
  if (!hidden) {
    const all = [...outside, ...inside];
    return { state: keeps(rule, all, bytes), atStep: makes(rule, all, bytes) };
  }
  return {
    state: keeps(rule, outside, bytes) + keeps(hidden, inside, bytes),
    atStep: Math.max(makes(rule, outside, bytes), makes(hidden, inside, bytes)),
  };
}

// The parts of a model: the matrices of a block and the tensors outside of them, what a block and what comes
// after the last one save, the casts of a block's matrices, what its backward pass makes for a
// moment, and how many gradients more the matrices at the ends have. Bytes of a number: s in the stream, c in
// what is computed with.
function gptParts({ vocabulary, context, layers, heads, width: w }, tokens, time, s, c) {
  return {
    outside: [[vocabulary, w, 1], [context, w, 1], [w, 0, 2 + 6 * layers], [3 * w, 0, layers], [4 * w, 0, layers]],
    matrices: [[3 * w, w, 1], [w, w, 1], [4 * w, w, 1], [w, 4 * w, 1]],
    block: tokens * ((2 * s + 14 * c) * w + 16 + 4 * heads),
    casts: 12 * w * w * c,
    last: tokens * ((s + c) * w + 8) + 8 * time,
    made: tokens * ((s + 4 * c) * w - 4 * vocabulary - (c + s) * w) + s * (vocabulary * w + 4 * w * w),
    shared: 2,
  };
}

function decoderParts(shape, tokens, time, s, c) {
  const { vocabulary, layers, heads, width: w, key_value_heads, hidden: h, tied, experts, experts_per_token } = shape;
  const k = key_value_heads * (w / heads), rows = tokens * experts_per_token, mixed = s !== c, choose = experts > 1;
  const matrices = [[w, w, 2], [k, w, 2], ...(choose ? [[experts, w, 1]] : []), [h, w, 2 * experts], [w, h, experts]];
  const mlp = choose ? rows * (24 + 4 + s + ((mixed ? 2 : 1) * c + c + s) * w + 4 * c * h) : tokens * 4 * c * h;
  const inputs = mixed ? 3 + (choose ? 1 : 2) : 2;
  return {
    outside: [[vocabulary, w, tied ? 1 : 2], [w, 0, 2 * layers + 1]],
    matrices,
    block: tokens * (4 * s * w + 2 * s + inputs * c * w + 2 * c * w + 2 * c * k + 4 * heads) + mlp + (mixed ? 2 * time * (w / heads) * c : 0),
    casts: c * sum(matrices, numbersOf),
    last: tokens * ((2 * s + c) * w + s),
    made: tokens * (2 * s * w + Math.floor((3 * c * h * experts_per_token) / experts) - 4 * vocabulary - (c + 2 * s) * w) + s * (vocabulary * w + w * h),
    shared: tied ? 2 : 0,
  };
}

// What a step holds on a GPU, in bytes. `p` says how many bytes a number has: in the residual stream
// and the weights, in what is computed with, in the optimizer's state, and in what is kept beside.
// `rules` are the optimizer's, `parts` the micro-batches that make a step.
export function planMemory({ shape, batch, time, parts, p, rules, checkpointing }) {
  const { vocabulary, layers, width: w } = shape;
  const s = p.parameter_bytes, c = p.compute_bytes, mixed = s !== c;
  const tokens = batch * time;
  const model = ("hidden" in shape ? decoderParts : gptParts)(shape, tokens, time, s, c);
  const count = sum(model.outside, numbersOf) + layers * sum(model.matrices, numbersOf), { block } = model;
  const { state, atStep } = optimizing(rules, model, layers, p.state_bytes);

  const casts = mixed ? model.casts : 0;
  const last = model.last + tokens * (4 * vocabulary + 16 * parts) + 4 + (p.loss_scale ? 4 : 0);
  const output = mixed ? vocabulary * w * c : 0;
  const again = block + casts - s * tokens * w;

  const found = {
    count,
    parameters: s * count,
    masterCopies: p.kept_bytes * count,
    gradients: s * count,
    heldGradients: parts > 1 ? s * count : 0,
    state,
    casts: output + (checkpointing ? 0 : layers * casts),
    activations: last + layers * (checkpointing ? s * tokens * w : block),
    atLoss: 8 * tokens * vocabulary,
    atBlock: model.made - output + (checkpointing ? again : 0),
    atUpdate: Math.max((model.shared + (parts > 1 ? 1 : 0)) * s * vocabulary * w, atStep + p.copied_bytes * count),
  };
  return { ...found, ...peaks(found) };
}

// The moment of the peak, its height and its categories, as MemoryPlan.at_peak names them.
function peaks(parts) {
  const kept = parts.parameters + parts.masterCopies + parts.state;
  const saved = kept + parts.heldGradients + parts.casts + parts.activations;
  const update = kept + parts.gradients + parts.atUpdate;
  const peak = Math.max(saved + parts.atLoss, saved + parts.atBlock, update);
  const stay = { parameters: parts.parameters, "master copies": parts.masterCopies, "optimizer state": parts.state };
  if (update === peak) {
    return { peak, moment: "the update", atPeak: { ...stay, gradients: parts.gradients, "update, for a moment": parts.atUpdate } };
  }
  return {
    peak, moment: saved + parts.atLoss === peak ? "the loss" : "the last block",
    atPeak: { ...stay, gradients: parts.heldGradients, "weight casts": parts.casts, activations: parts.activations, "backward, for a moment": peak - saved },
  };
}

// The largest batch whose peak fits into so many bytes, 0 if none does.
export function largestBatch(budget, options) {
  const fits = (batch) => planMemory({ ...options, batch }).peak <= budget;
  let high = 1;
  while (fits(high)) high *= 2;
  let low = Math.floor(high / 2);
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (fits(middle)) low = middle;
    else high = middle;
  }
  return low;
}

// --- In words -------------------------------------------------------------------------------------------------

export function size(bytes) {
  const [unit, name] = bytes >= GIB ? [GIB, "GiB"] : bytes >= 2 ** 20 ? [2 ** 20, "MiB"] : [2 ** 10, "KiB"];
  return `${digits(bytes / unit, 3)} ${name}`;
}

const inWords = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;

export function sentence(s) {
  const fits = s.devices.filter(([, gib]) => s.plan.peak <= s.room * gib * GIB);
  const times = s.parts > 1 ? `${s.parts} times ` : "";
  const how = s.checkpointing ? `${s.precision}, ${s.optimizer} and checkpointing` : `${s.precision} and ${s.optimizer}`;
  const [most, bytes] = Object.entries(s.plan.atPeak).reduce((a, b) => (b[1] > a[1] ? b : a));
  return `${s.name} with ${times}${inWords(s.batch, "sequence")} of ${inWords(s.time, "token")}, ${how}: ${size(s.plan.peak)} at ${s.plan.moment}, `
    + `${percent(bytes / s.plan.peak)} of it ${most}. `
    + (fits.length ? `It fits on ${fits[0][0]}.` : "It fits on none of the devices listed.");
}

export function readState(get) {
  const [shape, batch, time, precision, optimizer] = ["shape", "batch", "sequence", "precision", "optimizer"].map(get);
  const [precisions, presets, devices, room, checkpointing] = ["precisions", "presets", "devices", "room", "checkpointing"].map(get);
  const parts = get("accumulation_steps"), beside = get("beside");
  const rules = get("optimizers").find((one) => one.name === optimizer);
  const p = precisions.find((one) => one.name === precision);
  const keys = Object.keys(shape);
  const same = presets.find(([, known]) => Object.keys(known).length === keys.length && keys.every((key) => known[key] === shape[key]));
  const kind = "hidden" in shape ? "decoder" : "GPT";
  const name = same ? same[0] : `A ${kind} of ${inWords(shape.layers, "block")} and width ${shape.width}`;
  const options = { shape, batch, time, parts, p, rules, checkpointing };
  return { ...options, precision, optimizer, devices, room, beside, name, options, plan: planMemory(options) };
}

const LONGEST = 4096; // tokens that a preset begins with, though its context may be longer

// --- Parts ------------------------------------------------------------------------------------------------------

const LIMITS = { layers: [1, 200], width: [64, 16384], vocabulary: [1, 300000], batch: [1, 4096], accumulation_steps: [1, 1024] };
const HEAD = 64; // GPT-2's width of a head, in every size

// A shape of another width: with as many heads of the same width, and groups and MLP in proportion.
export function ofWidth(shape, wanted) {
  if (!("hidden" in shape)) {
    const heads = Math.max(1, Math.round(wanted / HEAD));
    return { ...shape, width: heads * HEAD, heads };
  }
  const head = shape.width / shape.heads, group = shape.heads / shape.key_value_heads;
  const groups = Math.max(1, Math.round(wanted / (head * group)));
  const width = groups * group * head;
  const hidden = Math.max(1, Math.round((shape.hidden * width) / shape.width));
  return { ...shape, width, heads: groups * group, key_value_heads: groups, hidden };
}

function controls(act, { precisions, optimizers, presets }) {
  let now = null;
  const whole = (field, low, high) => clamp(Math.round(Number(field.value)) || low, low, high);
  const number = (attributes, changed) => {
    const field = h("input", { type: "number", step: 1, class: "mp-count", ...attributes });
    field.addEventListener("change", () => changed(field));
    return field;
  };
  const part = (key) => number({ min: LIMITS[key][0], max: LIMITS[key][1] }, (field) => {
    const value = whole(field, ...LIMITS[key]);
    act({ shape: { ...now.shape, [key]: value } });
    field.value = value;
  });
  const layers = part("layers"), vocabulary = part("vocabulary");
  const width = number({ min: HEAD, max: LIMITS.width[1], step: HEAD }, (field) => {
    const shape = ofWidth(now.shape, whole(field, ...LIMITS.width));
    act({ shape });
    field.value = shape.width;
  });
  const time = number({ min: 1, max: 131072 }, (field) => {
    const value = whole(field, 1, 131072);
    act({ sequence: value, shape: { ...now.shape, context: Math.max(value, now.shape.context) } });
    field.value = value;
  });
  const batch = number({ min: 1, max: LIMITS.batch[1] }, (field) => {
    const value = whole(field, ...LIMITS.batch);
    act({ batch: value });
    field.value = value;
  });
  const parts = number({ min: 1, max: LIMITS.accumulation_steps[1] }, (field) => {
    const value = whole(field, ...LIMITS.accumulation_steps);
    act({ accumulation_steps: value });
    field.value = value;
  });
  const slider = h("input", { type: "range", min: 0, max: 12, step: 1, class: "mp-slider" });
  slider.addEventListener("input", () => act({ batch: 2 ** slider.value }));
  const precision = chooser("Precision", precisions.map(({ name }) => [name, name]), (value) => act({ precision: value }));
  const optimizer = chooser("Optimizer", optimizers.map((name) => [name, name]), (value) => act({ optimizer: value }));
  const box = h("input", { type: "checkbox", class: "mp-check" });
  box.addEventListener("change", () => act({ checkpointing: box.checked }));
  const buttons = presets.map(([name, shape]) => button(name, () => act({ shape, sequence: Math.min(shape.context, LONGEST) })));
  return {
    el: h("div", { class: "mp-controls" },
      h("div", { class: "mp-row mp-presets", role: "group", "aria-label": "Models" }, ...buttons),
      h("div", { class: "mp-row mp-length" }, labelled("Sequences in the batch", slider), labelled("batch", batch), labelled("tokens of each", time), labelled("accumulation steps", parts)),
      h("div", { class: "mp-row mp-length" }, precision.el, optimizer.el,
        h("label", { class: "mp-control mp-tick" }, h("span", {}, "Checkpointing"), box)),
      h("div", { class: "mp-row mp-shape" }, labelled("Blocks", layers), labelled("Width", width), labelled("Vocabulary", vocabulary))),
    draw(s) {
      now = s;
      const show = (field, value) => { if (document.activeElement !== field || Number(field.value) !== value) field.value = value; };
      show(layers, s.shape.layers);
      show(width, s.shape.width);
      show(vocabulary, s.shape.vocabulary);
      show(time, s.time);
      show(batch, s.batch);
      show(parts, s.parts);
      slider.value = Math.round(Math.log2(s.batch));
      slider.setAttribute("aria-valuetext", inWords(s.batch, "sequence"));
      precision.select.value = s.precision;
      optimizer.select.value = s.optimizer;
      box.checked = s.checkpointing;
      buttons.forEach((b) => b.setAttribute("aria-pressed", String(b.textContent === s.name)));
    },
  };
}

function words() {
  const live = h("p", { "aria-live": "polite", class: "mp-said" });
  return { el: h("div", { class: "mp-words" }, live), draw(s) { say(live, sentence(s)); } };
}

const CATEGORIES = ["parameters", "master copies", "optimizer state", "gradients", "update, for a moment",
  "weight casts", "activations", "backward, for a moment"];
const kind = (name) => `mp-part-${CATEGORIES.indexOf(name)}`;

const BAR = 40, TOP = 16, HEIGHT = 82;

function bar() {
  const svg = h("svg", { role: "img", height: HEIGHT });
  let pixels = 640;
  let state = null;
  function paint() {
    const { plan, devices } = state;
    const sizes = devices.map(([, gib]) => gib);
    const end = 1.08 * (sizes.find((gib) => gib * GIB >= plan.peak) ?? plan.peak / GIB);
    const x = (bytes) => (bytes / GIB / end) * pixels;
    let from = 0;
    const rects = Object.entries(plan.atPeak).filter(([, bytes]) => bytes > 0).map(([name, bytes]) => {
      const rect = h("rect", { class: `mp-bytes ${kind(name)}`, x: x(from).toFixed(1), y: TOP, height: BAR, width: Math.max(x(bytes), 0.5).toFixed(1) });
      from += bytes;
      return rect;
    });
    let last = -100;
    const marks = sizes.filter((gib) => gib <= end).flatMap((gib) => {
      const at = x(gib * GIB);
      const line = h("line", { class: "mp-axis", x1: at, x2: at, y1: TOP - 8, y2: TOP + BAR + 8 });
      if (at - last < 64) return [line];
      last = at;
      return [line, h("text", { class: "mp-axis-label", x: clamp(at, 30, pixels - 30), y: HEIGHT - 4, "text-anchor": "middle" }, `${digits(gib, 3)} GiB`)];
    });
    svg.setAttribute("viewBox", `0 0 ${pixels} ${HEIGHT}`);
    svg.setAttribute("aria-label", `${size(plan.peak)} at the peak, in parts that the table lists`);
    svg.replaceChildren(...rects, ...marks);
  }
  return {
    el: h("div", { class: "mp-chart" }, svg),
    draw(s) { state = s; paint(); },
    resize(width) {
      pixels = Math.max(Math.round(width), 240);
      if (state) paint();
    },
  };
}

const table = (caption, heads, body) =>
  h("table", { class: "mp-table" }, h("caption", {}, caption), h("thead", {}, h("tr", {}, ...heads.map((text) => h("th", { scope: "col" }, text)))), body);
const row = (head, ...texts) => h("tr", {}, h("th", { scope: "row" }, ...head), ...texts.map((text) => h("td", {}, text)));

function tables() {
  const parts = h("tbody"), fits = h("tbody"), beside = h("tbody");
  return {
    el: h("div", { class: "mp-plan" },
      table("At the peak", ["", "bytes", "share"], parts),
      table("Beside it, as others state it", ["", "bytes"], beside),
      table("A tenth left free", ["device", "fits", "largest batch"], fits)),
    draw(s) {
      const { plan } = s;
      parts.replaceChildren(...Object.entries(plan.atPeak).filter(([, bytes]) => bytes > 0).map(([name, bytes]) =>
        row([h("span", { class: `mp-swatch ${kind(name)}` }), name], size(bytes), percent(bytes / plan.peak))));
      beside.replaceChildren(...s.beside.map(([name, bytes]) => row([name], size(bytes))));
      fits.replaceChildren(...s.devices.map(([name, gib]) => {
        const room = s.room * gib * GIB;
        return row([name], plan.peak <= room ? "yes" : "no", String(largestBatch(room, s.options)));
      }));
    },
  };
}

// --- All together -----------------------------------------------------------------------------------------------

const TRAITS = ["shape", "batch", "sequence", "accumulation_steps", "precision", "optimizer", "checkpointing"];

function render({ model, el }) {
  const act = (changes) => change(model, changes);
  const get = (name) => model.get(name);
  const choices = { precisions: get("precisions"), optimizers: get("optimizers").map(({ name }) => name), presets: get("presets") };
  const parts = [controls(act, choices), words(), bar(), tables()];
  return present({ model, el }, { name: "Memory planner", traits: TRAITS, parts, state: () => readState(get), later: queueMicrotask }).remove;
}

export default { render };
