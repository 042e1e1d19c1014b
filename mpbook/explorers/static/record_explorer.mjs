// A place for records: one module for Jupyter (anywidget's `_esm`) and for the built page (mount.js).
// A file is read here, checked, and laid over what is known; it is sent nowhere and kept nowhere.

import { button, h, present, say } from "./kit.mjs";
import { load, median, valueText } from "./record.mjs";

const LARGEST = 20e6; // bytes; the longest record has a few hundred thousand
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

// --- Reading files ------------------------------------------------------------------------------------

// {record} or {problem}, for each file; one that is refused takes no other along.
export async function read(file, schema, known) {
  if (file.type.startsWith("image/")) return { problem: `${file.name} is a picture. A record is a file that “python -m mpbook record” wrote.` };
  if (file.size > LARGEST) return { problem: `${file.name} has ${Math.round(file.size / 1e6)} MB; no record has more than ${LARGEST / 1e6}.` };
  let source;
  try {
    source = await file.text();
  } catch {
    return { problem: `${file.name} cannot be read. Is it a folder?` };
  }
  const found = load(file.name, source, schema);
  if (found.record && known.some((one) => one.digest === found.record.digest)) return { problem: `${file.name} is on the page already.` };
  return found;
}

// --- What is said of a record -------------------------------------------------------------------------

export function caption({ experiment, provenance }) {
  return `${experiment}, recorded on ${provenance.device}, ${provenance.started.slice(0, 10)}`;
}

export function origin({ provenance: p }) {
  const cuda = p.cuda ? `, CUDA ${p.cuda}, driver ${p.driver || "not known"}` : "";
  const code = p.commit === "unknown" ? "not from a repository" : `commit ${p.commit.slice(0, 9)}${p.commit.endsWith("+changes") ? " with changes" : ""}`;
  return `torch ${p.torch_version}${cuda}, Python ${p.python}, ${p.platform}; mpbook ${p.mpbook}, ${code}. Schema and digest are right.`;
}

export function completeness({ cases, provenance }) {
  const failed = cases.filter((row) => row.status.startsWith("failed")).length;
  const full = cases.filter((row) => row.status === "out of memory").length;
  const wide = cases.filter((row) => row.results.wide).length;
  const said = [`${plural(cases.length - failed - full, "case")} measured`];
  if (full) said.push(`${full} out of memory`);
  if (failed) said.push(`${failed} failed: run the command again, and they are tried again`);
  if (wide) said.push(`${wide} with a wide spread, which something else on the machine disturbed`);
  const of = provenance.device_type === "cuda" ? "" : " Of a CPU: it says nothing of a GPU.";
  return `${said.join("; ")}.${of}`;
}

const wording = (values) => Object.entries(values).map(([name, value]) => `${name} ${value}`).join(", ");

function inMilliseconds({ seconds }) {
  if (!Array.isArray(seconds)) return "";
  const ms = 1000 * median(seconds);
  return `${ms >= 100 ? ms.toFixed(0) : ms.toPrecision(3)} ms`;
}

// --- Parts --------------------------------------------------------------------------------------------

function door(act) {
  const input = h("input", { type: "file", multiple: true, accept: ".json,application/json", onchange: () => { act(input.files); input.value = ""; } });
  const el = h("div", { class: "mp-drop" }, h("label", { class: "mp-control" }, h("span", {}, "Records to lay over the numbers"), input),
    h("p", { class: "mp-hint" }, "Or drag files onto this box. They are read in your browser and go nowhere."));
  const over = (on) => (event) => { event.preventDefault(); el.classList.toggle("mp-over", on); };
  el.addEventListener("dragover", over(true));
  el.addEventListener("dragleave", over(false));
  el.addEventListener("drop", (event) => { over(false)(event); act(event.dataTransfer.files); });
  return { el, draw() {} };
}

function messages() {
  const el = h("p", { class: "mp-words", "aria-live": "polite" });
  return { el, draw: (s) => say(el, s.message) };
}

const tableOf = (head, rows) => h("div", { class: "mp-wide" }, h("table", { class: "mp-table" },
  h("thead", {}, h("tr", {}, ...head.map((name) => h("th", { scope: "col" }, name)))),
  h("tbody", {}, ...rows.map(([first, ...rest]) => h("tr", {}, h("th", { scope: "row" }, first), ...rest.map((text) => h("td", {}, text)))))));

function known() {
  const el = h("div", {});
  return {
    el,
    draw(s) {
      const bare = s.overlays.filter((line) => !s.records.some((record) => record.experiment === line.experiment));
      el.replaceChildren(...(bare.length ? [tableOf(["", "predicted", "published", "recorded", "yours"],
        bare.map((line) => [line.label, line.predicted, line.published, line.recorded, ""]))] : []));
    },
  };
}

function shown(remove) {
  const el = h("div", {});
  return { el, draw: (s) => el.replaceChildren(...s.records.map((record) => section(record, s, remove))) };
}

function section(record, s, remove) {
  const lines = s.overlays.filter((line) => line.experiment === record.experiment);
  const cases = record.cases.map((row) => [wording(row.case), row.status, inMilliseconds(row.results)]);
  return h("section", { class: "mp-record" }, h("h4", {}, caption(record)),
    h("p", {}, s.experiments[record.experiment] ?? "This book does not know this experiment."),
    ...(lines.length ? [tableOf(["", "predicted", "published", "recorded", "yours"], lines.map((line) => [line.label, line.predicted, line.published, line.recorded, valueText(record, line)]))] : []),
    h("p", {}, completeness(record)), h("p", { class: "mp-hint" }, origin(record)),
    h("details", {}, h("summary", {}, `All ${plural(cases.length, "case")}`), tableOf(["case", "status", "median"], cases)),
    button("Take it away", () => remove(record)));
}

// --- All together -------------------------------------------------------------------------------------

function render({ model, el }) {
  const mine = { records: [], message: "" };
  let frame;
  const remove = (record) => {
    mine.records = mine.records.filter((one) => one !== record);
    mine.message = `${caption(record)}: taken away.`;
    frame.draw();
  };
  async function take(files) {
    const said = [];
    for (const file of [...files]) {
      const { record, problem } = await read(file, model.get("schema"), mine.records);
      if (record) mine.records.push(record);
      said.push(problem ?? `${file.name}: laid over the numbers below.`);
    }
    mine.message = said.join(" ");
    frame.draw();
  }
  const state = () => ({ ...mine, experiments: model.get("experiments"), overlays: model.get("overlays") });
  frame = present({ model, el }, { name: "A place for your records", traits: ["overlays"], parts: [door(take), messages(), known(), shown(remove)], state });
  return frame.remove;
}

export default { render };
