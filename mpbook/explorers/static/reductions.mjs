// The sum over ranks, as mpbook/many_gpus/reductions.py replays it: of one number that every rank has a
// part of. The tests prove the two equal, bit for bit, and the bound and the bytes too.

import { fromHalf, randomNumbers, toBfloat, toHalf } from "./half.mjs";

// What a 16-bit result of torch is: computed in float32, then rounded. `eps` and `normal` as torch.finfo.
export const DTYPES = {
  float32: { round: Math.fround, eps: 2 ** -23, normal: 2 ** -126, bytes: 4 },
  bfloat16: { round: (x) => toBfloat(Math.fround(x)), eps: 2 ** -7, normal: 2 ** -126, bytes: 2 },
  float16: { round: (x) => fromHalf(toHalf(Math.fround(x))), eps: 2 ** -10, normal: 2 ** -14, bytes: 2 },
};

// --- The parts ----------------------------------------------------------------------------------------

const LARGE = 1024; // times the size of the others

// Float32 gradients of so many ranks; `exponent` is the logarithm of their size.
export function partsOf(values, ranks, exponent) {
  const random = randomNumbers(1);
  const make = {
    equal: () => 1,
    noisy: () => 2 * random(),
    signs: () => 2 * random() - 1,
    one_large: (rank) => (rank === ranks - 1 ? LARGE : 1),
  }[values];
  return Array.from({ length: ranks }, (_, rank) => Math.fround(make(rank) * 2 ** exponent));
}

// By what the parts are divided before they are sent, and the sum afterwards.
export function divisors(ranks, average) {
  if (average === "no") return [1, 1];
  if (average === "before") return [ranks, 1];
  if (average === "after") return [1, ranks];
  let before = 1;
  while (ranks % before === 0 && ranks / before > before) before *= 2;
  return [before, ranks / before];
}

// --- The sums -----------------------------------------------------------------------------------------

export const ringOrder = (chunk, ranks) => Array.from({ length: ranks }, (_, i) => (chunk - 1 - i + 2 * ranks) % ranks);

// The sum on its way: what the rank that ends up with it holds after each of its additions, as
// {count: parts added, total, exact, size}. `exact` and `size` are of the parts as they were computed.
export function way(parts, { dtype, algorithm, average }, chunk = 0) {
  const { round } = DTYPES[dtype], ranks = parts.length, [before] = divisors(ranks, average);
  const cast = parts.map(round), sent = before === 1 ? cast : cast.map((x) => round(x / before));
  const start = (rank) => ({ count: 1, total: sent[rank], exact: parts[rank] / before, size: Math.abs(parts[rank]) / before });
  const added = (a, b) => ({
    count: a.count + b.count, total: round(a.total + b.total), exact: a.exact + b.exact, size: a.size + b.size,
  });
  if (algorithm === "ring") {
    const [first, ...others] = ringOrder(chunk, ranks).map(start);
    const steps = [first];
    for (const part of others) steps.push(added(steps.at(-1), part));
    return steps;
  }
  let held = parts.map((_, rank) => start(rank));
  const steps = [held[0]];
  while (held.length > 1) {
    held = algorithm === "tree" ? neighbours(held, added) : halves(held, added);
    steps.push(held[0]);
  }
  return steps;
}

function neighbours(held, added) {
  const next = [];
  for (let i = 0; i < held.length; i += 2) next.push(i + 1 < held.length ? added(held[i], held[i + 1]) : held[i]);
  return next;
}

function halves(held, added) {
  const half = held.length / 2;
  return held.slice(0, half).map((part, i) => added(part, held[i + half]));
}

// What every rank holds in the end: the last step, divided.
export function result(steps, { dtype, average }) {
  const [, after] = divisors(steps.at(-1).count, average), { total } = steps.at(-1);
  return after === 1 ? total : DTYPES[dtype].round(total / after);
}

export function allReduce(parts, options, chunk = 0) {
  return result(way(parts, options, chunk), options);
}

// --- The bound: that of mpbook/many_gpus/reduction_error.py -----------------------------------------------

export const additions = (ranks, algorithm) => (algorithm === "ring" ? ranks - 1 : Math.ceil(Math.log2(ranks)));

// The most by which a sum of `count` parts can be off, whose sizes add up to `size`, both as in `way`.
// `after` is the divisor at the end, 1 on the way.
export function bound(count, size, { dtype, algorithm }, before, after) {
  const { eps, normal } = DTYPES[dtype], casts = dtype === "float32" ? 0 : 1;
  const roundings = casts + Number(before !== 1) + additions(count, algorithm) + Number(after !== 1);
  const grown = (1 + eps / 2) ** roundings, half = (normal * eps) / 2;
  const tiny = (count * half * (casts / before + Number(before !== 1))) / after;
  return ((grown - 1) * size) / after + grown * tiny + half * Number(after !== 1);
}

export function errorBound(parts, options) {
  const [before, after] = divisors(parts.length, options.average);
  const size = parts.reduce((sum, x) => sum + Math.abs(x), 0) / before;
  return bound(parts.length, size, options, before, after);
}

// --- The bytes: those of mpbook/many_gpus/wire.py ----------------------------------------------------------

// What the busiest rank sends in an all-reduce, and how many messages follow one another.
export function onTheWire(ranks, elements, dtype, algorithm) {
  const whole = elements * DTYPES[dtype].bytes, messages = 2 * additions(ranks, algorithm);
  const bytes = algorithm === "tree" ? (messages / 2) * whole : (2 * (ranks - 1) * whole) / ranks;
  return { bytes, messages, inARow: algorithm === "tree" ? messages * whole : bytes };
}
