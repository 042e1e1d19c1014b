// How fast a GPU's shader cores are: matrix products and a stream through memory, in 32 and 16 bits.

import { compare, compile, guarded, memory, read, submit } from "./gpu.mjs";
import { fromHalf } from "./half.mjs";

const enable = (...types) => (types.some((type) => /f16/.test(type)) ? "enable f16;" : "");

// --- Numbers that the page and the GPU make alike: multiples of 1/512 from -1 to 1, halves all ---------

export function numberAt(i, seed) {
  const mixed = (Math.imul(i, 2654435761) + seed) >>> 0;
  return (((mixed ^ (mixed >>> 15)) & 1023) - 512) / 512;
}
export const fill = (type, seed) => `${enable(type)}
@group(0) @binding(0) var<storage, read_write> y : array<${type}>;
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) n: vec3u) {
  let i = id.x + id.y * n.x * 64u;
  if (i >= arrayLength(&y)) { return; }
  let mixed = i * 2654435761u + ${seed}u;
  y[i] = ${type}(f32(i32((mixed ^ (mixed >> 15u)) & 1023u) - 512) * 0.001953125);
}`;

// --- Matrix products -----------------------------------------------------------------------------------

// C = A B, n x n: 8 x 8 threads make a tile of 64 x 64, each thread 8 x 8 numbers of it. `T` is the type
// in memory, `M` that of products and sums. The sums are 16 variables and no array, since not every
// driver keeps an array in registers.
const TILE = 64, DEPTH = 16, ROWS = [0, 1, 2, 3, 4, 5, 6, 7];
const lines = (make, list = ROWS) => list.map(make).join("\n");
export const product = (T, M, n) => `${enable(T, M)}
@group(0) @binding(0) var<storage, read> a : array<vec4<${T}>>;
@group(0) @binding(1) var<storage, read> b : array<vec4<${T}>>;
@group(0) @binding(2) var<storage, read_write> c : array<vec4<${T}>>;
var<workgroup> ta : array<array<vec4<${T}>, ${DEPTH / 4 + 1}>, ${TILE}>;
var<workgroup> tb : array<array<vec4<${T}>, ${TILE / 4}>, ${DEPTH}>;
@compute @workgroup_size(8, 8) fn main(@builtin(workgroup_id) w: vec3u, @builtin(local_invocation_id) l: vec3u, @builtin(local_invocation_index) i: u32) {
  ${lines((r) => `var s${r} = vec4<${M}>(); var t${r} = vec4<${M}>();`)}
  for (var k = 0u; k < ${n}u; k += ${DEPTH}u) {
    for (var j = i; j < ${(TILE * DEPTH) / 4}u; j += 64u) {
      ta[j / ${DEPTH / 4}u][j % ${DEPTH / 4}u] = a[(w.y * ${TILE}u + j / ${DEPTH / 4}u) * ${n / 4}u + k / 4u + j % ${DEPTH / 4}u];
      tb[j / ${TILE / 4}u][j % ${TILE / 4}u] = b[(k + j / ${TILE / 4}u) * ${n / 4}u + w.x * ${TILE / 4}u + j % ${TILE / 4}u];
    }
    workgroupBarrier();
    for (var d = 0u; d < ${DEPTH / 4}u; d++) {
      ${lines((r) => `let a${r} = vec4<${M}>(ta[l.y + ${8 * r}u][d]);`)}
      ${lines((e) => `let p${e} = vec4<${M}>(tb[4u * d + ${e}u][l.x]); let q${e} = vec4<${M}>(tb[4u * d + ${e}u][l.x + 8u]);
      ${lines((r) => `s${r} = fma(vec4<${M}>(a${r}[${e}]), p${e}, s${r}); t${r} = fma(vec4<${M}>(a${r}[${e}]), q${e}, t${r});`)}`, [0, 1, 2, 3])}
    }
    workgroupBarrier();
  }
  let at = (w.y * ${TILE}u + l.y) * ${n / 4}u + w.x * ${TILE / 4}u + l.x;
  ${lines((r) => `c[at + ${2 * r * n}u] = vec4<${T}>(s${r}); c[at + ${2 * r * n + 8}u] = vec4<${T}>(t${r});`)}
}`;

export const KINDS = [
  { name: "float32", T: "f32", M: "f32" },
  { name: "float16", T: "f16", M: "f16" },
  { name: "float16, summed in float32", T: "f16", M: "f32" },
];
const BYTES = { f32: 4, f16: 2 };
const LIMIT_MS = 120; // a size eight times as much work as this would hold up the screen

// A, B and C of a type, with A and B filled.
async function matrices(g, T, n) {
  const made = await guarded(g, () => [0, 1, 2].map(() => memory(g, BYTES[T] * n * n)));
  const width = Math.min((n * n) / 64, 4096);
  for (const seed of [1, 2]) {
    const kernel = await compile(g, fill(T, seed), [made[seed - 1]]);
    submit(g, [{ ...kernel, grid: [width, (n * n) / 64 / width] }]);
  }
  return made;
}

// The largest error of 64 entries of row 0, against double precision, over the size of the entries.
async function error(g, c, T, n) {
  const words = await read(g, c, T === "f32" ? Float32Array : Uint16Array, { size: 64 * BYTES[T] });
  let worst = 0, squares = 0;
  for (let column = 0; column < 64; column++) {
    let exact = 0;
    for (let k = 0; k < n; k++) exact += numberAt(k, 1) * numberAt(k * n + column, 2);
    const got = T === "f32" ? words[column] : fromHalf(words[column]);
    worst = Math.max(worst, Math.abs(got - exact));
    squares += (exact * exact) / 64;
  }
  return worst / Math.sqrt(squares);
}

async function productsOf(g, n, stop) {
  const kinds = KINDS.filter(({ T }) => T === "f32" || g.half), kept = {}, rows = [];
  try {
    const kernels = [];
    for (const { T, M } of kinds) {
      kept[T] ??= await matrices(g, T, n);
      kernels.push({ ...(await compile(g, product(T, M, n), kept[T])), grid: [n / TILE, n / TILE] });
    }
    const times = await compare(g, kernels, stop);
    for (const [i, { name, T }] of kinds.entries()) {
      submit(g, [kernels[i]]); // C holds the last kernel's product
      rows.push({ n, name, bytes: BYTES[T], ...times[i], gflops: (2 * n ** 3) / times[i].ms / 1e6, error: await error(g, kept[T][2], T, n) });
    }
  } finally { Object.values(kept).flat().forEach((buffer) => buffer.destroy()); }
  return rows;
}

// `show` gets the rows after every size.
export async function products(g, { sizes, stop, say, show }) {
  const rows = [];
  for (const n of sizes.filter((n) => 4 * n * n <= g.largest)) {
    say(`matrix products of ${n} × ${n}`);
    const more = await productsOf(g, n, stop);
    rows.push(...more);
    show(rows);
    if (8 * Math.max(...more.map((row) => row.ms)) > LIMIT_MS) break;
  }
  return rows;
}

// --- Bandwidth: y = x + y / 2, which reads two arrays and writes one ----------------------------------

export const stream = (type, body) => `${enable(type)}
@group(0) @binding(0) var<storage, read> x : array<${type}>;
@group(0) @binding(1) var<storage, read_write> y : array<${type}>;
@compute @workgroup_size(256) fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) n: vec3u) {
  let i = id.x + id.y * n.x * 256u;
  ${body}
}`;
const PACKED = `var o = x[i]; let p = y[i];
  for (var k = 0; k < 4; k++) { o[k] = pack2x16float(fma(vec2f(0.5), unpack2x16float(p[k]), unpack2x16float(o[k]))); }
  y[i] = o;`;
export const STREAMS = [
  { name: "float32", bytes: 4, each: 4, code: stream("vec4f", "y[i] = fma(vec4f(0.5), y[i], x[i]);") },
  { name: "float16", bytes: 2, each: 4, half: true, code: stream("vec4<f16>", "y[i] = fma(vec4<f16>(0.5h), y[i], x[i]);") },
  { name: "float16 in memory, float32 in the shader", bytes: 2, each: 8, code: stream("vec4u", PACKED) },
];

export async function bandwidth(g, { elements, stop, say }) {
  while (4 * elements > g.largest) elements /= 2;
  say(`bandwidth, over ${elements.toLocaleString("en")} numbers`);
  const [x, y] = await guarded(g, () => [0, 1].map(() => memory(g, 4 * elements)));
  try {
    const streams = STREAMS.filter(({ half }) => g.half || !half), kernels = [];
    for (const { code, bytes, each } of streams) {
      const groups = elements / each / 256, width = Math.min(groups, 4096);
      const kernel = await compile(g, code, [x, y].map((buffer) => ({ buffer, size: bytes * elements })));
      kernels.push({ ...kernel, grid: [width, groups / width] });
    }
    const times = await compare(g, kernels, stop);
    return streams.map(({ name, bytes }, i) => ({ name, elements, ...times[i], gbs: (3 * bytes * elements) / times[i].ms / 1e6 }));
  } finally { [x, y].forEach((buffer) => buffer.destroy()); }
}
