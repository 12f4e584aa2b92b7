// All texts that the page shows, each with its name and links to places in it.

import { modelText } from "./dom.js";
import { traceLink } from "./table.js";
import { rebuildPrompt } from "./text_store.js";

// Yields {name, text, link}: `link(at, length)` returns the attributes of a link to these characters.
export async function* searchableTexts(view) {
  yield* overviewTexts(view);
  yield* promptTexts(view);
  for (const trace of view.run.all()) yield* traceTexts(view, trace);
}

async function* overviewTexts({ run, texts }) {
  if (run.start) yield { name: "Question", text: run.start.prompt, link: toSection("question") };
  for (const { role, text, place } of run.otherMessages())
    yield { name: [`Message ${place} it: `, modelText(role, 30)], text, link: toSection("question") };
  if (run.final && !(await texts.get(run.final.final_trace_id)).includes(run.final.final_text))
    yield { name: "The text of the answer", text: run.final.final_text, link: toSection("answer") };
  for (const { trace_id, message } of run.retries)
    yield { name: ["Retry of ", traceLink(trace_id)], text: message, link: () => ({ href: `#/trace/${trace_id}` }) };
  for (const { stage, message } of run.errors)
    yield { name: ["Error: ", modelText(stage, 30)], text: message, link: toSection("errors") };
}

// The prompt of round 0, and the static text of the first aggregation prompt: it is the same in all of them.
async function* promptTexts({ run, texts }) {
  const first = run.all().find((trace) => trace.round === 0);
  if (run.setup && first)
    yield { name: "Prompt of round 0", text: run.setup.prompt_text, link: toPart(first.id, "prompt") };
  const reader = run.all().find((trace) => trace.prompt?.rebuilt);
  if (!reader) return;
  const tails = await Promise.all(reader.parents.map((id) => texts.tail(run.trace(id))));
  let from = 0;
  for (const { text, slot } of rebuildPrompt(run.setup, reader.prompt, tails)) {
    const start = from;
    from += text.length;
    const link = (at, length) => toPart(reader.id, "prompt")(start + at, length);
    if (slot === null) yield { name: ["Prompt around the tails, as in ", traceLink(reader.id)], text, link };
  }
}

async function* traceTexts({ texts }, { id, inherited }) {
  if (inherited) return; // its text is found in the trace that was generated
  const link = (at, length) => ({ href: `#/trace/${id}/at/${at}/${length}` });
  yield { name: traceLink(id), text: await texts.get(id), link };
  for (const [part, words] of PARTS) {
    const key = `${id}/${part}`;
    if (texts.has(key)) yield { name: [traceLink(id), words], text: await texts.get(key), link: toPart(id, part) };
  }
}

const PARTS = [
  ["summary", ", its summary"],
  ["summary-prompt", ", the prompt of its summary"],
  ["tail", ", its tail"],
  ["prompt", ", its prompt"],
];

function toPart(id, part) {
  return (at, length) => ({ href: `#/trace/${id}/${part}/${at}/${length}` });
}

// The place in a further text of a trace that the address names: {part, at, length}, or null.
export function partOf(hash) {
  const match = /^#\/trace\/[^/]+\/(summary|summary-prompt|tail|prompt)\/(\d+)\/(\d+)$/.exec(hash);
  return match ? { part: match[1], at: Number(match[2]), length: Number(match[3]) } : null;
}

// A link to a section of the overview. Once the overview is shown, the section scrolls into view, opened.
function toSection(id) {
  const show = () => {
    const watcher = new MutationObserver(() => {
      const section = document.getElementById(id);
      if (!section) return;
      watcher.disconnect();
      section.querySelectorAll("details").forEach((one) => (one.open = true));
      requestAnimationFrame(() => section.scrollIntoView());
    });
    watcher.observe(document.getElementById("main"), { childList: true });
  };
  return () => ({ href: "#/", onclick: show });
}
