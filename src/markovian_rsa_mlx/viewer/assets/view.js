// Shared by all parts of the page: the run, its texts, the colours of answers, verdicts, and shares of tails that were kept.

import { STATE_WORDS } from "./lineage_graph.js";
import { FINISHED, normalise } from "./run.js";
import { keptShare, sharedRuns } from "./shared_spans.js";

const COLOURS = 6;

export class View {
  constructor(run, texts, about) {
    Object.assign(this, { run, texts, about, reference: about.reference ?? "", node: null });
    this.kept = new Map(); // "parent>child" to the share of the parent's tail that is in the child
    this.refresh();
  }

  // Derive again all that depends on the lines of the run.
  refresh() {
    const winner = this.run.winner?.key;
    const sizes = new Map();
    for (const { key } of this.run.all()) {
      if (key) sizes.set(key, (sizes.get(key) ?? 0) + 1 + (key === winner ? 1e6 : 0));
    }
    const ranked = [...sizes].sort(([, a], [, b]) => b - a).slice(0, COLOURS);
    this.colours = new Map(ranked.map(([key], i) => [key, i]));
    this.hasOtherColours = sizes.size > this.colours.size;
  }

  colourOf(key) {
    return key ? (this.colours.get(key) ?? "other") : "none";
  }

  isWinner(trace) {
    return trace === this.run.winner;
  }

  // true, false, or null if no reference answer is known.
  verdict(trace) {
    if (!FINISHED.has(trace.state)) return null;
    const known = this.about.verdicts?.[trace.id];
    if (known !== undefined && this.reference === (this.about.reference ?? "")) return known;
    if (!this.reference) return null;
    return normalise(trace.answer) !== "" && normalise(trace.answer) === normalise(this.reference);
  }

  hasVerdicts() {
    return this.run.all().some((trace) => this.verdict(trace) !== null);
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
    const text = await this.texts.get(trace.id);
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
