// All traces as a table: the contents of the lineage graph in words.

import { count, duration, h, modelText, percent, scroller, separated, table } from "./dom.js";

export function traceLink(id) {
  return h("a", { href: `#/trace/${id}` }, id);
}

export function verdictSign(verdict) {
  if (verdict === null) return "";
  return h("span", { class: verdict ? "right" : "wrong" }, verdict ? "✓ right" : "✗ wrong");
}

export function tokensOf(view, trace) {
  return count(view.tokens(trace)) + (trace.maxTokens ? ` of ${count(trace.maxTokens)}` : "");
}

// The traces in the engine with what they write. null if none is running.
export function runningTable(view) {
  const traces = view.run.all().filter((trace) => view.state(trace) === "running");
  if (!traces.length) return null;
  const rows = traces.map((trace) => {
    const { speed, lines = [] } = view.live(trace) ?? {};
    return h(
      "tr",
      {},
      h("th", { scope: "row" }, traceLink(trace.id)),
      cell("Tokens", { class: "number" }, tokensOf(view, trace)),
      cell("Tokens/s", { class: "number" }, speed === undefined ? "" : speed.toFixed(1)),
      h("td", { class: "last-lines" }, lines.map((line) => h("div", {}, modelText(line, 200)))),
    );
  });
  const isOurs = view.progress !== null;
  const words = "Another process runs them: their texts appear when they finish.";
  return [table("cards running-traces", ["Trace", "Tokens", "Tokens/s", "Last lines"], rows), isOurs ? null : h("p", { class: "minor" }, words)];
}

const share = (kept) => (kept === undefined ? "" : ` (${percent(kept)})`);

// Write the share of a tail that was kept into the page, once it is known.
export function fillShare(page, edge, kept) {
  const place = [...page.querySelectorAll("[data-kept]")].find((one) => one.dataset.kept === edge);
  if (place) place.textContent = share(kept);
}

// On a phone each row is a card, and a cell shows its label.
function cell(label, attributes, content) {
  return h("td", { "data-label": label, ...attributes }, content);
}

export function traceTable(view) {
  const { run } = view;
  const hasVerdicts = view.hasVerdicts();
  const names = ["Trace", "State", "Tokens", "Answer", hasVerdicts && "Verdict"];
  const head = [...names, "Read the tails of (part kept)", "Was read by", "Started", "Generating", "Waiting"].filter(Boolean);
  const rows = run.all().map((trace) => {
    const first = trace.spans.find((span) => span.purpose === "trace");
    const waited = run.waited(trace);
    const parents = trace.parents.map((parent) => {
      const edge = `${parent}>${trace.id}`;
      const kept = h("span", { "data-kept": edge }, share(view.kept.get(edge)));
      return h("span", { class: "nowrap" }, traceLink(parent), kept);
    });
    return h(
      "tr",
      { class: view.isWinner(trace) ? "winner" : null },
      h("th", { scope: "row" }, traceLink(trace.id), view.isWinner(trace) ? " ★" : ""),
      h("td", {}, view.stateWord(trace)),
      cell("Tokens", { class: "number" }, count(view.tokens(trace))),
      cell("Answer", {}, trace.answer ? [modelText(trace.answer, 60), trace.weak ? " (weak)" : ""] : h("span", { class: "minor" }, "none")),
      hasVerdicts ? h("td", {}, verdictSign(view.verdict(trace))) : null,
      cell("read", {}, separated(parents)),
      cell("read by", {}, separated(run.children(trace.id).map((child) => traceLink(child.id)))),
      cell("started", { class: "number" }, first ? `${first.start.toFixed(1)} s` : ""),
      cell("generating", { class: "number" }, trace.took === null ? "" : duration(trace.took)),
      cell("waiting", { class: "number" }, waited === null ? "" : duration(waited)),
    );
  });
  return scroller("Table of the traces", table("cards", head, rows));
}
