// The float explorer: one module for Jupyter (anywidget's `_esm`) and for the built page (mount.js).

import { atOrdinal, classify, decode, encode, fields, hasNaN, hiddenBit, lowestBinade, neighbours, ordinal, overflows, roundingInterval, ulp, usableOverflow, width } from "./codes.mjs";
import { button, chooser, clamp, floorLog2, h, labelled, largest, maxCode, present, say, superscript, typeset } from "./kit.mjs";

// --- Numbers as text -----------------------------------------------------------------------------

// The shortest text that Python's float() and JavaScript's Number read back as the same number.
export function textOf(x) {
  if (Number.isNaN(x)) return "nan";
  if (!Number.isFinite(x)) return x > 0 ? "inf" : "-inf";
  if (x === 0) return Object.is(x, -0) ? "-0" : "0";
  return Math.abs(x) < 1e-3 ? x.toExponential() : String(x);
}

const tidy = (text) => text.toLowerCase().replaceAll("−", "-").replace(/[\s_]/g, "");

// Reads 0.1, 1e-8, inf, nan, 1/3 and 2^-24; null for anything else, and beyond the range of doubles.
export function parseNumber(text) {
  const t = tidy(text);
  if (/^[+-]?nan$/.test(t)) return NaN;
  if (/^[+-]?inf(inity)?$/.test(t)) return t.startsWith("-") ? -Infinity : Infinity;
  const x = evaluate(t);
  const vanished = x === 0 && /^[^e/]*[1-9]/.test(t);
  return Number.isFinite(x) && !vanished ? x : null;
}

// A number, a quotient or a power of two as it comes out in doubles, so 1e400 is infinite.
function evaluate(t) {
  const power = t.match(/^([+-]?)2(?:\^|\*\*)([+-]?\d+)$/);
  if (power) return (power[1] === "-" ? -1 : 1) * 2 ** Number(power[2]);
  const decimal = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/;
  const parts = t.split("/");
  if (parts.length > 2 || !parts.every((part) => decimal.test(part)) || Number(parts[1] ?? 1) === 0) return null;
  return Number(parts[0]) / Number(parts[1] ?? 1);
}

// What to type instead of a text that parseNumber does not read.
function adviceOn(text) {
  if (text.includes(",")) return "Use a point for decimals, as in 1.5, and nothing between thousands.";
  if (evaluate(tidy(text)) === null) return "Not a number yet. Write 0.1, 1e-8, 1/3, 2^-24, inf or nan.";
  return "Out of reach: doubles go from 4.9e-324 to 1.8e308. Write a number in between, 0 or inf.";
}

// Every digit of a double, which is a whole number times a power of two, and so ends; or the first ones.
export function exactDecimal(x, most = Infinity) {
  if (!Number.isFinite(x) || x === 0) return textOf(x);
  const power = Math.max(floorLog2(Math.abs(x)), -1022) - 52;
  const significand = power < 0 ? BigInt(Math.abs(x) / 2 ** power) : BigInt(Math.abs(x));
  const allDigits = String(power < 0 ? significand * 5n ** BigInt(-power) : significand);
  const exponent = allDigits.length - 1 + Math.min(power, 0);
  const digits = allDigits.replace(/0+$/, "");
  const kept = exponent > 20 ? most : Math.max(most, exponent + 1); // whole digits are never cut
  return (x < 0 ? "-" : "") + placePoint(digits.length > kept ? digits.slice(0, kept) + "…" : digits, exponent);
}

function placePoint(digits, exponent) {
  if (exponent < -5 || exponent > 20) {
    const rest = digits.slice(1);
    return `${digits[0]}${rest ? "." + rest : ""}e${exponent}`;
  }
  if (exponent < 0) return "0." + "0".repeat(-exponent - 1) + digits;
  const whole = digits.slice(0, exponent + 1).padEnd(exponent + 1, "0");
  const rest = digits.slice(exponent + 1);
  return rest ? `${whole}.${rest}` : whole;
}

const short = (x, digits = 6) => typeset(textOf(Number.isFinite(x) && x !== 0 ? Number(x.toPrecision(digits)) : x));
const signed = (x, digits) => (x > 0 ? "+" : "") + short(x, digits);

// --- Parts. Each is {el, draw(s)}, where s = {value, f, code, overflow, rule, rounded, moved} ----

const PRESETS = ["0.1", "1/3", "448", "65504", "65520", "6e-5", "1e-8"];
const OVERFLOW_NAMES = { inf: "to infinity", saturate: "saturate at max", nan: "to NaN" };

function controls(act, formats) {
  const number = h("input", { class: "mp-number", spellcheck: "false", autocomplete: "off", autocapitalize: "off" });
  const format = chooser("Format", [], (name) => act.format(chooseFormat(name)));
  const overflow = chooser("Overflow", [], act.overflow);
  const problem = h("p", { class: "mp-problem", role: "alert" });
  const presets = PRESETS.map((text) => button(typeset(text), () => act.value(parseNumber(text))));
  let current = null;

  function chooseFormat(name) {
    const found = formats.find((f) => f.name === name);
    return found ?? (name === current.name ? current : { ...current, name: "custom" });
  }
  function complain(text) {
    problem.textContent = text;
    number.setAttribute("aria-invalid", String(parseNumber(number.value) === null)); // dims what is shown
  }
  number.addEventListener("input", () => {
    const value = parseNumber(number.value);
    if (value === null) complain(adviceOn(number.value));
    else act.value(value);
  });
  const custom = customFormat(act);

  return {
    complain,
    el: h("div", { class: "mp-controls" },
      h("div", { class: "mp-row" }, labelled("Number", number), format.el, overflow.el),
      h("div", { class: "mp-row mp-presets", role: "group", "aria-label": "Try a number" }, h("span", {}, "Try"), ...presets),
      custom.el, problem),
    draw(s) {
      current = s.f;
      if (!Object.is(parseNumber(number.value), s.value)) number.value = textOf(s.value);
      complain("");
      const own = formats.some((f) => f.name === s.f.name) ? "custom" : s.f.name;
      format.offer([...formats.map((f) => [f.name, f.name]), [own, own === "custom" ? "custom…" : own]], s.f.name);
      const rules = Object.keys(OVERFLOW_NAMES).filter((rule) => usableOverflow(rule, s.f) === rule);
      overflow.offer(rules.map((rule) => [rule, OVERFLOW_NAMES[rule]]), s.rule);
      custom.el.hidden = formats.some((f) => f.name === s.f.name);
      custom.draw(s);
    },
  };
}

const SPECIALS = [
  ["inf_nan", "infinity and NaN"],
  ["nan", "one NaN, no infinity"],
  ["none", "numbers only"],
  ["nan_is_negative_zero", "NaN in place of −0"],
];

// The reader's own format: two widths and the meaning of the top codes, always a valid description.
function customFormat(act) {
  const exponent = h("input", { type: "number", min: 2, max: 8, onchange: change });
  const mantissa = h("input", { type: "number", min: 0, max: 23, onchange: change });
  const specials = chooser("Top codes mean", SPECIALS, change);
  let current = null;

  function change() {
    const exponent_bits = clamp(Math.round(Number(exponent.value)) || 2, 2, 8);
    const fewest = specials.select.value === "inf_nan" ? 1 : 0; // infinity and NaN need a bit to differ in
    const mantissa_bits = clamp(Math.round(Number(mantissa.value)) || 0, fewest, 23);
    const bias = exponent_bits === current.exponent_bits ? current.bias : 2 ** (exponent_bits - 1) - 1;
    act.format({ ...current, name: "custom", exponent_bits, mantissa_bits, bias, specials: specials.select.value });
  }
  return {
    el: h("fieldset", { class: "mp-row mp-custom" }, h("legend", {}, "Your own format"),
      labelled("Exponent bits", exponent), labelled("Mantissa bits", mantissa), specials.el),
    draw(s) {
      current = s.f;
      exponent.value = s.f.exponent_bits;
      mantissa.value = s.f.mantissa_bits;
      const possible = SPECIALS.filter(([name]) => name !== "nan_is_negative_zero" || s.f.signed && s.f.subnormals);
      specials.offer(possible, s.f.specials);
    },
  };
}

function bits(act) {
  const el = h("div", { class: "mp-bits", role: "group" });
  let built = "";
  let cells = [];
  let state = null;
  let painting = null; // the value, 0 or 1, that a drag spreads
  let pressed = null; // the cell that a pointer has set already, whose click must not set it back

  const bitOf = (i) => Math.floor(state.code / 2 ** (cells.length - 1 - i)) % 2;
  function paint(i, bit) {
    if (bitOf(i) !== bit) act.code(state.code + (bit ? 1 : -1) * 2 ** (cells.length - 1 - i));
  }
  function cell(i, name) {
    return button("0", () => {
      if (pressed !== i) paint(i, 1 - bitOf(i)); // from the keyboard or a screen reader
      pressed = null;
    }, {
      class: "mp-bit", "aria-label": name, "data-index": i, tabindex: i ? -1 : 0,
      onfocus: () => cells.forEach((other, j) => { other.tabIndex = i === j ? 0 : -1; }),
    });
  }
  function indexAt(event) {
    const target = document.elementFromPoint(event.clientX, event.clientY)?.closest(".mp-bit");
    return target && el.contains(target) ? Number(target.dataset.index) : null;
  }
  el.addEventListener("pointerdown", (event) => {
    const i = indexAt(event);
    if (i === null || event.button !== 0) return;
    event.target.releasePointerCapture?.(event.pointerId); // a touch would stay with its first bit
    pressed = i;
    painting = 1 - bitOf(i);
    paint(i, painting);
  });
  el.addEventListener("pointermove", (event) => {
    const i = painting === null || event.buttons === 0 ? null : indexAt(event);
    if (i !== null) paint(i, painting);
  });
  for (const end of ["pointerup", "pointercancel", "pointerleave"]) {
    el.addEventListener(end, () => { painting = null; });
  }
  el.addEventListener("keydown", (event) => {
    const i = cells.indexOf(event.target);
    const goal = { ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: cells.length - 1 }[event.key];
    pressed = null;
    if (i < 0 || goal === undefined) return;
    event.preventDefault();
    cells[clamp(goal, 0, cells.length - 1)].focus();
  });

  function build(f) {
    const e = f.exponent_bits, m = f.mantissa_bits, first = Number(f.signed);
    const name = (i) => {
      if (i < first) return "sign bit";
      if (i < first + e) return `exponent bit, worth ${2 ** (first + e - 1 - i)}`;
      return `mantissa bit, worth 1/${2 ** (i - first - e + 1)}`;
    };
    cells = Array.from({ length: width(f) }, (_, i) => cell(i, name(i)));
    const hidden = h("span", { class: "mp-hidden-bit", title: "the hidden bit, which is not stored" });
    el.setAttribute("aria-label", `The ${width(f)} bits of ${f.name}: arrow keys move, space flips a bit`);
    el.replaceChildren(
      ...(f.signed ? [field("sign", 1, cells.slice(0, 1))] : []),
      field("exponent", e, cells.slice(first, first + e)),
      field("mantissa", m, cells.slice(first + e), hidden));
  }
  function draw(s) {
    state = s;
    const key = JSON.stringify(s.f);
    if (key !== built) build(s.f);
    built = key;
    cells.forEach((c, i) => {
      c.textContent = bitOf(i);
      c.setAttribute("aria-pressed", String(bitOf(i) === 1));
    });
    const meaning = fieldMeanings(s);
    for (const part of el.querySelectorAll(".mp-field")) {
      part.querySelector(".mp-meaning").textContent = meaning[part.dataset.role];
    }
    el.querySelector(".mp-hidden-bit").textContent = meaning.hidden;
  }
  return { el, draw };
}

// Four bits to a group, counted from the right, so that long fields wrap between groups.
function field(role, count, cells, ...before) {
  const groups = [];
  for (let end = cells.length; end > 0; end -= 4) groups.unshift(cells.slice(Math.max(end - 4, 0), end));
  return h("div", { class: `mp-field mp-${role}`, "data-role": role },
    h("div", { class: "mp-field-name" }, role === "sign" ? role : `${role}, ${count} bit${count === 1 ? "" : "s"}`),
    h("div", { class: "mp-cells" }, ...before, ...groups.map((group) => h("span", { class: "mp-nibble" }, ...group))),
    h("div", { class: "mp-meaning" }));
}

function fieldMeanings({ f, code }) {
  const { sign, exponent, mantissa } = fields(code, f);
  const kind = classify(code, f);
  const plain = kind === "normal" || kind === "subnormal" || kind === "zero";
  const isSubnormal = f.subnormals && exponent === 0;
  const power = isSubnormal ? `1 − ${f.bias}` : `${exponent} − ${f.bias}`;
  const binade = isSubnormal ? lowestBinade(f) : exponent - f.bias;
  return {
    sign: sign ? "−" : "+",
    exponent: plain ? typeset(`${power} = ${binade}`) : `${exponent}, special`,
    mantissa: f.mantissa_bits ? `${mantissa}/${hiddenBit(f)}` : "no bits",
    hidden: plain ? (isSubnormal ? "0." : "1.") : "",
  };
}

function formula({ f, code, rounded }) {
  const { sign, exponent, mantissa } = fields(code, f);
  const kind = classify(code, f);
  if (kind === "NaN") return "this code stands for no number";
  if (kind === "infinity") return "exponent all ones, mantissa zero: infinity";
  const isSubnormal = f.subnormals && exponent === 0;
  const whole = isSubnormal ? 0 : 1;
  const factor = f.mantissa_bits ? `(${whole} + ${mantissa}/${hiddenBit(f)})` : whole;
  const power = h("sup", {}, `${isSubnormal ? 1 : exponent} − ${f.bias}`);
  const line = h("span", {}, f.signed ? `${sign ? "−" : "+"}1 × 2` : "2", power, ` × ${factor}`);
  if (isSubnormal) line.append(kind === "zero" ? "" : ", without the hidden bit");
  return line;
}

const DIGITS = 17; // as many as tell doubles apart

function facts(act) {
  const live = h("output", { class: "mp-live", "aria-live": "polite" });
  const value = h("strong", { class: "mp-value" });
  const badge = h("span", { class: "mp-kind" });
  const full = h("span", { class: "mp-value" });
  const allDigits = h("details", { class: "mp-digits" }, h("summary", {}, "all digits"), full);
  const how = h("div", { class: "mp-formula" });
  const cells = {};
  const entry = (name) => h("div", {}, h("dt", {}, name), (cells[name] = h("dd")));
  const step = (name) => button("", () => act.step(cells[name].target), { class: "mp-step" });
  const below = step("below"), above = step("above");

  function neighbour(name, control, value, arrow) {
    cells[name].target = value;
    cells[name].replaceChildren(value === null ? "none" : control);
    control.textContent = value === null ? "" : arrow(short(value, 9));
    control.setAttribute("aria-label", `go to the number ${name}, ${value === null ? "" : short(value, 9)}`);
  }
  return {
    el: h("div", { class: "mp-facts" },
      h("div", { class: "mp-result" }, value, " ", badge, " ", allDigits), how,
      h("dl", {}, ...["below", "above", "one ulp", "rounding error", "relative error", "code"].map(entry)), live),
    draw(s) {
      const judged = verdict(s.value, s.code, s.f);
      value.textContent = typeset(exactDecimal(s.rounded, DIGITS));
      full.textContent = typeset(exactDecimal(s.rounded));
      allDigits.hidden = full.textContent === value.textContent;
      badge.textContent = judged;
      badge.hidden = judged === "";
      how.replaceChildren(formula(s));
      const [low, high] = Number.isNaN(s.rounded) ? [null, null] : neighbours(s.rounded, s.f);
      neighbour("below", below, low, (text) => `◂ ${text}`);
      neighbour("above", above, high, (text) => `${text} ▸`);
      cells["one ulp"].textContent = Number.isFinite(s.rounded) ? short(ulp(s.rounded, s.f)) : "none";
      cells["rounding error"].textContent = errorText(s.rounded - s.value);
      cells["relative error"].textContent = relativeText(s.value, s.rounded);
      cells.code.previousSibling.textContent = `${width(s.f)}-bit code`;
      cells.code.textContent = "0x" + s.code.toString(16).toUpperCase().padStart(Math.ceil(width(s.f) / 4), "0");
      const from = judged === "" || Object.is(s.value, s.rounded) ? "" : `from ${short(s.value, 9)}`;
      const said = `${s.f.name}: ${[short(s.rounded, 12), judged, from].filter(Boolean).join(", ")}`;
      say(live, said);
    },
  };
}

function errorText(error) {
  if (error === 0) return "0";
  return Number.isFinite(error) ? signed(error, 3) : "—";
}

function relativeText(value, rounded) {
  const error = rounded - value;
  const relative = error === 0 ? 0 : Math.abs(error / value);
  return Number.isFinite(relative) ? short(relative, 3) : "—";
}

// What became of a number, in a word or two; nothing became of NaN.
function verdict(value, code, f) {
  if (Number.isNaN(value)) return "";
  const rounded = decode(code, f);
  const kind = classify(code, f) === "subnormal" ? "subnormal, " : "";
  if (Object.is(value, rounded)) return `${kind}exact`;
  if (value < 0 && !f.signed) return "no sign";
  if (overflows(value, f)) return Number.isFinite(value) ? "overflow" : "no infinity";
  if (value === 0) return rounded === 0 ? "no −0" : "no zero";
  if (rounded === 0) return "underflow";
  if (!f.subnormals && Math.abs(value) < decode(0, f) - ulp(decode(0, f), f) / 4) return "too small"; // the gap below is half
  return `${kind}rounded`;
}

// --- The number line ------------------------------------------------------------------------------

const HEIGHT = 148;
const AXIS = 108;
const TICK = 26; // height of an ordinary tick, and of a stretch where ticks begin to merge
const MERGE = 4; // pixels between numbers below which they are drawn as a skyline of their density

// Maps the real line to the drawn one: as it is, or one unit per binade outside the subnormals.
function mapping(scale, f) {
  if (scale === "linear") return { to: (x) => x, from: (t) => t };
  const unit = 2 ** lowestBinade(f);
  return {
    to: (x) => Math.sign(x) * (Math.abs(x) <= unit ? Math.abs(x) / unit : 1 + Math.log2(Math.abs(x) / unit)),
    from: (t) => Math.sign(t) * (Math.abs(t) <= 1 ? Math.abs(t) * unit : unit * 2 ** (Math.abs(t) - 1)),
  };
}

function wholeView(map, { f, value }) {
  const typed = Number.isFinite(value) ? value : 0;
  const end = map.to(Math.max(largest(f), Math.abs(typed))) * 1.12;
  return [f.signed || typed < 0 ? -end : 0, end];
}

// A dozen numbers around the rounded one; wider where the number typed lies far from it.
function nearView(s) {
  const anchor = anchorOf(s);
  const distance = Number.isFinite(s.value) ? Math.abs(s.value - anchor) : 0;
  const half = Math.max(6 * ulp(anchor, s.f), 1.6 * distance);
  return [anchor - half, anchor + half];
}

function anchorOf({ rounded, value, f }) {
  if (Number.isFinite(rounded)) return rounded;
  const target = Number.isNaN(rounded) ? value : rounded;
  return Number.isNaN(target) || (target < 0 && !f.signed) ? decode(0, f) : Math.sign(target) * largest(f);
}

function numberLine(act) {
  const svg = h("svg", { role: "img", height: HEIGHT });
  const stage = h("div", {
    class: "mp-stage", tabindex: 0, role: "group",
    "aria-label": "Number line: plus and minus zoom, arrow keys pan, 0 goes to the number, w shows the whole range",
  }, svg);
  let scale = "linear", view = null, state = null, pixels = 640;

  const map = () => mapping(scale, state.f);
  const x = (value) => ((map().to(value) - view[0]) / (view[1] - view[0])) * pixels;
  const valueAt = (px) => map().from(view[0] + (px / pixels) * (view[1] - view[0]));

  // The number and a dozen around it, linear; or all there is, logarithmic.
  const home = () => (scale === "linear" ? nearView(state) : wholeView(map(), state));
  function go(newScale) {
    scale = newScale;
    view = home();
    paint();
  }
  // Between one number on the screen, or what doubles can tell apart, and all there is to see.
  function zoomLimits(centre) {
    const [low, high] = wholeView(map(), state);
    const middle = map().from(centre);
    const gap = map().to(middle + ulp(middle, state.f)) - map().to(middle);
    return [Math.max(1.5 * gap, 1e-11 * Math.abs(centre)), 2 * (high - low)];
  }
  function zoom(factor, px = pixels / 2) {
    const fixed = view[0] + (px / pixels) * (view[1] - view[0]);
    const next = view.map((t) => fixed + (t - fixed) * factor);
    const [least, most] = zoomLimits((next[0] + next[1]) / 2);
    if (factor > 1 ? next[1] - next[0] > most : next[1] - next[0] < least) return false;
    view = next;
    paint();
    return true;
  }
  function pan(fraction) {
    const step = fraction * (view[1] - view[0]);
    const reach = Math.max(map().to(largest(state.f)) * 2, Math.abs(view[0] + view[1]) / 2);
    if (Math.abs(view[0] + view[1]) / 2 + step * Math.sign(view[0] + view[1]) > reach) return;
    view = [view[0] + step, view[1] + step];
    paint();
  }
  function paint() {
    svg.setAttribute("viewBox", `0 0 ${pixels} ${HEIGHT}`);
    svg.setAttribute("aria-label", `Number line from ${short(valueAt(0))} to ${short(valueAt(pixels))}, ${scale}`);
    const picture = { s: state, x, valueAt, pixels, scale, view };
    svg.replaceChildren(...zones(picture), ...representable(picture), ...axis(picture), ...markers(picture));
  }

  function lost() {
    const anchor = anchorOf(state);
    const px = x(anchor);
    const typed = Number.isFinite(state.value) ? x(state.value) : px;
    const gap = Math.abs(x(anchor + ulp(anchor, state.f)) - px);
    return !(px > 0 && px < pixels && typed > 0 && typed < pixels && gap < pixels / 2);
  }

  listenToStage(stage, { zoom, pan, go, place: (px) => act.step(rounded(px)), pixels: () => pixels });
  // As many digits as tell one pixel from the next.
  function rounded(px) {
    const value = valueAt(px);
    const digits = Math.ceil(Math.log10(Math.abs(value / (valueAt(px + 1) - value)) || 1)) + 1;
    return Number(value.toPrecision(clamp(digits, 2, 17)));
  }

  const tools = h("div", { class: "mp-row mp-tools" },
    button("−", () => zoom(2), { "aria-label": "zoom out" }),
    button("+", () => zoom(0.5), { "aria-label": "zoom in" }),
    button("◂", () => pan(-0.25), { "aria-label": "pan left" }),
    button("▸", () => pan(0.25), { "aria-label": "pan right" }),
    button("the number", () => go("linear")),
    button("all", () => go("logarithmic"), { "aria-label": "show the whole range, logarithmic" }));
  const hint = h("p", { class: "mp-hint" }, "Drag to pan, + and − or Ctrl and scroll to zoom, click to put the number there.");

  return {
    el: h("div", { class: "mp-line" }, stage, tools, hint),
    resize(widthNow) {
      pixels = Math.max(Math.round(widthNow), 200);
      if (state) paint();
    },
    draw(s) {
      state = s;
      if (s.moved || lost()) view = home();
      paint();
    },
  };
}

function listenToStage(stage, act) {
  let grabbed = null;
  let moved = false;
  const at = (event) => event.clientX - stage.getBoundingClientRect().left;

  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    grabbed = at(event);
    moved = false;
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    if (grabbed === null) return;
    const px = at(event);
    if (!moved && Math.abs(px - grabbed) < 4) return;
    moved = true;
    act.pan((grabbed - px) / act.pixels());
    grabbed = px;
  });
  stage.addEventListener("pointerup", (event) => {
    if (grabbed !== null && !moved) act.place(at(event));
    grabbed = null;
  });
  stage.addEventListener("pointercancel", () => { grabbed = null; });
  stage.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && stage !== document.activeElement) return; // the page scrolls on
    const zoomed = act.zoom(1.0015 ** clamp(event.deltaY, -400, 400), at(event));
    if (zoomed || event.ctrlKey) event.preventDefault(); // Ctrl would zoom the page
  }, { passive: false });
  stage.addEventListener("keydown", (event) => {
    const action = {
      "+": () => act.zoom(0.5), "=": () => act.zoom(0.5), "-": () => act.zoom(2), "_": () => act.zoom(2),
      ArrowLeft: () => act.pan(-0.1), ArrowRight: () => act.pan(0.1),
      0: () => act.go("linear"), w: () => act.go("logarithmic"),
    }[event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    action();
  });
}

function span(picture, low, high) {
  const left = clamp(Number.isFinite(low) ? picture.x(low) : low < 0 ? 0 : picture.pixels, 0, picture.pixels);
  const right = clamp(Number.isFinite(high) ? picture.x(high) : high < 0 ? 0 : picture.pixels, 0, picture.pixels);
  return { left, right, size: right - left };
}

// Shaded stretches: what rounds to this number, the subnormals, and what overflows.
function zones(picture) {
  const { f, code, rule } = picture.s;
  const parts = [];
  const zone = (low, high, name, top, bottom, label, y) => {
    const { left, right, size } = span(picture, low, high);
    if (size <= 0) return;
    parts.push(h("rect", { class: `mp-zone-${name}`, x: left, y: top, width: size, height: bottom - top }));
    if (label && size > label.length * 7) {
      parts.push(h("text", { class: "mp-zone-label", x: (left + right) / 2, y }, label));
    }
  };
  const limit = largest(f) + ulp(largest(f), f) / 2;
  const beyond = { inf: "overflow to infinity", saturate: "saturates at max", nan: "overflow to NaN" }[rule];
  zone(limit, Infinity, "overflow", 40, AXIS, beyond, 56);
  if (f.signed) zone(-Infinity, -limit, "overflow", 40, AXIS, beyond, 56);
  const normal = 2 ** lowestBinade(f);
  if (f.subnormals && f.mantissa_bits) {
    zone(f.signed ? -normal : 0, normal, "subnormal", AXIS + 1, AXIS + 5, "subnormal numbers", HEIGHT - 3);
  }
  const interval = roundingInterval(code, f, rule);
  if (interval) zone(...interval, "interval", 40, AXIS);
  return parts;
}

// Every number of the format as a tick, taller at round mantissas; where they merge, their density.
function representable({ s: { f }, x, valueAt, pixels }) {
  const count = (from, to) => ordinal(valueAt(to), f, Math.floor) - ordinal(valueAt(from), f, Math.floor);
  let ticks = "";
  let skyline = "";
  for (let left = 0; left < pixels; left += MERGE) {
    const crowd = count(left - 1.5 * MERGE, left + 2.5 * MERGE) / 4; // numbers in MERGE pixels hereabouts
    if (crowd < 1) {
      ticks += ticksBetween(valueAt(left), valueAt(left + MERGE), f, x);
    } else {
      const tall = TICK + 36 * (1 - 2 ** (-Math.log2(crowd) / 5));
      skyline += `M${left} ${AXIS}v${-tall.toFixed(1)}h${MERGE}V${AXIS}z`;
    }
  }
  return [h("path", { class: "mp-skyline", d: skyline }), h("path", { class: "mp-ticks", d: ticks })];
}

function ticksBetween(low, high, f, x) {
  let path = "";
  const last = Math.min(ordinal(high, f, Math.floor), maxCode(f));
  const first = Math.max(ordinal(low, f, Math.floor) + 1, f.signed ? -maxCode(f) : 0);
  for (let n = first; n <= last; n += 1) {
    const mantissa = Math.abs(n) % hiddenBit(f);
    const tall = mantissa === 0 ? 46 : mantissa * 2 === hiddenBit(f) ? 36 : TICK;
    path += `M${x(atOrdinal(n, f)).toFixed(2)} ${AXIS}v${-tall}`;
  }
  return path;
}

function axis(picture) {
  const labels = picture.scale === "linear" ? decimalLabels(picture) : powerLabels(picture);
  const parts = [h("line", { class: "mp-axis", x1: 0, x2: picture.pixels, y1: AXIS, y2: AXIS })];
  for (const [px, text] of labels) {
    if (px < text.length * 3.4 || px > picture.pixels - text.length * 3.4) continue;
    parts.push(h("line", { class: "mp-axis", x1: px, x2: px, y1: AXIS, y2: AXIS + 7 }));
    parts.push(h("text", { class: "mp-axis-label", x: px, y: AXIS + 21 }, text));
  }
  return parts;
}

function decimalLabels({ x, view: [low, high], pixels }) {
  const places = (step) => Math.max(0, Math.round(Math.log10(Math.max(Math.abs(low), Math.abs(high)) / step)));
  const rough = (high - low) / Math.max(pixels / 120, 3);
  const base = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * base).find((k) => k >= rough);
  const largestShown = Math.max(Math.abs(low), Math.abs(high));
  const plain = largestShown < 1e7 && largestShown >= 1e-3;
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const write = (v) => (v === 0 ? "0" : plain ? v.toFixed(decimals) : v.toExponential(clamp(places(base), 0, 20)));
  const labels = [];
  for (let k = Math.ceil(low / step); k <= Math.floor(high / step); k += 1) {
    labels.push([x(k * step), typeset(write(k * step)).replace("+", "")]);
  }
  return labels;
}

function powerLabels({ s: { f }, x, view, pixels }) {
  const lowest = lowestBinade(f);
  const step = Math.max(1, Math.ceil((view[1] - view[0]) / Math.max(pixels / 64, 2)));
  const labels = [[x(0), "0"]];
  for (let k = Math.ceil((Math.max(view[1], -view[0])) + lowest); k >= lowest; k -= 1) {
    const clear = k - lowest + 1 >= step * 0.75; // keep away from the label of 0
    if (k % step || !clear) continue;
    labels.push([x(2 ** k), `2${superscript(k)}`], [x(-(2 ** k)), `−2${superscript(k)}`]);
  }
  return labels;
}

// The number typed and the one it rounds to, with labels that point away from each other.
function markers({ s: { value, rounded }, x, pixels }) {
  const parts = [];
  const inside = (px) => px >= 0 && px <= pixels;
  function label(px, y, toTheLeft, text) {
    const shown = px < 0 ? `◂ ${text}` : px > pixels ? `${text} ▸` : text;
    const room = shown.length * 7;
    const at = toTheLeft ? clamp(px - 5, room, pixels) : clamp(px + 5, 0, pixels - room);
    const attributes = { class: "mp-marker-label", x: at, y, "text-anchor": toTheLeft ? "end" : "start" };
    parts.push(h("text", attributes, shown));
  }
  if (Number.isFinite(rounded)) {
    const px = x(rounded);
    if (inside(px)) {
      parts.push(h("line", { class: "mp-stem", x1: px, x2: px, y1: 34, y2: AXIS }));
      parts.push(h("circle", { class: "mp-rounded", cx: px, cy: AXIS, r: 5 }));
    }
    label(px, 30, !(value < rounded), short(rounded, 9));
  }
  if (Number.isFinite(value) && value !== rounded) {
    const px = x(value);
    if (inside(px)) parts.push(h("path", { class: "mp-typed", d: `M${px} ${AXIS - 6}l-5 -10h10z M${px} ${AXIS - 16}V17` }));
    label(px, 13, value < rounded, `typed ${short(value, 9)}`);
  }
  return parts;
}

// --- The same number in every format ---------------------------------------------------------------

function table(act, formats) {
  const rows = formats.map((f) => ({
    f, name: button(f.name, () => act.format(f)), cells: [h("td"), h("td"), h("td")],
  }));
  const lines = rows.map((row) => (row.el = h("tr", {}, h("th", { scope: "row" }, row.name), ...row.cells)));
  const heads = ["format", "becomes", "relative error", ""].map((text) =>
    text ? h("th", { scope: "col" }, text) : h("td"));
  return {
    el: h("table", { class: "mp-table" },
      h("caption", {}, "The same number in every format"), h("thead", {}, h("tr", {}, ...heads)), h("tbody", {}, ...lines)),
    draw(s) {
      for (const { f, name, cells, el } of rows) {
        const [becomes, error, note] = inFormat(s.value, f, s.overflow);
        [becomes, error, note].forEach((text, i) => { cells[i].textContent = text; });
        el.classList.toggle("mp-chosen", f.name === s.f.name);
        name.setAttribute("aria-pressed", String(f.name === s.f.name));
      }
    },
  };
}

function inFormat(value, f, overflow) {
  if (!hasNaN(f) && (Number.isNaN(value) || (value < 0 && !f.signed))) return ["—", "—", Number.isNaN(value) ? "no NaN" : "no sign"];
  const code = encode(value, f, usableOverflow(overflow, f));
  const rounded = decode(code, f);
  return [short(rounded), relativeText(value, rounded), verdict(value, code, f)];
}

// --- All together -----------------------------------------------------------------------------------

const TRAITS = ["value", "format", "code", "overflow"];

// A kernel sends value and code one after the other; in between, the value counts.
function readState(model) {
  const f = model.get("format");
  const value = parseNumber(model.get("value"));
  const overflow = model.get("overflow");
  const rule = usableOverflow(overflow, f);
  const held = model.get("code");
  const code = held < 2 ** width(f) && Object.is(decode(held, f), value) ? held : encode(value, f, rule);
  return { value, f, code, overflow, rule, rounded: decode(code, f) };
}

// Every change keeps value and code in step and reaches the kernel, if there is one, as one message.
function actions(model, complain) {
  function apply(value, f, overflow, code) {
    const changes = { value: textOf(value), code: code ?? encode(value, f, usableOverflow(overflow, f)) };
    if (JSON.stringify(f) !== JSON.stringify(model.get("format"))) changes.format = f;
    for (const [name, change] of Object.entries({ ...changes, overflow })) model.set(name, change);
    model.save_changes();
  }
  function attempt(change) {
    const { value, f, overflow, code } = { ...readState(model), ...change };
    try {
      apply(value, f, overflow, change.code === undefined ? undefined : code);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      complain(`${error.message}.`);
    }
  }
  function attemptInPlace(change) {
    act.inPlace = true;
    attempt(change);
    act.inPlace = false;
  }
  const act = {
    inPlace: false, // true while a change is made that the number line need not follow
    value: (value) => attempt({ value }),
    format: (f) => attempt({ f }),
    step: (value) => attemptInPlace({ value }),
    overflow: (overflow) => attemptInPlace({ overflow }),
    code: (code) => attemptInPlace({ code, value: decode(code, model.get("format")) }),
  };
  return act;
}

function render({ model, el }) {
  let shown = null;
  const formats = model.get("formats");
  const act = actions(model, (text) => {
    shown.draw();
    top.complain(text);
  });
  const top = controls(act, formats);
  let moved = true; // whether a number or a format came that the number line goes to
  shown = present({ model, el }, {
    name: "Float explorer",
    traits: TRAITS,
    parts: [top, bits(act), facts(act), numberLine(act), table(act, formats)],
    state() {
      const s = { ...readState(model), moved };
      moved = false;
      return s;
    },
    later: queueMicrotask,
    changed() { moved ||= !act.inPlace; },
  });
  return shown.remove;
}

export default { render };
