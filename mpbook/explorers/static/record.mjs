// A record as `python -m mpbook record` writes it: read, checked like mpbook/evidence/records.py does,
// and turned into values like mpbook/evidence/overlay.py does. The tests prove both equal.

import { sha256 } from "./sha256.mjs";

// --- JSON with its numbers as they stand --------------------------------------------------------------

const TOKEN = /[\s]*(?:("(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")|(-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?)|(true|false|null)|([[\]{},:]))/y;

// Python tells 1 from 1.0 and writes floats in its own way; JSON.parse forgets which was which. So
// each node is {value, text}, where text is what Python's json.dumps makes of it, keys sorted.
export function parse(source) {
  let token = null, end = 0; // the token at hand, and where the one before it ended

  function advance() {
    end = token ? TOKEN.lastIndex : 0;
    TOKEN.lastIndex = end;
    token = TOKEN.exec(source);
  }
  const sign = () => token?.[4];
  function eat(expected) {
    if (sign() !== expected) throw new SyntaxError(`expected ${expected}`);
    advance();
  }
  const taken = (node) => { advance(); return node; };

  function node() {
    if (!token) throw new SyntaxError("it ends too early");
    const [, string, number, word] = token;
    if (string !== undefined) return taken(text(JSON.parse(string)));
    if (number !== undefined) return taken({ value: Number(number), text: numeral(number) });
    if (word !== undefined) return taken({ value: JSON.parse(word), text: word });
    return sign() === "[" ? list() : table();
  }
  function* parts(open, close, part) {
    eat(open);
    for (let first = true; sign() !== close; first = false) {
      if (!first) eat(",");
      yield part();
    }
    eat(close);
  }
  function list() {
    const items = [...parts("[", "]", node)];
    return { value: items.map((item) => item.value), text: `[${items.map((item) => item.text).join(",")}]` };
  }
  function entry() {
    if (token?.[1] === undefined) throw new SyntaxError("expected a key");
    const key = taken(JSON.parse(token[1]));
    eat(":");
    return [key, node()];
  }
  function table() {
    const entries = new Map(parts("{", "}", entry));
    return { value: Object.fromEntries([...entries].map(([key, item]) => [key, item.value])), text: canonical(entries), entries };
  }

  advance();
  const whole = node();
  if (token || source.slice(end).trim()) throw new SyntaxError("something follows");
  return whole;
}

export function canonical(entries) {
  const keys = [...entries.keys()].sort(byCodePoint);
  return `{${keys.map((key) => `${text(key).text}:${entries.get(key).text}`).join(",")}}`;
}

function byCodePoint(a, b) {
  const [one, two] = [a, b].map((string) => [...string].map((c) => c.codePointAt(0)));
  const place = one.findIndex((c, i) => c !== two[i]);
  return place < 0 ? one.length - two.length : one[place] - (two[place] ?? -1);
}

const ESCAPES = { '"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f" };

function text(value) {
  const escaped = value.replace(/["\\\u0000-\u001f]|[^\u0000-\u007e]/g, (c) => ESCAPES[c] ?? `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
  return { value, text: `"${escaped}"` };
}

// As Python's repr writes the same number.
export function numeral(literal) {
  if (!/[.eE]/.test(literal)) return literal === "-0" ? "0" : literal;
  const x = Number(literal);
  const sign = x < 0 || Object.is(x, -0) ? "-" : "";
  const [mantissa, power] = Math.abs(x).toExponential().split("e");
  const digits = mantissa.replace(".", ""), exponent = Number(power);
  if (exponent < -4 || exponent >= 16) {
    const rest = digits.length > 1 ? `.${digits.slice(1)}` : "";
    return `${sign}${digits[0]}${rest}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
  }
  if (exponent < 0) return `${sign}0.${"0".repeat(-exponent - 1)}${digits}`;
  const padded = digits.padEnd(exponent + 1, "0");
  return `${sign}${padded.slice(0, exponent + 1)}.${padded.slice(exponent + 1) || "0"}`;
}

// --- A record -----------------------------------------------------------------------------------------

const FIELDS = { experiment: "string", config: "object", cases: "object", provenance: "object", seconds: "number" };
const PROVENANCE = ["device", "device_type", "capability", "driver", "torch_version", "cuda", "cudnn", "python", "platform", "threads", "mpbook", "commit", "source", "started"];

// {record} or {problem}: one sentence that names the file.
export function load(name, source, schema) {
  let whole;
  try {
    whole = parse(source);
  } catch {
    return { problem: `${name} is torn, or no record: it is not JSON. A record is a file that “python -m mpbook record” wrote.` };
  }
  const record = whole.value;
  if (!whole.entries || record.schema !== schema) {
    const found = whole.entries ? JSON.stringify(record.schema) ?? "none" : "none";
    return { problem: `${name} is no record that this page can read: schema ${found}, expected ${schema}.` };
  }
  whole.entries.delete("digest");
  const digest = sha256(canonical(whole.entries));
  if (record.digest !== digest) return { problem: `${name}: its digest does not fit; it was edited or torn.` };
  if (!isWhole(record)) return { problem: `${name}: its parts are not those that a record has.` };
  return { record: { ...record, digest } };
}

function isWhole({ provenance, cases, ...record }) {
  const typed = Object.entries(FIELDS).every(([field, type]) => typeof { provenance, cases, ...record }[field] === type);
  return typed && provenance && PROVENANCE.every((field) => field in provenance)
    && Object.keys(provenance).length === PROVENANCE.length && Array.isArray(cases)
    && cases.every((row) => row && typeof row.status === "string" && row.case && row.results && "seconds" in row);
}

// --- What it says -------------------------------------------------------------------------------------

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

const measured = (record, values) => record.cases.filter((row) => row.status === "measured"
  && Object.entries(values).every(([name, value]) => row.case[name] === value)).map((row) => row.results);
const rateOf = (results) => results.tokens / median(results.seconds);
const held = ({ peak, memory }) => peak ?? Object.values(memory).reduce((a, b) => a + b, 0);
const share = (results) => results.flops / median(results.seconds) / results.stated_peak;

export function value(record, { take, of, over }) {
  const here = measured(record, of);
  const paired = Object.keys(over).length > 0;
  if (take === "share") {
    const shares = here.filter((results) => results.stated_peak).map(share);
    return shares.length ? Math.max(...shares) : null;
  }
  const there = paired ? measured(record, over) : [];
  if (here.length !== 1 || (paired && there.length !== 1)) return null;
  if (take === "saving") return 1 - held(here[0]) / held(there[0]);
  return take === "rate" ? rateOf(here[0]) : rateOf(here[0]) / rateOf(there[0]);
}

export function valueText(record, overlay) {
  const found = value(record, overlay);
  if (found === null) return "no such result";
  const rounded = (x) => Math.floor(x + 0.5);
  if (["saving", "share"].includes(overlay.take)) return `${rounded(100 * found)}%`;
  if (overlay.take === "rate") return String(rounded(found)).replace(/\B(?=(\d{3})+$)/g, ",");
  const units = rounded(100 * found);
  return `${Math.floor(units / 100)}.${String(units % 100).padStart(2, "0")}`;
}
