// Formats whose scale is shared: the arithmetic of mpbook.formats.blocks, which the tests prove equal,
// bit by bit. Everything is float32, as there: a double that Math.fround rounds once.

import { width } from "./codes.mjs";
import { floorLog2, largest } from "./kit.mjs";
import { bitsOf, floatOf } from "./half.mjs";
import { gap, roundTo } from "./rounding.mjs";

export const FLOAT32 = "float32", POWER_OF_TWO = "float8_e8m0fnu", E4M3 = "float8_e4m3fn";
const FLOAT32_MAX = (2 - 2 ** -23) * 2 ** 127, SMALLEST = 2 ** -149;

// --- Random bits from a counter, as mpbook.formats.counter_hash draws them -------------------------

function hashed(counter, [first, second]) {
  let bits = Math.imul(counter ^ first, 0xed5ad4bb);
  bits = Math.imul((bits ^ (bits >>> 16)) + second, 0xac4c1b51);
  return Math.imul(bits ^ (bits >>> 15), 0x31848bab);
}
export const keysOf = (seed) => [1, 2].map((counter) => hashed(counter, seed));

// One of 2^23 numbers in (0, 1), counted from 1 down.
const drawOf = (index, keys) => 1 - 2 ** -24 - (hashed(index, keys) >>> 9) * 2 ** -23;

// --- Scales ---------------------------------------------------------------------------------------

// The largest magnitude; NaN where there is one.
export const largestOf = (values) => values.reduce((most, x) => Math.max(most, Math.abs(x)), 0);

// The float32 that divides the largest magnitude down, or up, to the target.
function float32Scale(amax, target) {
  return amax === 0 ? 1 : Math.max(Math.fround(Math.min(amax, FLOAT32_MAX) / target), SMALLEST);
}

// What is added below the exponent of a float32 carries into it where the scale is to be doubled.
function carryOf(mode, element) {
  const one = 2 ** 23, top = largest(element);
  return {
    floor: 0,
    "round-to-nearest-even": one / 2 ** (element.mantissa_bits + 1),
    rceil: one - 1 - Math.floor((top / 2 ** floorLog2(top) - 1) * one),
    ceil: one - 1,
  }[mode];
}

function powerOfTwoScale(amax, element, mode) {
  if (Number.isNaN(amax)) return NaN;
  if (mode === "rceil" && amax === Infinity) return 2 ** 127;
  const exponent = Math.floor((bitsOf(amax) + carryOf(mode, element)) / 2 ** 23) - floorLog2(largest(element));
  return floatOf(Math.max(Math.min(Math.max(exponent, 0), 254) * 2 ** 23, 2 ** 22)); // 2**-127 is subnormal
}

function scaleOf(amax, format, tensorScale) {
  const { element, scale, mode } = format;
  if (scale.name === POWER_OF_TWO) return powerOfTwoScale(amax, element, mode);
  if (scale.name === FLOAT32) return float32Scale(amax, largest(element));
  // Two roundings to float32, and the one to E4M3: none can be left out.
  const quotient = Math.fround(Math.fround(amax / largest(element)) / (tensorScale ?? 1));
  return roundTo(quotient, scale, "nearest-even", 0, largest(scale));
}

// --- Blocks ---------------------------------------------------------------------------------------

// A row in a format {element, block, scale, mode, tensorScale: whether there is one}. `tensorAmax` is the
// largest magnitude of the tensor that the row is of: `block` is a count, or "tensor". With `keys`,
// elements are rounded stochastically, else to nearest. For each number, its scale (a tensor's own
// included), quotient, element and what it becomes; for each block, its stored scale.
export function quantise(row, tensorAmax, format, keys = null) {
  const { element } = format, size = format.block === "tensor" ? row.length : format.block;
  const tensorScale = format.tensorScale ? float32Scale(tensorAmax, largest(element) * largest(format.scale)) : null;
  const scales = [], combined = [], quotients = [], elements = [], numbers = [];
  row.forEach((x, i) => {
    if (i % size === 0) {
      const amax = format.block === "tensor" ? tensorAmax : largestOf(row.slice(i, i + size));
      scales.push(scaleOf(amax, format, tensorScale));
    }
    const scale = Math.fround(scales.at(-1) * (tensorScale ?? 1));
    const divisor = scale === 0 && format.scale.name === E4M3 ? Infinity : scale; // 0 can store only zeros
    const quotient = Math.fround(x / divisor);
    const stored = roundTo(quotient, element, keys ? "stochastic" : "nearest-even", keys ? drawOf(i, keys) : 0, largest(element));
    combined.push(scale), quotients.push(quotient), elements.push(stored), numbers.push(Math.fround(stored * scale));
  });
  return { size, tensorScale, scales, combined, quotients, elements, numbers };
}

// --- What became of a row ---------------------------------------------------------------------------

export const ZERO = "became zero", SATURATED = "saturated";

// For each number, whether it was lost: to zero, or beyond the largest element by more than half of the
// last gap, so that a format which goes on would have rounded it to a larger one.
export function lossesOf(row, { quotients, numbers }, { element }) {
  const top = largest(element), beyond = top + gap(top, element) / 2;
  return row.map((x, i) => (x !== 0 && numbers[i] === 0 ? ZERO : Math.abs(quotients[i]) > beyond ? SATURATED : null));
}

const norm = (values) => Math.sqrt(values.reduce((sum, x) => sum + x * x, 0));
export const bitsOfNumber = ({ element, scale, block }) =>
  width(element) + (block === "tensor" ? 0 : width(scale) / block);

export function fateOf(row, quantised, format) {
  const losses = lossesOf(row, quantised, format), off = row.map((x, i) => Math.abs(quantised.numbers[i] - x));
  const ratios = off.map((d, i) => d / Math.abs(row[i])).filter((_, i) => row[i] !== 0).sort((a, b) => a - b);
  const count = (kind) => losses.filter((loss) => loss === kind).length;
  return {
    losses,
    zeros: count(ZERO),
    saturated: count(SATURATED),
    error: ratios.length ? norm(off) / norm(row) : 0,
    medianError: ratios[(ratios.length - 1) >> 1] ?? 0,
    bits: bitsOfNumber(format),
  };
}
