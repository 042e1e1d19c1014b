// Rounding to a format: quotient by the gap, whole number, product. Every step but the rounding itself is
// exact in doubles, whose numbers are those of mpbook.formats.round_to; the tests prove them equal.

import { floorLog2, largest } from "./kit.mjs";

// The gap between numbers at x; subnormals share that of the lowest binade.
export function gap(x, f) {
  const lowest = 1 - f.bias;
  const binade = x === 0 ? lowest : floorLog2(Math.min(Math.abs(x), largest(f)));
  return 2 ** (Math.max(binade, lowest) - f.mantissa_bits);
}

// What a magnitude beyond the largest number becomes, where nobody says otherwise.
export const beyondOf = (f) => ({ inf_nan: Infinity, none: largest(f) })[f.specials] ?? NaN;

// x rounded to the format; `draw`, a number in [0, 1), decides where the rounding is stochastic.
export function roundTo(x, f, rounding, draw = 0, beyond = beyondOf(f)) {
  if (x === 0 || Number.isNaN(x)) return x;
  const top = largest(f);
  if (!Number.isFinite(x)) return Math.sign(x) * beyond;
  const unit = gap(x, f);
  const quotient = Math.abs(x) / unit;
  const floor = Math.floor(quotient);
  const rest = quotient - floor;
  const up = {
    "nearest-even": rest > 0.5 || (rest === 0.5 && floor % 2 === 1),
    "toward-zero": false,
    stochastic: draw < rest,
  }[rounding];
  const magnitude = (floor + Number(up)) * unit;
  if (magnitude <= top) return Math.sign(x) * magnitude;
  return Math.sign(x) * (rounding === "toward-zero" ? top : beyond);
}
