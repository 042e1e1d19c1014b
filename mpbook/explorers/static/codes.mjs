// Numbers and codes: the arithmetic of mpbook.formats.codes, which the tests prove equal.
// A format is data, described by Python in the field names of mpbook.formats.FloatFormat: {name,
// exponent_bits, mantissa_bits, bias, specials, signed, subnormals}. Codes are Numbers up to 2^32,
// so bits are taken by division, not by 32-bit operators.

import { floorLog2, largest, maxCode } from "./kit.mjs";

export const width = (f) => Number(f.signed) + f.exponent_bits + f.mantissa_bits;
const signWeight = (f) => 2 ** (f.exponent_bits + f.mantissa_bits);
export const hiddenBit = (f) => 2 ** f.mantissa_bits;
export const lowestBinade = (f) => Number(f.subnormals) - f.bias;
const hasInf = (f) => f.specials === "inf_nan";
export const hasNaN = (f) => f.specials !== "none";

function nanCode(f) {
  if (!hasNaN(f)) throw new RangeError(`${f.name} has no NaN, and this number has no code in it`);
  if (f.specials === "nan_is_negative_zero") return signWeight(f);
  return signWeight(f) - (hasInf(f) ? hiddenBit(f) / 2 : 1);
}

export function fields(code, f) {
  const mantissa = code % hiddenBit(f);
  const exponent = ((code - mantissa) / hiddenBit(f)) % 2 ** f.exponent_bits;
  return { sign: Math.floor(code / signWeight(f)), exponent, mantissa };
}

export function decode(code, f) {
  const { sign, exponent, mantissa } = fields(code, f);
  const magnitude = code - sign * signWeight(f);
  if (sign && !magnitude && f.specials === "nan_is_negative_zero") return NaN;
  const direction = sign ? -1 : 1;
  if (magnitude > maxCode(f)) {
    return hasInf(f) && magnitude === maxCode(f) + 1 ? direction * Infinity : NaN;
  }
  const hidden = f.subnormals && exponent === 0 ? 0 : hiddenBit(f);
  const binade = hidden ? exponent - f.bias : lowestBinade(f);
  return direction * (hidden + mantissa) * 2 ** (binade - f.mantissa_bits);
}

export function classify(code, f) {
  const value = decode(code, f);
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return "infinity";
  if (value === 0) return "zero";
  return f.subnormals && fields(code, f).exponent === 0 ? "subnormal" : "normal";
}

function roundHalfEven(x) {
  const floor = Math.floor(x);
  const rest = x - floor;
  return floor + Number(rest > 0.5 || (rest === 0.5 && floor % 2 === 1));
}

// The code of a magnitude as if the exponent had no end: a carry moves into the exponent by itself.
function magnitudeCode(x, f, round) {
  const lowest = lowestBinade(f);
  if (x < 2 ** lowest && !f.subnormals) return 0; // nothing smaller exists, not even zero
  const binade = Math.max(x === 0 ? lowest : floorLog2(x), lowest);
  const quotient = x / 2 ** (binade - f.mantissa_bits);
  const significand = round(x > 0 ? Math.max(quotient, Number.MIN_VALUE) : 0); // no silent underflow
  return (binade - lowest) * hiddenBit(f) + significand - (f.subnormals ? 0 : hiddenBit(f));
}

export function encode(value, f, overflow) {
  if (!["inf", "saturate", "nan"].includes(overflow) || usableOverflow(overflow, f) !== overflow) {
    throw new RangeError(`overflow="${overflow}": not possible in ${f.name}`);
  }
  if (Number.isNaN(value) || (value < 0 && !f.signed)) return nanCode(f);
  const negative = value < 0 || Object.is(value, -0);
  const sign = negative && f.signed ? signWeight(f) : 0;
  const magnitude = overflows(value, f) ? Infinity : magnitudeCode(Math.abs(value), f, roundHalfEven);
  if (magnitude > maxCode(f)) {
    return overflow === "nan" ? nanCode(f) : sign + maxCode(f) + Number(overflow === "inf");
  }
  const noNegativeZero = f.specials === "nan_is_negative_zero";
  return magnitude === 0 && noNegativeZero ? 0 : sign + magnitude;
}

export function overflows(value, f) {
  if (!Number.isFinite(value)) return !Number.isNaN(value);
  return magnitudeCode(Math.abs(value), f, roundHalfEven) > maxCode(f);
}

// What the wished rule becomes in a format that has no code for it: inf, else nan, else saturate.
export function usableOverflow(wish, f) {
  if (wish === "inf" && hasInf(f)) return "inf";
  return wish === "saturate" || !hasNaN(f) ? "saturate" : "nan";
}

// Ordinals count the numbers of a format through zero: ..., -1, 0, 1, ...; max + 1 is infinity.
export function ordinal(x, f, round) {
  if (!f.signed && x < decode(0, f)) return round === Math.floor ? -1 : 0;
  const away = round === (x < 0 ? Math.floor : Math.ceil);
  const beyond = maxCode(f) + 1;
  const reach = Math.abs(x) === Infinity ? beyond : magnitudeCode(Math.abs(x), f, away ? Math.ceil : Math.floor);
  const code = Math.min(reach, away || Math.abs(x) === Infinity ? beyond : maxCode(f));
  return x < 0 ? -code : code;
}

export function atOrdinal(n, f) {
  if (Math.abs(n) === maxCode(f) + 1 && hasInf(f)) return Math.sign(n) * Infinity;
  if (Math.abs(n) > maxCode(f) || (n < 0 && !f.signed)) return null;
  return n < 0 ? -decode(-n, f) : decode(n, f);
}

export function neighbours(value, f) {
  if (Number.isNaN(value)) throw new RangeError("NaN has no neighbours");
  return [atOrdinal(ordinal(value, f, Math.ceil) - 1, f), atOrdinal(ordinal(value, f, Math.floor) + 1, f)];
}

export function ulp(x, f) {
  if (!Number.isFinite(x)) return Math.abs(x);
  const highest = floorLog2(largest(f));
  const binade = x === 0 ? lowestBinade(f) : floorLog2(Math.abs(x));
  return 2 ** (Math.min(Math.max(binade, lowestBinade(f)), highest) - f.mantissa_bits);
}

// The stretch of the real line that rounds to the number of this code; null for NaN.
export function roundingInterval(code, f, overflow) {
  const value = decode(code, f);
  if (Number.isNaN(value)) return null;
  const limit = largest(f) + ulp(largest(f), f) / 2;
  if (!Number.isFinite(value)) return value > 0 ? [limit, Infinity] : [-Infinity, -limit];
  const edge = overflow === "saturate" ? Infinity : limit;
  const bound = (next, end) => (Number.isFinite(next ?? NaN) ? (value + next) / 2 : end);
  const [below, above] = neighbours(value, f);
  return [bound(below, f.signed ? -edge : 0), bound(above, edge)];
}
