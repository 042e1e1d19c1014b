// A roofline as a picture: both axes logarithmic, bandwidth the slope, the peaks the levels, work as points.

import { h, superscript } from "./kit.mjs";

// --- Numbers in words: mpbook/explorers/roofline_explorer.py -------------------------------------------------

const PREFIXES = [[1e-9, "n"], [1e-6, "µ"], [1e-3, "m"], [1, ""], [1e3, "k"], [1e6, "M"], [1e9, "G"], [1e12, "T"], [1e15, "P"], [1e18, "E"]];

export function digits(value) {
  const places = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  const scale = 10 ** places;
  const units = Math.floor(value * scale + 0.5);
  const whole = Math.floor(units / scale);
  return places ? `${whole}.${String(units - whole * scale).padStart(places, "0")}` : String(whole);
}

export function size(value, of) {
  const [scale, prefix] = PREFIXES.find(([scale]) => value < 999.5 * scale) ?? PREFIXES.at(-1);
  return `${digits(value / scale)} ${prefix}${of}`;
}

// --- The picture ---------------------------------------------------------------------------------------------

const TOP = 20, BOTTOM = 236, HEIGHT = 278, LEFT = 46, RIGHT = 12;

// Decades that hold every roof of the device and the points, so that they move only when they must.
function decadesOf({ roof, points }) {
  const peaks = [...roof.peaks.values()], ridges = peaks.map((peak) => peak / roof.bandwidth);
  const intensities = points.map((point) => point.intensity), rates = points.map((point) => point.rate);
  const low = Math.floor(Math.log10(Math.min(0.1, ...intensities.map((x) => x / 2))));
  const high = Math.ceil(Math.log10(Math.max(1000, 2 * Math.max(...ridges), ...intensities.map((x) => 2 * x))));
  const bottom = Math.floor(Math.log10(Math.min(10 ** low * roof.bandwidth, ...rates)));
  return { x: [low, high], y: [bottom, Math.ceil(Math.log10(1.5 * Math.max(...peaks, ...rates)))] };
}

function roofLine(roof, name, to, x, y, kind) {
  const peak = roof.peaks.get(name), ridge = peak / roof.bandwidth;
  const start = 10 ** Math.max(to.x[0], to.y[0] - Math.log10(roof.bandwidth));
  const points = [[start, start * roof.bandwidth], [ridge, peak], [10 ** to.x[1], peak]];
  return h("path", { class: kind, d: points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("") });
}

function* grid(to, x, y, right) {
  for (let power = to.x[0]; power <= to.x[1]; power += 1) {
    const px = x(10 ** power);
    yield h("line", { class: "mp-grid", x1: px, x2: px, y1: TOP, y2: BOTTOM });
    yield h("text", { x: px, y: BOTTOM + 17, "text-anchor": power === to.x[1] ? "end" : "middle" }, power ? `10${superscript(power)}` : "1");
  }
  for (let power = to.y[0]; power <= to.y[1]; power += 1) {
    const py = y(10 ** power);
    yield h("line", { class: "mp-grid", x1: LEFT, x2: right, y1: py, y2: py });
    yield h("text", { x: LEFT - 6, y: py + 4, "text-anchor": "end" }, `10${superscript(power)}`);
  }
  yield h("text", { class: "mp-axis-label", x: (LEFT + right) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "operations per byte");
  yield h("text", { class: "mp-axis-label", x: 0, y: 11 }, "operations per second");
}

function* drawing(s, pixels) {
  const right = pixels - RIGHT, to = decadesOf(s), { roof, shown } = s;
  const x = (value) => LEFT + ((Math.log10(value) - to.x[0]) / (to.x[1] - to.x[0])) * (right - LEFT);
  const y = (value) => BOTTOM - ((Math.log10(value) - to.y[0]) / (to.y[1] - to.y[0])) * (BOTTOM - TOP);
  const peak = roof.peaks.get(shown), ridge = peak / roof.bandwidth;
  yield* grid(to, x, y, right);
  for (const name of roof.peaks.keys()) if (name !== shown) yield roofLine(roof, name, to, x, y, "mp-roof-other");
  yield h("line", { class: "mp-stuck", x1: x(ridge), x2: x(ridge), y1: y(peak), y2: BOTTOM });
  yield roofLine(roof, shown, to, x, y, "mp-roof");
  yield h("text", { class: "mp-marker-label", x: LEFT + 8, y: TOP + 16 }, `peak in ${shown}: ${size(peak, "flop/s")}`);
  const tight = x(ridge) > right - 90;
  yield h("text", { class: "mp-axis-label", x: x(ridge) + (tight ? -6 : 6), y: BOTTOM - 8, "text-anchor": tight ? "end" : "start" }, `ridge ${digits(ridge)}`);
  for (const { intensity, rate, kind, stem, title } of s.points) {
    const cx = x(intensity), cy = y(rate);
    if (stem) yield h("line", { class: "mp-stem", x1: cx, x2: cx, y1: cy, y2: BOTTOM });
    yield h("circle", { class: kind, cx, cy, r: kind === "mp-here" ? 6.5 : 5 }, ...(title ? [h("title", {}, title)] : []));
  }
}

// `draw` takes {roof: {bandwidth, peaks}, shown, format, points: [{intensity, rate, kind, stem, title}], label}:
// peaks are a Map by format, `shown` names the roof that is drawn bold, `format` the one whose colour it has,
// and a point's kind is its class.
export function roofPicture(hint) {
  const svg = h("svg", { role: "img", height: HEIGHT });
  const el = h("div", { class: "mp-chart mp-roofs" }, svg, h("p", { class: "mp-hint" }, ...hint));
  let pixels = 640, state = null;
  const paint = () => {
    el.dataset.format = state.format;
    svg.setAttribute("viewBox", `0 0 ${pixels} ${HEIGHT}`);
    svg.setAttribute("aria-label", state.label);
    svg.replaceChildren(...drawing(state, pixels));
  };
  return {
    el,
    draw(s) { state = s; paint(); },
    resize(width) {
      pixels = Math.max(Math.round(width), 240);
      if (state) paint();
    },
  };
}
