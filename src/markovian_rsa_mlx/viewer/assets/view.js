// What all parts of the page share: the run, its texts, colours of answers, verdicts, what was kept of tails.

import { normalise } from "./answers.js";
import { FINISHED } from "./run.js";
import { keptShare, sharedRuns } from "./spans.js";
import { answerPath } from "./story.js";
import { STATE_WORDS } from "./picture.js";

const COLOURS = 6;

export class View {
  constructor(run, texts, about) {
    Object.assign(this, {
      run,
      texts,
      about,
      reference: about.reference ?? "",
      node: null,
      kept: new Map(),
      colours: new Map(),
    });
    this.refresh();
  }

  // Derive again what depends on the run's lines.
  refresh() {
    this.path = answerPath(this.run);
    const sizes = new Map();
    for (const trace of this.run.all()) {
      const key = this.run.key(trace);
      if (key) sizes.set(key, (sizes.get(key) ?? 0) + 1 + (key === this.path?.key ? 1e6 : 0));
    }
    const ranked = [...sizes].sort(([, a], [, b]) => b - a).slice(0, COLOURS);
    this.colours = new Map(ranked.map(([key], i) => [key, i]));
    this.classes = sizes.size;
  }

  colourOf(key) {
    return key ? (this.colours.get(key) ?? "other") : "none";
  }

  colour(trace) {
    return this.colourOf(this.run.key(trace));
  }

  hasOtherColours() {
    return this.classes > this.colours.size;
  }

  isWinner(trace) {
    return trace.id === (this.run.selection?.chosen_trace_id ?? this.run.final?.final_trace_id);
  }

  // true, false, or null where no reference answer is known.
  verdict(trace) {
    if (!FINISHED.has(trace.state)) return null;
    const known = this.about.verdicts?.[trace.id];
    if (known !== undefined && this.reference === (this.about.reference ?? "")) return known;
    if (!this.reference) return null;
    return normalise(trace.answer) !== "" && normalise(trace.answer) === normalise(this.reference);
  }

  knowsRight() {
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

  // The one box of the picture that the Tab key reaches.
  atNode(trace) {
    if (this.node && this.run.trace(this.node)) return this.node === trace.id;
    return trace === (this.run.all().find((one) => this.isWinner(one)) ?? this.run.all().at(-1));
  }

  // The runs that a trace shares with each of its parents' tails: [{parent, tail, runs}]; `pause` comes between them.
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

  // Work out, a trace at a time and while the browser is idle, what was kept of every tail; `isWanted` is asked between.
  async keepShares(tell, isWanted) {
    const idle = globalThis.requestIdleCallback ?? ((call) => setTimeout(call, 20));
    const pause = () => new Promise((done) => idle(done, { timeout: 300 }));
    for (const trace of this.run.all()) {
      const open = trace.parents.filter(
        (parent) => !this.kept.has(`${parent}>${trace.id}`) && this.run.trace(parent)?.tail,
      );
      if (!open.length || !trace.chars) continue;
      await this.shared(trace, pause);
      if (!isWanted()) return;
      open.forEach((parent) => tell(`${parent}>${trace.id}`, this.kept.get(`${parent}>${trace.id}`) ?? 0));
    }
  }
}
