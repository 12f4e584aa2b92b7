// All traces as a table: what the picture shows, in words.

import { count, duration, h, percent, said, separated } from "./dom.js";

export function traceLink(id, extra = {}) {
  return h("a", { href: `#/trace/${id}`, ...extra }, id);
}

export function verdictSign(verdict) {
  if (verdict === null) return "";
  return h("span", { class: verdict ? "right" : "wrong" }, verdict ? "✓ right" : "✗ wrong");
}

const share = (kept) => (kept === undefined ? "" : ` (${percent(kept)})`);

// What was kept of a tail is known only after the table is shown.
export function fillShare(page, edge, kept) {
  const cell = [...page.querySelectorAll("[data-kept]")].find((one) => one.dataset.kept === edge);
  if (cell) cell.textContent = share(kept);
}

// On a phone each row is a card, and its cells name themselves.
function cell(label, attributes, content) {
  return h("td", { "data-label": label, ...attributes }, content);
}

export function traceTable(view) {
  const { run } = view;
  const right = view.knowsRight();
  const head = [
    "Trace",
    "State",
    "Tokens",
    "Answer",
    right && "Verdict",
    "Read the tails of (kept)",
    "Was read by",
    "Began",
    "Took",
  ].filter(Boolean);
  const rows = run.all().map((trace) => {
    const began = trace.spans.find((span) => span.purpose === "trace");
    const reads = trace.parents.map((parent) => {
      const edge = `${parent}>${trace.id}`;
      return h("span", { class: "nowrap" }, traceLink(parent), h("span", { "data-kept": edge }, share(view.kept.get(edge))));
    });
    return h(
      "tr",
      { class: view.isWinner(trace) ? "winner" : null },
      h("th", { scope: "row" }, traceLink(trace.id), view.isWinner(trace) ? " ★" : ""),
      h("td", {}, view.stateWord(trace)),
      cell("Tokens", { class: "number" }, count(trace.tokens)),
      cell("Answer", {}, trace.answer ? said(trace.answer, 60) : h("span", { class: "minor" }, "none")),
      right ? h("td", {}, verdictSign(view.verdict(trace))) : null,
      cell("read", {}, separated(reads)),
      cell("read by", {}, separated(run.children(trace.id).map((child) => traceLink(child.id)))),
      cell("began", { class: "number" }, began ? `${began.start.toFixed(1)} s` : ""),
      cell("took", { class: "number" }, trace.elapsed === null ? "" : duration(trace.elapsed)),
    );
  });
  return h(
    "div",
    { class: "scroller", tabindex: 0, role: "region", "aria-label": "Table of the traces" },
    h(
      "table",
      { class: "cards" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          head.map((name) => h("th", { scope: "col" }, name)),
        ),
      ),
      h("tbody", {}, rows),
    ),
  );
}
