// The GPU explorer: one module for Jupyter (anywidget's `_esm`) and for the built page (mount.js). What
// float16 is on the reader's own GPU, how fast it is, and a training on it. Nothing starts by itself,
// and nothing leaves the page but by "copy as text".

import { button, chooser, h, say, superscript } from "./kit.mjs";
import { REFUSALS, guarded, open } from "./gpu.mjs";
import { bits, runner, sentences } from "./gpu_bits.mjs";
import { bandwidth, products } from "./gpu_speed.mjs";
import { PARAMETERS, start, trainer } from "./gpu_training.mjs";
import { digits, roofPicture, size } from "./roof.mjs";

// --- In words ------------------------------------------------------------------------------------------

const three = (x) => (Number.isFinite(x) ? Number(x.toPrecision(3)).toString() : "NaN");
const percent = (part, of) => (of ? `${Math.round((100 * part) / of)}%` : "–");
const spread = ({ ms, low, high }) => `${three(ms)} ms (${three(low)} to ${three(high)})`;

export function productTable(rows) {
  const body = rows.map((row) => {
    const wide = rows.find((other) => other.n === row.n && other.name === "float32");
    return [`${row.n}, ${row.name}`, spread(row), three(row.gflops), three(wide.ms / row.ms), row.error ? row.error.toExponential(0).replace("-", "−") : "0"];
  });
  return { caption: "Matrix products of n × n on the shader cores", head: ["n, format", "time", "Gflop/s", "× float32", "error"], body };
}

export function streamTable(rows) {
  const body = rows.map((row) => [row.name, spread(row), three(row.gbs), three(rows[0].ms / row.ms)]);
  return { caption: `y = x + y / 2 over ${rows[0].elements.toLocaleString("en")} numbers`, head: ["format", "time", "GB/s", "× float32"], body };
}

const mean = (list, key) => list.reduce((sum, step) => sum + step[key], 0) / list.length;

export function trainingTable(runs, scale, rate) {
  const body = runs.filter(({ seen }) => seen.length).map(({ name, seen, broken }) => {
    const last = seen.slice(-50), updates = mean(last, "updates");
    const loss = broken == null ? three(mean(last, "loss")) : `NaN at step ${broken}`;
    return [name, loss, broken == null ? percent(mean(last, "lost"), updates) : "–", percent(mean(last, "zero"), PARAMETERS)];
  });
  const steps = Math.max(...runs.map(({ seen }) => seen.length));
  const caption = `After ${steps} steps with learning rate ${rate} and loss scale 2^${scale}: means of the last 50 steps`;
  return { caption, head: ["weights", "loss", "updates lost", "gradients of 0"], body };
}

const asText = ({ caption, head, body }) => [caption, ...[head, ...body].map((row) => `  ${row.join(" | ")}`)].join("\n");
const raised = (text) => text.replace(/2\^(-?\d+)/, (_, n) => `2${superscript(n)}`);

export function report(name, results) {
  return [`GPU: ${name}`, "Measured in a page with WebGPU, on shader cores: a page cannot reach tensor cores.", ...results].join("\n");
}

function drawn({ caption, head, body }) {
  const row = (cells) => h("tr", {}, ...cells.map((cell, i) => (i ? h("td", {}, cell) : h("th", { scope: "row" }, cell))));
  return h("div", { class: "mp-scroll", tabindex: 0, role: "region", "aria-label": caption }, h("table", { class: "mp-table" }, h("caption", {}, raised(caption)),
    h("thead", {}, h("tr", {}, ...head.map((cell) => h("th", { scope: "col" }, cell)))), h("tbody", {}, ...body.map(row))));
}

// --- The curves ------------------------------------------------------------------------------------------

const HEIGHT = 220, LEFT = 26, RIGHT = 8, TOP = 12, BOTTOM = 190, TOP_LOSS = 2.6;

// Where the losses lie, means of five steps each, up to the first that is not finite.
export function points(seen, steps, pixels) {
  const end = seen.findIndex(({ loss }) => !Number.isFinite(loss));
  const shown = end < 0 ? seen : seen.slice(0, end);
  const x = (i) => LEFT + (i / steps) * (pixels - LEFT - RIGHT);
  const y = (loss) => BOTTOM - (Math.min(loss, TOP_LOSS) / TOP_LOSS) * (BOTTOM - TOP);
  return shown.map((_, i) => [x(i), y(mean(shown.slice(Math.max(0, i - 4), i + 1), "loss"))]);
}

function* curves(runs, steps, pixels) {
  for (const loss of [0, 1, 2]) {
    const y = BOTTOM - (loss / TOP_LOSS) * (BOTTOM - TOP);
    yield h("line", { class: "mp-grid", x1: LEFT, x2: pixels - RIGHT, y1: y, y2: y });
    yield h("text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, String(loss));
  }
  yield h("text", { class: "mp-axis-label", x: LEFT, y: HEIGHT - 8 }, "loss");
  yield h("text", { class: "mp-axis-label", x: pixels - RIGHT, y: HEIGHT - 8, "text-anchor": "end" }, `${steps} steps`);
  for (const { kind, seen, broken } of runs) {
    const line = points(seen, steps, pixels);
    yield h("path", { class: `mp-curve-${kind}`, d: line.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("") });
    if (broken != null && line.length) yield h("text", { class: "mp-marker-label", x: Math.min(line.at(-1)[0] + 5, pixels - 34), y: line.at(-1)[1] + (kind === "half" ? -8 : 16) }, "NaN");
  }
}

function chart(steps) {
  const svg = h("svg", { role: "img", height: HEIGHT, "aria-label": "Loss against steps of the three trainings" });
  const key = ["float32", "float16", "float16 with float32 master weights"].flatMap((name, i) => [h("span", { class: `mp-key-${KINDS[i]}` }), name]);
  const el = h("div", { class: "mp-chart", "data-format": "float16", hidden: true }, svg, h("p", { class: "mp-hint mp-key" }, ...key));
  let shown = [], pixels = 640;
  const draw = (runs) => {
    shown = runs;
    svg.setAttribute("viewBox", `0 0 ${pixels} ${HEIGHT}`);
    svg.replaceChildren(...curves(runs, steps, pixels));
  };
  const observer = new ResizeObserver(() => { pixels = Math.max(el.clientWidth, 240); draw(shown); });
  observer.observe(el);
  return { el, draw, remove: () => observer.disconnect() };
}

// --- What was measured, under a roof ------------------------------------------------------------------------

const HERE = "what was measured here";
const isHalf = ({ name }) => name !== "float32";

// Products and streams as points. A fused multiply-add is two operations, and counts of bytes are the least.
export function measured(streams, products) {
  const point = ({ name }, rest) => ({ ...rest, kind: isHalf({ name }) ? "mp-roof-half" : "mp-typed" });
  return [
    ...streams.map((row) => {
      const intensity = (2 * row.elements) / ((row.gbs * 1e6) * row.ms);
      return point(row, { intensity, rate: intensity * row.gbs * 1e9, title: `y = x + y / 2, ${row.name}` });
    }),
    ...products.map((row) => point(row, { intensity: (2 * row.n) / (3 * row.bytes), rate: row.gflops * 1e9, title: `${row.n} × ${row.n}, ${row.name}` })),
  ];
}

// The roof that the measurements make themselves: the best of each.
export function ownRoof(streams, products) {
  const best = (rows, key) => Math.max(...rows.map((row) => row[key]));
  const halves = products.filter(isHalf), wide = products.filter((row) => !isHalf(row));
  const peaks = [["float32", 1e9 * best(wide, "gflops")], ...(halves.length ? [["float16", 1e9 * best(halves, "gflops")]] : [])];
  return { name: HERE, bandwidth: 1e9 * best(streams, "gbs"), peaks: new Map(peaks) };
}

// How far the best of each came, in words.
export function underTheRoof(roof, own) {
  const share = (is, most) => `${digits((100 * is) / most)}% of ${size(most, "")}`;
  if (roof.name === HERE) return `The best of each: ${size(own.bandwidth, "B/s")}, and ${[...own.peaks].map(([name, peak]) => `${size(peak, "flop/s")} in ${name}`).join(", ")}.`;
  const peaks = [...own.peaks].filter(([name]) => roof.peaks.has(name)).map(([name, peak]) => `${share(peak, roof.peaks.get(name))}flop/s in ${name}`);
  return `Of the data sheet of ${roof.name}: ${share(own.bandwidth, roof.bandwidth)}B/s, ${peaks.join(", ")}. The data sheet's products in 16 bits are those of tensor cores.`;
}

function roofs(stated) {
  const KEY = [h("span", { class: "mp-roof-dot mp-roof-dot-wide" }), "float32 ", h("span", { class: "mp-roof-dot" }), "float16. Slope: bandwidth. Level: peak. Products of larger matrices stand farther to the right."];
  const picture = roofPicture(KEY), said = h("p", { "aria-live": "polite" });
  let rows = { streams: [], products: [] };
  const choice = chooser("Roof", [HERE, ...stated.map((r) => r.name)].map((name) => [name, name]), () => draw());
  const el = h("div", { class: "mp-under-roof", hidden: true }, h("div", { class: "mp-row" }, choice.el), picture.el, said);
  const observer = new ResizeObserver(() => picture.resize(el.clientWidth));
  observer.observe(el);
  function draw() {
    const own = ownRoof(rows.streams, rows.products), found = stated.find((r) => r.name === choice.select.value);
    const roof = found ? { ...found, peaks: new Map(found.peaks) } : own, shown = roof.peaks.has("float16") ? "float16" : "float32";
    el.hidden = false;
    picture.draw({ roof, shown, format: shown, points: measured(rows.streams, rows.products), label: found ? `What was measured here, under the roof of ${roof.name}` : "What was measured here, under the roof that it makes" });
    say(said, underTheRoof(roof, own));
    return said.textContent;
  }
  return { el, show: (streams, products) => { rows = { streams, products }; return draw(); }, remove: () => observer.disconnect() };
}

// --- Training, under a loss scale that can be moved meanwhile ------------------------------------------------

const RATES = ["0.1", "0.03", "0.01", "0.003", "0.001"], CHUNK = 10;
const KINDS = ["float32", "half", "master"];

const plans = (half) => [
  { kind: "float32", name: "float32", storage: "float32" },
  { kind: "half", name: "float16", storage: half },
  { kind: "master", name: "float16, float32 master weights", storage: half, master: true },
];

// Takes some steps in one of the trainings, and notes when it is no longer finite.
async function advance(run, count) {
  const done = run.seen.length, { finite, steps } = await run.machine.advance(count);
  run.seen.push(...steps);
  const first = steps.findIndex(({ loss }) => !Number.isFinite(loss));
  if (first >= 0 || finite < PARAMETERS) run.broken ??= done + (first < 0 ? count : first + 1);
}

function scaleSlider(moved) {
  const slider = h("input", { type: "range", class: "mp-slider", min: -24, max: 24, step: 1, value: 10 }), label = h("span", {});
  const name = () => {
    label.textContent = `Loss scale of both trainings in float16: 2${superscript(slider.value)}`;
    slider.setAttribute("aria-valuetext", `2 to the power ${slider.value}`);
  };
  slider.addEventListener("input", () => { name(); moved(2 ** Number(slider.value)); });
  name();
  return { el: h("label", { class: "mp-control mp-size" }, label, slider), exponent: () => Number(slider.value) };
}

function training(get) {
  const steps = get("steps"), picture = chart(steps), table = h("div");
  const rate = chooser("Learning rate of the next training", RATES.map((r) => [r, r]), () => {});
  let scaled = []; // what runs under the slider's scale
  const scale = scaleSlider((to) => scaled.forEach(({ machine }) => machine.rescale(to)));
  rate.select.value = "0.03";

  async function run(g, stop, show) {
    const learning = Number(rate.select.value), begin = start(get("digits"), steps);
    const runs = plans(g.half ? "float16" : "packed").map((plan) => ({ ...plan, seen: [], broken: null }));
    try {
      for (const r of runs) r.machine = await trainer(g, begin, { ...r, rate: learning, scale: r.kind === "float32" ? 1 : 2 ** scale.exponent() });
      scaled = runs.slice(1);
      picture.el.hidden = false;
      while (runs[2].seen.length < steps) {
        for (const r of runs) {
          stop.throwIfAborted();
          await advance(r, Math.min(CHUNK, steps - r.seen.length));
        }
        const result = trainingTable(runs, scale.exponent(), learning);
        picture.draw(runs);
        table.replaceChildren(drawn(result));
        show(result);
      }
    } finally {
      scaled = [];
      runs.forEach(({ machine }) => machine?.free());
    }
  }
  const controls = h("div", { class: "mp-controls" }, h("div", { class: "mp-row" }, rate.el), h("div", { class: "mp-sizes" }, scale.el));
  return { el: h("div", {}, controls, picture.el, table), run, remove: picture.remove };
}

// --- The three measurements, each a function of the GPU, a signal and what it tells -------------------------

function bitsPart(keep) {
  const list = h("ul");
  return { title: "What float16 is on your GPU, bit for bit", label: "Measure float16", el: list, async run(g, stop, tell) {
    tell("Measuring what float16 is …");
    const said = [...sentences(await bits(runner(g), { half: g.half, stop })), ...(g.half ? [] : [REFUSALS.half])];
    keep("bits", said.map((line) => `- ${line}`).join("\n"));
    list.replaceChildren(...said.map((line) => h("li", {}, line)));
  } };
}

function speedPart(get, keep) {
  const tables = [h("div"), h("div")], roof = roofs(get("roofs"));
  const show = (i, table) => { keep(["bandwidth", "products"][i], asText(table)); tables[i].replaceChildren(drawn(table)); };
  const el = h("div", {}, ...tables, roof.el);
  return { title: "How fast your GPU's shader cores are", label: "Measure speed", el, remove: roof.remove, async run(g, stop, tell) {
    const say = (what) => tell(`Measuring ${what} …`), streams = await bandwidth(g, { elements: get("elements"), stop, say });
    show(0, streamTable(streams));
    await products(g, { sizes: get("sizes"), stop, say, show: (rows) => { show(1, productTable(rows)); keep("roof", roof.show(streams, rows)); } });
  } };
}

function trainingPart(get, keep) {
  const { el, run, remove } = training(get);
  return { title: "A training on your GPU", label: "Train", el, remove, async run(g, stop, tell) {
    tell("Training …");
    await run(g, stop, (table) => keep("training", asText(table)));
  } };
}

// --- All together --------------------------------------------------------------------------------------------

// The GPU, opened at the first click and again after it was lost.
function opener(about) {
  let g = null;
  return {
    get: async () => {
      if (g && !g.lost) return g;
      const opened = await open();
      if (opened.why) throw new Error(opened.why);
      g = opened;
      say(about, `${g.name}.${g.software ? " This is a software adapter: its times say nothing about a GPU." : ""}${g.half ? "" : ` ${REFUSALS.half}`}`);
      return g;
    },
    name: () => g?.name,
    close: () => g?.device.destroy(),
  };
}

// One at a time: while one measures, the others' buttons wait.
function section(part, gpu, busy) {
  const status = h("p", { class: "mp-status", "aria-live": "polite" });
  const halt = button("Stop", () => busy.control.abort(), { disabled: true });
  const begin = button(part.label, async () => {
    if (!busy.begin()) return;
    halt.disabled = false;
    try {
      say(status, "Asking the browser for the GPU …");
      const g = await gpu.get();
      await guarded(g, () => part.run(g, busy.control.signal, (text) => say(status, text)));
      say(status, "Done. Nothing has left this page.");
    } catch (error) {
      say(status, busy.control.signal.aborted ? "Stopped." : error.message);
    } finally {
      halt.disabled = true;
      busy.end();
    }
  });
  busy.buttons.push(begin);
  return h("section", { class: "mp-part-of-gpu" }, h("p", { class: "mp-said" }, part.title), h("div", { class: "mp-row" }, begin, halt), status, part.el);
}

function turns(after) {
  const set = (disabled) => busy.buttons.forEach((b) => { b.disabled = disabled; });
  const busy = {
    buttons: [], control: new AbortController(), running: false,
    begin() {
      if (busy.running) return false;
      busy.running = true;
      busy.control = new AbortController();
      set(true);
      return true;
    },
    end() { busy.running = false; set(false); after(); },
  };
  return busy;
}

function copier(name, kept) {
  const text = h("textarea", { readonly: true, rows: 8, hidden: true, "aria-label": "The results as text" });
  const status = h("span", { "aria-live": "polite" });
  const copy = button("Copy as text", async () => {
    text.value = report(name(), [...kept.values()]);
    text.hidden = false;
    try { await navigator.clipboard.writeText(text.value); say(status, "Copied."); } catch { text.select(); say(status, "Copy it from here:"); }
  }, { disabled: true });
  return { el: h("div", {}, h("div", { class: "mp-row" }, copy, status), text), update: () => { copy.disabled = !kept.size; } };
}

function render({ model, el }) {
  const get = (name) => model.get(name), kept = new Map(), about = h("p", { class: "mp-hint" });
  const gpu = opener(about), copy = copier(gpu.name, kept), busy = turns(copy.update);
  const keep = (name, text) => kept.set(name, text);
  const parts = [bitsPart(keep), speedPart(get, keep), trainingPart(get, keep)];
  el.append(h("div", { class: "mp-explorer mp-gpu", role: "group", "aria-label": "Your GPU", "data-lm-suppress-shortcuts": "true" },
    ...parts.map((part) => section(part, gpu, busy)), copy.el, about));
  return () => {
    busy.control.abort();
    parts.forEach((part) => part.remove?.());
    gpu.close();
  };
}

export default { render };
