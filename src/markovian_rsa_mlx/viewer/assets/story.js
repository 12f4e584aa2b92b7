// How the answer came about: whose tail carried it on, where it was found, and where it was lost.

import { FINISHED } from "./run.js";

export function ancestors(run, id) {
  return closure(id, (one) => run.trace(one)?.parents ?? []);
}

export function descendants(run, id) {
  return closure(id, (one) => run.children(one).map((trace) => trace.id));
}

function closure(id, next) {
  const found = new Set();
  const open = [id];
  while (open.length) {
    for (const other of next(open.pop())) {
      if (!found.has(other)) {
        found.add(other);
        open.push(other);
      }
    }
  }
  return found;
}

// The winner's answer among its ancestors: null while nothing is chosen, or where the winner has no answer.
// `carriers` gave that answer themselves; `origins` did though none of their parents had it; `lost` read it in a
// parent's tail and answered otherwise; `edges` are the "parent>child" tails that it went through.
export function answerPath(run) {
  const winner = run.trace(run.selection?.chosen_trace_id ?? run.final?.final_trace_id);
  const key = winner ? run.key(winner) : "";
  if (!key) return null;
  const family = [winner.id, ...ancestors(run, winner.id)].map((id) => run.trace(id)).filter(Boolean);
  const has = (id) => run.key(run.trace(id)) === key;
  const line = { winner, key, carriers: new Set(), origins: [], lost: [], edges: new Set() };
  const open = [winner.id];
  while (open.length) {
    const trace = run.trace(open.pop());
    if (line.carriers.has(trace.id)) continue;
    line.carriers.add(trace.id);
    const from = trace.parents.filter(has);
    from.forEach((id) => line.edges.add(`${id}>${trace.id}`));
    if (!from.length) line.origins.push(trace);
    open.push(...from);
  }
  line.lost = family.filter((trace) => FINISHED.has(trace.state) && !has(trace.id) && trace.parents.some(has));
  line.origins.sort((a, b) => a.round - b.round || a.index - b.index);
  return line;
}

// One way from an origin down to the winner, the earliest origin first.
export function chain(run, line) {
  const ids = [line.winner.id];
  for (;;) {
    const parents = run.trace(ids[0]).parents.filter((id) => line.edges.has(`${id}>${ids[0]}`) && !ids.includes(id));
    if (!parents.length) return ids;
    ids.unshift(parents[0]);
  }
}
