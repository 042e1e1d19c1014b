// The GPU explorer: one module for Jupyter (anywidget's `_esm`) and for the built page (mount.js). What
// float16 is on the reader's own GPU, how fast it is, and a training on it. Nothing starts by itself,
// and nothing leaves the page but by "copy as text".

import { button, chooser, h, labelled, say, superscript } from "./kit.mjs";
import { REFUSALS, guarded, open } from "./gpu.mjs";
import { bits, runner, sentences } from "./gpu_bits.mjs";
import { bandwidth, products } from "./gpu_speed.mjs";
import { PARAMETERS, start, trainer } from "./gpu_training.mjs";

// --- In words ------------------------------------------------------------------------------------------

const three = (x) => (Number.isFinite(x) ? Number(x.toPrecision(3)).toString() : "NaN");
const percent = (part, of) => (of ? `${Math.round((100 * part) / of)}%` : "–");
const spread = ({ ms, low, high }) => `${three(ms)} ms (${three(low)} to ${three(high)})`;

export function productTable(rows) {
  const body = rows.map((row) => {
    const wide = rows.find((other) => other.n === row.n && other.name === "float32");
    return [`${row.n}, ${row.name}`, spread(row), three(row.gflops), three(wide.ms / row.ms), row.error.toExponential(0).replace("-", "−")];
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
    const loss = broken == null ? three(mean(last, "loss")) : `NaN from step ${broken}`;
    return [name, loss, broken == null ? percent(mean(last, "lost"), updates) : "–", percent(mean(last, "zero"), PARAMETERS)];
  });
  const steps = Math.max(...runs.map(({ seen }) => seen.length));
  const caption = `After ${steps} steps with learning rate ${rate} and loss scale 2^${scale}: means of the last 50 steps`;
  return { caption, head: ["weights", "loss", "updates lost", "gradients of 0"], body };
}

const asText = ({ caption, head, body }) => [caption, ...[head, ...body].map((row) => `  ${row.join(" | ")}`)].join("\n");
const raised = (text) => text.replace(/2\^(-?\d+)/, (_, n) => `2${superscript(n)}`);

export function report({ device, said = [], tables = [] }) {
  return [`GPU: ${device}`, "Measured in a page with WebGPU, on shader cores; tensor cores are out of its reach.", ...said.map((line) => `- ${line}`), ...tables.map(asText)].join("\n");
}

function drawn({ caption, head, body }) {
  const row = (cells) => h("tr", {}, ...cells.map((cell, i) => (i ? h("td", {}, cell) : h("th", { scope: "row" }, cell))));
  return h("div", { class: "mp-scroll", tabindex: 0, role: "region", "aria-label": caption }, h("table", { class: "mp-table" }, h("caption", {}, raised(caption)),
    h("thead", {}, h("tr", {}, ...head.map((cell) => h("th", { scope: "col" }, cell)))), h("tbody", {}, ...body.map(row))));
}

// --- The curves ------------------------------------------------------------------------------------------

const WIDTH = 640, HEIGHT = 220, LEFT = 34, BOTTOM = 190, TOP_LOSS = 2.6;

export function path(seen, steps) {
  const smooth = (i) => mean(seen.slice(Math.max(0, i - 4), i + 1), "loss");
  let line = "";
  for (let i = 0; i < seen.length && Number.isFinite(seen[i].loss); i += 2) {
    const x = LEFT + (i / steps) * (WIDTH - LEFT - 8), y = BOTTOM - (Math.min(smooth(i), TOP_LOSS) / TOP_LOSS) * (BOTTOM - 12);
    line += `${line ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
  }
  return line;
}

function curves(runs, steps) {
  const parts = [0, 1, 2].flatMap((loss) => {
    const y = BOTTOM - (loss / TOP_LOSS) * (BOTTOM - 12);
    return [h("line", { class: "mp-grid", x1: LEFT, x2: WIDTH - 8, y1: y, y2: y }), h("text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, String(loss))];
  });
  parts.push(h("text", { class: "mp-axis-label", x: WIDTH - 8, y: HEIGHT - 8, "text-anchor": "end" }, `${steps} steps`), h("text", { class: "mp-axis-label", x: LEFT, y: HEIGHT - 8 }, "loss"));
  parts.push(...runs.map(({ kind, seen }) => h("path", { class: `mp-curve-${kind}`, d: path(seen, steps) })));
  return parts;
}

// --- Training, with knobs that work while it runs ----------------------------------------------------------

const RATES = ["0.1", "0.03", "0.01", "0.003", "0.001"], CHUNK = 10;

function training(get) {
  const scale = h("input", { type: "range", class: "mp-slider", min: -24, max: 24, step: 1, value: 10 });
  const label = h("span", {}), svg = h("svg", { role: "img", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-label": "Loss against steps of the three trainings" });
  const rate = chooser("Learning rate, for the next training", RATES.map((r) => [r, r]), () => {});
  const table = h("div"), key = h("p", { class: "mp-hint mp-key" }, h("span", { class: "mp-key-float32" }), "float32", h("span", { class: "mp-key-half" }), "float16", h("span", { class: "mp-key-master" }), "float16 with float32 master weights");
  const picture = h("div", { class: "mp-chart", "data-format": "float16", hidden: true }, svg, key, table);
  let live = [];
  rate.select.value = "0.01";
  const name = () => { label.textContent = `Loss scale of the two in float16: 2${superscript(scale.value)}`; scale.setAttribute("aria-valuetext", `2 to the power ${scale.value}`); };
  scale.addEventListener("input", () => { name(); live.slice(1).forEach(({ machine }) => machine.rescale(2 ** Number(scale.value))); });
  name();

  async function run(g, stop, show) {
    const steps = get("steps"), learning = Number(rate.select.value), half = g.half ? "float16" : "packed";
    const begin = start(get("digits"), steps), runs = [{ kind: "float32", name: "float32", storage: "float32" }, { kind: "half", name: "float16", storage: half }, { kind: "master", name: "float16, float32 master weights", storage: half, master: true }].map((r) => ({ ...r, seen: [], broken: null }));
    try {
      for (const r of runs) r.machine = await trainer(g, begin, { ...r, rate: learning, scale: r.kind === "float32" ? 1 : 2 ** Number(scale.value) });
      live = runs;
      picture.hidden = false;
      for (let done = 0; done < steps; done += CHUNK) {
        for (const r of runs) {
          stop.throwIfAborted();
          const { finite, steps: more } = await r.machine.advance(Math.min(CHUNK, steps - done));
          r.seen.push(...more);
          const first = more.findIndex(({ loss }) => !Number.isFinite(loss));
          if (first >= 0 || finite < PARAMETERS) r.broken ??= done + (first < 0 ? more.length : first + 1);
        }
        svg.replaceChildren(...curves(runs, steps));
        const result = trainingTable(runs, scale.value, learning);
        table.replaceChildren(drawn(result));
        show(result);
      }
    } finally {
      live = [];
      runs.forEach(({ machine }) => machine?.free());
    }
  }
  return { el: h("div", {}, h("div", { class: "mp-controls" }, h("div", { class: "mp-row" }, rate.el), h("label", { class: "mp-control mp-size" }, label, scale)), picture), run };
}

// --- All together --------------------------------------------------------------------------------------------

function section(title, label, onclick, ...content) {
  return h("section", { class: "mp-part-of-gpu" }, h("p", { class: "mp-said" }, title), h("p", {}, button(label, onclick, { class: "mp-go" })), ...content);
}

function render({ model, el }) {
  const get = (name) => model.get(name);
  const status = h("p", { class: "mp-words mp-status", "aria-live": "polite" }), about = h("p", { class: "mp-hint" });
  const halt = button("Stop", () => control?.abort(new Error("stopped")), { disabled: true });
  const copied = h("textarea", { class: "mp-report", readonly: true, rows: 8, hidden: true, "aria-label": "The results as text" });
  const copy = button("Copy as text", copyAsText, { disabled: true });
  const list = h("ul"), speed = h("div"), learn = training(get);
  const results = { said: [], tables: new Map() };
  let control = null, g = null;
  const tell = (text) => say(status, text);

  const work = {
    bits: async (stop) => {
      tell("Measuring what float16 is …");
      results.said = [...sentences(await bits(runner(g), { half: g.half, stop })), ...(g.half ? [] : [REFUSALS.half])];
      list.replaceChildren(...results.said.map((line) => h("li", {}, line)));
    },
    speed: async (stop) => {
      const keep = (name, table) => { results.tables.set(name, table); speed.replaceChildren(...["stream", "product"].map((n) => results.tables.get(n)).filter(Boolean).map(drawn)); };
      const report = (what) => tell(`Measuring ${what} …`);
      keep("stream", streamTable(await bandwidth(g, { elements: get("elements"), stop, say: report })));
      await products(g, { sizes: get("sizes"), stop, say: report, show: (rows) => keep("product", productTable(rows)) });
    },
    train: async (stop) => {
      tell("Training …");
      await learn.run(g, stop, (table) => results.tables.set("training", table));
    },
  };

  async function ready() {
    if (g && !g.lost) return true;
    tell("Asking the browser for the GPU …");
    g = await open();
    if (g.why) { tell(g.why); g = null; return false; }
    about.textContent = `${g.name}.${g.software ? " This is a software adapter: what it measures says nothing about a GPU." : ""}${g.half ? "" : ` ${REFUSALS.half}`}`;
    return true;
  }

  async function go(name) {
    if (control) return;
    control = new AbortController();
    const starts = [...root.querySelectorAll(".mp-go")];
    starts.forEach((b) => { b.disabled = true; });
    halt.disabled = false;
    try {
      if (await ready()) { await guarded(g, () => work[name](control.signal)); tell("Done. Nothing has left this page."); }
    } catch (error) {
      tell(control.signal.aborted ? "Stopped." : error.message);
    } finally {
      control = null;
      starts.forEach((b) => { b.disabled = false; });
      halt.disabled = true;
      copy.disabled = !results.said.length && !results.tables.size;
    }
  }

  async function copyAsText() {
    copied.value = report({ device: g?.name ?? "lost", said: results.said, tables: [...results.tables.values()] });
    copied.hidden = false;
    try { await navigator.clipboard.writeText(copied.value); tell("Copied."); } catch { copied.select(); tell("Copy the text below."); }
  }

  const root = h("div", { class: "mp-explorer mp-gpu", role: "group", "aria-label": "Your GPU", "data-lm-suppress-shortcuts": "true" },
    section("What float16 is on your GPU, bit for bit", "Measure float16", () => go("bits"), list),
    section("How fast your GPU's shader cores are", "Measure speed", () => go("speed"), speed),
    section("A training on your GPU", "Train", () => go("train"), learn.el),
    h("div", { class: "mp-row mp-bar-of-gpu" }, halt, copy), status, about, copied);
  el.append(root);
  return () => { control?.abort(new Error("gone")); g?.device.destroy(); };
}

export default { render };
