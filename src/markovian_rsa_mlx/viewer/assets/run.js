// A run as its (slim) lines tell it. `add` takes one more; nothing here knows whether they come from a file or a stream.

import { normalise } from "./answers.js";
import { neededTraces, placeOf } from "./lineage.js";

const ENDS = { eos: "done", max_tokens: "cut off", error: "given up" };
export const FINISHED = new Set(Object.values(ENDS));

export class Run {
  #sorted = [];

  constructor() {
    this.lines = 0;
    this.start = this.setup = this.selection = this.final = this.stats = this.end = null;
    this.traces = new Map();
    this.rounds = new Map();
    this.resumes = [];
    this.errors = [];
    this.retries = [];
    this.unknown = new Map();
    this.clockEnd = 0;
    this.hasClock = false;
    this.isPlanned = false; // whether all needed traces are known
  }

  get config() {
    return this.start?.config ?? {};
  }

  get finished() {
    return this.end !== null;
  }

  // Seconds of the run, over all sittings, as far as its lines tell.
  get elapsed() {
    return this.end?.elapsed_s ?? Math.max(this.clockEnd, this.resumes.at(-1)?.elapsed_before_s ?? 0);
  }

  get tokens() {
    if (this.end) return this.end.total_generated_tokens;
    return this.all().reduce((sum, trace) => sum + trace.tokens + (trace.summary?.generated_tokens ?? 0), 0);
  }

  all() {
    if (this.#sorted.length !== this.traces.size)
      this.#sorted = [...this.traces.values()].sort((a, b) => a.round - b.round || a.index - b.index);
    return this.#sorted;
  }

  // What the page of a trace shows of the others and of the run changes only with this.
  get outline() {
    const said = this.all().reduce((sum, trace) => sum + (trace.chars ? 1 : 0), 0);
    return [this.traces.size, said, this.resumes.length, this.setup, this.selection, this.final, this.end]
      .map((part) => (Number.isInteger(part) ? part : part !== null))
      .join();
  }

  trace(id) {
    return this.traces.get(id);
  }

  roundNumbers() {
    return [...new Set(this.all().map((trace) => trace.round))];
  }

  children(id) {
    return this.all().filter((trace) => trace.parents.includes(id));
  }

  // The class of a trace's answer: final candidates as the selection classed them, others by normalised text. "": none.
  key(trace) {
    const text = normalise(trace?.answer ?? "");
    return this.canonical().get(text) ?? text;
  }

  canonical() {
    const known = new Map();
    const answers = new Map(
      (this.selection?.candidate_trace_ids ?? []).map((id, i) => [id, this.selection.answers[i] ?? ""]),
    );
    for (const members of this.selection?.classes ?? []) {
      const first = normalise(answers.get(members[0]) ?? "");
      for (const id of members) known.set(normalise(answers.get(id) ?? ""), first);
    }
    return known;
  }

  // The answers of a round: [{key, answer, ids}], the largest class first; "" stands last.
  tally(round) {
    const classes = new Map();
    for (const trace of this.all()) {
      if (trace.round !== round || !FINISHED.has(trace.state)) continue;
      const key = this.key(trace);
      if (!classes.has(key)) classes.set(key, { key, answer: trace.answer, ids: [] });
      classes.get(key).ids.push(trace.id);
    }
    return [...classes.values()].sort((a, b) => (a.key === "") - (b.key === "") || b.ids.length - a.ids.length);
  }

  add(line) {
    this.lines++;
    const take = TAKE[line.event];
    if (take) take(this, line);
    else this.unknown.set(line.name ?? line.event, (this.unknown.get(line.name ?? line.event) ?? 0) + 1);
  }

  of(line) {
    const id = line.trace_id;
    if (!this.traces.has(id)) {
      const round = line.round ?? placeOf(id)?.round ?? 0;
      const index = placeOf(id)?.index ?? this.all().filter((trace) => trace.round === round).length;
      this.traces.set(id, newTrace(id, round, index, [], false));
    }
    const trace = this.traces.get(id);
    trace.version++;
    return trace;
  }
}

function newTrace(id, round, index, parents, planned) {
  return {
    id,
    round,
    index,
    parents,
    planned,
    state: "waiting",
    version: 0,
    tokens: 0,
    attempt: 0,
    answer: "",
    chars: 0,
    budget: null,
    seed: null,
    promptTokens: null,
    elapsed: null,
    reasoningEnd: 0,
    answerAt: null,
    tail: null,
    summary: null,
    prompt: null,
    retries: [],
    spans: [],
  };
}

const TAKE = {
  run_start: (run, line) => (run.start = line),
  run_setup(run, line) {
    run.setup = line;
    const needed = neededTraces(run.config, line.seed);
    run.isPlanned = needed.length > 0;
    for (const { id, round, index, parents } of needed) {
      if (!run.traces.has(id)) run.traces.set(id, newTrace(id, round, index, parents, true));
    }
  },
  run_resumed(run, line) {
    run.resumes.push(line);
    run.clockEnd = Math.max(run.clockEnd, line.elapsed_before_s);
    for (const trace of run.traces.values()) {
      if (trace.state === "running") trace.state = "waiting";
      closeSpan(trace, "trace", line.elapsed_before_s, "interrupted");
      closeSpan(trace, "summary", line.elapsed_before_s, "interrupted");
    }
  },
  generation_start(run, line) {
    const trace = run.of(line);
    if (trace.seed !== null && trace.seed !== line.seed) trace.tokens = 0; // another attempt starts from nothing
    trace.parents = line.parent_trace_ids;
    Object.assign(trace, {
      state: "running",
      seed: line.seed,
      budget: line.max_tokens,
      promptTokens: line.prompt_token_count,
    });
  },
  trace_clock(run, line) {
    const trace = run.of(line);
    run.hasClock = true;
    run.clockEnd = Math.max(run.clockEnd, line.elapsed_s);
    if (line.phase === "ended") closeSpan(trace, line.purpose, line.elapsed_s, "");
    else
      trace.spans.push({
        purpose: line.purpose,
        attempt: line.attempt,
        start: line.elapsed_s,
        end: null,
        outcome: "running",
      });
  },
  trace_checkpoint(run, line) {
    const trace = run.of(line);
    trace.tokens = Math.max(trace.tokens, line.position + line.tokens);
  },
  trace_retry(run, line) {
    const trace = run.of(line);
    run.retries.push(line);
    trace.retries.push(line);
    const failed = trace.spans.filter((span) => span.purpose === line.purpose).at(-1);
    if (failed) failed.outcome = "failed";
    if (line.purpose === "trace") Object.assign(trace, { state: "waiting", tokens: 0, attempt: line.attempt });
  },
  trace_complete(run, line) {
    const trace = run.of(line);
    const span = trace.spans.filter(({ purpose }) => purpose === "trace").at(-1);
    if (span) span.outcome = line.finish_reason === "error" ? "failed" : line.finish_reason;
    Object.assign(trace, {
      state: ENDS[line.finish_reason] ?? "given up",
      tokens: line.generated_tokens,
      elapsed: line.elapsed_s,
      chars: line.chars,
      reasoningEnd: line.reasoning_end,
      answerAt: line.answer_at,
      answer: line.answer,
    });
  },
  summary_complete: (run, line) => (run.of(line).summary = line),
  tail_extracted: (run, line) => (run.of(line).tail = line),
  aggregation_prompt(run, line) {
    const trace = run.of(line);
    trace.prompt = line;
    trace.parents = line.selected_tail_trace_ids;
  },
  round_complete: (run, line) => run.rounds.set(line.round, line),
  selection(run, line) {
    run.selection = line;
    line.candidate_trace_ids.forEach((id, i) => {
      if (run.traces.has(id)) run.traces.get(id).answer = line.answers[i] ?? "";
    });
  },
  final: (run, line) => (run.final = line),
  model_stats: (run, line) => (run.stats = line),
  run_end: (run, line) => (run.end = line),
  error: (run, line) => run.errors.push(line),
};

function closeSpan(trace, purpose, at, outcome) {
  const span = trace.spans.filter((s) => s.purpose === purpose && s.end === null).at(-1);
  if (span) Object.assign(span, { end: Math.max(at, span.start), outcome });
}
