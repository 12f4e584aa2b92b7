// The sections of a trace for its summary, and for a tail that is not a part of its text.

import { amount, downloadButton, h } from "./dom.js";
import { textView } from "./text.js";

export async function summarySection(view, trace, place) {
  if (!trace.summary) return null;
  const text = await view.texts.get(`${trace.id}/summary`);
  const prompt = await view.texts.get(`${trace.id}/summary-prompt`);
  const { tail } = trace;
  const isTail = tail?.text.endsWith("/summary");
  const marks = isTail ? [{ from: tail.from, to: tail.to, kind: "carried", title: "carried forward" }] : [];
  return h(
    "section",
    { id: "summary" },
    h("h2", {}, `Its summary, ${amount(trace.summary.generated_tokens, "token")}`),
    placedText(text, marks, "Summary", place, "summary"),
    downloadButton("Download summary", `${trace.id}-summary.txt`, text),
    h(
      "details",
      { open: place?.part === "summary-prompt" },
      h("summary", {}, "Its prompt"),
      placedText(prompt, [], null, place, "summary-prompt"),
      downloadButton("Download its prompt", `${trace.id}-summary-prompt.txt`, prompt),
    ),
  );
}

export async function tailSection(view, trace, place) {
  if (!trace.tail) return null;
  const text = await view.texts.tail(trace);
  const isApart = trace.tail.text === `${trace.text}/tail`;
  return h(
    "section",
    { id: "tail" },
    isApart ? [h("h2", {}, "Its tail"), placedText(text, [], "Tail", place, "tail")] : null,
    text ? downloadButton("Download tail", `${trace.id}-tail.txt`, text) : null,
  );
}

// A text that starts `from` characters into a part. The place that the address names in the part is marked and shown.
export function placedText(text, marks, label, place, part, from = 0) {
  const at = place?.part === part ? place.at - from : -1;
  if (at < 0 || at >= text.length) return textView(text, marks, label);
  const view = textView(text, [...marks, { from: at, to: at + place.length, kind: "found", title: "found" }], label);
  view.found = at;
  return view;
}
