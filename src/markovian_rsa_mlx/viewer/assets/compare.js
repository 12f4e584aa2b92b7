// Two traces side by side, with the text that both contain.

import { amount, h, missing, modelText } from "./dom.js";
import { sharedRuns } from "./shared_spans.js";
import { traceLink, verdictSign } from "./table.js";
import { textView } from "./text.js";

export async function comparePage(view, first, second) {
  const traces = [first, second].map((id) => view.run.trace(id));
  if (traces.includes(undefined)) return [h("h1", {}, "No such traces"), h("p", {}, "This run does not have both.")];
  const [left, right] = await Promise.all(traces.map((trace) => view.texts.get(trace.text)));
  const runs = sharedRuns(left, right);
  const mark = (from, to, other) => ({ from, to, kind: "kept", title: `also in ${other}` });
  return [
    h(
      "div",
      { class: "heading" },
      h("h1", {}, `${first} and ${second}`),
      h(
        "nav",
        { class: "tools", "aria-label": "Traces" },
        h("a", { href: "#/" }, "Overview"),
        h("a", { href: `#/compare/${second}/${first}` }, "Swap"),
      ),
    ),
    h(
      "p",
      { class: "minor" },
      h("mark", { class: "kept" }, "This"),
      ` is in both: ${amount(runs.length, "run")} of characters.`,
    ),
    h(
      "div",
      { class: "sides" },
      side(view, traces[0], left, runs.map(({ from, to }) => mark(from, to, second))),
      side(view, traces[1], right, runs.map(({ from, to, at }) => mark(at, at + to - from, first))),
    ),
  ];
}

function side(view, trace, text, marks) {
  return h(
    "section",
    { "aria-label": trace.id },
    h("h2", {}, traceLink(trace.id)),
    h(
      "p",
      {},
      `${view.stateWord(trace)}, ${amount(trace.tokens, "token")}; answer: `,
      trace.answer ? modelText(trace.answer, 80) : "none",
      " ",
      verdictSign(view.verdict(trace)),
    ),
    text ? textView(text, marks, `Text of ${trace.id}`) : missing("Its text is not in the trail."),
  );
}
