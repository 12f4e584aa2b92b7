// Two traces side by side, with what stands in both.

import { amount, h, said } from "./dom.js";
import { sharedRuns } from "./spans.js";
import { traceLink, verdictSign } from "./table.js";
import { textView } from "./text.js";

export async function comparePage(view, first, second) {
  const traces = [first, second].map((id) => view.run.trace(id));
  if (traces.includes(undefined)) return [h("h1", {}, "No such traces"), h("p", {}, "This run has not both of them.")];
  const [left, right] = await Promise.all(traces.map((trace) => view.texts.get(trace.id)));
  const runs = sharedRuns(left, right);
  const mark = (from, to, other) => ({ from, to, kind: "kept kept-0", title: `stands in ${other} too` });
  const sides = [
    [traces[0], left, runs.map(({ from, to }) => mark(from, to, second))],
    [traces[1], right, runs.map(({ from, to, at }) => mark(at, at + to - from, first))],
  ];
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
      h("mark", { class: "kept kept-0" }, "This"),
      ` stands in both: ${amount(runs.length, "run")} of characters.`,
    ),
    h(
      "div",
      { class: "sides" },
      sides.map(([trace, text, marks]) =>
        h(
          "section",
          { "aria-label": trace.id },
          h("h2", {}, traceLink(trace.id)),
          h(
            "p",
            {},
            `${view.stateWord(trace)}, ${amount(trace.tokens, "token")}; answer: `,
            trace.answer ? said(trace.answer, 80) : "none",
            " ",
            verdictSign(view.verdict(trace)),
          ),
          text
            ? textView(text, marks, `Text of ${trace.id}`)
            : h("p", { class: "missing" }, "Its text is not in the trail."),
        ),
      ),
    ),
  ];
}
