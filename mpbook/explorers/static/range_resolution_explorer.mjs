// The range-and-resolution explorer: one module for Jupyter (anywidget's `_esm`) and for the built
// page (mount.js). Bits go to the exponent or to the mantissa, and every tensor shows what that costs.
// The sentence is that of mpbook/explorers/range_resolution_explorer.py, which the tests prove equal.

import { button, change, chooser, clamp, h, labelled, largest, powers, present, say, typeset } from "./kit.mjs";
import { bars, binadeAxis, digits, ends, fates, listed, overflowShare, percent, powerLabels, zones } from "./census.mjs";

// --- Splits -----------------------------------------------------------------------------------------------

const width = (f) => 1 + f.exponent_bits + f.mantissa_bits;
const isIeee = (f) => f.specials === "inf_nan" && f.bias === 2 ** (f.exponent_bits - 1) - 1;

// The IEEE-like format of so many bits, with its name if it has one.
export function split(bits, exponent_bits, presets) {
  const mantissa_bits = bits - 1 - exponent_bits;
  const named = presets.find((p) => isIeee(p) && p.exponent_bits === exponent_bits && p.mantissa_bits === mantissa_bits);
  return named ?? {
    name: `e${exponent_bits}m${mantissa_bits}`, exponent_bits, mantissa_bits, bias: 2 ** (exponent_bits - 1) - 1,
    specials: "inf_nan", signed: true, subnormals: true,
  };
}

// --- In words -----------------------------------------------------------------------------------------------

const TRACE = 0.001; // losses below this share are named together

function zeroLosses(tensors) {
  const share = ({ seen }) => seen.underflow / seen.nonzero;
  const named = tensors.filter((tensor) => share(tensor) >= TRACE).map((tensor) => `${percent(share(tensor))} of ${tensor.census.name}`);
  const traces = tensors.filter((tensor) => share(tensor) > 0 && share(tensor) < TRACE).map(({ census }) => census.name);
  if (traces.length) named.push(`less than ${percent(TRACE)} of ${listed(traces)}`);
  return named.length ? `${listed(named)} round to zero` : "nothing rounds to zero";
}

function overflowLosses(tensors) {
  const over = tensors.filter(({ seen }) => overflowShare(seen)).map(({ census, seen }) => `${overflowShare(seen)} of ${census.name}`);
  return over.length ? `${listed(over)} overflow` : "nothing overflows";
}

const bound = (f) => `${digits(100 * 2 ** -(f.mantissa_bits + 1), 3)}%`;

export function sentence({ f, tensors }) {
  return `${f.name}, ${f.exponent_bits} exponent and ${f.mantissa_bits} mantissa bit${f.mantissa_bits === 1 ? "" : "s"}: ` +
    `${zeroLosses(tensors)}, ${overflowLosses(tensors)}; ` +
    `a normal number is off by at most ${bound(f)} (2^-${f.mantissa_bits + 1}).`;
}

// What the traits, by name, come to; `get` gives one.
export function readState(get) {
  const f = get("format");
  return { f, tensors: get("histograms").map((census) => ({ census, seen: fates(census, f) })) };
}

const NOTES = {
  float16: "IEEE's half precision.",
  bfloat16: "float32's exponent: what has the range of float32 fits.",
  DLFloat16: "The split of DLFloat16, which itself has no subnormals.",
  float8_e5m2: "float16 with eight mantissa bits cut off.",
  float8_e4m3: "The top exponent stands for infinity and NaN, as in every IEEE format, so it ends at 240. PyTorch's float8_e4m3fn reaches 448.",
  float8_e4m3fn: "All of the top exponent but one code, NaN, are numbers, so it reaches 448, and has no infinity.",
  float8_e4m3fnuz: "The bias is 8, so it ends at 240 and begins a binade below float8_e4m3fn. The code of −0 is its NaN.",
  float8_e5m2fnuz: "The bias is 16, so it begins a binade below float8_e5m2. The code of −0 is its NaN.",
};

// --- Parts. Each is {el, draw(s)}, where s is what readState gives -------------------------------------------

function controls(act, presets, limits) {
  let current = null;
  const endsOf = (bits) => limits.find(([b]) => b === bits).slice(1);
  const go = (bits, exponentBits) => act({ format: split(bits, clamp(exponentBits, ...endsOf(bits)), presets) });
  const bits = chooser("Bits in all", limits.map(([b]) => [b, String(b)]), (chosen) => go(Number(chosen), current.exponent_bits));
  const slider = h("input", { type: "range", step: 1, class: "mp-slider" });
  slider.addEventListener("input", () => go(width(current), Number(slider.value)));
  const cells = h("div", { class: "mp-split", "aria-hidden": "true" });
  const buttons = presets.map((p) => button(p.name, () => act({ format: p })));

  // The edge between exponent and mantissa follows the pointer.
  const toPointer = (event) => {
    const box = cells.getBoundingClientRect();
    const edge = Math.round(((event.clientX - box.left) / box.width) * width(current));
    if (clamp(edge - 1, ...endsOf(width(current))) !== current.exponent_bits) go(width(current), edge - 1);
  };
  cells.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    cells.setPointerCapture(event.pointerId);
    toPointer(event);
  });
  cells.addEventListener("pointermove", (event) => { if (event.buttons) toPointer(event); });

  return {
    el: h("div", { class: "mp-controls" },
      h("div", { class: "mp-row mp-presets", role: "group", "aria-label": "Named splits" }, h("span", {}, "Split as in"), ...buttons),
      h("div", { class: "mp-row mp-length" }, labelled("Exponent bits", slider), bits.el), cells),
    draw({ f }) {
      current = f;
      bits.select.value = width(f);
      [slider.min, slider.max] = endsOf(width(f));
      slider.value = f.exponent_bits;
      slider.setAttribute("aria-valuetext", `${f.exponent_bits} exponent bits, ${f.mantissa_bits} mantissa bits, ${f.name}`);
      buttons.forEach((b) => b.setAttribute("aria-pressed", String(b.textContent === f.name)));
      cells.replaceChildren(...[["sign", 1], ["exponent", f.exponent_bits], ["mantissa", f.mantissa_bits]].map(field));
    },
  };
}

const field = ([role, count]) =>
  h("div", { class: `mp-part mp-part-${role}`, style: `flex-grow: ${count}` },
    h("div", { class: "mp-part-bits" }, ...Array.from({ length: count }, () => h("span"))),
    role === "sign" ? "±" : `${role}, ${count} bit${count === 1 ? "" : "s"}`);

const short = (x) => typeset(x < 1e-3 || x >= 1e6 ? x.toExponential(3) : digits(x, 5));

function words() {
  const live = h("p", { "aria-live": "polite", class: "mp-said" });
  const note = h("p", { class: "mp-hint" });
  const cells = {};
  const entry = (name) => h("div", {}, h("dt", {}, name), (cells[name] = h("dd")));
  return {
    el: h("div", { class: "mp-words" }, live, note,
      h("div", { class: "mp-limits" }, h("dl", {}, ...["largest", "smallest normal", "smallest subnormal", "off by at most"].map(entry)))),
    draw(s) {
      const { normal } = ends(s.f);
      say(live, powers(sentence(s)));
      note.textContent = NOTES[s.f.name] ?? "A split without a name.";
      cells.largest.textContent = short(largest(s.f));
      cells["smallest normal"].textContent = short(2 ** normal);
      cells["smallest subnormal"].textContent = short(2 ** (normal - s.f.mantissa_bits));
      cells["off by at most"].textContent = bound(s.f);
    },
  };
}

// --- The tensors: a strip for each, over one axis -------------------------------------------------------------

const STRIP = 46, AXIS = 24, LABELS = 16;

function strips(histograms) {
  const rows = histograms.map((census) => {
    const svg = h("svg", { role: "img", height: STRIP });
    const shares = h("span", { class: "mp-shares" });
    return { svg, shares, el: h("div", { class: "mp-tensor" }, h("p", {}, h("strong", {}, census.name), " ", shares), svg) };
  });
  const head = h("svg", { height: LABELS, "aria-hidden": "true" });
  const foot = h("svg", { height: AXIS, "aria-hidden": "true" });
  const hint = h("p", { class: "mp-hint" }, "Shares are of the non-zero values. Hollow bars are lost; hatched is where this split has no numbers. tfloat32 does not choose: it has bfloat16's 8 exponent bits and float16's 10 mantissa bits, 19 with the sign.");
  const el = h("div", { class: "mp-chart" }, head, ...rows.map((row) => row.el), foot, hint);
  const firsts = histograms.map((c) => c.binades[0][0]), lasts = histograms.map((c) => c.binades.at(-1)[0]);
  const view = [Math.min(-26, ...firsts) - 2, Math.max(16, ...lasts) + 3]; // float16 and every tensor
  let pixels = 640;
  let state = null;

  function paint() {
    const { f, tensors } = state;
    const axis = binadeAxis(view, pixels);
    el.dataset.format = f.name;
    tensors.forEach(({ census, seen }, i) => {
      const { svg, shares } = rows[i];
      shares.textContent = [`${percent(seen.underflow / seen.nonzero)} to zero`, `${percent(seen.subnormal / seen.nonzero)} subnormal`,
        `${overflowShare(seen) || "0%"} overflow`].join(", ");
      svg.setAttribute("viewBox", `0 0 ${pixels} ${STRIP}`);
      svg.setAttribute("aria-label", `${census.name} in ${f.name}: ${shares.textContent}`);
      svg.replaceChildren(...zones(axis, f, 0, STRIP, false), ...bars(axis, census, f, 0, 3, STRIP));
    });
    head.setAttribute("viewBox", `0 0 ${pixels} ${LABELS}`);
    head.replaceChildren(...zones(axis, f, LABELS, LABELS).filter((part) => part.tagName === "text"));
    foot.setAttribute("viewBox", `0 0 ${pixels} ${AXIS}`);
    foot.replaceChildren(...powerLabels(axis, 1));
  }
  return {
    el,
    draw(s) { state = s; paint(); },
    resize(width) {
      pixels = Math.max(Math.round(width), 240);
      if (state) paint();
    },
  };
}

// --- All together -----------------------------------------------------------------------------------------------

const TRAITS = ["histograms", "format"];

function render({ model, el }) {
  const act = (changes) => change(model, changes);
  const get = (name) => model.get(name);
  const parts = [controls(act, get("presets"), get("limits")), words(), strips(get("histograms"))];
  return present({ model, el }, { name: "Range-and-resolution explorer", traits: TRAITS, parts, state: () => readState(get), later: queueMicrotask }).remove;
}

export default { render };
