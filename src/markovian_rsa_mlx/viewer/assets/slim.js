// The lines of a live run without their bulk: the counterpart of `viewer/slim.py`, which does this for a file.

import { afterThinking, endsThinking, extractAnswer } from "./answers.js";

const BULK = [
  "token_ids",
  "prompt_token_ids",
  "tail_token_ids",
  "segment_token_ids",
  "summary_segment_token_ids",
  "quote_token_ids",
];
const KNOWN = new Set(
  (
    "run_start run_setup run_resumed generation_start trace_clock trace_checkpoint trace_retry trace_complete summary_complete " +
    "tail_extracted aggregation_prompt round_complete selection final model_stats run_end error"
  ).split(" "),
);

export class Slimmer {
  constructor(texts) {
    this.texts = texts;
    this.setup = {};
    this.config = {};
    this.tails = new Map();
    this.ends = new Map();
  }

  // `line` is the JSON text of `raw`: a seed may be too large for a JavaScript number.
  add(raw, line) {
    if (!KNOWN.has(raw.event)) return { event: "unknown", name: raw.event };
    const slim = Object.fromEntries(Object.entries(raw).filter(([name]) => !BULK.includes(name)));
    if (raw.event === "run_start") this.config = raw.config;
    if (raw.event === "run_setup") {
      this.setup = raw;
      slim.seed = /"seed": ?(-?\d+)/.exec(line)?.[1] ?? String(raw.seed);
    }
    if (raw.event === "trace_complete") return this.complete(raw, slim);
    if (raw.event === "tail_extracted") return this.tail(raw, slim);
    if (raw.event === "aggregation_prompt") return this.prompt(raw, slim);
    if (raw.event === "summary_complete") return this.summary(raw, slim);
    if (raw.event === "trace_checkpoint") slim.tokens = raw.token_ids.length;
    return slim;
  }

  complete(raw, slim) {
    const text = raw.text;
    this.texts.put(raw.trace_id, text);
    const [end, start, hasAnswer] = this.split(raw);
    this.ends.set(raw.trace_id, { end, answerAt: hasAnswer ? start : null });
    const kind = this.config.answer_kind === "text" ? "text" : "math";
    delete slim.text;
    return Object.assign(slim, {
      chars: text.length,
      reasoning_end: end,
      answer_at: hasAnswer ? start : null,
      answer: hasAnswer ? extractAnswer(text.slice(start), kind) : "",
    });
  }

  split(raw) {
    const text = raw.text;
    const markers = this.setup.end_of_thinking ?? [];
    const thinking = this.config.enable_thinking !== false;
    const finished = endsThinking(raw.token_ids, markers) || (!thinking && raw.finish_reason === "eos");
    if (!markers.length || (!finished && !thinking)) return [text.length, 0, raw.finish_reason !== "error"];
    if (!finished) return [text.length, text.length, false];
    const place = afterThinking(text, this.setup.end_of_thinking_texts ?? []);
    return place ? [...place, true] : [text.length, 0, true];
  }

  tail(raw, slim) {
    const key = raw.trace_id;
    const tail = raw.tail_text;
    this.tails.set(key, tail);
    delete slim.tail_text;
    const carry = this.config.carry ?? "tail";
    for (const source of carry === "summary" ? [`${key}/summary`, key] : [key, `${key}/summary`]) {
      const text = this.texts.peek(source) ?? "";
      const { end, answerAt } = this.ends.get(source) ?? { end: text.length, answerAt: null };
      const from = findTail(text, tail, end, carry === "answer" ? answerAt : null);
      if (from >= 0) return Object.assign(slim, { text: source, from, to: from + tail.length });
    }
    this.texts.put(`${key}/tail`, tail);
    return Object.assign(slim, { text: `${key}/tail`, from: 0, to: tail.length });
  }

  prompt(raw, slim) {
    const rebuilt = rebuildPrompt(
      this.setup,
      raw.selected_tail_trace_ids.map((id) => this.tails.get(id)),
    );
    const same = rebuilt !== null && rebuilt.map((part) => part.text).join("") === raw.prompt_text;
    if (!same) this.texts.put(`${raw.trace_id}/prompt`, raw.prompt_text);
    delete slim.prompt_text;
    return Object.assign(slim, { prompt_tokens: raw.prompt_token_ids.length, rebuilt: same });
  }

  summary(raw, slim) {
    this.texts.put(`${raw.trace_id}/summary`, raw.text);
    this.texts.put(`${raw.trace_id}/summary-prompt`, raw.prompt_text);
    delete slim.text;
    delete slim.prompt_text;
    return slim;
  }
}

function findTail(text, tail, end, answerAt) {
  if (!tail) return -1;
  const inAnswer = answerAt === null ? -1 : text.lastIndexOf(tail);
  if (inAnswer >= 0 && inAnswer >= answerAt) return inAnswer;
  if (text.slice(0, end).endsWith(tail)) return end - tail.length;
  const at = end >= tail.length ? text.lastIndexOf(tail, end - tail.length) : -1;
  return at >= 0 ? at : text.lastIndexOf(tail);
}

// A prompt from the run's static texts and the tails: [{text, slot}], slot null for static text. Null: it cannot be.
export function rebuildPrompt(setup, tails) {
  const pieces = setup?.segments?.[tails.length - 1];
  if (!pieces || tails.some((tail) => tail === undefined)) return null;
  const markers = markerLines(pieces);
  const parts = [{ text: pieces[0], slot: null }];
  tails.forEach((tail, slot) => {
    parts.push({ text: quoteMarkers(tail, markers), slot }, { text: pieces[slot + 1], slot: null });
  });
  return parts;
}

function markerLines(pieces) {
  const lines = new Set();
  pieces.forEach((piece, i) => {
    const full = piece
      .split(/\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]/)
      .map((line) => line.trim())
      .filter(Boolean);
    if (full.length && i > 0) lines.add(full[0]);
    if (full.length && i < pieces.length - 1) lines.add(full.at(-1));
  });
  return lines;
}

function quoteMarkers(text, markers) {
  return text
    .split("\n")
    .map((line) => (markers.has(line.trim()) ? "> " + line : line))
    .join("\n");
}
