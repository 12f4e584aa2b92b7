// The lines of a live run as far as they can be read: the counterpart of `viewer/reading.py`, which reads a file's.

import { placeOf } from "./lineage.js";

const READS = { generation_start: "parent_trace_ids", aggregation_prompt: "selected_tail_trace_ids" };
const TEXTS = ["run_id", "model_id", "quantization", "prompt", "created_at"];

export class LineReader {
  // `fields` are {event: {field: type}}, the types in the words of the design document.
  constructor(fields) {
    Object.assign(this, { fields, noted: [], runId: null, foreign: 0, rounds: new Map() });
  }

  // What was wrong with the lines so far; what concerns no line stands last.
  problems() {
    if (!this.foreign) return this.noted;
    const said = this.foreign === 1 ? "1 line belongs" : `${this.foreign} lines belong`;
    return [...this.noted, { line: 0, reason: `${said} to another run`, shown: false }];
  }

  // The object of a line, as far as it can be shown; null: it is left out.
  read(data, number) {
    const raw = this.sound(data, number);
    return raw === null || this.isForeign(raw) ? null : this.withoutLater(raw, number);
  }

  note(line, reason, shown) {
    this.noted.push({ line, reason, shown });
  }

  sound(data, number) {
    const raw = parse(data);
    if (raw === null || typeof raw !== "object" || Array.isArray(raw)) {
      this.note(number, "not a JSON object", false);
      return null;
    }
    const wrong = this.wrong(raw);
    const half = !wrong && data.includes("\\u") && !wellFormed(raw);
    if (half) this.note(number, "half a character stands in it", true);
    if (!wrong) return raw;
    const usable = raw.event === "run_start" ? readableStart(raw) : null;
    this.note(number, wrong, usable !== null);
    return usable;
  }

  // What is wrong with a line's object, "" for nothing.
  wrong(raw) {
    const name = raw.event;
    if (typeof name !== "string") return 'no "event" in the object';
    if (!this.knows(name)) return "";
    for (const [field, type] of Object.entries(this.fields[name])) {
      if (!Object.hasOwn(raw, field)) return `${name} without ${field}`;
      const refused = type === "RSAConfig" && isObject(raw[field]) ? this.refused(raw[field]) : "";
      if (refused) return refused;
      if (!hasType(raw[field], type)) return `${field} of ${name} is ${short(raw[field])}, which is not ${type}`;
    }
    return "";
  }

  knows(name) {
    return name !== "RSAConfig" && Object.hasOwn(this.fields, name);
  }

  refused(config) {
    for (const [name, type] of Object.entries(this.fields.RSAConfig)) {
      if (Object.hasOwn(config, name) && !hasType(config[name], type))
        return `config of run_start is refused: ${name} is ${short(config[name])}, which is not ${type}`;
    }
    return "";
  }

  isForeign(raw) {
    if (this.runId === null && this.knows(raw.event)) this.runId = raw.run_id || null;
    if (this.runId === null || (raw.run_id ?? this.runId) === this.runId) return false;
    this.foreign++;
    return true;
  }

  // The line without parents that are of no earlier round: who follows them would walk in circles.
  withoutLater(raw, number) {
    if (!this.knows(raw.event) || raw.trace_id === undefined) return raw;
    if (!this.rounds.has(raw.trace_id)) this.rounds.set(raw.trace_id, raw.round);
    const round = this.rounds.get(raw.trace_id);
    const reads = READS[raw.event];
    const roundOf = (id) => this.rounds.get(id) ?? placeOf(id)?.round ?? -1;
    const later = (raw[reads] ?? []).filter((id) => roundOf(id) >= round);
    if (!later.length) return raw;
    const said = later.slice(0, 3).join(", ");
    this.note(number, `${raw.trace_id} cannot have read ${said}: only traces of earlier rounds can be read`, true);
    return { ...raw, [reads]: raw[reads].filter((id) => !later.includes(id)) };
  }
}

function parse(data) {
  try {
    return JSON.parse(data);
  } catch {
    return null;
  }
}

function isObject(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

function hasType(value, type) {
  if (type.startsWith("list[")) return Array.isArray(value) && value.every((one) => hasType(one, type.slice(5, -1)));
  if (type.startsWith("dict[str, "))
    return isObject(value) && Object.values(value).every((one) => hasType(one, type.slice(10, -1)));
  if (type.includes(" or ")) return type.split(" or ").some((one) => hasType(value, one));
  if (type.startsWith('"')) return type.split(" / ").includes(JSON.stringify(value));
  return PLAIN[type](value);
}

const PLAIN = {
  Any: () => true,
  null: (value) => value === null,
  str: (value) => typeof value === "string",
  bool: (value) => typeof value === "boolean",
  int: (value) => Number.isInteger(value),
  float: (value) => Number.isFinite(value),
  RSAConfig: isObject,
};

function wellFormed(value) {
  if (typeof value === "string") return value.isWellFormed?.() ?? true;
  return value === null || typeof value !== "object" || Object.values(value).every(wellFormed);
}

// The question is worth more than the settings.
function readableStart(raw) {
  const texts = TEXTS.map((name) => [name, typeof raw[name] === "string" ? raw[name] : ""]);
  return { event: "run_start", ...Object.fromEntries(texts), config: isObject(raw.config) ? raw.config : {} };
}

function short(value) {
  const letters = [...JSON.stringify(value)];
  return letters.length <= 40 ? letters.join("") : `${letters.slice(0, 37).join("")}...`;
}
