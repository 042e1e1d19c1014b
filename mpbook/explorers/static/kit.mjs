// What the explorers share: elements, numbers as text, the largest number of a format, and the frame
// that draws an explorer's parts. mpbook/explorers/modules.py writes it into each module that imports it.

// --- Elements ---------------------------------------------------------------------------------------

const SVG = ["svg", "g", "path", "rect", "line", "circle", "text"];

export function h(tag, attributes = {}, ...children) {
  const element = SVG.includes(tag)
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export const button = (label, onclick, attributes = {}) => h("button", { type: "button", onclick, ...attributes }, label);
export const labelled = (name, control) => h("label", { class: "mp-control" }, h("span", {}, name), control);

// A labelled select: `options` are [value, text], `offer` replaces them.
export function chooser(name, options, onchange) {
  const select = h("select", { onchange: () => onchange(select.value) });
  const offer = (pairs, chosen) => {
    select.replaceChildren(...pairs.map(([value, text]) => h("option", { value }, text)));
    select.value = chosen;
  };
  offer(options, options[0]?.[0]);
  return { select, offer, el: labelled(name, select) };
}

// A screen reader reads a live region again whenever it is written, so write it only if it is new.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// --- Numbers ----------------------------------------------------------------------------------------

export const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
export const typeset = (text) => text.replaceAll("-", "−").replace("e+", "e").replace("nan", "NaN");
export const superscript = (n) => String(n).replace(/./g, (c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] ?? "⁻");
export const powers = (text) => text.replace(/\^(-?\d+)/g, (_, exponent) => superscript(exponent)); // 2^10 as 2¹⁰

// A number with so many significant digits.
export function significant(x, digits) {
  if (Number.isNaN(x)) return "NaN";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
  return typeset(String(Number(x.toPrecision(digits))));
}

// Round numbers from the lowest to the highest, for an axis: two at least, or it has no scale.
export function niceSteps(low, high) {
  const most = (high - low || 1) / 2;
  const base = 10 ** Math.floor(Math.log10(most));
  const step = [5, 2, 1, 0.5].map((k) => k * base).find((k) => k <= most);
  const steps = [];
  for (let k = Math.ceil(low / step); k * step <= high; k += 1) steps.push(k * step);
  return steps;
}

export function floorLog2(x) {
  const guess = Math.floor(Math.log2(x));
  if (2 ** guess > x) return guess - 1;
  return 2 ** (guess + 1) <= x ? guess + 1 : guess;
}

// The code of the largest number of a format, and that number.
export function maxCode(f) {
  const unit = 2 ** f.mantissa_bits;
  const reserved = { inf_nan: unit, nan: 1 }[f.specials] ?? 0;
  return 2 ** f.exponent_bits * unit - 1 - reserved;
}

export function largest(f) {
  const unit = 2 ** f.mantissa_bits;
  const exponent = Math.floor(maxCode(f) / unit);
  const hidden = exponent > 0 || !f.subnormals;
  return (Number(hidden) + (maxCode(f) % unit) / unit) * 2 ** (Math.max(exponent, Number(f.subnormals)) - f.bias);
}

// --- The frame --------------------------------------------------------------------------------------

// Shows the parts, each {el, draw(state)} and perhaps resize(pixels), and draws them after every
// change of a trait, once for all that changes together. `later` says when that is: at the next frame,
// or as a microtask, so that the next key finds the controls where the last one put them.
export function present({ model, el }, { name, traits, parts, state, later = requestAnimationFrame, changed = () => {} }) {
  // JupyterLab's own shortcuts must not see the keys that are pressed in here.
  const root = h("div", { class: "mp-explorer", role: "group", "aria-label": name, "data-lm-suppress-shortcuts": "true" },
    ...parts.map((part) => part.el));
  let waiting = false;
  const draw = () => { const s = state(); parts.forEach((part) => part.draw(s)); };
  const soon = () => {
    changed();
    if (waiting) return;
    waiting = true;
    later(() => { waiting = false; draw(); });
  };
  el.append(root);
  draw();
  const sized = parts.filter((part) => part.resize);
  const observer = new ResizeObserver(() => sized.forEach((part) => part.resize(part.el.clientWidth)));
  sized.forEach((part) => observer.observe(part.el));
  traits.forEach((trait) => model.on(`change:${trait}`, soon));
  return {
    draw,
    remove() {
      observer.disconnect();
      traits.forEach((trait) => model.off(`change:${trait}`, soon));
    },
  };
}

// Sets traits; the kernel, if there is one, gets them as one message.
export function change(model, changes) {
  for (const [name, value] of Object.entries(changes)) model.set(name, value);
  model.save_changes();
}
