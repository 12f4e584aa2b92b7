// What is carried on of a trace where it is no piece of its text: its summary, or a tail that was recorded apart.

import { amount, h } from "./dom.js";
import { downloadButton } from "./downloads.js";
import { textView } from "./text.js";

export async function summaryOf(view, trace, place) {
  if (!trace.summary) return null;
  const text = await view.texts.get(`${trace.id}/summary`);
  const prompt = await view.texts.get(`${trace.id}/summary-prompt`);
  const { tail } = trace;
  const carried = tail?.text.endsWith("/summary");
  const marks = carried ? [{ from: tail.from, to: tail.to, kind: "carried", title: "carried on" }] : [];
  return h(
    "section",
    { id: "summary" },
    h("h2", {}, `Its summary, ${amount(trace.summary.generated_tokens, "token")}`),
    foundView(text, marks, "Summary", place, "summary"),
    downloadButton("Download summary", `${trace.id}-summary.txt`, text),
    h(
      "details",
      { open: place?.part === "summary-prompt" },
      h("summary", {}, "The prompt for it"),
      foundView(prompt, [], null, place, "summary-prompt"),
      downloadButton("Download the summary's prompt", `${trace.id}-summary-prompt.txt`, prompt),
    ),
  );
}

export async function tailOf(view, trace, place) {
  if (!trace.tail) return null;
  const text = await view.texts.tail(trace);
  return h(
    "section",
    { id: "tail" },
    trace.tail.text === `${trace.id}/tail`
      ? [h("h2", {}, "What was carried on"), foundView(text, [], "What was carried on", place, "tail")]
      : null,
    text ? downloadButton("Download what was carried on", `${trace.id}-tail.txt`, text) : null,
  );
}

// The view of a text that begins `from` characters into a part; what the address names in it is marked and shown.
export function foundView(text, marks, label, place, part, from = 0) {
  const at = place?.part === part ? place.at - from : -1;
  if (at < 0 || at >= text.length) return textView(text, marks, label);
  const view = textView(text, [...marks, { from: at, to: at + place.length, kind: "found", title: "found" }], label);
  view.found = at;
  return view;
}
