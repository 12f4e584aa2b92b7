// Search in the question and in all that traces said.

import { amount, h, visible } from "./dom.js";
import { traceLink } from "./table.js";

const SNIPPETS = 3;
const AROUND = 60;
const MOST = 1000;

export async function searchPage(view, query) {
  if (!query.trim())
    return [h("h1", {}, "Search"), h("p", {}, "Type what to look for; capital letters count for nothing.")];
  const wanted = new RegExp(query.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&"), "giu");
  const results = [];
  let hits = 0;
  for (const trace of view.run.all()) {
    const found = matches(await view.texts.get(trace.id), wanted);
    const summary = matches(await view.texts.get(`${trace.id}/summary`), wanted);
    hits += found.length + summary.length;
    if (found.length || summary.length)
      results.push(result(trace, await view.texts.get(trace.id), found, summary.length));
  }
  const inQuestion = matches(view.run.start?.prompt ?? "", wanted).length;
  return [
    h("h1", {}, "Search"),
    h(
      "p",
      {},
      `${amount(hits, "place")} in ${amount(results.length, "trace")}`,
      inQuestion ? `, ${inQuestion} in the question` : "",
      ".",
    ),
    h("ol", { class: "results" }, results),
  ];
}

function matches(text, wanted) {
  const found = [];
  for (const match of text.matchAll(wanted)) {
    found.push({ at: match.index, length: match[0].length });
    if (found.length === MOST) break;
  }
  return found;
}

function result(trace, text, found, summary) {
  return h(
    "li",
    {},
    h(
      "h2",
      {},
      traceLink(trace.id),
      h(
        "span",
        { class: "minor" },
        ` ${found.length === MOST ? "at least " : ""}${amount(found.length, "place")}${summary ? `, ${summary} in its summary` : ""}`,
      ),
    ),
    h(
      "ul",
      {},
      found
        .slice(0, SNIPPETS)
        .map(({ at, length }) =>
          h(
            "li",
            {},
            h(
              "a",
              { href: `#/trace/${trace.id}/at/${at}/${length}` },
              h(
                "bdi",
                {},
                "… ",
                visible(text.slice(Math.max(0, at - AROUND), at)),
                h("mark", { class: "found" }, visible(text.slice(at, at + length))),
                visible(text.slice(at + length, at + length + AROUND)),
                " …",
              ),
            ),
          ),
        ),
    ),
  );
}
