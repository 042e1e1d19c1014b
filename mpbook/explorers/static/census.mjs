// Histograms by binade against the ends of a format: the arithmetic of mpbook/explorers/census.py,
// which the tests prove equal, and its picture. A census is {name, zeros, binades: [[exponent,
// count], ...], largest}, a format as in kit.mjs.

import { clamp, floorLog2, h, largest, maxCode, superscript } from "./kit.mjs";

export const SHIFTS = [-16, 32]; // exponents of the smallest and the largest loss scale looked at

// --- What a format makes of it ------------------------------------------------------------------------

// The first binades that survive, and that are normal; the one of the largest number; the limit above it.
export function ends(f) {
  const normal = Number(f.subnormals) - f.bias;
  const last = floorLog2(largest(f));
  const limit = largest(f) + 2 ** (last - f.mantissa_bits - 1);
  return { survives: normal - f.mantissa_bits - 1, normal, last, limit };
}

const overflows = (magnitude, f) =>
  magnitude > ends(f).limit || (magnitude === ends(f).limit && maxCode(f) % 2 === 1);

function fateOf(binade, { survives, normal, last }) {
  if (binade < survives) return "underflow";
  if (binade < normal) return "subnormal";
  if (binade === last) return "doubtful";
  return binade < last ? "normal" : "overflow";
}

// Counts of what becomes of the tensor times 2^shift; `doubtful` may overflow.
export function fates(census, f, shift = 0) {
  const limits = ends(f);
  const counts = { zeros: census.zeros, underflow: 0, subnormal: 0, normal: 0, doubtful: 0, overflow: 0 };
  let nonzero = 0;
  for (const [exponent, count] of census.binades) {
    counts[fateOf(exponent + shift, limits)] += count;
    nonzero += count;
  }
  if (counts.doubtful && !counts.overflow && census.largest != null) {
    const over = overflows(census.largest * 2 ** shift, f);
    counts.overflow = Number(over);
    if (!over) counts.normal += counts.doubtful;
    counts.doubtful = over ? counts.doubtful - 1 : 0;
  }
  return { ...counts, nonzero };
}

// Exponents of the smallest and the largest scale that overflow nothing and lose little; null if none.
export function fittingScales(census, f, lost) {
  let low = null;
  let high = null;
  for (let shift = SHIFTS[0]; shift <= SHIFTS[1]; shift += 1) {
    const seen = fates(census, f, shift);
    if (seen.overflow + seen.doubtful > 0 || seen.underflow > lost * seen.nonzero) continue;
    low ??= shift;
    high = shift;
  }
  return low === null ? null : [low, high];
}

// --- In words -------------------------------------------------------------------------------------------

export const digits = (x, count) => String(Number(x.toPrecision(count)));

export function percent(share) {
  const x = 100 * share;
  if (x > 0 && x < 0.01) return "less than 0.01%";
  const text = digits(x, x < 10 ? 2 : 3);
  return text === "100" && x < 100 ? "more than 99.9%" : `${text}%`;
}

export function overflowShare(seen) {
  const most = percent((seen.overflow + seen.doubtful) / seen.nonzero);
  if (!seen.overflow) return seen.doubtful ? `up to ${most}` : "";
  const least = percent(seen.overflow / seen.nonzero);
  return least === most ? least : `${least} to ${most}`;
}

export const listed = (names) =>
  names.length > 1 ? `${names.slice(0, -1).join(", ")} and ${names.at(-1)}` : names.join("");

// --- The picture ----------------------------------------------------------------------------------------

// Binades along the width of a picture.
export function binadeAxis([low, high], pixels) {
  const step = pixels / (high - low);
  return { low, high, pixels, step, x: (binade) => clamp((binade - low) * step, 0, pixels) };
}

// Where the format ends: hatched where numbers are lost, shaded where they keep fewer digits.
export function zones(axis, f, top, bottom, labels = true) {
  const { survives, normal, last } = ends(f);
  const parts = [];
  function zone(from, to, name, text, slope) {
    const left = axis.x(from);
    const width = axis.x(to) - left;
    if (width <= 0) return;
    parts.push(h("rect", { class: `mp-end mp-end-${name}`, x: left, y: top, width, height: bottom - top }));
    if (slope) parts.push(h("path", { class: "mp-hatch", d: hatch(left, left + width, top, bottom, slope) }));
    if (labels && width > text.length * 7) {
      parts.push(h("text", { class: "mp-zone-label", x: left + width / 2, y: top - 5 }, text));
    }
  }
  zone(axis.low, survives, "zero", "zero", 1);
  zone(survives, normal, "subnormal", "subnormal", 0);
  zone(normal, last + 1, "normal", "normal", 0);
  zone(last + 1, axis.high, "over", f.specials === "inf_nan" ? "infinity" : "overflow", -1);
  return parts;
}

// Lines at 45 degrees over a rectangle, rising for slope 1 and falling for -1.
function hatch(left, right, top, bottom, slope) {
  const height = bottom - top;
  let d = "";
  for (let start = left - height; start < right; start += 7) {
    const from = Math.max(start, left);
    const to = Math.min(start + height, right);
    const y = (x) => (slope > 0 ? bottom - (x - start) : top + (x - start));
    d += `M${from.toFixed(1)} ${y(from).toFixed(1)}L${to.toFixed(1)} ${y(to).toFixed(1)}`;
  }
  return d;
}

// The histogram times 2^shift, solid where it survives, hollow where it is lost.
export function bars(axis, census, f, shift, top, bottom) {
  const most = Math.max(...census.binades.map(([, count]) => count));
  const settled = fates(census, f, shift).doubtful === 0;
  const paths = {};
  for (const [exponent, count] of census.binades) {
    const binade = exponent + shift;
    const left = axis.x(binade);
    const width = axis.x(binade + 1) - left - Math.min(1, axis.step / 4);
    if (width <= 0) continue;
    let fate = fateOf(binade, ends(f));
    if (fate === "doubtful" && settled) fate = "normal";
    const tall = Math.max(2, (count / most) * (bottom - top)); // a single value is seen
    paths[fate] = `${paths[fate] ?? ""}M${left.toFixed(2)} ${bottom}v${-tall.toFixed(2)}h${width.toFixed(2)}V${bottom}z`;
  }
  return Object.entries(paths).map(([fate, d]) => h("path", { class: `mp-bar mp-bar-${fate}`, d }));
}

export function powerLabels(axis, y) {
  const step = [4, 8, 16, 32, 64].find((binades) => binades * axis.step >= 42) ?? 128;
  const parts = [h("line", { class: "mp-axis", x1: 0, x2: axis.pixels, y1: y, y2: y })];
  for (let binade = Math.ceil(axis.low / step) * step; binade <= axis.high; binade += step) {
    const x = axis.x(binade);
    if (x < 14 || x > axis.pixels - 14) continue;
    parts.push(h("line", { class: "mp-axis", x1: x, x2: x, y1: y, y2: y + 5 }));
    parts.push(h("text", { class: "mp-axis-label", x, y: y + 18, "text-anchor": "middle" }, binade ? `2${superscript(binade)}` : "1"));
  }
  return parts;
}
