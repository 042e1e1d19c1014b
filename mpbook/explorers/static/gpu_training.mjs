// A real training on a GPU: a net of 64, 64 and 10 learns digits by plain SGD, with its weights,
// activations and gradients in float32 or float16, sums in float32. Losses are known as they are made.

import { fromHalf, randomNumbers, toHalf } from "./half.mjs";
import { compile, memory, read, submit, uniform } from "./gpu.mjs";

export const BATCH = 64;
const HIDDEN = 64, W2 = 64 * HIDDEN + HIDDEN, B1 = 64 * HIDDEN, B2 = W2 + 10 * HIDDEN;
export const PARAMETERS = B2 + 10;
const ROW = 64 + 2 * HIDDEN + 10; // of an example: inputs, hidden, gradients of hidden, of logits

// How a number is kept. Without shader-f16 a half lies packed in a word, and the rest is the same.
export const STORAGE = {
  float32: { T: "f32", get: "x", put: "x", enable: "" },
  float16: { T: "f16", get: "f32(x)", put: "f16(x)", enable: "enable f16;" },
  packed: { T: "u32", get: "unpack2x16float(x).x", put: "pack2x16float(vec2f(x, 0.0))", enable: "" },
};

// --- Shaders --------------------------------------------------------------------------------------------

const common = ({ T, get, put, enable }) => `${enable}
struct Settings { rate: f32, scale: f32, master: u32, unused: u32 }
@group(0) @binding(0) var<storage, read> pixels : array<u32>;
@group(0) @binding(1) var<storage, read> order : array<u32>;
@group(0) @binding(2) var<storage, read_write> w : array<${T}>;
@group(0) @binding(3) var<storage, read_write> master : array<f32>;
@group(0) @binding(4) var<storage, read_write> acts : array<${T}>;
@group(0) @binding(5) var<storage, read_write> losses : array<f32>;
@group(0) @binding(6) var<storage, read_write> counts : array<atomic<u32>>; // the step; then per step: updates, lost ones, gradients of 0
@group(0) @binding(7) var<uniform> s : Settings;
fn wide(x: ${T}) -> f32 { return ${get}; }
fn kept(x: f32) -> ${T} { return ${put}; }`;

// A workgroup per example goes forward and back. The softmax is in float32, as under autocast.
const example = (kind) => `${common(kind)}
var<workgroup> h : array<${kind.T}, ${HIDDEN}>;
var<workgroup> z : array<${kind.T}, 10>;
var<workgroup> d : array<${kind.T}, 10>;
@compute @workgroup_size(${HIDDEN}) fn main(@builtin(workgroup_id) g: vec3u, @builtin(local_invocation_index) j: u32) {
  let step = atomicLoad(&counts[0]);
  let at = order[step * ${BATCH}u + g.x] * 17u;
  let row = g.x * ${ROW}u;
  var t = wide(w[${B1}u + j]);
  for (var i = 0u; i < 64u; i++) {
    let x = kept(f32((pixels[at + 1u + i / 4u] >> (8u * (i % 4u))) & 255u) * 0.0625);
    if (i == j) { acts[row + i] = x; }
    t += wide(x) * wide(w[i * ${HIDDEN}u + j]);
  }
  h[j] = kept(select(t, 0.0, t < 0.0)); // as max(t, 0), but keeps a NaN
  acts[row + 64u + j] = h[j];
  workgroupBarrier();
  if (j < 10u) {
    var o = wide(w[${B2}u + j]);
    for (var i = 0u; i < ${HIDDEN}u; i++) { o += wide(h[i]) * wide(w[${W2}u + i * 10u + j]); }
    z[j] = kept(o);
  }
  workgroupBarrier();
  if (j < 10u) {
    var top = wide(z[0]); for (var i = 1u; i < 10u; i++) { top = max(top, wide(z[i])); }
    var sum = 0.0; for (var i = 0u; i < 10u; i++) { sum += exp(wide(z[i]) - top); }
    let hit = j == pixels[at];
    if (hit) { losses[step * ${BATCH}u + g.x] = top + log(sum) - wide(z[j]); }
    d[j] = kept((exp(wide(z[j]) - top) / sum - select(0.0, 1.0, hit)) * s.scale * ${1 / BATCH});
    acts[row + ${64 + 2 * HIDDEN}u + j] = d[j];
  }
  workgroupBarrier();
  var e = 0.0;
  for (var i = 0u; i < 10u; i++) { e += wide(d[i]) * wide(w[${W2}u + j * 10u + i]); }
  acts[row + ${64 + HIDDEN}u + j] = kept(select(0.0, e, wide(h[j]) > 0.0));
}`;

// A thread per weight sums its gradient over the examples, and leaves it in memory: a shader that
// used it at once might use more bits than are stored.
const gradient = (kind) => `${common(kind)}
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) {
  let k = id.x;
  if (k >= ${PARAMETERS}u) { return; }
  var left = 0u; var right = ${64 + 2 * HIDDEN}u; // the columns of acts that the weight connects
  let bias = (k >= ${B1}u && k < ${W2}u) || k >= ${B2}u;
  if (k < ${B1}u) { left = k / ${HIDDEN}u; right = ${64 + HIDDEN}u + k % ${HIDDEN}u; }
  else if (k < ${W2}u) { right = ${64 + HIDDEN}u + k - ${B1}u; }
  else if (k < ${B2}u) { left = 64u + (k - ${W2}u) / 10u; right += (k - ${W2}u) % 10u; }
  else { right += k - ${B2}u; }
  var t = 0.0;
  for (var b = 0u; b < ${BATCH}u; b++) { t += select(wide(acts[b * ${ROW}u + left]), 1.0, bias) * wide(acts[b * ${ROW}u + right]); }
  acts[${BATCH * ROW}u + k] = kept(t);
}`;

// The loss scale leaves the gradient in float32. An update is lost if the stored weight stays as it was.
const update = (kind) => `${common(kind)}
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) {
  let k = id.x;
  if (k >= ${PARAMETERS}u) { return; }
  let at = 1u + 3u * atomicLoad(&counts[0]);
  let scaled = wide(acts[${BATCH * ROW}u + k]);
  if (scaled == 0.0) { atomicAdd(&counts[at + 2u], 1u); return; }
  let change = s.rate * scaled / s.scale;
  atomicAdd(&counts[at], 1u);
  let old = w[k];
  let before = select(wide(old), master[k], s.master == 1u);
  let after = before - change;
  master[k] = after;
  w[k] = kept(after);
  if (s.master == 0u && kept(after) == old) { atomicAdd(&counts[at + 1u], 1u); }
  if (s.master == 1u && after == before) { atomicAdd(&counts[at + 1u], 1u); }
}`;
const tick = (kind) => `${common(kind)}
@compute @workgroup_size(1) fn main() { atomicAdd(&counts[0], 1u); }`;

export const shaders = (storage) => [example, gradient, update, tick].map((code) => code(STORAGE[storage]));
const BINDINGS = ["read-only-storage", "read-only-storage", ...Array(5).fill("storage"), "uniform"];
const GRIDS = [[BATCH], [Math.ceil(PARAMETERS / 64)], [Math.ceil(PARAMETERS / 64)], [1]];

// --- What a training starts from: the same batches and weights for every kind --------------------------

// `digits` is {pixels, labels}: a letter from a to q a pixel, a digit a label.
export function start({ pixels, labels }, steps, seed = 1) {
  const random = randomNumbers(seed), words = new Uint32Array(labels.length * 17);
  for (let e = 0; e < labels.length; e++) {
    words[e * 17] = Number(labels[e]);
    for (let i = 0; i < 64; i++) words[e * 17 + 1 + (i >> 2)] |= (pixels.charCodeAt(e * 64 + i) - 97) << (8 * (i % 4));
  }
  const order = Uint32Array.from({ length: steps * BATCH }, () => Math.floor(random() * labels.length));
  const weights = Float32Array.from({ length: PARAMETERS }, () => (2 * random() - 1) / 8);
  return { words, order, weights, steps };
}

export function stored(storage, weights) {
  if (storage === "float32") return weights;
  return (storage === "packed" ? Uint32Array : Uint16Array).from(weights, (w) => toHalf(w));
}
export const settings = ({ rate, scale, master }) => {
  const view = new DataView(new ArrayBuffer(16));
  [rate, scale].forEach((value, i) => view.setFloat32(4 * i, value, true));
  view.setUint32(8, Number(master), true);
  return view.buffer;
};

// --- Training --------------------------------------------------------------------------------------------

export async function trainer(g, begin, { storage, rate, scale, master = false }) {
  const { words, order, weights, steps } = begin;
  const w = stored(storage, weights), width = storage === "float16" ? 2 : 4;
  const buffers = [words, order, w, weights, 4 * Math.ceil(((BATCH * ROW + PARAMETERS) * width) / 4), 4 * steps * BATCH, 4 * (1 + 3 * steps)].map((data) => memory(g, data));
  const knobs = uniform(g, settings({ rate, scale, master }));
  const kernels = await Promise.all(shaders(storage).map((code) => compile(g, code, [...buffers, knobs], BINDINGS)));
  kernels.forEach((kernel, i) => { kernel.grid = GRIDS[i]; });
  let done = 0;
  return {
    rescale: (to) => g.device.queue.writeBuffer(knobs, 0, settings({ rate, scale: to, master })),
    // Some steps more: what each of them came to, and how many weights are finite after them.
    async advance(count) {
      submit(g, kernels, count);
      const losses = await read(g, buffers[5], Float32Array, { from: 4 * done * BATCH, size: 4 * count * BATCH });
      const counts = await read(g, buffers[6], Uint32Array, { from: 4 + 12 * done, size: 12 * count });
      const finite = finiteWeights(storage, await read(g, buffers[2], Uint32Array));
      done += count;
      return { finite, steps: Array.from({ length: count }, (_, i) => ({
        loss: losses.subarray(i * BATCH, (i + 1) * BATCH).reduce((a, b) => a + b, 0) / BATCH,
        updates: counts[3 * i], lost: counts[3 * i + 1], zero: counts[3 * i + 2] })) };
    },
    weights: async () => {
      if (storage === "float32") return read(g, buffers[2], Float32Array);
      return Float32Array.from(await read(g, buffers[2], storage === "packed" ? Uint32Array : Uint16Array), fromHalf);
    },
    free: () => [...buffers, knobs].forEach((buffer) => buffer.destroy()),
  };
}

// By their bits, since a shader may take it that there is no NaN.
function finiteWeights(storage, words) {
  const [Type, exponent] = storage === "float32" ? [Uint32Array, 0x7f800000] : [storage === "packed" ? Uint32Array : Uint16Array, 0x7c00];
  return new Type(words.buffer).reduce((sum, code) => sum + Number((code & exponent) !== exponent), 0);
}
