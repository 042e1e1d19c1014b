// Half precision, exactly: what a GPU's bits are held against. Halves are codes of 16 bits, as in memory.

const float = new Float32Array(1), word = new Uint32Array(float.buffer);
export const bitsOf = (x) => { float[0] = x; return word[0]; };
export const floatOf = (bits) => { word[0] = bits; return float[0]; };

export const isSubnormal = (code) => (code & 0x7c00) === 0 && (code & 0x3ff) !== 0;
export const isFinite16 = (code) => (code & 0x7c00) !== 0x7c00;
export const flushed = (code) => (isSubnormal(code) ? code & 0x8000 : code);

export function fromHalf(code) {
  const sign = code & 0x8000 ? -1 : 1, exponent = (code >> 10) & 31, mantissa = code & 1023;
  if (exponent === 31) return mantissa ? NaN : sign * Infinity;
  return sign * (exponent ? (1024 + mantissa) * 2 ** (exponent - 25) : mantissa * 2 ** -24);
}

// The code of a double rounded once: to nearest, ties to even, or toward zero.
export function toHalf(x, towardZero = false) {
  if (Number.isNaN(x)) return 0x7e00;
  const sign = x < 0 || Object.is(x, -0) ? 0x8000 : 0, size = Math.abs(x);
  if (size === Infinity) return sign | 0x7c00;
  let exponent = size < 2 ** -14 ? -14 : Math.floor(Math.log2(size)); // which may be off by one
  if (exponent > -14 && 2 ** exponent > size) exponent -= 1;
  else if (2 ** (exponent + 1) <= size) exponent += 1;
  const units = size / 2 ** (exponent - 10), whole = Math.floor(units), rest = units - whole;
  const up = !towardZero && (rest > 0.5 || (rest === 0.5 && whole % 2 === 1));
  return sign | Math.min(((exponent + 14) << 10) + whole + Number(up), towardZero ? 0x7bff : 0x7c00);
}

// The bfloat16 next to a float32, ties to even: the upper half of its bits, and perhaps one more.
export function toBfloat(x) {
  if (Number.isNaN(x)) return NaN;
  const bits = bitsOf(x);
  return floatOf(((bits + 0x7fff + ((bits >>> 16) & 1)) & 0xffff0000) >>> 0);
}

// A double that rounds to half as the exact a * b + c does: its own rounding is nudged off the ties.
export function fused(a, b, c) {
  const product = a * b, sum = product + c, part = sum - product;
  const rest = (product - (sum - part)) + (c - part);
  return rest === 0 || Number.isNaN(rest) ? sum : sum + Math.sign(rest) * Math.abs(sum) * 2 ** -50;
}

export function randomNumbers(seed) { // mulberry32, as in the sum explorer
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

// Every float32, as bits, at which rounding to half can go either way: each half, the middle to the
// next and the float32 on both sides of it, with both signs; then what lies far outside.
export function edges() {
  const found = [];
  for (let code = 0; code <= 0x7bff; code++) {
    const next = code === 0x7bff ? 65536 : fromHalf(code + 1);
    const middle = bitsOf((fromHalf(code) + next) / 2);
    for (const bits of [bitsOf(fromHalf(code)), middle - 1, middle, middle + 1]) found.push(bits, (bits | 0x80000000) >>> 0);
  }
  return Uint32Array.from([...found, ...[Infinity, -Infinity, NaN, 65536, 1e38, -1e38, 1e-45, 1e-30].map(bitsOf)]);
}
