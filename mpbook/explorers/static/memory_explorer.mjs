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

function optimizing({ rule, hidden_rule: hidden }, { outside, block }, bytes) {
  const matrices = block.filter(([, columns]) => columns);
  if (!hidden) {
    const all = [...outside, ...block];
    return { state: keeps(rule, all, bytes), atStep: makes(rule, all, bytes) };
  }
  const rest = [...outside, ...block.filter(([, columns]) => !columns)];
  return {
    state: keeps(rule, rest, bytes) + keeps(hidden, matrices, bytes),
    atStep: Math.max(makes(rule, rest, bytes), makes(hidden, matrices, bytes)),
  };
}

// The tensors outside of the blocks and those of one block, on the first of t GPUs that share each matrix; and
// how many gradients more the matrix has that embedding and output share.
function weightsOf(shape, t) {
  const { vocabulary, context, heads, width: w } = shape, rows = Math.ceil(vocabulary / t), v = w / t;
  if (!("hidden" in shape)) {
    return {
      outside: [[rows, w, 1], [context, w, 1], [w, 0, 2]],
      block: [[3 * v, w, 1], [w, v, 1], [4 * v, w, 1], [w, 4 * v, 1], [w, 0, 2], [3 * v, 0, 1], [4 * v, 0, 1], [w, 0, 4]],
      shared: 2,
    };
  }
  const { key_value_heads, hidden, tied, experts } = shape, h = Math.ceil(hidden / t), k = (key_value_heads * (w / heads)) / t;
  const mlps = Array.from({ length: experts }, () => [[h, w, 2], [w, h, 1]]).flat();
  const block = [[v, w, 1], [k, w, 2], [w, v, 1], ...(experts > 1 ? [[experts, w, 1]] : []), ...mlps, [w, 0, 2]];
  return { outside: [[rows, w, tied ? 1 : 2], [w, 0, 1]], block, shared: tied ? 2 : 0 };
}

const times = (sizes, layers) => sizes.map(([rows, columns, n]) => [rows, columns, n * layers]);

// What rank 0 has under fully_shard: a chunk of the rows. Its shards of weights and gradients are those of every
// rank, with padding.
const shards = (sizes, ranks) => sizes.map(([rows, columns, n]) => [Math.ceil(rows / ranks), columns, n]);

// Whose state rank 0 has under ZeroRedundancyOptimizer: the largest left goes to the rank with the fewest numbers.
function assigned({ outside, block }, layers, ranks) {
  const single = (sizes) => sizes.flatMap(([rows, columns, n]) => Array.from({ length: n }, () => [rows, columns, 1]));
  const each = single(block), own = { outside: [], block: [] };
  const all = [...single(outside).map((size) => ["outside", size])];
  for (let layer = 0; layer < layers; layer += 1) all.push(...each.map((size) => ["block", size]));
  all.sort(([, a], [, b]) => numbersOf(b) - numbersOf(a));
  const loads = new Float64Array(ranks);
  for (const [part, size] of all) {
    let least = 0;
    for (let rank = 1; rank < ranks; rank += 1) if (loads[rank] < loads[least]) least = rank;
    loads[least] += numbersOf(size);
    if (least === 0) own[part].push(size);
  }
  return own;
}

const sharding = ({ ranks, strategy }) => ranks > 1 && (strategy === "zero2" || strategy === "fsdp2");

// What the optimizer of rank 0 updates: its state, what its step makes, and of how many numbers. The batch
// changes nothing of it.
export function ownedBy({ shape, p, rules, parallel }) {
  const { layers } = shape, local = weightsOf(shape, parallel.tensor);
  let own = { outside: local.outside, block: times(local.block, layers) };
  if (sharding(parallel)) own = { outside: shards(own.outside, parallel.ranks), block: shards(own.block, parallel.ranks) };
  else if (parallel.ranks > 1 && parallel.strategy === "zero1") own = assigned(local, layers, parallel.ranks);
  return { ...optimizing(rules, own, p.state_bytes), numbers: sum([...own.outside, ...own.block], numbersOf) };
}

// The parts of a model on one of t GPUs that share its matrices: what a block and what comes after the last one save, the casts of a
// block's matrices, and what its backward pass makes for a moment. Bytes of a number: s in the stream, c in what
// is computed with.
function gptParts({ vocabulary, heads, width: w }, tokens, time, s, c, t) {
  const v = w / t, rows = Math.ceil(vocabulary / t);
  return {
    block: tokens * ((2 * s + 2 * c) * w + 12 * c * v + 16 + (4 * heads) / t),
    last: tokens * ((s + c) * w + 8) + 8 * time,
    made: tokens * (s * w + 4 * c * v - 4 * rows - (c + s) * w) + s * (rows * w + 4 * w * v),
  };
}

function decoderParts(shape, tokens, time, s, c, t) {
  const { vocabulary, heads, width: w, key_value_heads, hidden, experts, experts_per_token } = shape;
  const v = w / t, k = (key_value_heads * (w / heads)) / t, h = Math.ceil(hidden / t), rows = Math.ceil(vocabulary / t);
  const mixed = s !== c, choose = experts > 1, taken = tokens * experts_per_token;
  const mlp = choose ? taken * (24 + 4 + s + ((mixed ? 2 : 1) * c + c + s) * w + 4 * c * h) : tokens * 4 * c * h;
  const inputs = mixed ? 3 + (choose ? 1 : 2) : 2;
  return {
    block: tokens * (4 * s * w + 2 * s + inputs * c * w + 2 * c * v + 2 * c * k + (4 * heads) / t) + mlp + (mixed ? 2 * time * (w / heads) * c : 0),
    last: tokens * ((2 * s + c) * w + s),
    made: tokens * (2 * s * w + Math.floor((3 * c * h * experts_per_token) / experts) - 4 * rows - (c + 2 * s) * w) + s * (rows * w + w * h),
  };
}

// What a step holds on rank 0 of a GPU, in bytes. `p` says how many bytes a number has: in the residual stream
// and the weights, in what is computed with, in the optimizer's state, and in what is kept beside.
// `rules` are the optimizer's, `parts` the micro-batches that make a step, `owned` is `ownedBy` of the same.
export function planMemory({ shape, batch, time, parts, p, checkpointing, parallel, owned }) {
  const { vocabulary, layers, width: w } = shape, { ranks, strategy, tensor } = parallel;
  const cut = sharding(parallel), stored = p.parameter_bytes, c = p.compute_bytes;
  const s = cut ? c : stored, mixed = s !== c; // fully_shard casts whole blocks, autocast leaves the stream
  const tokens = batch * time, rows = Math.ceil(vocabulary / tensor);
  const whole = weightsOf(shape, 1), local = weightsOf(shape, tensor);
  const model = ("hidden" in shape ? decoderParts : gptParts)(shape, tokens, time, s, c, tensor), { block } = model;
  const numbers = (weights) => sum(weights.outside, numbersOf) + layers * sum(weights.block, numbersOf);
  const held = cut ? { outside: shards(local.outside, ranks), block: shards(local.block, ranks) } : local;
  const bytes = stored * numbers(held);

  const casts = mixed ? c * sum(local.block.filter(([, columns]) => columns), numbersOf) : 0;
  const last = model.last + tokens * (4 * rows + 16 * parts) + 4 + (p.loss_scale ? 4 : 0);
  const output = mixed ? rows * w * c : 0;
  const again = block + casts - s * tokens * w;
  const ofABlock = checkpointing ? s * tokens * w : block;
  const shared = cut ? 0 : (local.shared + (parts > 1 ? 1 : 0)) * stored * rows * w;

  const found = {
    count: numbers(whole),
    parameters: bytes,
    masterCopies: p.kept_bytes * owned.numbers,
    gradients: bytes,
    heldGradients: parts > 1 ? bytes : 0,
    state: owned.state,
    buckets: ranks > 1 && !cut ? bytes : 0,
    casts: output + (checkpointing ? 0 : layers * casts),
    activations: last + layers * ofABlock,
    ofABlock,
    atLoss: 8 * tokens * rows,
    atBlock: model.made - output + (checkpointing ? again : 0),
    atUpdate: Math.max(shared, owned.atStep + p.copied_bytes * owned.numbers),
    gatheredAtLoss: 0,
    gatheredAtBlock: 0,
    exchanges: [],
  };
  if (cut) Object.assign(found, exchanges(local, layers, ranks, strategy, { kept: stored, compute: c, tied: local.shared ? rows * w : 0 }));
  return { ...found, ...peaks(found) };
}

// The moments at which fully_shard gathers weights and adds gradients up: mpbook/cost/rank_memory.py. Gradients
// are added up in float32.
const REDUCED = 4;

function exchanges({ outside, block }, layers, ranks, strategy, { kept, compute, tied }) {
  const unit = (sizes) => {
    const padded = sum(shards(sizes, ranks), numbersOf), whole = compute * ranks * padded;
    const made = compute * sum(sizes, numbersOf), sent = REDUCED * ranks * padded;
    return { padded, whole, made, sent, adding: sent + Math.max(made, (REDUCED + (kept === REDUCED ? 0 : kept)) * padded) };
  };
  const inner = unit(block), outer = unit(outside), all = strategy === "zero2";
  const gathered = (number) => outer.whole + (all ? number : Math.min(number, 2)) * inner.whole;
  const afterForward = all ? gathered(layers) : outer.whole;
  const came = 2 * inner.whole + (layers > 1 ? inner.whole : outer.whole) - (all ? inner.whole : 0);
  const found = [{ moment: "the gather", blocks: layers - 1, gathered: afterForward + came, gradients: 0, buffers: 0 }];
  const reduction = (blocks, weights, done, buffers) =>
    found.push({ moment: "the reduction", blocks, gathered: weights, gradients: done * kept * inner.padded, buffers });
  for (const done of new Set([0, Math.min(1, layers - 1), layers - 1])) {
    const number = layers - done;
    reduction(number - 1, gathered(number), done, outer.made + (done ? inner.sent : 0) + inner.made);
    reduction(number - 1, gathered(number) - inner.whole, done, outer.made + inner.adding);
  }
  reduction(0, gathered(0), layers, outer.made + 2 * compute * tied + inner.sent);
  reduction(0, 0, layers, outer.adding);
  return { gatheredAtLoss: afterForward, gatheredAtBlock: gathered(layers), exchanges: found };
}

const total = (parts) => Object.values(parts).reduce((a, b) => a + b, 0);

// The moment of the peak, its height and its categories, as MemoryPlan.at_peak names them.
function peaks(parts) {
  const kept = { parameters: parts.parameters, "master copies": parts.masterCopies, "optimizer state": parts.state, "reduce buffers": parts.buckets };
  const backward = (gathered, temporaries) => ({
    ...kept, gradients: parts.heldGradients, "gathered weights": gathered,
    "weight casts": parts.casts, activations: parts.activations, "backward, for a moment": temporaries,
  });
  const moments = [
    ["the update", { ...kept, gradients: parts.gradients, "update, for a moment": parts.atUpdate }],
    ["the loss", backward(parts.gatheredAtLoss, parts.atLoss)],
    ["the last block", backward(parts.gatheredAtBlock, parts.atBlock)],
    ...parts.exchanges.map((at) => [at.moment, {
      ...kept, gradients: parts.heldGradients || at.gradients, "gathered weights": at.gathered,
      activations: at.blocks * parts.ofABlock, "reduce buffers": at.buffers,
    }]),
  ];
  const [moment, atPeak] = moments.reduce((a, b) => (total(b[1]) > total(a[1]) ? b : a));
  return { peak: total(atPeak), moment, atPeak };
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
  return `${s.name} with ${times}${inWords(s.batch, "sequence")} of ${inWords(s.time, "token")}, ${how}${spread(s)}: ${size(s.plan.peak)} at ${s.plan.moment}, `
    + `${percent(bytes / s.plan.peak)} of it ${most}. `
    + (fits.length ? `It fits on ${fits[0][0]}.` : "It fits on none of the devices listed.") + indivisible(s);
}

// Over how many GPUs, and how.
function spread({ parallel: { ranks, strategy, tensor } }) {
  if (ranks * tensor === 1) return "";
  const how = [ranks > 1 ? `${strategy} over ${ranks} ranks` : "", tensor > 1 ? `each matrix over ${tensor}` : ""];
  return `, on each of ${ranks * tensor} GPUs (${how.filter(Boolean).join(", ")})`;
}

const headsOf = (shape) => shape.key_value_heads ?? shape.heads;

function indivisible({ shape, wanted }) {
  const heads = headsOf(shape);
  return heads % wanted ? ` ${wanted} GPUs do not divide ${inWords(heads, "head")}${"hidden" in shape ? " of keys and values" : ""}.` : "";
}

export function readState(get) {
  const [shape, batch, time, precision, optimizer] = ["shape", "batch", "sequence", "precision", "optimizer"].map(get);
  const [precisions, presets, room, checkpointing] = ["precisions", "presets", "room", "checkpointing"].map(get);
  const parts = get("accumulation_steps"), beside = get("beside");
  const rules = get("optimizers").find((one) => one.name === optimizer);
  const p = precisions.find((one) => one.name === precision);
  const devices = get("devices").map(([label, gib, short]) => [p.bfloat16 ? short : label, gib]).filter(([label]) => label);
  const keys = Object.keys(shape);
  const same = presets.find(([, known]) => Object.keys(known).length === keys.length && keys.every((key) => known[key] === shape[key]));
  const kind = "hidden" in shape ? "decoder" : "GPT";
  const name = same ? same[0] : `A ${kind} of ${inWords(shape.layers, "block")} and width ${shape.width}`;
  const wanted = get("tensor_parallel");
  const parallel = { ranks: get("ranks"), strategy: get("strategy"), tensor: commonDivisor(wanted, headsOf(shape)) };
  const options = { shape, batch, time, parts, p, checkpointing, parallel, owned: ownedBy({ shape, p, rules, parallel }) };
  return { ...options, precision, optimizer, devices, room, beside, name, wanted, options, plan: planMemory(options) };
}

const commonDivisor = (a, b) => (b ? commonDivisor(b, a % b) : a);

const LONGEST = 4096; // tokens that a preset begins with, though its context may be longer

// --- Parts ------------------------------------------------------------------------------------------------------

const LIMITS = { layers: [1, 200], width: [64, 16384], vocabulary: [1, 300000], batch: [1, 4096], accumulation_steps: [1, 1024], ranks: [1, 4096] };
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

function controls(act, { precisions, optimizers, presets, strategies, tensors }) {
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
  const ranks = number({ min: 1, max: LIMITS.ranks[1] }, (field) => {
    const value = whole(field, ...LIMITS.ranks);
    act({ ranks: value });
    field.value = value;
  });
  const strategy = chooser("Strategy", strategies, (value) => act({ strategy: value }));
  const tensor = chooser("Tensor parallel", tensors.map((n) => [n, String(n)]), (value) => act({ tensor_parallel: Number(value) }));
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
      h("div", { class: "mp-row mp-shape" }, labelled("Ranks", ranks), strategy.el, tensor.el),
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
      show(ranks, s.parallel.ranks);
      strategy.select.value = s.parallel.strategy;
      strategy.select.disabled = s.parallel.ranks === 1;
      tensor.select.value = String(s.wanted);
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
  "weight casts", "activations", "backward, for a moment", "reduce buffers", "gathered weights"];
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

const TRAITS = ["shape", "batch", "sequence", "accumulation_steps", "precision", "optimizer", "checkpointing", "ranks", "strategy", "tensor_parallel"];

function render({ model, el }) {
  const act = (changes) => change(model, changes);
  const get = (name) => model.get(name);
  const choices = { precisions: get("precisions"), optimizers: get("optimizers").map(({ name }) => name), presets: get("presets"), strategies: get("strategies"), tensors: get("tensors") };
  const parts = [controls(act, choices), words(), bar(), tables()];
  return present({ model, el }, { name: "Memory planner", traits: TRAITS, parts, state: () => readState(get), later: queueMicrotask }).remove;
}

export default { render };
