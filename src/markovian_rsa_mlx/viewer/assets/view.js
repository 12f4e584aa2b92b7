// Shared by all parts of the page: the run, its texts, the colours of answers, verdicts, and shares of tails that were kept.

import { STATE_WORDS } from "./lineage_graph.js";
import { FINISHED, normalise } from "./run.js";
import { keptShare, sharedRuns } from "./shared_spans.js";

const COLOURS = 6;

export class View {
  constructor(run, texts, about) {
    Object.assign(this, { run, texts, about, reference: about.reference ?? "", node: null });
    this.kept = new Map(); // "parent>child" to the share of the parent's tail that is in the child
    this.progress = null; // of the traces that run now, from the server that runs them
    this.pulse = 0;
    this.colours = new Map();
    this.refresh();
  }

  // Derive again all that depends on the lines of the run. An answer keeps its colour while a live run goes on;
  // a finished run has the colours of its file's page, however its lines came in.
  refresh() {
    const winner = this.run.winner?.key;
    const sizes = new Map();
    for (const { key } of this.run.all()) {
      if (key) sizes.set(key, (sizes.get(key) ?? 0) + 1 + (key === winner ? 1e6 : 0));
    }
    this.ranked = [...sizes.keys()].sort((a, b) => sizes.get(b) - sizes.get(a)); // the answer of the run first
    const kept = this.run.finished ? [] : [...this.colours].filter(([key]) => sizes.has(key));
    if (winner && !this.colours.has(winner) && kept.length === COLOURS) kept.pop();
    this.colours = new Map(kept);
    const free = Array.from({ length: COLOURS }, (_, i) => i).filter((i) => !kept.some(([, colour]) => colour === i));
    const open = this.ranked.filter((key) => !this.colours.has(key));
    free.forEach((colour, i) => i < open.length && this.colours.set(open[i], colour));
  }

  colourOf(key) {
    return key ? (this.colours.get(key) ?? "other") : "none";
  }

  isWinner(trace) {
    return trace === this.run.winner;
  }

  // true, false, or null if no reference answer is known. A trace that did not finish is not wrong.
  verdict(trace) {
    if (!FINISHED.has(trace.state)) return null;
    const known = this.about.verdicts?.[trace.id];
    const isKnown = known !== undefined && this.reference === (this.about.reference ?? "");
    if (!isKnown && !this.reference) return null;
    const isRight = isKnown ? known : this.isReference(trace.answer);
    return isRight || trace.state === "done" ? isRight : null;
  }

  isReference(answer) {
    return normalise(answer) !== "" && normalise(answer) === normalise(this.reference);
  }

  hasVerdicts() {
    return this.run.all().some((trace) => this.verdict(trace) !== null);
  }

  progressed(progress) {
    this.progress = progress;
    this.pulse++;
    for (const id of Object.keys(progress.traces)) if (this.run.traces.has(id)) this.run.trace(id).version++;
  }

  // The progress of a trace {tokens, speed, lines}, if it runs and its server reports it.
  live(trace) {
    return this.state(trace) === "running" ? this.progress?.traces[trace.id] : undefined;
  }

  tokens(trace) {
    return Math.max(trace.tokens, this.live(trace)?.tokens ?? 0);
  }

  get running() {
    return !this.run.finished && this.about.running === true;
  }

  state(trace) {
    return trace.state === "running" && !this.running ? "interrupted" : trace.state;
  }

  stateWord(trace) {
    return STATE_WORDS[this.state(trace)];
  }

  // Whether the Tab key reaches the box of this trace: one of the graph.
  isTabStop(trace) {
    if (this.node && this.run.trace(this.node)) return this.node === trace.id;
    return trace === (this.run.winner ?? this.run.all().at(-1));
  }

  // The runs that a trace shares with the tails of its parents: [{parent, tail, runs}]. Waits for `pause` between them.
  async shared(trace, pause = async () => {}) {
    const text = await this.texts.get(trace.text);
    const found = [];
    for (const parent of trace.parents) {
      await pause();
      const tail = await this.texts.tail(this.run.trace(parent));
      const runs = sharedRuns(text, tail);
      if (tail && FINISHED.has(trace.state)) this.kept.set(`${parent}>${trace.id}`, keptShare(tail, runs));
      found.push({ parent, tail, runs });
    }
    return found;
  }

  // Compute the kept share of every tail, one trace at a time while the browser is idle, as long as `isWanted()`.
  async keepShares(onShare, isWanted) {
    const idle = globalThis.requestIdleCallback ?? ((call) => setTimeout(call, 20));
    const pause = () => new Promise((done) => idle(done, { timeout: 300 }));
    for (const trace of this.run.all()) {
      const isOpen = (parent) => !this.kept.has(`${parent}>${trace.id}`) && this.run.trace(parent)?.tail;
      const open = trace.parents.filter(isOpen);
      if (!open.length || !trace.chars) continue;
      await this.shared(trace, pause);
      if (!isWanted()) return;
      open.forEach((parent) => onShare(`${parent}>${trace.id}`, this.kept.get(`${parent}>${trace.id}`) ?? 0));
    }
  }
}
