// What float16 is on a GPU, bit for bit: its conversions and its arithmetic against exact ones. WGSL
// lets a GPU flush subnormals, round either way and fuse, so what differs is told, and is no error.

import { bitsOf, edges, floatOf, flushed, fromHalf, fused, isFinite16, isSubnormal, randomNumbers, toHalf } from "./half.mjs";
import { compile, memory, read, submit } from "./gpu.mjs";

// --- Shaders: one result a thread. Halves come and go through memory, where nothing can keep more ---

const shader = ([from, to, body]) => `${/f16/.test(from + to) ? "enable f16;" : ""}
@group(0) @binding(0) var<storage, read> x : array<${from}>;
@group(0) @binding(1) var<storage, read_write> y : array<${to}>;
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) n: vec3u) {
  let i = id.x + id.y * n.x * 64u;
  if (i >= arrayLength(&y)) { return; }
  ${body}
}`;
const sum = (type, next) => `var t = ${type}(0); for (var k = 0u; k < arrayLength(&x); k++) { t = ${next}; } y[i] = t;`;
const BODIES = {
  pack: ["f32", "u32", "y[i] = pack2x16float(vec2f(x[i], 0.0));"], // every WebGPU has these two
  unpack: ["u32", "f32", "y[i] = unpack2x16float(x[i]).x;"],
  sum_packed: ["f32", "f32", sum("f32", "unpack2x16float(pack2x16float(vec2f(t + x[k], 0.0))).x")],
  sum32: ["f32", "f32", sum("f32", "t + x[k]")],
  cast: ["f32", "f16", "y[i] = f16(x[i]);"],
  widen: ["f16", "f32", "y[i] = f32(x[i]);"],
  add: ["vec2<f16>", "f16", "y[i] = x[i].x + x[i].y;"],
  mul: ["vec2<f16>", "f16", "y[i] = x[i].x * x[i].y;"],
  fma: ["vec4<f16>", "f16", "y[i] = fma(x[i].x, x[i].y, x[i].z);"],
  madd: ["vec4<f16>", "f16", "y[i] = x[i].x * x[i].y + x[i].z;"],
  sum16: ["f16", "vec2<f16>", sum("vec2<f16>", "t + vec2<f16>(x[k])")], // a vec2, since 2 bytes are no buffer
};
export const SHADERS = Object.fromEntries(Object.entries(BODIES).map(([name, body]) => [name, shader(body)]));

// The words that a shader makes of `input`.
export const runner = (g) => async (name, input, count) => {
  const Type = /f16/.test(BODIES[name][1]) ? Uint16Array : Uint32Array;
  const x = memory(g, input), y = memory(g, 4 * Math.ceil((Math.max(count, 2) * Type.BYTES_PER_ELEMENT) / 4));
  const groups = Math.ceil(count / 64), width = Math.min(groups, 1024);
  const kernel = await compile(g, SHADERS[name], [x, y]);
  submit(g, [{ ...kernel, grid: [width, Math.ceil(groups / width)] }]);
  const words = await read(g, y, Type);
  [x, y].forEach((buffer) => buffer.destroy());
  return words.subarray(0, count);
};

// --- Counting -----------------------------------------------------------------------------------------

const isNaN16 = (code) => (code & 0x7fff) > 0x7c00;
const same = (a, b) => a === b || (isNaN16(a) && isNaN16(b));
const hex = (code) => `0x${code.toString(16).padStart(4, "0")}`;

// How many codes are the exact ones, and what the others have in common: `truncated` and `flushing`
// are what cutting off, and flushing operands too, would give. `apart` counts where cutting off shows.
export function tally(got, exact, { truncated, flushing = exact.map(flushed), label = (i) => `case ${i}` }) {
  const t = { of: got.length, exact: 0, flushed: 0, truncated: 0, saturated: 0, other: 0, apart: 0, example: "" };
  exact.forEach((wanted, i) => {
    const code = got[i] & 0xffff;
    const rule = same(code, wanted) ? "exact"
      : code === flushing[i] || (isSubnormal(wanted) && (code & 0x7fff) === 0) ? "flushed"
      : (wanted & 0x7fff) === 0x7c00 && code === wanted - 1 ? "saturated"
      : code === truncated[i] ? "truncated" : "other";
    t[rule] += 1;
    t.apart += truncated[i] !== wanted && !["flushed", "saturated"].includes(rule);
    if (rule === "other") t.example ||= `${label(i)} gave ${hex(code)}, not ${hex(wanted)}`;
  });
  return t;
}

// --- Measuring: `run` is runner(g), or a made-up GPU ---------------------------------------------------

const COUNT = 1 << 15;
const breathe = () => new Promise((go) => setTimeout(go)); // the page draws between two long sums

// Operands from all halves, and from those whose results neither vanish nor overflow, by turns.
function operands(seed) {
  const random = randomNumbers(seed);
  return Array.from({ length: COUNT }, (_, i) => {
    let code = 0x7c00;
    while (!isFinite16(code)) code = Math.floor(random() * 65536);
    return i % 2 ? code : (code & 0x83ff) | ((12 + Math.floor(random() * 7)) << 10);
  });
}
const interleaved = (...lists) => Uint16Array.from({ length: lists.length * COUNT }, (_, i) => lists[i % lists.length][Math.floor(i / lists.length)]);

// What an operation on columns of halves gives: exactly rounded, cut off, and with operands flushed.
function references(operation, columns, round = toHalf) {
  const over = (change) => columns[0].map((_, i) => operation(...columns.map((c) => fromHalf(change(c[i])))));
  const values = over((code) => code);
  return { exact: values.map((v) => round(v)), truncated: values.map((v) => round(v, true)), flushing: over(flushed).map((v) => flushed(round(v))) };
}

async function conversion(run, name) {
  const points = edges(), values = Array.from(points, floatOf);
  await breathe();
  const exact = values.map((v) => toHalf(v)), truncated = values.map((v) => toHalf(v, true));
  const counted = tally(await run(name, points, points.length), exact, { truncated, label: (i) => plain(values[i]) });
  const limits = await run(name, Float32Array.of(65504, 65519.996, 65520), 3);
  return { ...counted, limits: Array.from(limits, (word) => fromHalf(word & 0xffff)) };
}

async function widening(run, name) {
  const codes = Uint16Array.from({ length: 65536 }, (_, code) => code);
  const got = Array.from(await run(name, name === "widen" ? codes : Uint32Array.from(codes), 65536), floatOf);
  const lost = got.filter((value, code) => value === 0 && isSubnormal(code)).length;
  return { of: 65536, exact: got.filter((value, code) => Object.is(value, fromHalf(code))).length, flushed: lost };
}

async function arithmetic(run, stop) {
  const [a, b, c] = [1, 2, 3].map(operands), found = {};
  const twice = (x, y, z) => fromHalf(toHalf(x * y)) + z;
  for (const [name, operation] of [["add", (x, y) => x + y], ["mul", (x, y) => x * y]]) {
    stop.throwIfAborted();
    const wanted = { ...references(operation, [a, b]), label: (i) => `${hex(a[i])} and ${hex(b[i])}` };
    found[name] = tally(await run(name, interleaved(a, b), COUNT), wanted.exact, wanted);
  }
  const [once, two] = [references(fused, [a, b, c]), references(twice, [a, b, c])];
  for (const name of ["fma", "madd"]) {
    stop.throwIfAborted();
    const got = await run(name, interleaved(a, b, c, c), COUNT);
    found[name] = { once: tally(got, once.exact, once), twice: tally(got, two.exact, two) };
  }
  return found;
}

export async function bits(run, { half, stop }) {
  const ones = new Float32Array(4096).fill(1), found = { conversions: {}, widenings: {} };
  for (const name of half ? ["pack", "cast"] : ["pack"]) {
    stop.throwIfAborted();
    found.conversions[name] = await conversion(run, name);
  }
  for (const name of half ? ["unpack", "widen"] : ["unpack"]) found.widenings[name] = await widening(run, name);
  found.sums = { packed: floatOf((await run("sum_packed", ones, 1))[0]), float32: floatOf((await run("sum32", ones, 1))[0]) };
  if (!half) return found;
  found.sums.float16 = fromHalf((await run("sum16", new Uint16Array(4096).fill(0x3c00), 1))[0]);
  return { ...found, ...(await arithmetic(run, stop)) };
}

// --- In words -------------------------------------------------------------------------------------------

const count = (n) => n.toLocaleString("en");
const plain = (v) => String(v).replace("Infinity", "infinity").replace("-", "−");
const NAMES = { pack: "float32 to float16 in 16-bit storage (pack2x16float)", cast: "float32 to float16 in arithmetic (f16)", unpack: "float16 from 16-bit storage to float32", widen: "float16 to float32" };

function rounding(t) {
  if (t.exact === t.of) return `it rounds to nearest even, as IEEE 754 says, and keeps subnormals (all ${count(t.of)} cases)`;
  const cut = t.truncated > 0 && t.truncated === t.apart;
  const unlike = [[t.truncated, "rounded toward zero"], [t.flushed, "with a subnormal taken for zero"], [t.saturated, "stopped at 65504 instead of infinity"], [t.other, `by no rule (${t.example})`]];
  const told = unlike.filter(([n]) => n).map(([n, what]) => `${count(n)} ${what}`).join(", ");
  const how = cut ? "it rounds toward zero, not to nearest even" : t.truncated || t.other ? "it does not always round as IEEE 754 says"
    : t.flushed ? "it rounds to nearest even, as IEEE 754 says, but flushes subnormals to zero" : "it rounds to nearest even, as IEEE 754 says, but saturates";
  return `${how} (${told}, of ${count(t.of)} cases)`;
}

function limits([, below, above]) {
  const ieee = below === 65504 && above === Infinity;
  return `65519.996 becomes ${plain(below)} and 65520 becomes ${plain(above)}${ieee ? ", as IEEE 754 says" : "; IEEE 754 says 65504 and infinity"}`;
}

const widened = (t) => (t.exact === t.of ? "all 65,536 codes keep their value, subnormals too" :
  `${count(t.exact)} of 65,536 codes keep their value; ${count(t.flushed)} subnormals became zero`);

function roundings({ once, twice }) {
  if (once.exact + once.flushed === once.of) return "is rounded once (fused)";
  if (twice.exact + twice.flushed === twice.of) return "is rounded twice, after the product and after the sum";
  return `is rounded once in ${count(once.exact)} and twice in ${count(twice.exact)} of ${count(once.of)} cases`;
}

const stalls = (sum) => (sum === 2048 ? "stop at 2048, where 1 is half of the spacing" : sum === 4096 ? "reach 4096: the compiler kept more than 16 bits" : `give ${plain(sum)}`);

// What was seen, a sentence each.
export function sentences({ conversions, widenings, sums, ...found }) {
  const said = Object.entries(conversions).flatMap(([name, t]) => [`${NAMES[name]}: here ${rounding(t)}. ${limits(t.limits)}.`]);
  said.push(...Object.entries(widenings).map(([name, t]) => `${NAMES[name]}: ${widened(t)}.`));
  said.push(`4096 ones, added one by one and stored in 16 bits after each: they ${stalls(sums.packed)}. With the sum in float32: ${plain(sums.float32)}.`);
  if (!found.add) return said;
  said.push(`The same in float16 arithmetic: they ${stalls(sums.float16)}.`, `a + b in float16: here ${rounding(found.add)}.`, `a × b in float16: here ${rounding(found.mul)}.`);
  return [...said, `fma(a, b, c) in float16 ${roundings(found.fma)}; a × b + c ${roundings(found.madd)}.`];
}
