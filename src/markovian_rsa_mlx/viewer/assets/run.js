// The state of a run, folded from its view lines (`viewer/view_model.py`). `add` takes one more line.

const ENDS = { eos: "done", max_tokens: "truncated", error: "failed" };
export const FINISHED = new Set(Object.values(ENDS));

export class Run {
  #sorted = [];

  constructor() {
    this.lines = 0;
    this.start = this.setup = this.selection = this.final = this.stats = this.end = null;
    this.stopped = null; // the line of an early stop
    this.judgements = []; // the lines of the tournament
    this.path = null; // the provenance of the chosen answer: {chain, carriers, independent, dropped}
    this.traces = new Map();
    this.rounds = new Map();
    this.resumes = [];
    this.errors = [];
    this.retries = [];
    this.unknown = new Map();
    this.clockEnd = 0;
    this.steps = this.drafted = this.accepted = 0; // as far as the engine counts them
    this.hasClock = false;
    this.isOpen = false; // whether answers are whole texts that are not compared
    this.isPlanned = false; // whether all traces of the run are known
  }

  get config() {
    return this.start?.config ?? {};
  }

  get finished() {
    return this.end !== null;
  }

  // Seconds over all sessions, as far as the lines record them.
  get elapsed() {
    return this.end?.elapsed_s ?? Math.max(this.clockEnd, this.resumes.at(-1)?.elapsed_before_s ?? 0);
  }

  get tokens() {
    if (this.end) return this.end.total_generated_tokens;
    const judged = this.judgements.reduce((sum, { generated_tokens }) => sum + generated_tokens, 0);
    return this.all().reduce((sum, trace) => sum + trace.tokens + (trace.summary?.generated_tokens ?? 0), judged);
  }

  get winner() {
    return this.trace(this.selection?.chosen_trace_id ?? this.final?.final_trace_id);
  }

  all() {
    if (this.#sorted.length !== this.traces.size)
      this.#sorted = [...this.traces.values()].sort((a, b) => a.round - b.round || a.index - b.index);
    return this.#sorted;
  }

  // The messages before and after the question, with their calls of tools as text.
  otherMessages() {
    const messages = this.setup?.messages ?? [];
    const question = messages.findLastIndex(({ role }) => role === "user");
    const others = messages.map(({ role, content, tool_calls }, index) => ({
      role,
      text: [content, tool_calls].filter(Boolean).join("\n"),
      place: index < question ? "before" : "after",
    }));
    return others.filter((_, index) => index !== question);
  }

  // Changes whenever the page of a trace has to show something else of the run or of other traces.
  get outline() {
    const texts = this.all().reduce((sum, trace) => sum + (trace.chars ? 1 : 0), 0);
    return [this.traces.size, texts, this.resumes.length, this.setup, this.selection, this.final, this.end]
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

  // Seconds from when a trace could start, as its parents had ended, to its end, without its time in the engine. null: unknown.
  waited(trace) {
    const ends = (spans) => spans.map((span) => span.end ?? 0);
    const end = Math.max(...ends(trace.spans.filter(({ purpose }) => purpose === "trace")));
    if (!FINISHED.has(trace.state) || !Number.isFinite(end)) return null;
    const ready = Math.max(0, ...trace.parents.flatMap((id) => ends(this.trace(id)?.spans ?? [])));
    return Math.max(0, end - ready - trace.took);
  }

  // Seconds in which no generation of the run was in the engine.
  get waitedWhole() {
    const spans = this.all().flatMap(({ spans }) => spans.map(({ start, end }) => ({ start, end: end ?? Infinity })));
    let [at, waited] = [0, 0];
    for (const { start, end } of spans.sort((a, b) => a.start - b.start)) {
      waited += Math.max(0, start - at);
      at = Math.max(at, end);
    }
    return waited;
  }

  // The ids of a trace, its ancestors and its descendants.
  family(id) {
    const parents = (one) => this.trace(one)?.parents ?? [];
    const children = (one) => this.children(one).map((trace) => trace.id);
    return new Set([...closure(id, parents), ...closure(id, children)]);
  }

  // The answers of a round that vote: [{key, answer, ids}], the largest class first, no answer ("") last.
  tally(round) {
    const classes = new Map();
    for (const trace of this.all()) {
      const votes = !this.stopped?.cancelled_trace_ids.includes(trace.id);
      if (trace.round !== round || !FINISHED.has(trace.state) || !votes) continue;
      if (!classes.has(trace.key)) classes.set(trace.key, { key: trace.key, answer: trace.answer, ids: [] });
      classes.get(trace.key).ids.push(trace.id);
    }
    return [...classes.values()].sort((a, b) => (a.key === "") - (b.key === "") || b.ids.length - a.ids.length);
  }

  add(line) {
    this.lines++;
    const name = line.name ?? line.event;
    if (Object.hasOwn(HANDLERS, line.event)) HANDLERS[line.event](this, line);
    else this.unknown.set(name, (this.unknown.get(name) ?? 0) + 1);
  }

  of(line) {
    const id = line.trace_id;
    if (!this.traces.has(id)) {
      const place = placeOf(id);
      const round = line.round ?? place?.round ?? 0;
      const index = place?.index ?? this.all().filter((trace) => trace.round === round).length;
      this.traces.set(id, newTrace(id, round, index, []));
    }
    const trace = this.traces.get(id);
    trace.version++;
    return trace;
  }
}

export function traceId(round, index) {
  return `r${round}-${String(index).padStart(2, "0")}`;
}

function placeOf(id) {
  const match = /^r(\d+)-(\d{2,})$/.exec(id);
  return match ? { round: Number(match[1]), index: Number(match[2]) } : null;
}

// Answers that differ only in white space, dollar signs, Unicode form or a full stop have one form.
export function normalise(answer) {
  const words = answer.normalize("NFC").replaceAll("$", " ").split(/[\s\x1c-\x1f\x85]+/);
  const text = words.filter(Boolean).join(" ");
  let end = text.length; // a regular expression would take long on a long run of dots
  while (end > 0 && ". ".includes(text[end - 1])) end--;
  return text.slice(0, end);
}

function closure(id, next) {
  const found = new Set([id]);
  for (const one of found) next(one).forEach((other) => found.add(other)); // the set grows during the iteration
  return found;
}

function newTrace(id, round, index, parents) {
  return {
    id,
    round,
    index,
    parents,
    text: id, // the key of its text
    inherited: false, // whether it was not generated, but has all of a parent
    state: "waiting",
    version: 0,
    tokens: 0,
    attempt: 0,
    answer: "",
    key: "", // the same for equal answers, "" for none
    chars: 0,
    maxTokens: null,
    seed: null,
    promptTokens: null,
    took: null, // seconds in the engine
    reasoningEnd: 0,
    answerAt: null,
    closedAt: null, // tokens after which the run closed the thinking
    closingTokens: 0,
    confidence: null, // the line of its log-probabilities
    tail: null,
    summary: null,
    prompt: null,
    compared: [], // [trace, trace, verdict]: comparisons by computer algebra after which the run went on
    retries: [],
    spans: [],
  };
}

const HANDLERS = {
  run_start: (run, line) => (run.start = line),
  run_setup(run, line) {
    run.setup = line;
    run.isPlanned = line.planned !== null;
    for (const [id, parents] of line.planned ?? []) {
      const { round, index } = placeOf(id);
      if (!run.traces.has(id)) run.traces.set(id, newTrace(id, round, index, parents));
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
    if (!trace.prompt) trace.parents = line.parent_trace_ids;
    Object.assign(trace, {
      state: "running",
      seed: line.seed,
      maxTokens: line.max_tokens,
      promptTokens: line.prompt_token_count,
    });
  },
  trace_clock(run, line) {
    const trace = run.of(line);
    run.hasClock = true;
    run.clockEnd = Math.max(run.clockEnd, line.elapsed_s);
    const { purpose, attempt, elapsed_s: start } = line;
    for (const name of ["steps", "drafted", "accepted"]) run[name] += line[name] ?? 0;
    if (line.phase === "ended") closeSpan(trace, purpose, start, "");
    else trace.spans.push({ purpose, attempt, start, end: null, outcome: "running" });
  },
  trace_checkpoint(run, line) {
    const trace = run.of(line);
    const closing = trace.closedAt !== null && line.position + line.tokens > trace.closedAt ? trace.closingTokens : 0;
    trace.tokens = Math.max(trace.tokens, line.position + line.tokens - closing);
  },
  trace_confidence(run, line) {
    run.of(line).confidence = line;
  },
  thinking_closed(run, line) {
    Object.assign(run.of(line), { closedAt: line.position, closingTokens: line.tokens });
  },
  trace_retry(run, line) {
    const trace = run.of(line);
    run.retries.push(line);
    trace.retries.push(line);
    const failed = trace.spans.filter((span) => span.purpose === line.purpose).at(-1);
    if (failed) failed.outcome = "failed";
    if (line.purpose === "trace") {
      Object.assign(trace, { state: "waiting", tokens: 0, attempt: line.attempt, closedAt: null });
    }
  },
  trace_complete(run, line) {
    const trace = run.of(line);
    const span = trace.spans.filter(({ purpose }) => purpose === "trace").at(-1);
    if (span) span.outcome = line.finish_reason === "error" ? "failed" : line.finish_reason;
    Object.assign(trace, {
      state: ENDS[line.finish_reason] ?? "failed",
      tokens: line.generated_tokens,
      took: secondsOf(trace) ?? line.elapsed_s,
      chars: line.chars,
      reasoningEnd: line.reasoning_end,
      answerAt: line.answer_at,
      answer: line.answer,
      weak: line.weak, // the text does not mark it as the answer
      key: line.key,
    });
  },
  trace_inherited(run, line) {
    const parent = run.trace(line.from_trace_id) ?? newTrace("", 0, 0, []);
    const { text, chars, reasoningEnd, answerAt, answer, weak, key, tail } = parent;
    const copied = { text, chars, reasoningEnd, answerAt, answer, weak, key, tail };
    Object.assign(run.of(line), copied, { state: "done", inherited: true, parents: [parent.id].filter(Boolean) });
  },
  answers_compared: (run, line) => (run.of(line).compared = line.verdicts),
  stopped_early(run, line) {
    run.stopped = line;
    for (const id of line.cancelled_trace_ids) {
      const trace = run.traces.get(id);
      if (trace && !FINISHED.has(trace.state)) trace.state = "cancelled";
    }
  },
  summary_complete: (run, line) => (run.of(line).summary = line),
  attempt_discarded() {}, // its tokens are not in the total of the run
  judgement(run, line) {
    run.judgements.push(line);
    run.clockEnd = Math.max(run.clockEnd, line.started_s + line.elapsed_s);
  },
  tail_extracted: (run, line) => (run.of(line).tail = line),
  aggregation_prompt(run, line) {
    const trace = run.of(line);
    trace.prompt = line;
    trace.parents = line.selected_tail_trace_ids;
  },
  round_complete: (run, line) => run.rounds.set(line.round, line),
  selection(run, line) {
    run.selection = line;
    run.isOpen = line.equivalence === "open"; // answers are whole texts, of which the traces have the beginnings
    line.candidate_trace_ids.forEach((id, i) => {
      if (run.isOpen) return;
      if (run.traces.has(id)) run.traces.get(id).answer = line.answers[i] ?? "";
    });
    setPath(run, line);
  },
  final(run, line) {
    run.final = line;
    if (line.keys) setPath(run, line); // a file without a selection
  },
  model_stats: (run, line) => (run.stats = line),
  run_end: (run, line) => (run.end = line),
  error: (run, line) => run.errors.push(line),
};

// The seconds of a trace in the engine, over all attempts and sessions. null without their times.
function secondsOf(trace) {
  const spans = trace.spans.filter(({ purpose, end }) => purpose === "trace" && end !== null);
  return spans.length ? spans.reduce((sum, { start, end }) => sum + end - start, 0) : null;
}

function setPath(run, { keys, path }) {
  for (const [id, key] of Object.entries(keys)) if (run.traces.has(id)) run.traces.get(id).key = key;
  run.path = path && { ...path, carriers: new Set(path.carriers) };
}

function closeSpan(trace, purpose, at, outcome) {
  const span = trace.spans.filter((s) => s.purpose === purpose && s.end === null).at(-1);
  if (span) Object.assign(span, { end: Math.max(at, span.start), outcome });
}
